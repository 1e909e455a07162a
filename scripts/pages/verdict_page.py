"""Write book/verdict.md: every claim, figure and table of the paper, what became of it here, and where. Numbers of ours come from the
stored records; the paper's are quoted (`reproduction.published`).

    python scripts/pages/verdict_page.py        # a test tells when it has to be run again
"""
import json
from pathlib import Path

from pdae_lite.checkpoint import write_text
from pdae_lite.data import ASSETS
from pdae_lite.reproduction import published

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "verdict.md"
YES, PARTLY, NO = "reproduced", "partly", "not seen"
HEAD = """# Verdict

Every figure, table and claim of the paper {cite:p}`zhang2022pdae`, what it says, and what this book measured with small models of
digits and drawn faces. *Reproduced*: the same finding, beyond the interval. *Partly*: in one setting, or in part. *Not seen*: tried,
and it didn't show. Numbers are never comparable across the two columns: other data, other networks, other feature spaces. The row
leads to the chapter that measures it; {doc}`results` has the records and the commands that made them.

| in the paper | here | what it says | what we find | chapter |
|---|---|---|---|---|
"""
TAIL = """
Not tried, for want of the data or of a GPU: the paper's own models at 64×64 and 128×128. Whoever holds its authors' files can
recompute Tables 1 and 2 with `pdae evaluate --protocol paper`.
"""


def record(name: str) -> dict:
    """A stored record."""
    return json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))


def span(e: dict, form: str = ".3g") -> str:
    """A value with its interval."""
    return f"{e['value']:{form}} [{e['low']:{form}}, {e['high']:{form}}]"


def critical_stage() -> str:
    """Fig. 3: the shortest stage that keeps 90 % of the accuracy."""
    accuracy = record("critical_stage")["accuracy"]
    stages = {tuple(map(int, k.split("-"))): v for k, v in accuracy.items()}
    whole = max(stages.items(), key=lambda kv: kv[0][1] - kv[0][0])[1]
    (start, stop), kept = min((kv for kv in stages.items() if kv[1] >= 0.9 * whole), key=lambda kv: (kv[0][1] - kv[0][0], -kv[1]))
    return f"the shortest of {len(stages)} stages that keeps 90 % of the accuracy is t = {start}…{stop} ({kept:.2f} of {whole:.2f})"


def table_1(name: str) -> tuple[str, str]:
    """Table 1: verdict and finding for a data set."""
    rows = next(iter(record(f"table_1_{name}")["measured"].values()))
    mse = {row: cells["MSE"] for row, cells in rows.items()}
    best = min((row for row in mse if "inferred" in row), key=lambda row: mse[row]["value"])
    shown = "; ".join(f"{row.split(',')[0]} {mse[row]['value']:.2g}" for row in mse if "inferred" in row)
    return (YES if best.startswith("PDAE") else PARTLY), f"{name}, MSE with the inferred x_T: {shown}; best {best.split(',')[0]}"


def table_2(name: str) -> str:
    """Table 2: KID at the fewest and at the most steps."""
    cells = {c["name"]: c["kid"]["value"] for c in record(f"table_2_{name}")["cells"]}
    steps = sorted({int(n.rsplit("= ", 1)[1]) for n in cells if n.startswith("DDIM, T = ")})
    return "; ".join(f"T = {T}: DDIM {cells[f'DDIM, T = {T}']:.3f}, PDAE {cells[f'PDAE, T = {T}']:.3f}" for T in (steps[0], 10, steps[-1]))


def truncation() -> tuple[str, str]:
    """Fig. 9: the KID over the scale."""
    rows = {r["scale"]: r for r in record("truncation")["rows"] if r["method"] == "pdae"}
    best = min(rows, key=lambda s: rows[s]["kid"]["value"])
    ends = sorted(rows)[1], sorted(rows)[-1]
    inside = ends[0] < best < ends[1]
    return (YES if inside else PARTLY), (f"KID is least at scale {best:g} ({rows[best]['kid']['value']:.3f}; {rows[ends[1]]['kid']['value']:.3f} at "
                                        f"{ends[1]:g}); precision rises, recall falls")


def efficiency() -> str:
    """Section 4.1: the share of Diff-AE's images until its final loss."""
    summary = record("training_efficiency")["summary"]
    loss = ", ".join(f"{v:.2f}" for v in summary["loss"])
    reached = sum(v is not None for v in summary["mse"])
    return (f"shares of Diff-AE's images until its final loss: {loss} (three seeds); until its reconstruction error: reached in {reached} of "
            f"{len(summary['mse'])}")


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
    return [
        ("Fig. 1", YES, "a conditional DPM has the lower loss", "the loss trained on ends lower with three seeds; the unweighted error at small "
         "t doesn't", "03_posterior_mean_gap"),
        ("Fig. 3", YES, "only t = 400…700 decides the class", critical_stage(), "04_classifier_guidance"),
        ("Fig. 4", YES, "weights of several schemes", "the same curves, by formula", "06_weighting"),
        ("λ = 1 is “extremely unstable”", NO, "training diverges", "slower, and never unstable", "06_weighting"),
        ("Fig. 5", YES, "z fills much of the posterior-mean gap", "; ".join(map(fills, ("digits", "peeps"))), "05_filling_the_gap"),
        ("§4.1, efficiency", PARTLY, "⅓ to ½ of Diff-AE's batches", efficiency(), "07_training"),
        ("Tab. 1, Fig. 6, digits", made["digits"][0], f"PDAE {tab_1['PDAE, inferred x_T'][2]:.2e}, Diff-AE "
         f"{tab_1['Diff-AE, inferred x_T'][2]:.2e}, DDIM {tab_1['DDIM, inferred x_T'][2]}", made["digits"][1], "08_reconstruction"),
        ("Tab. 1, Fig. 6, faces", made["peeps"][0], "the same", made["peeps"][1], "08_reconstruction"),
        ("Fig. 7", YES, "between two codes lie images; G is near linear in z", "both ways of mixing lead to nearly the same images",
         "09_interpolation"),
        ("Fig. 8", PARTLY, "a linear classifier edits attributes", "large things (sunglasses, masks, beards) yes, hats and smiles no; the "
         "difference of means edits better than the classifier's weights", "10_attributes"),
        ("Fig. 9", scale, "an optimum of the scale, precision against recall", swept, "11_truncation"),
        ("Tab. 3", PARTLY, "PDAE ahead of Diff-AE in most columns", "few labels do select codes; between the two there is mostly no difference "
         "to be measured", "12_few_shot"),
        ("Tab. 2, faces", PARTLY, f"CelebA FID at T = 10: DDIM {tab_2['DDIM'][0]}, PDAE {tab_2['PDAE'][0]}; ahead at all T", "ahead with few steps, "
         "level with many; KID at " + table_2("peeps"), "13_better_samples"),
        ("Tab. 2, digits", YES, "the same", "KID at " + table_2("digits"), "13_better_samples"),
    ]


def page() -> str:
    """The page as Markdown."""
    lines = [f"| {what} | **{verdict}** | {says} | {finds} | {{doc}}`notebooks/{chapter}` |" for what, verdict, says, finds, chapter in rows()]
    return HEAD + "\n".join(lines) + "\n" + TAIL


if __name__ == "__main__":
    write_text(TARGET, page())
