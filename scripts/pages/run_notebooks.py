"""Run notebooks anew and store their outputs: `make notebooks`, or

    python scripts/pages/run_notebooks.py                      # all
    python scripts/pages/run_notebooks.py 01_quickstart ...    # some
    python scripts/pages/run_notebooks.py --tidy               # none: only tidy the stored outputs

What differs from run to run is left out (timings, addresses, how a stream was cut up, live widgets), so that a notebook
whose results haven't changed gives an empty diff. A notebook that fails is not written.

How long each took (with one thread: of the processor's time, so that other programs don't count), and on what, goes
into notebooks/timings.json, from which book/timings.md is made (timings_page.py). An entry is replaced only where the
time differs by more than a third, so that it too stays as it is from run to run."""
import argparse
import base64
import io
import json
import os
import platform
import re
import struct
import sys
import time
import zlib
from pathlib import Path

import nbformat
import timings_page
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
TIMINGS = NOTEBOOKS / "timings.json"
WIDGET = "application/vnd.jupyter.widget-view+json"
KEPT_CELL_METADATA = {"tags", "mystnb", "slideshow", "jp-MarkdownHeadingCollapsed"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Run notebooks anew and store their outputs.")
    parser.add_argument("names", nargs="*", help="notebooks, by name or path (default: all)")
    parser.add_argument("--tidy", action="store_true", help="run nothing: only tidy the outputs as they are stored")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one cell may take (default: "
                                                                 "%(default)s)")
    args = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars in stored outputs
    failed = 0
    for path in [find(name) for name in args.names] or sorted(NOTEBOOKS.glob("*.ipynb")):
        start, used_before = time.perf_counter(), used()
        print(f"{path.name} … ", end="", flush=True)
        if args.tidy:
            print("changed" if store(path, nbformat.read(path, as_version=4)) else "unchanged")
            continue
        try:
            changed = run(path, args.timeout)
        except CellExecutionError as e:
            failed += 1
            print(f"failed\n{e}", file=sys.stderr)
        else:
            seconds = time.perf_counter() - start
            note_time(path.stem, min(seconds, used() - used_before)
                      if os.environ.get("OMP_NUM_THREADS") == "1" else seconds)
            timings_page.write_header(path)
            print(f"{'changed' if changed else 'unchanged'}, {seconds:.0f} s")
    timings_page.write()
    return 1 if failed else 0


def find(name: str) -> Path:
    """The path of a notebook given by path, file name or bare name."""
    for path in (Path(name), NOTEBOOKS / name, NOTEBOOKS / f"{name}.ipynb"):
        if path.is_file():
            return path.resolve()
    sys.exit(f"run_notebooks: no notebook {name!r}; there are "
             f"{', '.join(sorted(p.stem for p in NOTEBOOKS.glob('*.ipynb')))}")


def run(path: Path, timeout: int) -> bool:
    """Execute one notebook in its own folder and write it. Returns whether the file changed."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}},
                   extra_arguments=["--IPKernelApp.log_level=ERROR"]).execute()
    return store(path, notebook)


def store(path: Path, notebook) -> bool:
    """Tidy a notebook and write it. Returns whether the file changed."""
    clean(notebook)
    nbformat.validate(notebook)
    before, after = path.read_text(encoding="utf-8"), nbformat.writes(notebook).rstrip("\n") + "\n"
    if after != before:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(after, encoding="utf-8")
        os.replace(temporary, path)
    return after != before


def used() -> float:
    """Seconds of processor time that this process and the kernels that it has ended have used: what a run with one
    thread takes where nothing else keeps the core busy. The clock on the wall where the system doesn't count it."""
    try:
        import resource
    except ImportError:  # Windows
        return time.perf_counter()
    return sum(o.ru_utime + o.ru_stime
               for o in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def note_time(name: str, seconds: float) -> None:
    """Store how long a notebook took on this machine, start of the kernel included."""
    import torch

    from pdae_lite.checkpoint import write_text

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores)
    machine = {"cpu": processor(), "cores": min(cores, threads),
               "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
               "torch": torch.__version__, "python": platform.python_version()}
    times = json.loads(TIMINGS.read_text(encoding="utf-8")) if TIMINGS.is_file() else {}
    times = {k: v for k, v in times.items() if (NOTEBOOKS / f"{k}.ipynb").is_file()}
    before = times.get(name)
    if before and all(before.get(k) == v for k, v in machine.items()) and 0.75 < seconds / before["seconds"] < 1.33:
        return
    times[name] = {"seconds": round(seconds), "date": time.strftime("%Y-%m-%d"), **machine}
    write_text(TIMINGS, json.dumps(dict(sorted(times.items())), indent=1) + "\n")


def processor() -> str:
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def clean(notebook) -> None:
    """Leave out what differs between two runs that give the same results."""
    kept = {k: v for k, v in notebook.metadata.items()
            if k not in ("widgets", "kernelspec", "language_info", "signature")}
    notebook.metadata = nbformat.from_dict(kept | {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}})
    if notebook.nbformat_minor < 5:  # older notebooks have no cell ids; number them rather than draw them
        notebook.nbformat_minor = 5
    for number, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{number}")
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA})
        if cell.cell_type == "code":
            cell.outputs = [tidy(output) for output in merge_streams(cell.outputs)]


def merge_streams(outputs: list) -> list:
    """All text of one stream in one output, where its first part was: how a stream is cut up depends on timing."""
    merged, streams = [], {}
    for output in outputs:
        if output.output_type != "stream":
            merged.append(output)
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            streams[output.name] = output
            merged.append(output)
    for stream in streams.values():  # a carriage return overwrites its line
        stream.text = re.sub(r"[^\n]*\r(?!\n)", "", stream.text)
    return merged


def tidy(output):
    """Drop a live widget that has HTML beside it, and memory addresses in text; make pictures smaller."""
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = base64.b64encode(smaller(base64.b64decode(data["image/png"]))).decode()
    if WIDGET in data and "text/html" in data:
        del data[WIDGET]
    if "text/plain" in data:
        data["text/plain"] = re.sub(r"\b0x[0-9a-f]{6,}\b", "0x…", data["text/plain"])
    return output


def smaller(png: bytes) -> bytes:
    """The same pixels in fewer bytes, if that can be had: opaque, and rows as they are (in PNG's words, filter type 0),
    which compress better than differences where most of a picture is flat."""
    image = Image.open(io.BytesIO(png))
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    if image.mode != "RGB":
        return png
    width, height = image.size
    rows, step = image.tobytes(), 3 * width
    flat = zlib.compress(b"".join(b"\0" + rows[y : y + step] for y in range(0, height * step, step)), 9)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", flat), (b"IEND", b""))
    made = png[:8] + b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
                              for kind, data in chunks)
    return min(png, made, key=len)


if __name__ == "__main__":
    sys.exit(main())
