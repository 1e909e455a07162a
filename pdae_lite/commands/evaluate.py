"""The command `pdae evaluate`: reconstructions of any model, the paper's tables in small (`cli_tables`), and Tables 1 and 2 from the
authors' files."""
import argparse
import json
import platform
import shlex
from datetime import datetime, timezone
from pathlib import Path

from .settings import UsageError

SETS = ("ffhq128", "horse128", "bedroom128", "celeba64")
QUICK = {"count": 4, "samples": 20, "steps": "2", "long_inversion": 4}
PAPER_ONLY = ("released", "sets", "long_inversion", "inception")


def add_evaluate(commands) -> None:
    """Add the command to an argparse subparsers object."""
    from ..reproduction.released_files import LAYOUT

    evaluate = commands.add_parser(
        "evaluate", help="measure reconstructions; the paper's tables, in small or from its authors' files",
        description="Rebuild held-out images from z alone and from z with the inferred x_T: MSE, SSIM, PSNR. With --table: the paper's "
                    "Table 1 (reconstruction), 2 (better samples) or 3 (few-shot generation) in small, on digits or peeps. With "
                    "--protocol paper: Tables 1 and 2, from the files that its authors released.",
        epilog=f"--released DIR holds {LAYOUT}", formatter_class=argparse.RawDescriptionHelpFormatter)
    evaluate.add_argument("--model", metavar="MODEL", help="a model file, or the name of a shipped model (digits)")
    evaluate.add_argument("--data", metavar="DATA",
                          help="images that the model wasn't trained on, as for `pdae train`; of digits, peeps and torchvision sets the "
                               "test images (default: the data that it was trained on). With --protocol paper: an LMDB in Diff-AE's "
                               "layout, or a folder with LMDBs named celebahq, ffhq, horse, bedroom, celeba64")
    evaluate.add_argument("--count", type=int, metavar="N", help="images to rebuild, and real images of Table 2 (default: 1000; with "
                                                                 "--table 50; with --protocol paper all)")
    evaluate.add_argument("--steps", metavar="T,T", help="sampling steps (default: 100; Table 2: 10,20,50,100)")
    evaluate.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all noise (default: %(default)s)")
    evaluate.add_argument("--batch-size", type=int, default=50, metavar="N", help="images at a time (default: %(default)s)")
    evaluate.add_argument("--device", metavar="D", help="where to compute, such as cuda or cpu (default: the accelerator, if there is one)")
    evaluate.add_argument("--json", metavar="FILE",
                          help="also write everything there; with --table as it grows, and the same command goes on where it was stopped")
    evaluate.add_argument("--quick", action="store_true", help="try the command, with few images and steps: its numbers mean nothing")
    tables = evaluate.add_argument_group("the paper's tables")
    tables.add_argument("--table", type=int, choices=(1, 2, 3), help="only this one (default with --protocol paper: 1 and 2)")
    tables.add_argument("--samples", type=int, metavar="N",
                        help="samples for Table 2, and codes in each pool of Table 3 (default: 1000, 10000; with --protocol paper 50000)")
    tables.add_argument("--lpips", action="store_true",
                        help="measure LPIPS in Table 1; fetches AlexNet (233 MB) unless it is in torch's cache. Otherwise there is a "
                             "distance in the features of a small network that ships, which is no LPIPS")
    tables.add_argument("--latent", metavar="FILE", help="the latent DPM of --model FILE, for Tables 2 and 3 in small")
    tables.add_argument("--dtype", choices=("float32", "bf16"), default="float32",
                        help="precision of the networks for Tables 2 and 3 in small; bf16 is checked against float32 on 100 samples "
                             "(default: %(default)s)")
    published = evaluate.add_argument_group("the paper's own protocol")
    published.add_argument("--protocol", choices=("paper",), help="the paper's grid of t, clamps, steps and metrics")
    published.add_argument("--released", metavar="DIR", help="folder with the authors' files; see below")
    published.add_argument("--set", metavar="NAME", dest="sets", help=f"for Table 2: only this model, {', '.join(SETS)} (default: all in DIR)")
    published.add_argument("--long-inversion", type=int, metavar="T",
                       help="Table 1 has one more row, x_T inferred in T steps, as the release's README reports it (default: 1000; 0: no)")
    published.add_argument("--inception", metavar="FILE",
                       help="measure FID, with this TorchScript of Inception (StyleGAN2-ADA's inception-2015-12-05.pt). Otherwise Table 2 "
                            "has a Fréchet distance in the features of a small network that ships, which is no FID")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(args) -> None:
    command = _command(args)
    _check(args)
    for name, value in QUICK.items() if args.quick and args.table != 3 else ():
        if getattr(args, name) is None:
            setattr(args, name, value)
    device = _device(args.device)
    made = {"command": command, "seed": args.seed, "quick": args.quick, "versions": _versions(), "device": _device_name(device),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}

    def write(report: dict) -> None:
        if args.json:
            from ..checkpoint import write_text

            write_text(args.json, json.dumps(report, indent=1, ensure_ascii=False) + "\n")

    if args.table is not None and args.protocol is None:
        from .tables import small_table

        small_table(args, device, made, write)
    else:
        write(made | (_plain if args.protocol is None else _paper)(args, device))


def _check(args) -> None:
    for name, least in (("batch_size", 1), ("count", 2), ("samples", 20)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}; want at least {least}")
    if args.protocol is not None:
        if args.latent is not None or args.dtype != "float32" or args.table == 3:
            raise UsageError("--protocol paper has Tables 1 and 2 from the authors' files; --table 3, --latent and --dtype go with --model")
        if args.model is not None or args.released is None or args.data is None:
            raise UsageError("--protocol paper wants --released DIR and --data LMDB, and no --model")
        args.data = args.data.removeprefix("lmdb:")  # as other commands write it
        if args.sets is not None and args.sets not in SETS:
            raise UsageError(f"--set {args.sets}; want one of {', '.join(SETS)}")
        return
    given = [name for name in PAPER_ONLY if getattr(args, name)]
    if given:
        raise UsageError(f"--{given[0].replace('sets', 'set').replace('_', '-')} is for --protocol paper; add that")
    given = [name for name in ("samples", "lpips", "latent") if getattr(args, name) and args.table is None]
    if given or args.dtype != "float32" and args.table is None:
        raise UsageError(f"--{[*given, 'dtype'][0]} is for --table; add that")
    if args.model is None:
        raise UsageError("--model is missing; name a model file or a shipped model (digits), or add --protocol paper --released DIR")


# ---- any model --------------------------------------------------------------------------------------------------------


def _plain(args, device) -> dict:
    from torch.utils.data import Subset

    from ..reproduction.protocol import reconstruction
    from .doctor import _open
    from .models import fingerprint, load_autoencoder

    model = load_autoencoder(args.model).to(device).requires_grad_(False)
    name = args.data or model.metadata.get("data")
    if not name:
        raise UsageError(f"{args.model} doesn't say which data it was trained on; add --data DATA, images that it hasn't seen")
    images = _open(name, model, "test")
    count = min(args.count or 1000, len(images))
    results = {}
    for steps in _steps(args, "100"):
        rows = reconstruction(model, Subset(images, range(count)), steps, args.seed, args.batch_size, progress=True)
        print(f"\nReconstructions of {args.model}: {count} images of {name}, {steps} steps; means with 95 % intervals, on [0, 1]")
        _print_table(["", *next(iter(rows.values()))], [[row, *map(_shown, columns.values())] for row, columns in rows.items()])
        results[str(steps)] = _numbers(rows)
    return {"model": fingerprint(args.model), "data": name, "counts": {"images": count}, "reconstruction": results}


# ---- the paper's tables -----------------------------------------------------------------------------------------------


def _paper(args, device) -> dict:
    from ..reproduction.published import TABLE_1_MODEL
    from ..reproduction.released_files import LMDBS, find_released, holds_one_model

    found = find_released(args.released, args.sets or "released")
    if holds_one_model(args.released):
        names = {1: [*found], 2: [*found]}
    else:
        names = {1: [TABLE_1_MODEL], 2: [n for n in SETS if args.sets == n or args.sets is None and n in found] or [TABLE_1_MODEL]}
    lmdbs = [LMDBS[n] for n in names[2] if n in LMDBS]
    if args.table != 1 and len(lmdbs) > 1 and not any((Path(args.data) / n).exists() for n in lmdbs):
        raise UsageError(f"--data {args.data} is one LMDB, but Table 2 is of {', '.join(names[2])}; name the one that it belongs to by "
                         f"--set, or give a folder with LMDBs named {', '.join(lmdbs)}")
    report: dict = {"files": {}, "notes": []}
    for table, measure in ((1, _table_1), (2, _table_2)):
        for name in names[table] if args.table in (None, table) else ():
            files = found.get(name)
            if files is None or table == 2 and not files.has_latent:
                what = name if files is None else f"latent DPM of {name} with the statistics of its codes"
                report["notes"].append(f"Table {table} is left out, as {args.released} holds no {what}")
                continue
            measure(args, device, files, files.load().to(device), report)
            report["files"] |= {str(p): _sha256(p) for p in files.paths()}
    if not any(key in report for key in ("table_1", "table_2")):
        raise UsageError("; ".join(report["notes"]))
    for note in report["notes"]:
        print(f"Note: {note}")
    return report


def _table_1(args, device, files, model, report: dict) -> None:
    from ..reproduction import protocol, published

    images = _images(args, published.TABLE_1_DATA, model, args.count)
    distance = protocol.lpips_distance() if args.lpips else protocol.feature_distance(_small_space(model, device))
    is_lpips = distance.name == "LPIPS"
    long = published.LONG_INVERSION if args.long_inversion is None else args.long_inversion
    tables = {}
    for steps in _steps(args, str(published.TABLE_1_STEPS)):
        rows = protocol.table_1(model, images, distance, steps, long or None, args.seed, args.batch_size, progress=True)
        print(f"\nTable 1: reconstruction, {files.name} on {len(images):,} images of {args.data}, T = {steps}; means with 95 % intervals")
        print(f"paper: {published.TABLE_1_MODEL} on CelebA-HQ, T = {published.TABLE_1_STEPS}")
        lines = []
        for row in [*published.TABLE_1, *(r for r in rows if r not in published.TABLE_1)]:
            ours, theirs = list(rows.get(row, {}).values()) or [None] * 3, published.TABLE_1.get(row, (None,) * 3)
            lines.append([row, *(cell for o, p in zip(ours, theirs) for cell in (_shown(o), _shown(p)))])
        _print_table(["", "SSIM", "paper", distance.name, "paper" if is_lpips else "paper: LPIPS", "MSE", "paper"], lines)
        tables[str(steps)] = _numbers(rows)
    if not is_lpips:
        _note(report, f"{distance.name} isn't LPIPS and can't be compared with it; --lpips measures LPIPS")
    report["table_1"] = {"model": files.name, "images": len(images), "metric": distance.name, "long_inversion": long, "measured": tables,
                         "paper": {row: dict(zip(("SSIM", "LPIPS", "MSE"), v)) for row, v in published.TABLE_1.items()}}


def _table_2(args, device, files, model, report: dict) -> None:
    from ..reproduction import protocol, published, released_files

    space = protocol.inception_space(args.inception, device) if args.inception else _small_space(model, device)
    images = _images(args, released_files.LMDBS.get(files.name, files.name), model, args.count)
    count, steps = args.samples or 50_000, _steps(args, ",".join(map(str, published.STEPS)))
    real = protocol.real_statistics(space, images, device, args.batch_size, progress=True)
    rows = protocol.table_2(model, files.load_latent().to(device), space, real, count, steps, args.seed, args.batch_size, progress=True)
    what = "FID" if space.is_inception else f"Fréchet distance in {space.name}"
    print(f"\nTable 2: {what}, {files.name}, {count:,} samples against {len(images):,} images of {args.data}; with 95 % intervals")
    paper = published.TABLE_2.get(files.name, {})
    lines = []
    for row in ("DDIM", "Diff-AE", "PDAE"):
        theirs = dict(zip(published.STEPS, paper.get(row, ())))
        lines.append([row, *(cell for T in steps for cell in (_shown(rows.get(row, {}).get(T)), _shown(theirs.get(T))))])
    column = "paper" if space.is_inception else "paper: FID"
    _print_table(["", *(cell for T in steps for cell in (f"T = {T}", column))], lines)
    if not space.is_inception:
        _note(report, f"{what} isn't FID and can't be compared with it; --inception FILE measures FID")
    report.setdefault("table_2", {})[files.name] = {"samples": count, "images": len(images), "metric": what, "paper": paper,
                                                    "measured": _numbers(rows)}


def _images(args, name: str, model, count: int | None):
    from ..reproduction.released_files import open_images

    return open_images(args.data, name, model.network.config.image_size, model.network.config.in_channels, stop=count)


def _small_space(model, device):
    from .. import load
    from ..reproduction.protocol import small_space

    return small_space(load("digits" if model.network.config.in_channels == 1 else "peeps", "features", device))


# ---- small things -----------------------------------------------------------------------------------------------------


def _steps(args, default: str) -> list[int]:
    try:
        return [int(part) for part in (args.steps or default).split(",")]
    except ValueError:
        raise UsageError(f"--steps {args.steps}; want whole numbers separated by commas") from None


def _note(report: dict, text: str) -> None:
    if text not in report["notes"]:
        report["notes"].append(text)


def _numbers(table: dict) -> dict:
    """Rows and columns of estimates as JSON-able values."""
    return {row: {str(k): {"value": e.value, "low": e.low, "high": e.high, "n": list(e.n)} for k, e in columns.items()}
            for row, columns in table.items()}


def _shown(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, (int, float)):
        return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:g}"
    form = "{:.2e}" if abs(value.value) < 1e-3 else "{:.4g}"
    return " ".join((form.format(value.value), f"[{form.format(value.low)}, {form.format(value.high)}]"))


def _print_table(head: list[str], lines: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    for line in (head, *lines):
        print("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))).rstrip())


def _command(args) -> str:
    """The command line again, without what was left at its default."""
    words = ["pdae", "evaluate"]
    for name, value in vars(args).items():
        if name not in ("command", "run") and value not in (None, False) and (name, value) not in (("seed", 0), ("batch_size", 50),
                                                                                                            ("dtype", "float32")):
            words += [f"--{name.replace('sets', 'set').replace('_', '-')}"] + ([] if value is True else [str(value)])
    return shlex.join(words)


def _device(name: str | None):
    import torch

    try:
        return torch.device(name or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    except RuntimeError:
        raise UsageError(f"--device {name}; want cpu, cuda, cuda:1, mps, …") from None


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from .. import __version__

    return {"pdae_lite": __version__, "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "torchmetrics", "numpy")}}


def _device_name(device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.processor() or platform.machine()})"


def _sha256(path) -> str:
    import hashlib

    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
