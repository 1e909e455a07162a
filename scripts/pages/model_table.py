"""Write the table of the models that ship into book/models.md, from their cards' JSON files: no figure in it is typed
by hand.

    python scripts/pages/model_table.py            # a test tells when it has to be run again
"""
import json
from pathlib import Path

import pdae_lite
from pdae_lite.checkpoint import shipped_file, write_text
from pdae_lite.data import ASSETS

ROOT = Path(__file__).resolve().parents[2]

START, END = "<!-- models: scripts/pages/model_table.py writes this -->", "<!-- end of models -->"
ORDER = ("pdae", "difference", "diffae", "latent", "diffae_latent", "classifier", "class", "cond_dpm", "features")
WHAT = {"pdae": "PDAE in the paper's form, {shape}, z_dim {z_dim}; kind `\"dpm\"` is its DPM",
        "difference": "PDAE in the difference form on the same DPM, {shape}, z_dim {z_dim}",
        "diffae": "Diff-AE, {shape}, z_dim {z_dim}",
        "latent": "latent DPM of the PDAE", "diffae_latent": "latent DPM of the Diff-AE",
        "classifier": "classifier of noisy images", "class": "class-conditional G on the DPM",
        "cond_dpm": "DPM that is told the class", "features": "feature space of the metrics"}


def value(e) -> float:
    """An estimate in any of the cards' forms."""
    return e["value"] if isinstance(e, dict) else e


def seen(o: dict, kind: str) -> str:
    t = o["training"]
    if kind == "features":
        return f"{t['steps'] * t['batch_size'] / 1e3:,.0f}k"
    own = f"{t['images_seen'] / 1e3:,.0f}k"
    if kind == "pdae":
        return f"{t['dpm_training']['images_seen'] / 1e3:,.0f}k (DPM), {own}"
    return own + (" codes" if "latent" in kind else "")


def quality(o: dict, kind: str) -> str:
    if kind in ("pdae", "difference", "diffae"):
        p, r, again = o["probe"], o["random_x_T"], value(o["random_x_T"]["nearest_is_original"]["shape"])
        measure = f"{'accuracy' if p['measure'] == 'accuracy' else 'AUROC'} {p['mean_' + p['measure']]:.3f}"
        fill = f"fill {o['fill']['mean_300_600']:.2f} (t = 300…600), " if "fill" in o else ""
        return (f"{fill}probe {measure}, found again {again:.3f}, MSE {value(r['mse']):.4f} (random x_T), "
                f"{value(o['inferred_x_T']['mse']):.1e} (inferred)")
    if kind == "classifier":
        return ", ".join(f"accuracy {value(r['accuracy']):.2f} at t = {r['t']}" for r in o["held_out"]
                         if r["t"] in (0, 300, 600))
    if kind == "features":
        q = o["held_out"]
        return (f"accuracy {value(q['accuracy']):.3f}" if "accuracy" in q
                and "auroc_mean" not in q else f"AUROC {q['auroc_mean']:.3f}")
    i = o["images"]
    told = f"{value(i['of_the_class']):.2f} of the class asked for, " if "of_the_class" in i else ""
    return told + f"KID {value(i['kid']):.3f}, precision {value(i['precision']):.2f}, recall {value(i['recall']):.2f}"


def table() -> str:
    rows = ["| load | what | file | images seen | quality on held-out images | card |", "|---|---|---|---|---|---|"]
    models = sorted((pair for pair in pdae_lite.shipped() if pair[1] in ORDER), key=lambda p: (p[0], ORDER.index(p[1])))
    for name, kind in models:
        o = json.loads((ASSETS / f"{name}_{kind}.json").read_text(encoding="utf-8"))
        call = f'load("{name}")' if kind == "pdae" else f'load("{name}", "{kind}")'
        size = shipped_file(name, kind).stat().st_size / 1e6
        what = WHAT[kind].format(z_dim=o.get("z_dim"), shape="×".join(map(str, o.get("images", ()))))
        rows.append(f"| `{call}` | {what} | {size:.1f} MB | {seen(o, kind)} | {quality(o, kind)} | "
                    f"`{name}_{kind}.md` |")
    return "\n".join(rows)


def renewed(text: str) -> str:
    """The page with the table as it should be."""
    before, rest = text.split(START)
    return f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    page = ROOT / "book" / "models.md"
    write_text(page, renewed(page.read_text(encoding="utf-8")))
