"""The command `pdae evaluate`: reconstructions of any model, the paper's tables in small (`tables`), and Tables 1 and 2
from the authors' files."""
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.data import Subset

from .. import __version__
from ..autoencoder import load_autoencoder
from ..checkpoint import best_device, load
from ..data import sources
from ..interop.references import MODEL, fingerprint, image_shape
from ..reproduction import protocol, published, released_files
from ..storage import file_digest
from .doctor import HELD_OUT, trained_on
from .output import place, shown, table, whole, write_json
from .settings import SEED, UsageError, add_value_range, number, value_range, whole_numbers
from .tables import small_table

SETS = tuple(published.TABLE_2)
QUICK = {"count": 4, "samples": 20, "steps": "2", "long_inversion": 4}
PAPER_ONLY = ("released", "set", "long_inversion", "inception")
TABLE_ONLY = ("samples", "lpips", "latent", "dtype")


def add_evaluate(parser) -> None:
    """`pdae evaluate`."""
    parser.description = """Rebuild held-out images from z alone and from z with the inferred x_T: MSE, SSIM, PSNR. With
        --table: the paper's Table 1 (reconstruction), 2 (better samples) or 3 (few-shot generation) in small, on digits
        or peeps. With --protocol paper: Tables 1 and 2, from the files that its authors released."""
    parser.epilog = f"--released DIR holds {released_files.LAYOUT}"
    add = parser.add_argument
    add("--model", metavar="MODEL", help=MODEL)
    add("--data", metavar="DATA", help=f"""{HELD_OUT}. With --protocol paper: an LMDB in Diff-AE's layout, or a folder
        with LMDBs named celebahq, ffhq, horse, bedroom, celeba64""")
    add_value_range(parser)
    add("--count", type=number(int, 2), metavar="N", help="""images to rebuild, and real images of Table 2 (default:
        1000; with --table 50; with --protocol paper all)""")
    add("--steps", metavar="T,T", help="sampling steps (default: 100; Table 2: 10,20,50,100)")
    add("--seed", type=SEED, default=0, metavar="S", help="seed of all noise")
    add("--batch-size", type=number(int, 1), default=50, metavar="N", help="images at a time")
    add("--device", metavar="D", help="where to compute, such as cuda or cpu (default: the accelerator, if any)")
    add("--json", metavar="FILE", help="""also write everything there, as it grows; with --table the same command goes
        on where it was stopped""")
    add("--quick", action="store_true", help="try the command, with few images and steps: its numbers mean nothing")
    add = parser.add_argument_group("the paper's tables").add_argument
    add("--table", type=int, choices=(1, 2, 3), help="only this one (default with --protocol paper: 1 and 2)")
    add("--samples", type=number(int, 20), metavar="N", help="""samples for Table 2, and codes in each pool of Table 3
        (default: 1000, 10000; with --protocol paper 50000)""")
    add("--lpips", action="store_true", help="""measure LPIPS in Table 1; fetches AlexNet (233 MB) unless it is in
        torch's cache. Otherwise a distance in the features of a small network that ships, which is no LPIPS""")
    add("--latent", metavar="FILE", help="the latent DPM of --model FILE, for Tables 2 and 3 in small")
    add("--force", action="store_true", help="use it even if it is of another model's codes")
    add("--dtype", choices=("float32", "bf16"), help="""precision of the networks for Tables 2 and 3 in small; bf16 is
        checked against float32 on 100 samples (default: float32)""")
    add = parser.add_argument_group("the paper's own protocol").add_argument
    add("--protocol", choices=("paper",), help="the paper's grid of t, clamps, steps and metrics")
    add("--released", metavar="DIR", help="folder with the authors' files; see below")
    add("--set", metavar="NAME", help=f"for Table 2: only this model, {', '.join(SETS)} (default: all in DIR)")
    add("--long-inversion", type=number(int, 0), metavar="T", help="""Table 1 has one more row, x_T inferred in T steps,
        as the release's README reports it (default: 1000; 0: no)""")
    add("--inception", metavar="FILE", help="""measure FID, with this TorchScript of Inception (StyleGAN2-ADA's
        inception-2015-12-05.pt). Otherwise Table 2 has a Fréchet distance in the features of a small network that
        ships, which is no FID""")
    parser.set_defaults(run=_evaluate)


def _evaluate(args) -> None:
    _check(args)
    for name, value in QUICK.items() if args.quick and args.table != 3 else ():
        if getattr(args, name) is None:
            setattr(args, name, value)
    device = _device(args.device)
    versions = {name: version(name) for name in ("torch", "torchvision", "torchmetrics", "numpy")}
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    report = {"command": args.line, "seed": args.seed, "quick": args.quick,
            "versions": {"pdae_lite": __version__, "python": platform.python_version(), **versions},
            "device": where, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    if args.table is not None and args.protocol is None:
        try:
            print(small_table(args, device, report))
        except KeyboardInterrupt as e:
            kept = args.json and any(Path(f"{args.json}{end}").exists() for end in ("", ".part"))
            e.args = ("the same command goes on where it was stopped",) if kept else ()
            raise
        return
    for text in (_plain if args.protocol is None else _paper)(args, device, report):  # what is there is written at once
        if args.json:
            write_json(args.json, report)
        print(text)


def _check(args) -> None:
    if args.json:
        place(args, args.json, option="--json")
    if args.value_range and (args.table or args.protocol):
        raise UsageError("--value-range is for --data of your own; the paper's tables are of images of 8 bits")
    if args.protocol is not None:
        if args.latent is not None or args.dtype == "bf16" or args.table == 3:
            raise UsageError("--protocol paper has Tables 1 and 2 from the authors' files; --table 3, --latent and "
                             "--dtype go with --model")
        if args.model is not None or args.released is None or args.data is None:
            raise UsageError("--protocol paper wants --released DIR and --data LMDB, and no --model")
        args.data = args.data.removeprefix("lmdb:")  # as other commands write it
        if args.set is not None and args.set not in SETS:
            raise UsageError(f"--set {args.set}; want one of {', '.join(SETS)}")
        return
    for name in (*PAPER_ONLY, *(TABLE_ONLY if args.table is None else ())):
        if getattr(args, name):
            option = "--protocol paper" if name in PAPER_ONLY else "--table"
            raise UsageError(f"--{name.replace('_', '-')} is for {option}; add that")
    if args.model is None:
        raise UsageError("--model is missing; name a model file or a shipped model (digits), or add --protocol paper "
                         "--released DIR")


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name) if name else best_device()
        torch.zeros(1, device=device).item()
        return device
    except (RuntimeError, AssertionError) as e:
        raise UsageError(f"--device {name}: {str(e).strip().splitlines()[0]}; want cpu, or one that is there: cuda, "
                         "cuda:1, mps, …") from None


# ---- any model ----------------------------------------------------------------------------------------------------


def _plain(args, device, report: dict):
    model = whole(load_autoencoder(args.model), args.model).to(device).requires_grad_(False)
    name = trained_on(args.data, model, args.model)
    images = sources.open_source(name, *image_shape(model.network, model.codec), split="test",
                                 value_range=value_range(args, model, name))
    images = Subset(images, range(min(args.count or 1000, len(images))))
    report |= {"model": fingerprint(args.model), "data": name, "value_range": args.value_range,
               "counts": {"images": len(images)}, "reconstruction": {}}
    for steps in whole_numbers("--steps", args.steps or "100"):
        rows = _numbers(protocol.reconstruction(model, images, steps, args.seed, args.batch_size, progress=True))
        report["reconstruction"][str(steps)], report["counts"]["images"] = rows, _measured(rows)
        lines = [[row, *map(shown, columns.values())] for row, columns in rows.items()]
        yield (f"\nReconstructions of {args.model}: {_measured(rows)} images of {name}, {steps} steps; means with 95 % "
               f"intervals, on [0, 1]\n{table(['', *next(iter(rows.values()))], lines)}")


# ---- the paper's tables -------------------------------------------------------------------------------------------


def _paper(args, device, report: dict):
    found = released_files.find_released(args.released, args.set or "released")
    if released_files.holds_one_model(args.released):
        names = {1: [*found], 2: [*found]}
    else:
        first = [published.TABLE_1_MODEL]
        names = {1: first, 2: [n for n in SETS if args.set == n or args.set is None and n in found] or first}
    lmdbs = [released_files.LMDBS[n] for n in names[2] if n in released_files.LMDBS]
    if args.table != 1 and len(lmdbs) > 1 and not any((Path(args.data) / n).exists() for n in lmdbs):
        raise UsageError(f"--data {args.data} is one LMDB, but Table 2 is of {', '.join(names[2])}; name the one that "
                         f"it belongs to by --set, or give a folder with LMDBs named {', '.join(lmdbs)}")
    report |= {"files": {}, "notes": []}
    for n, measure in ((1, _table_1), (2, _table_2)):
        for name in names[n] if args.table in (None, n) else ():
            files = found.get(name)
            if files is None or n == 2 and not files.has_latent:
                what = name if files is None else f"latent DPM of {name} with the statistics of its codes"
                report["notes"].append(f"Table {n} is left out, as {args.released} holds no {what}")
                continue
            report["files"] |= {str(p): file_digest(p) for p in files.paths()}
            yield from measure(args, device, files, files.load().to(device), report)
    if not report["files"]:
        raise UsageError("; ".join(report["notes"]))
    report["notes"] = list(dict.fromkeys(report["notes"]))
    yield "\n".join(f"Note: {note}" for note in report["notes"])


def _table_1(args, device, files, model, report: dict):
    images = _images(args, published.TABLE_1_DATA, model)
    distance = protocol.lpips_distance() if args.lpips else protocol.feature_distance(_small_space(model, device))
    long = published.LONG_INVERSION if args.long_inversion is None else args.long_inversion
    column = "paper" if distance.name == "LPIPS" else "paper: LPIPS"
    if distance.name != "LPIPS":
        report["notes"].append(f"{distance.name} isn't LPIPS and can't be compared with it; --lpips measures LPIPS")
    report["table_1"] = {"model": files.name, "images": len(images), "metric": distance.name, "long_inversion": long,
                         "measured": {}, "paper": published.table_1_by_metric()}
    for steps in whole_numbers("--steps", args.steps or str(published.TABLE_1_STEPS)):
        rows = protocol.table_1(model, images, distance, steps, long or None, args.seed, args.batch_size, progress=True)
        rows = _numbers(rows)
        report["table_1"]["measured"][str(steps)], report["table_1"]["images"] = rows, _measured(rows)
        lines = []
        for row in dict.fromkeys([*published.TABLE_1, *rows]):
            ours, theirs = list(rows.get(row, {}).values()) or [None] * 3, published.TABLE_1.get(row, (None,) * 3)
            lines.append([row, *(shown(cell) for pair in zip(ours, theirs) for cell in pair)])
        yield (f"\nTable 1: reconstruction, {files.name} on {_measured(rows):,} images of {args.data}, T = {steps}; "
               f"means with 95 % intervals\npaper: {published.TABLE_1_MODEL} on CelebA-HQ, T = "
               f"{published.TABLE_1_STEPS}\n"
               + table(["", "SSIM", "paper", distance.name, column, "MSE", "paper"], lines))


def _table_2(args, device, files, model, report: dict):
    space = protocol.inception_space(args.inception, device) if args.inception else _small_space(model, device)
    images = _images(args, released_files.LMDBS.get(files.name, files.name), model)
    count = args.samples or 50_000
    steps = whole_numbers("--steps", args.steps or ",".join(map(str, published.STEPS)))
    real = protocol.real_statistics(space, images, device, args.batch_size, progress=True)
    rows = _numbers(protocol.table_2(model, files.load_latent().to(device), space, real, count, steps, args.seed,
                                     args.batch_size, progress=True))
    what = "FID" if space.is_inception else f"Fréchet distance in {space.name}"
    column = "paper" if space.is_inception else "paper: FID"
    if not space.is_inception:
        report["notes"].append(f"{what} isn't FID and can't be compared with it; --inception FILE measures FID")
    paper, lines = published.TABLE_2.get(files.name, {}), []
    for row in ("DDIM", "Diff-AE", "PDAE"):
        theirs = dict(zip(published.STEPS, paper.get(row, ())))
        lines.append([row, *(shown(cell) for T in steps for cell in (rows.get(row, {}).get(str(T)), theirs.get(T)))])
    report.setdefault("table_2", {})[files.name] = {"samples": count, "images": real.n, "metric": what,
                                                    "paper": paper, "measured": rows}
    yield (f"\nTable 2: {what}, {files.name}, {count:,} samples against {real.n:,} images of {args.data}; with "
           f"95 % intervals\n{table(['', *(cell for T in steps for cell in (f'T = {T}', column))], lines)}")


def _images(args, name: str, model):
    return released_files.open_images(args.data, name, *image_shape(model.network, model.codec), stop=args.count)


def _small_space(model, device):
    name = "digits" if model.network.config.in_channels == 1 else "peeps"
    return protocol.small_space(load(name, "features", device))


def _measured(rows: dict) -> int:
    """The number of images behind a table of reconstructions: without those that can't be read."""
    return next(iter(next(iter(rows.values())).values()))["n"][0]


def _numbers(rows: dict) -> dict:
    """Rows and columns of estimates as JSON-able values."""
    return {row: {str(k): {"value": e.value, "low": e.low, "high": e.high, "n": list(e.n)} for k, e in columns.items()}
            for row, columns in rows.items()}
