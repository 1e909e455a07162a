"""Write book/results.md, every stored figure and how it was made, from the JSON records in the package: nothing in it
is typed by hand.

    python scripts/pages/results_page.py            # a test tells when it has to be run again

A record that is new in pdae_lite/assets gets its entry by itself. What a record doesn't say is left out here."""
import json
import re
from pathlib import Path

from model_table import ORDER, WHAT, quality, seen

from pdae_lite.checkpoint import write_text
from pdae_lite.data import ASSETS

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "results.md"
TITLES = {
    "critical_stage": "Critical stage: accuracy of the class, for every stage in which a classifier guides (Fig. 3)",
    "counterfactuals": "Edits against the true counterfactual (Fig. 8)",
    "truncation": "A class-conditional estimator scaled from 0 to 3 (Fig. 9)",
    "truncation_short": "The same after a short training (Fig. 9)",
    "pixel_probe": "Linear probes on raw pixels (Fig. 8)",
    "few_shot": "Few-shot conditional generation (Table 3)",
    "table_1_digits": "Reconstruction (Table 1): digits",
    "table_1_peeps": "Reconstruction (Table 1): faces",
    "table_2_digits": "Better samples from the same DPM (Table 2): digits",
    "table_2_peeps": "Better samples from the same DPM (Table 2): faces",
    "sampling_digits": "Quality against cost of solvers and inversions: digits",
    "sampling_peeps": "Quality against cost of solvers and inversions: faces",
    "along": "What a PDAE draws along its training",
    "any_dpm": "PDAE on flow matching and on latents, beside VP and pixels",
    "trials": "Trials: trainings that differ in one choice",
    "training_options": "What each option of training costs and buys, in time",
    "training_efficiency": "Training efficiency: PDAE and Diff-AE on equal images (Section 4.1)",
}
COUNTS = ("count", "counts", "samples", "images", "held_out", "faces", "steps")
HEAD = """---
html_theme.sidebar_secondary.remove: true
---

# Results and provenance

Chapters run in a minute or two. What takes longer was computed once, by a command, and its result is stored in the \
package
(`pdae_lite/assets`) with that command. This page lists all of it. It is written from those records by \
`scripts/pages/results_page.py`, and
the tests compute a part of each anew. What a record doesn't hold isn't listed.
"""
MODELS = """All of them are trained by `make weights`; `make -n weights` lists the commands. Each has a card,
`pdae_lite/assets/NAME_KIND.md`, with curves, pictures and every figure with its interval."""


def find(o, *names):
    """The value of the first of `names` that a record has, at the outermost place; None where it has none."""
    level = [o]
    while level:
        for name in names:
            for d in level:
                if d.get(name) not in (None, "", [], {}):
                    return d[name]
        level = [v for d in level for v in d.values() if isinstance(v, dict)]


def short(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {short(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        return ", ".join(map(short, value[:12])) + (" …" if len(value) > 12 else "")
    return (f"{value:.4g}" if isinstance(value, float)
            else re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"`\1…`", str(value)))


def has_lists(value) -> bool:
    return isinstance(value, list) or isinstance(value, dict) and any(map(has_lists, value.values()))


def made(o) -> str:
    """Versions, device, date."""
    torch, python, device, date = (find(o, n) for n in ("torch", "python", "device", "date"))
    device = "CPU" if device == "cpu" else device
    return ", ".join(short(part) for part in (torch and f"torch {torch}", python and f"Python {python}", device, date)
                     if part)


def chapters(stem: str) -> str:
    """Links to the chapters that read a record, by its name in their code."""
    pages = [p.stem for p in sorted((ROOT / "notebooks").glob("*.ipynb")) if re.search(rf"\b{stem}\b", code_of(p))]
    return ", ".join(f"{{doc}}`notebooks/{page}`" for page in pages)


def code_of(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def models() -> list[str]:
    rows = [":::{div} wide-table", "| load | what | training | quality on held-out images | weights (SHA-256) |",
            "|---|---|---|---|---|"]
    for name in ("digits", "peeps"):
        for kind in ORDER:
            path = ASSETS / f"{name}_{kind}.json"
            if path.is_file():
                o = json.loads(path.read_text(encoding="utf-8"))
                call = f'load("{name}")' if kind == "pdae" else f'load("{name}", "{kind}")'
                what = WHAT[kind].format(z_dim=o.get("z_dim"), shape="×".join(map(str, o.get("images", ()))))
                rows.append(f"| `{call}` | {what} | {seen(o, kind)} images, seed {find(o['training'], 'seed')} | "
                            f"{quality(o, kind)}; with {made(o.get('made_with', o))} | {short(o['file']['sha256'])} |")
    return [*rows, ":::"]


def title(stem: str) -> str:
    """By the longest beginning that has one: `table_2_peeps` is Table 2, on peeps."""
    key = max((k for k in TITLES if stem.startswith(k)), key=len, default=None)
    if key is None:
        return stem.replace("_", " ").capitalize()
    return TITLES[key] + (f": {stem[len(key):].strip('_')}" if stem != key else "")


def record(path: Path) -> list[str]:
    o = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"### {title(path.stem)}", ""]
    facts = {"record": f"`pdae_lite/assets/{path.name}`", "shown in": chapters(path.stem)}
    if command := find(o, "command", "commands"):
        commands = (command if isinstance(command, list) else list(command.values())
                    if isinstance(command, dict) else [command])
        facts["made by"] = "; ".join(f"`{' '.join(str(c).split())}`" for c in commands)
    facts["with"] = made(o)
    runs = [r for v in o.values() if isinstance(v, list) for r in v if isinstance(r, dict)]
    seeds = (o.get("seeds") or find(o, "seed")
             if not any("seed" in r for r in runs) else sorted({r["seed"] for r in runs if "seed" in r}))
    facts["seeds"] = seeds if seeds is None else short(seeds)
    counts = {k.replace("_", " "): o[k] for k in COUNTS if isinstance(o.get(k), (int, dict)) and not has_lists(o[k])}
    facts["counts"] = short(counts)
    weights = find(o, "weights", "digests", "sha256", "sha256_of_weights", "sha256_of_dpm")
    facts["weights (SHA-256)"] = None if weights is None or has_lists(weights) else short(weights)
    return [*lines, *(f"- **{label}:** {text}" for label, text in facts.items() if text), ""]


def page() -> str:
    stems = {f"{name}_{kind}" for name in ("digits", "peeps") for kind in ORDER}
    records = [p for p in sorted(ASSETS.glob("*.json")) if p.stem not in stems]
    order = {stem: i for i, stem in enumerate(TITLES)}
    records.sort(key=lambda p: (order.get(p.stem, len(order)), p.stem))
    stored = [line for path in records for line in record(path)]
    return ("\n".join([HEAD, "## Models", "", MODELS, "", *models(), "", "## Stored results", "", *stored]).rstrip("\n")
            + "\n")


if __name__ == "__main__":
    write_text(TARGET, page())
