"""`pdae evaluate --table 1|2|3 --model MODEL`: the paper's tables in small, on the data sets that ship."""
import torch

from ..reproduction import published, small
from ..reproduction.partial import Kept
from ..reproduction.subject import Subject
from .output import check_partner, shown, table
from .settings import UsageError, whole_numbers

NOT_FID = "Note: neither is in Inception's features, so neither can be compared with the paper's FID"
ROWS_3 = {"pdae, binary": "PDAE, 50 + 50 labels", "diffae, binary": "Diff-AE, 50 + 50 labels",
          "labelled, 50": "naive: 50 labelled images", "pdae, PU": "PDAE, 100 positives",
          "diffae, PU": "Diff-AE, 100 positives", "labelled, 100": "naive: 100 labelled images"}


def small_table(args, device, made: dict) -> str:
    """The text of a table; its record is in the file of --json."""
    dtype = {"bf16": torch.bfloat16}.get(args.dtype)
    if args.table == 1 and dtype is not None:
        raise UsageError("--dtype bf16: lower precision adds to the errors of Table 1; it is for Tables 2 and 3")
    for name in ("steps", "count", "lpips") if args.table == 3 else ():
        if getattr(args, name):
            raise UsageError(f"--{name} isn't for --table 3; want --samples, the size of the pools")
    default = published.STEPS if args.table == 2 else [published.TABLE_1_STEPS]
    steps = whole_numbers("--steps", args.steps or ",".join(map(str, default)))
    s = Subject.open(args.model, args.latent, args.data, device)
    if args.latent:
        check_partner(args, "latent", args.latent, (s.latent or s.diffae_latent).metadata)
    kept = Kept(args.json, {"table": args.table, "model": args.model, "data": s.data, "sha256_of_weights": s.digests(),
                            "seed": args.seed, "dtype": args.dtype or "float32"}, made)
    if args.table == 1:
        lines = _text_1(small.reconstruction(kept, s, steps, args.count or 50, args.seed, args.batch_size, args.lpips))
    elif args.table == 2:
        lines = _text_2(small.better_samples(kept, s, steps, args.samples or 1000, args.seed, args.batch_size, dtype))
    else:
        lines = _text_3(small.few_shot(kept, s, args.samples, args.seed, dtype, args.quick))
    return "\n".join(lines)


def _text_1(record: dict):
    for steps, rows in record["measured"].items():
        yield (f"\nTable 1 in small: {record['images']} held-out {record['data']} rebuilt, T = {steps}; means with "
               "95 % intervals\npaper: the FFHQ128 model on CelebA-HQ, T = 100")
        lines = []
        for row, ours in rows.items():
            pairs = zip(("SSIM", record["metric"], "MSE"), ("SSIM", "LPIPS", "MSE"))
            cells = [cell for a, b in pairs for cell in (ours[a], record["paper"].get(row, {}).get(b))]
            lines.append([row, f"{ours['latent']:,}", *map(shown, cells)])
        yield table(["", "latent", "SSIM", "paper", record["metric"], "paper: LPIPS", "MSE", "paper"], lines)
    if not record["is_lpips"]:
        yield f"Note: {record['metric']} isn't LPIPS and can't be compared with it; --lpips measures LPIPS"


def _text_2(record: dict):
    cells = {c["name"]: c for c in record["cells"]}
    methods = [m for m in ("DDIM", "Diff-AE", "PDAE") if any(c["method"] == m for c in record["cells"])]
    T = record["steps"]
    for metric, name in (("kid", "KID"), ("fid", "FID's formula")):
        if metric not in record["cells"][0]:
            continue
        yield (f"\nTable 2 in small: {name} in {record['space']}, {record['samples']:,} samples against "
               f"{record['real']:,} real images of {record['data']}, with 95 % intervals")
        yield table(["equal steps", *(f"T = {t}" for t in T)],
                    [[m, *(shown(cells[f"{m}, T = {t}"][metric]) for t in T)] for m in methods])
        if equal := record["equal_cost"]:
            rows = [[m, *(cells[equal[str(t)][m]] for t in T)] for m in methods]
            yield table(["equal cost", *(f"{t} plain evaluations" for t in T)],
                        [[m, *(f"{shown(c[metric])} in {c['steps']}" for c in row)] for m, *row in rows])
        found = [(f"{d['a']} − {d['b']}", d[metric]) for d in record["differences"]]
        yield table(["paired differences", "", ""],
                    [[name, shown(d), "" if excludes_zero(d) else "no difference measured"] for name, d in found])
    yield f"\n{NOT_FID}"


def excludes_zero(estimate: dict) -> bool:
    """Whether a difference was measured: its interval leaves out 0."""
    return not estimate["low"] <= 0.0 <= estimate["high"]


def _text_3(record: dict):
    yield (f"\nTable 3 in small: FID's formula / KID in {record['space']}, means over {record['draws']} draws of "
           "labels; lower is better")
    classes, lines = [(name, value) for name in record["attributes"] for value in ("1", "0")], []
    for row, text in ROWS_3.items():
        if row.split(",")[0] not in ("labelled", *record["kinds"]):
            continue
        cells = []
        for name, value in classes:
            draws = record["attributes"][name]["classes"][value][row]
            means = [[d[m] for d in draws if m in d] for m in ("fid", "kid")]
            cells.append(" / ".join(f"{sum(v) / len(v):.3g}" if v else "–" for v in means))
        lines.append([text, *cells])
    yield table(["", *(name if value == "1" else f"no {name}" for name, value in classes)], lines)
    yield NOT_FID
