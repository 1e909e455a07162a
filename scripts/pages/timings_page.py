"""Write book/timings.md, how long each chapter takes, from what scripts/pages/run_notebooks.py stored in
notebooks/timings.json.

    python scripts/pages/timings_page.py            # a test tells when it has to be run again
"""
import json
import re
from pathlib import Path

import nbformat

from pdae_lite.checkpoint import write_text

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "timings.md"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HEAD = """# Timings

How long `scripts/pages/run_notebooks.py` took to run each chapter from the first cell to the last, with the start of \
the kernel; on one
core, what it took of the core's time. It stores the times, with the machine, whenever it runs a chapter; this page, \
and the minutes at the
head of each chapter, are made from them by `scripts/pages/timings_page.py`. Only what the table names was measured: \
where it says "no
GPU", nothing was timed on one.
"""
TIME = re.compile(r"\*\*Time:\*\*[^.]*(\.\./timings`\))?\.( \(Not\s+measured\s+on\s+a\s+GPU\.\))?")


def chapters() -> list[str]:
    return [p.stem for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def page() -> str:
    path = ROOT / "notebooks" / "timings.json"
    times = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows, machines = [], []
    for name in chapters():
        if name not in times:
            rows.append(f"| {{doc}}`notebooks/{name}` | not measured yet | |")
            continue
        o = times[name]
        cores = "1 core" if o["cores"] == 1 else f"{o['cores']} cores"
        machine = f"{o['gpu'] or 'no GPU'}; {cores} of {o['cpu']}; torch {o['torch']}, Python {o['python']}"
        if machine not in machines:
            machines.append(machine)
        minutes, seconds = divmod(o["seconds"], 60)
        took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        rows.append(f"| {{doc}}`notebooks/{name}` | {took} | {LETTERS[machines.index(machine)]}, {o['date']} |")
    measured = [times[n]["seconds"] for n in chapters() if n in times]
    total = [f"All {len(measured)} together: {round(sum(measured) / 60)} minutes."] if measured else []
    machines = [f"- **Machine {letter}:** {machine}." for letter, machine in zip(LETTERS, machines)]
    return ("\n".join([HEAD, "| chapter | time | machine, date |", "|---|---|---|", *rows, "", *total, "",
                       *machines]).rstrip("\n") + "\n")


def minutes(name: str) -> str:
    """How long a chapter takes, in words for its head."""
    seconds = json.loads((ROOT / "notebooks" / "timings.json").read_text(encoding="utf-8"))[name]["seconds"]
    n = round(seconds / 60)
    took = "under a minute" if seconds < 55 else "about a minute" if n <= 1 else f"about {n} minutes"
    return f"**Time:** {took} on a CPU ({{doc}}`../timings`)."


def write_header(path: Path) -> None:
    """Put the measured minutes into the head of a chapter."""
    notebook = nbformat.read(path, as_version=4)
    head = next(c for c in notebook.cells if c.cell_type == "markdown")
    renewed = TIME.sub(minutes(path.stem).replace("\\", r"\\"), head.source, count=1)
    if renewed != head.source:
        head.source = renewed
        write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def write() -> None:
    write_text(TARGET, page())


if __name__ == "__main__":
    write()
