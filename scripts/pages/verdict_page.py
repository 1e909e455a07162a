"""Write book/verdict.md: every claim, figure and table of the paper, what became of it here, and where. What we find is
read from stored records, and from what the chapters have claimed and measured (their outputs); the paper's numbers are
quoted (`reproduction.published`).

    python scripts/pages/verdict_page.py        # a test tells when it has to be run again
"""
import json
import math
import re
import statistics
from pathlib import Path

import nbformat

from pdae_lite import NoiseSchedule
from pdae_lite.checkpoint import write_text
from pdae_lite.data import ASSETS
from pdae_lite.metrics.intervals import Estimate
from pdae_lite.reproduction import published
from pdae_lite.viz import TICK

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "verdict.md"
YES, PARTLY, NO = "reproduced", "partly", "not seen"
HEAD = """# Verdict

Every figure, table and claim of the paper {cite:p}`zhang2022pdae`, what it says, and what this book measured with \
small models of
digits and drawn faces. *Reproduced*: the same finding, beyond the interval. *Partly*: in one setting, or in part. \
*Not seen*: tried,
and it didn't show. Numbers are never comparable across the two columns: other data, other networks, other feature \
spaces. The row
leads to the chapter that measures it; {doc}`results` has the records and the commands that made them.

::::{div} wide-table
| in the paper | here | what it says | what we find | chapter |
|---|---|---|---|---|
"""
TAIL = """::::

Not tried, for want of the data or of a GPU: the paper's own models at 64×64 and 128×128. Whoever holds its authors' \
files can
recompute Tables 1 and 2 with `pdae evaluate --protocol paper`.
"""


def record(name: str) -> dict:
    """A stored record."""
    return json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))


def span(e: dict, form: str = ".3g") -> str:
    """A value with its interval."""
    return f"{e['value']:{form}} [{e['low']:{form}}, {e['high']:{form}}]"


def claimed(chapter: str, start: str) -> str:
    """The sentence that a chapter claims and that starts so, with what was measured, as it stands in its outputs.

    Raises:
        LookupError: the chapter doesn't claim it, or claims several.
    """
    cells = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4).cells
    lines = [line for c in cells for o in c.get("outputs", [])
             for line in o.get("data", {}).get("text/plain", "").splitlines()]
    found = [line.removeprefix(TICK) for line in lines if line.startswith(TICK + start)]
    if len(found) != 1:
        raise LookupError(f"{chapter} has {len(found)} claims that start with {start!r}; want one")
    return re.sub(r" \[([^\[\]]*)\]$", r" (\1)", found[0]).replace("|", "\\|")


def weights() -> str:
    """Fig. 4: where the paper's weight lies, by formula, from the library's schedule."""
    schedule = NoiseSchedule.linear()
    bound = schedule.loss_weight("vlb").double()

    def share(name: str) -> float:
        relative = schedule.loss_weight(name).double() / bound
        return float(relative[300:700].sum() / relative.sum())

    return (f"the same curves, by formula: relative to the bound, {share('pdae'):.0%} of it lies on t = 300…699 "
            f"({share('simple'):.0%} of λ = 1)")


def unstable() -> str:
    """λ = 1: the largest gradient of any step against what was usual before it, over all stored trainings with that
    weight."""
    runs = [r["gradient_norm"] for r in record("trials")["runs"] if r["config"].get("weight") == "simple"]
    jump = max(norms[i] / statistics.median(norms[i - 20 : i]) for norms in runs for i in range(20, len(norms)))
    return f"{len(runs)} trainings: no gradient above {jump:.1f} times what was usual in the 20 steps before it"


def edits() -> str:
    """Fig. 8: which edits make half of the true change, and which a judge sees on half of the faces, one step along the
    pattern."""
    found = {name: next(r for r in e["methods"]["pdae_means"] if r["scale"] == 0.3)
             for name, e in record("counterfactuals")["edits"].items()}
    passed = [name for name, r in found.items() if statistics.fmean(r["inside"]) >= 0.5 and r["seen"] >= 0.5]
    failed = [name for name in found if name not in passed]
    return f"at s = 0.3 half of the true change is made, and seen, for {', '.join(passed)}; not for {', '.join(failed)}"


def over_draws(cells: list[dict]) -> Estimate:
    """The mean KID over draws of labels, with an interval from the images' error and from the spread between draws."""
    values = [c["kid"] for c in cells if "kid" in c]
    spread = 2.776 * statistics.stdev(values) / math.sqrt(len(values))  # Student's t for five draws
    half = math.hypot(spread, statistics.fmean(c["kid_half"] for c in cells if "kid" in c))
    mean = statistics.fmean(values)
    return Estimate(mean, mean - half, mean + half, (len(values),))


def table_3() -> str:
    """Table 3: in how many of its comparisons one method's KID is lower beyond the interval."""
    pairs = [[over_draws(cells[f"{kind}, {scenario}"]) for kind in ("pdae", "diffae")]
             for a in record("few_shot")["attributes"].values()
             for cells in a["classes"].values() for scenario in ("binary", "PU")]
    apart = [ours - theirs for ours, theirs in pairs]
    ahead, behind = (sum(d.excludes() and (d.value < 0) == lower for d in apart) for lower in (True, False))
    return (f"of {len(apart)} comparisons PDAE is ahead in {ahead}, Diff-AE in {behind}, and "
            f"{len(apart) - ahead - behind} show no difference beyond the interval")


def critical_stage() -> str:
    """Fig. 3: the shortest stage that keeps 90 % of the accuracy."""
    accuracy = record("critical_stage")["accuracy"]
    stages = {tuple(map(int, k.split("-"))): v for k, v in accuracy.items() if k.split("-")[0] != k.split("-")[1]}
    whole = max(stages.items(), key=lambda kv: kv[0][1] - kv[0][0])[1]
    (start, stop), kept = min((kv for kv in stages.items() if kv[1] >= 0.9 * whole),
                              key=lambda kv: (kv[0][1] - kv[0][0], -kv[1]))
    return (f"the shortest of {len(stages)} stages that keeps 90 % of the accuracy is t = {start}…{stop} ({kept:.2f} "
            f"of {whole:.2f})")


def table_1(name: str) -> tuple[str, str]:
    """Table 1: verdict and finding for a data set."""
    rows = next(iter(record(f"table_1_{name}")["measured"].values()))
    mse = {row: cells["MSE"] for row, cells in rows.items()}
    best = min((row for row in mse if "inferred" in row), key=lambda row: mse[row]["value"])
    shown = "; ".join(f"{row.split(',')[0]} {mse[row]['value']:.2g}" for row in mse if "inferred" in row)
    return (YES if best.startswith("PDAE")
            else PARTLY), f"{name}, MSE with the inferred x_T: {shown}; best {best.split(',')[0]}"


def table_2(name: str) -> str:
    """Table 2: KID at the fewest and at the most steps."""
    cells = {c["name"]: c["kid"]["value"] for c in record(f"table_2_{name}")["cells"]}
    steps = sorted({int(n.rsplit("= ", 1)[1]) for n in cells if n.startswith("DDIM, T = ")})
    return "; ".join(f"T = {T}: DDIM {cells[f'DDIM, T = {T}']:.3f}, PDAE {cells[f'PDAE, T = {T}']:.3f}"
                     for T in (steps[0], 10, steps[-1]))


def truncation() -> tuple[str, str]:
    """Fig. 9: the KID over the scale."""
    rows = {r["scale"]: r for r in record("truncation")["rows"] if r["method"] == "pdae"}
    best = min(rows, key=lambda s: rows[s]["kid"]["value"])
    ends = sorted(rows)[1], sorted(rows)[-1]
    inside = ends[0] < best < ends[1]
    kid = rows[best]["kid"]["value"], rows[ends[1]]["kid"]["value"]
    return (YES if inside else PARTLY), (f"KID is least at scale {best:g} ({kid[0]:.3f}; {kid[1]:.3f} at {ends[1]:g}); "
                                         "precision rises, recall falls")


def efficiency() -> str:
    """Section 4.1: the share of Diff-AE's images until its final loss."""
    summary = record("training_efficiency")["summary"]
    loss = ", ".join(f"{v:.2f}" for v in summary["loss"])
    reached = sum(v is not None for v in summary["mse"])
    return (f"shares of Diff-AE's images until its final loss: {loss} (three seeds); until its reconstruction error: "
            f"reached in {reached} of {len(summary['mse'])}")


def fills(name: str) -> str:
    """Fig. 5 in one number: fill of PDAE and of Diff-AE."""
    mean = {}
    for kind in ("pdae", "diffae"):
        fill = record(f"{name}_{kind}")["fill"]
        mean[kind] = sum(f for t, f in zip(fill["t"], fill["model"]) if 300 <= t <= 600 and t % 100 == 0) / 4
    return f"{name}: z removes {mean['pdae']:.0%} of the error at t = 300…600 (Diff-AE {mean['diffae']:.0%})"


def rows() -> list[tuple[str, ...]]:
    """One line each: what, verdict, the paper, ours, chapter."""
    tab_1, tab_2 = published.TABLE_1, published.TABLE_2["celeba64"]
    made = {name: table_1(name) for name in ("digits", "peeps")}
    scale, swept = truncation()
    gap, mixing = "03_posterior_mean_gap", "09_interpolation"
    return [
        ("Fig. 1", YES, "a conditional DPM has the lower loss", claimed(gap, "over the last fifth of the run the loss"),
         gap),
        ("Fig. 3", YES, "only t = 400…700 decides the class", critical_stage(), "04_classifier_guidance"),
        ("Fig. 4", YES, "PDAE's weight has its mass in the middle", weights(), "06_weighting"),
        ("λ = 1 is “extremely unstable”", NO, "said of training without the weight", unstable(), "06_weighting"),
        ("Fig. 5", YES, "z fills much of the posterior-mean gap", "; ".join(map(fills, ("digits", "peeps"))),
         "05_filling_the_gap"),
        ("§4.1, efficiency", PARTLY, "⅓ to ½ of Diff-AE's batches", efficiency(), "07_training"),
        ("Tab. 1, Fig. 6, digits", made["digits"][0], "MSE with the inferred x_T: PDAE "
                                                      f"{tab_1['PDAE, inferred x_T'][2]:.2e}, Diff-AE "
         f"{tab_1['Diff-AE, inferred x_T'][2]:.2e}, DDIM {tab_1['DDIM, inferred x_T'][2]}", made["digits"][1],
         "08_reconstruction"),
        ("Tab. 1, Fig. 6, faces", made["peeps"][0], "the same", made["peeps"][1], "08_reconstruction"),
        ("Fig. 7, walks", YES, "between two codes lie images",
         claimed(mixing, "midpoints of the line in z have less grey"), mixing),
        ("Fig. 7, mixing z or G", NO, "both look alike, so G is nearly linear in z",
         claimed(mixing, "from t = 100 on, the median deviation"), mixing),
        ("Fig. 8", PARTLY, "a step along a linear classifier edits attributes", edits(), "10_attributes"),
        ("Fig. 9", scale, "an optimum of the scale, precision against recall", swept, "11_truncation"),
        ("Tab. 3", PARTLY, "PDAE ahead of Diff-AE in most rows", table_3(), "12_few_shot"),
        ("Tab. 2, faces", PARTLY, f"CelebA FID at T = 10: DDIM {tab_2['DDIM'][0]}, PDAE {tab_2['PDAE'][0]}; ahead at "
                                  "all T",
         "ahead with few steps, level with many; KID at " + table_2("peeps"), "13_better_samples"),
        ("Tab. 2, digits", YES, "the same", "KID at " + table_2("digits"), "13_better_samples"),
    ]


def page() -> str:
    """The page as Markdown."""
    lines = [f"| {what} | **{verdict}** | {says} | {finds} | {{doc}}`notebooks/{chapter}` |"
             for what, verdict, says, finds, chapter in rows()]
    return HEAD + "\n".join(lines) + "\n" + TAIL


if __name__ == "__main__":
    write_text(TARGET, page())
