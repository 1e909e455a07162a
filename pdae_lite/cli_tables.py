"""`pdae evaluate --table 1|2|3 --model MODEL`: the paper's tables in small, on the data sets that ship; written as they grow."""
import json
import time
from collections.abc import Callable
from pathlib import Path

from .settings import UsageError

COUNT, SAMPLES, BLOCK = 50, 1000, 250  # images of Table 1, samples of Table 2, and samples between two records of it
FIRST = 4  # images of Table 1 whose errors are stored, to be computed again
TABLE_1 = "held-out images rebuilt in T steps by the library's defaults; the inferred x_T in T more; first: MSE of the first images"
TABLE_2 = ("samples i of all methods from x_T = keyed.normal(seed, 0, i), z_T = keyed.normal(seed, 1, i); PDAE with the plain DPM where "
           "t < off_last * 1000; DDIM; cost in GFLOP of an image; first: mean features of the first samples; differences are paired")


def small_table(args, device, made: dict, write: Callable[[dict], None]) -> dict:
    """The record of a table. What is complete in the file of --json isn't measured again; `write(record)` writes it there."""
    from .small_tables import Subject

    if args.table == 3:
        return _table_3(args)
    s = Subject.open(args.model, args.latent, args.data, device)
    settings = {"table": args.table, "model": args.model, "data": s.data, "sha256_of_weights": s.digests(), "seed": args.seed,
                "steps": _steps(args), "dtype": args.dtype}
    if args.table == 1:
        settings |= {"images": args.count or COUNT, "lpips": args.lpips}
    before = _before(args.json, settings)
    if before is not None and before.get("samples", settings.get("images")) >= (args.samples or SAMPLES if args.table == 2 else 0):
        record = before
    else:
        record = (_table_1 if args.table == 1 else _table_2)(args, s, device, settings, made, write)
    (_print_1 if args.table == 1 else _print_2)(record)
    return record


def _steps(args) -> list[int]:
    from .cli_evaluate import _steps as parsed
    from .paper import STEPS, TABLE_1_STEPS

    return parsed(args, str(TABLE_1_STEPS) if args.table == 1 else ",".join(map(str, STEPS)))


def _before(path, settings: dict) -> dict | None:
    """The record of an earlier run, if it is of the same measurement."""
    if path is None or not Path(path).is_file():
        return None
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if any(record.get(k) != v for k, v in settings.items()):
        raise UsageError(f"{path} holds another measurement; remove it, or give another --json")
    return record


def _partial(args, settings: dict):
    from .small_tables import Partial

    return Partial(args.json, json.dumps(settings, sort_keys=True))


# ---- Table 1 --------------------------------------------------------------------------------------------------------------


def _table_1(args, s, device, settings: dict, made: dict, write) -> dict:
    from . import paper, small_tables
    from .better_samples import numbers
    from .evaluation import lpips_distance

    if args.dtype != "float32":
        raise UsageError(f"--dtype {args.dtype}: lower precision adds to the errors of Table 1; it is for Table 2")
    distance = lpips_distance() if args.lpips else small_tables.shape_distance(s.net)
    tables, start = {}, time.process_time()
    for steps in settings["steps"]:
        partial = _partial(args, settings | {"T": steps})
        rows = small_tables.table_1(s, settings["images"], steps, args.seed, args.batch_size, distance, partial, True)
        partial.done()
        tables[str(steps)] = {row: {"latent": small_tables.latent_size(s, row)} | {k: numbers(e) for k, e in columns.items()}
                              | {"first": [float(f"{v:.6g}") for v in partial.tensors[f"{row}|MSE"][:FIRST]]}
                              for row, columns in rows.items()}
    record = made | {"what": TABLE_1} | settings | {
        "metric": distance.name, "is_lpips": args.lpips, "measured": tables,
        "cpu_seconds_of_the_last_run": round(time.process_time() - start),
        "paper": {row: dict(zip(("SSIM", "LPIPS", "MSE"), v)) for row, v in paper.TABLE_1.items()}}
    write(record)
    return record


def _print_1(record: dict) -> None:
    from .cli_evaluate import _print_table, _shown

    for steps, rows in record["measured"].items():
        print(f"\nTable 1 in small: {record['images']} held-out {record['data']} rebuilt, T = {steps}; means with 95 % intervals")
        print("paper: the FFHQ128 model on CelebA-HQ, T = 100")
        lines = []
        for row, columns in rows.items():
            theirs = record["paper"].get(row, {})
            cells = [columns["SSIM"], theirs.get("SSIM"), columns[record["metric"]], theirs.get("LPIPS"), columns["MSE"], theirs.get("MSE")]
            lines.append([row, f"{columns['latent']:,}", *(_interval(c) if isinstance(c, dict) else _shown(c) for c in cells)])
        _print_table(["", "latent", "SSIM", "paper", record["metric"], "paper: LPIPS", "MSE", "paper"], lines)
    if not record["is_lpips"]:
        print(f"Note: {record['metric']} isn't LPIPS and can't be compared with it; --lpips measures LPIPS")


# ---- Table 2 --------------------------------------------------------------------------------------------------------------


def _table_2(args, s, device, settings: dict, made: dict, write) -> dict:
    import torch

    from . import better_samples as b
    from . import metrics, paper
    from .progress import progress_bar

    if s.latent is None and s.diffae_latent is None:
        raise UsageError(f"Table 2 wants a latent DPM for {args.model}; add --latent FILE, made by `pdae latent`")
    exact, (wanted, equal) = s, b.cells(s, settings["steps"])
    s = b.fast(s, torch.bfloat16 if args.dtype == "bf16" else None)
    names, real, count = [cell.name for cell in wanted], metrics.reference(s.data), args.samples or SAMPLES
    partial = _partial(args, {k: v for k, v in settings.items() if k != "steps"})  # samples serve any choice of T
    start, record = time.process_time(), None
    bar = progress_bar(total=count, desc="Table 2", show=True)
    bar.update(partial.count(names))

    def report(done: int) -> None:
        nonlocal record
        bar.update(done - bar.n)
        if done % BLOCK == 0 or done == count:
            record = made | {"what": TABLE_2} | settings | {"gflop": b.gflop(exact)}
            record["cpu_seconds_of_the_last_run"] = round(time.process_time() - start)
            record |= b.summary(wanted, equal, {k: partial.tensors[k][:done] for k in names}, real, settings["steps"])
            if args.dtype != "float32":
                record["precision_check"] = b.precision_check(exact, wanted, partial, real, min(100, done), args.seed, args.batch_size)
            record["paper"] = paper.TABLE_2
            write(record)

    if partial.count(names) >= count:
        report(count)
    b.collect(s, wanted, count, partial, args.seed, args.batch_size, report)
    bar.close()
    partial.done()
    return record


def _print_2(record: dict) -> None:
    from .cli_evaluate import _print_table

    cells = {c["name"]: c for c in record["cells"]}
    methods = [m for m in ("DDIM", "Diff-AE", "PDAE") if any(c["method"] == m for c in record["cells"])]
    T = record["steps"]
    for metric, name in (("kid", "KID"), ("fid", "FID's formula")):
        if metric not in record["cells"][0]:
            continue
        print(f"\nTable 2 in small: {name} in {record['space']}, {record['samples']:,} samples against {record['real']:,} real images of "
              f"{record['data']}, with 95 % intervals")
        _print_table(["equal steps", *(f"T = {t}" for t in T)],
                     [[m, *(_interval(cells[f"{m}, T = {t}"][metric]) for t in T)] for m in methods])
        if record["equal_cost"]:
            equal = record["equal_cost"]
            _print_table(["equal cost", *(f"{t} plain evaluations" for t in T)],
                         [[m, *(f"{_interval(cells[equal[str(t)][m]][metric])} in {cells[equal[str(t)][m]]['steps']}" for t in T)]
                          for m in methods])
        lines = [[f"{d['a']} − {d['b']}", _interval(d[metric]), "" if excludes_zero(d[metric]) else "no difference measured"]
                 for d in record["differences"]]
        _print_table(["paired differences", "", ""], lines)
    print("\nNote: neither is in Inception's features, so neither can be compared with the paper's FID")


def excludes_zero(estimate: dict) -> bool:
    """Whether a difference was measured: its interval leaves out 0."""
    return not estimate["low"] <= 0.0 <= estimate["high"]


def _interval(e: dict) -> str:
    form = "{:.2e}" if abs(e["value"]) < 1e-3 else "{:.4g}"
    return f"{form.format(e['value'])} [{form.format(e['low'])}, {form.format(e['high'])}]"


# ---- Table 3 --------------------------------------------------------------------------------------------------------------

SCRIPTS = Path(__file__).parent.parent / "scripts"
ROWS_3 = {"pdae, binary": "PDAE, 50 + 50 labels", "diffae, binary": "Diff-AE, 50 + 50 labels", "labelled, 50": "naive: 50 labelled images",
          "pdae, PU": "PDAE, 100 positives", "diffae, PU": "Diff-AE, 100 positives", "labelled, 100": "naive: 100 labelled images"}


def table_3_commands(args) -> list[list[str]]:
    """The two programs that measure Table 3; both go on where they were stopped."""
    if args.model != "peeps":
        raise UsageError(f"--table 3 --model {args.model}: the small Table 3 is of the models of peeps, whose images have attributes")
    if not (SCRIPTS / "few_shot.py").is_file():
        raise UsageError("--table 3 runs scripts/few_shot.py of the repository, which isn't beside this installation; clone it")
    given = [name for name in ("quick", "steps", "seed", "data", "latent", "lpips") if getattr(args, name)]
    if given:
        raise UsageError(f"--{given[0]} isn't for --table 3; want --samples, the size of the pools, and --json")
    size = ["--count", str(args.samples)] if args.samples else []
    pool, table = (["--out", f"{args.json}.pools"], ["--pools", f"{args.json}.pools", "--out", args.json]) if args.json else ([], [])
    return [[str(SCRIPTS / name), *size, *more] for name, more in (("few_shot_pool.py", pool), ("few_shot.py", table))]


def _table_3(args) -> dict:
    import subprocess
    import sys

    from .data import ASSETS

    for command in table_3_commands(args):
        if subprocess.run([sys.executable, *command]).returncode:
            raise UsageError(f"{Path(command[0]).name} didn't finish; its message is above")
    record = json.loads(Path(args.json or ASSETS / "few_shot.json").read_text(encoding="utf-8"))
    _print_3(record)
    return record


def _print_3(record: dict) -> None:
    from .cli_evaluate import _print_table

    print(f"\nTable 3 in small: FID's formula / KID in {record['space']}, means over {record['draws']} draws of labels; lower is better")
    classes = [(name, value) for name in record["attributes"] for value in ("1", "0")]
    lines = []
    for row, text in ROWS_3.items():
        cells = []
        for name, value in classes:
            draws = record["attributes"][name]["classes"][value][row]
            means = [[d[m] for d in draws if m in d] for m in ("fid", "kid")]
            cells.append(" / ".join(f"{sum(v) / len(v):.3g}" if v else "–" for v in means))
        lines.append([text, *cells])
    _print_table(["", *(name if value == "1" else f"no {name}" for name, value in classes)], lines)
    print("Note: neither is in Inception's features, so neither can be compared with the paper's FID")
