"""`pdae evaluate --table 1|2|3 --model MODEL`: the paper's tables in small, on the data sets that ship; written as they grow."""
import time
from collections.abc import Callable

from ..progress import progress_bar
from .settings import UsageError

COUNT, SAMPLES, POOL = 50, 1000, 10_000  # images of Table 1, samples of Table 2, size of the pools of Table 3
BLOCK = 250  # samples between two records of Table 2
FIRST = 4  # images of Table 1 whose errors are stored, to be computed again
TABLE_1 = "held-out images rebuilt in T steps by the library's defaults; the inferred x_T in T more; first: MSE of the first images"
TABLE_2 = ("samples i of all methods from x_T = keyed.normal(seed, 0, i), z_T = keyed.normal(seed, 1, i); PDAE with the plain DPM where "
           "t < off_last * 1000; DDIM; cost in GFLOP of an image; first: mean features of the first samples; differences are paired")
TABLE_3 = "few-shot conditional generation; lists are over draws of labels; 'half' is half of a 95 % interval; n: images accepted"


def small_table(args, device, made: dict, write: Callable[[dict], None]) -> dict:
    """The record of a table. What is complete in the file of --json isn't measured again; `write(record)` writes it there."""
    from ..reproduction.subject import Subject

    measure, show = {1: (_table_1, _print_1), 2: (_table_2, _print_2), 3: (_table_3, _print_3)}[args.table]
    s = Subject.open(args.model, args.latent, args.data, device)
    settings = {"table": args.table, "model": args.model, "data": s.data, "sha256_of_weights": s.digests(), "seed": args.seed,
                "dtype": args.dtype}
    record = measure(args, s, settings, made, write)
    show(record)
    return record


def _steps(args) -> list[int]:
    from ..reproduction.published import STEPS, TABLE_1_STEPS
    from .evaluate import _steps as parsed

    return parsed(args, str(TABLE_1_STEPS) if args.table == 1 else ",".join(map(str, STEPS)))


def _before(path, settings: dict) -> dict | None:
    """The record of an earlier run, if it is of the same measurement."""
    from ..reproduction.partial import record_before

    return record_before(path, settings)


def _partial(args, settings: dict):
    from ..reproduction.partial import Partial

    return Partial(args.json, settings)


# ---- Table 1 --------------------------------------------------------------------------------------------------------------


def _table_1(args, s, settings: dict, made: dict, write) -> dict:
    from ..reproduction import published, table_1
    from ..reproduction.protocol import lpips_distance
    from ..reproduction.table_2 import numbers

    if args.dtype != "float32":
        raise UsageError(f"--dtype {args.dtype}: lower precision adds to the errors of Table 1; it is for Tables 2 and 3")
    settings |= {"steps": _steps(args), "images": args.count or COUNT, "lpips": args.lpips}
    if (before := _before(args.json, settings)) is not None:
        return before
    distance = lpips_distance() if args.lpips else table_1.shape_distance(s.net)
    tables, start = {}, time.process_time()
    for steps in settings["steps"]:
        partial = _partial(args, settings | {"T": steps})
        rows = table_1.table_1(s, settings["images"], steps, args.seed, args.batch_size, distance, partial, True)
        partial.done()
        tables[str(steps)] = {row: {"latent": table_1.latent_size(s, row)} | {k: numbers(e) for k, e in columns.items()}
                              | {"first": [float(f"{v:.6g}") for v in partial.tensors[f"{row}|MSE"][:FIRST]]}
                              for row, columns in rows.items()}
    record = made | {"what": TABLE_1} | settings | {
        "metric": distance.name, "is_lpips": args.lpips, "measured": tables,
        "cpu_seconds_of_the_last_run": round(time.process_time() - start),
        "paper": {row: dict(zip(("SSIM", "LPIPS", "MSE"), v)) for row, v in published.TABLE_1.items()}}
    write(record)
    return record


def _print_1(record: dict) -> None:
    from .evaluate import _print_table, _shown

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


def _table_2(args, s, settings: dict, made: dict, write) -> dict:
    import torch

    from .. import metrics
    from ..reproduction import published
    from ..reproduction import table_2 as b

    if s.latent is None and s.diffae_latent is None:
        raise UsageError(f"Table 2 wants a latent DPM for {args.model}; add --latent FILE, made by `pdae latent`")
    settings |= {"steps": _steps(args)}
    before = _before(args.json, settings)
    if before is not None and before["samples"] >= (args.samples or SAMPLES):
        return before
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
            record["paper"] = published.TABLE_2
            write(record)

    if partial.count(names) >= count:
        report(count)
    b.collect(s, wanted, count, partial, args.seed, args.batch_size, report)
    bar.close()
    partial.done()
    return record


def _print_2(record: dict) -> None:
    from .evaluate import _print_table

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

ROWS_3 = {"pdae, binary": "PDAE, 50 + 50 labels", "diffae, binary": "Diff-AE, 50 + 50 labels", "labelled, 50": "naive: 50 labelled images",
          "pdae, PU": "PDAE, 100 positives", "diffae, PU": "Diff-AE, 100 positives", "labelled, 100": "naive: 100 labelled images"}


def _table_3(args, s, settings: dict, made: dict, write) -> dict:
    import torch

    from ..reproduction import table_3 as f

    given = [name for name in ("steps", "count", "lpips") if getattr(args, name)]
    if given:
        raise UsageError(f"--{given[0]} isn't for --table 3; want --samples, the size of the pools")
    kinds, attributes = f.generators(s), f.ATTRIBUTES[:1] if args.quick else f.ATTRIBUTES
    pool, draws = args.samples or (f.BLOCK if args.quick else POOL), 2 if args.quick else f.DRAWS
    if pool < f.BLOCK:
        raise UsageError(f"--samples {pool}; Table 3 wants pools of at least {f.BLOCK}")
    partial = _partial(args, settings)
    settings |= {"pool": pool, "draws": draws}
    record = _before(args.json, settings)
    if record is not None and all(name in record["attributes"] for name in attributes):
        return record
    f.fill(s, pool, partial, args.seed, torch.bfloat16 if args.dtype == "bf16" else None, progress=True)
    bench = f.Bench(s, partial, pool)
    if record is None:
        decoded = f"DPM-Solver++, {f.STEPS} evaluations, {args.dtype}; slow: DDIM, {f.SLOW} evaluations, float32"
        record = made | {"what": TABLE_3} | settings | {
            "images": f.FOR_FID, "space": bench.space, "labels": f.LABELS, "unlabelled": f.UNLABELLED, "decoded": decoded,
            "check": f.checks(bench), "held_out": f.on_real_codes(bench, draws), "kinds": list(kinds), "attributes": {}}
    for name in progress_bar(attributes, show=True, desc="attributes"):
        if name not in record["attributes"]:
            record["attributes"][name] = f.measure(bench, name, draws)
            write(record)
    partial.done()
    return record


def _print_3(record: dict) -> None:
    from .evaluate import _print_table

    print(f"\nTable 3 in small: FID's formula / KID in {record['space']}, means over {record['draws']} draws of labels; lower is better")
    classes = [(name, value) for name in record["attributes"] for value in ("1", "0")]
    lines = []
    rows = {row: text for row, text in ROWS_3.items() if row.split(",")[0] in ("labelled", *record["kinds"])}
    for row, text in rows.items():
        cells = []
        for name, value in classes:
            draws = record["attributes"][name]["classes"][value][row]
            means = [[d[m] for d in draws if m in d] for m in ("fid", "kid")]
            cells.append(" / ".join(f"{sum(v) / len(v):.3g}" if v else "–" for v in means))
        lines.append([text, *cells])
    _print_table(["", *(name if value == "1" else f"no {name}" for name, value in classes)], lines)
    print("Note: neither is in Inception's features, so neither can be compared with the paper's FID")
