"""PDAE against Diff-AE while they train (Section 4.1): same data, network, encoder, seed and images; what differs is
the method.

    python scripts/results/training_efficiency.py --seeds 0 1 2          # half a CPU hour; a run that was stopped goes
    on

Trains both on the digits that ship and measures at every eighth of a run, on held-out digits with the same noise for
both:

* `loss`: E[λ_t ‖ε − ε̂‖²], the quantity that both minimise, averaged over t = 50, 150, … 950 with λ_t of v-prediction;
* `mse`: rebuilding from z and a random x_T (DDIM, 20 steps), on [0, 1];
* `found`: the share of those whose nearest held-out digit (in pixels) is the original.

PDAE starts from the DPM that ships; the images that the DPM saw are not counted for it, as in the paper. Writes
training_efficiency.json and training_efficiency.md in pdae_lite/assets.
"""
import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from contest import images_until

import pdae_lite
from pdae_lite import data, losses
from pdae_lite.checkpoint import write_text
from pdae_lite.presets import DIGITS_PAPER
from pdae_lite.training import train

TS = list(range(50, 1000, 100))


def build(method: str):
    """A fresh model; the PDAE stands on the shipped DPM."""
    return DIGITS_PAPER.pdae(pdae_lite.load("digits", "dpm")) if method == "pdae" else DIGITS_PAPER.diffae()


@torch.no_grad()
def measure(model, x_0: torch.Tensor) -> dict:
    """Held-out loss and random-x_T reconstruction of a PDAE or a Diff-AE."""
    model.eval()
    shift = {"shift": "ddpm"} if isinstance(model, pdae_lite.PDAE) else {}  # the form that it is trained in
    error = losses.noise_error(lambda x: model.denoiser(model.encode(x), **shift), x_0, model.schedule, TS)
    weight = model.schedule.loss_weight("v")[TS]
    some = x_0[:50]
    x_T = model.noise(len(some), torch.Generator().manual_seed(0))
    rebuilt = model.decode(model.encode(some), x_T, steps=20)
    nearest = torch.cdist(rebuilt.flatten(1), x_0.flatten(1)).argmin(1)
    return {"loss": float((weight * error).mean()), "mse": float(((rebuilt - some) / 2).square().mean()),
            "found": float((nearest == torch.arange(len(some))).float().mean())}


def run(method: str, seed: int, config, out: Path) -> dict:
    """One training, measured as it goes."""
    torch.manual_seed(seed)
    model = build(method)
    x_test = data.digits("test").floats(slice(0, 100))
    start = measure(model, x_test) if not (out / "history.json").exists() else None
    history = train(model, data.digits(), replace(config, seed=seed), out=out, progress=False,
                    callback=lambda step, m: measure(m, x_test)).history
    # the measured loss replaces the batch's
    points = [{k: e[k] for k in ("images", "loss", "mse", "found")} for e in history]
    if start is not None:
        write_text(out / "start.json", json.dumps(start))
    points.insert(0, {"images": 0, **json.loads((out / "start.json").read_text())})
    final = measure(model, x_test)  # the EMA weights
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"method": method, "seed": seed, "points": points, "final_ema": final, "parameters_trained": trained}


def summary(runs: list[dict]) -> dict:
    """Of each seed: what share of Diff-AE's images PDAE needs for Diff-AE's last loss, and for its last MSE."""
    of = {(r["method"], r["seed"]): r["points"] for r in runs}
    out = {}
    for key in ("loss", "mse"):
        shares = []
        for seed in sorted({r["seed"] for r in runs}):
            end = of["diffae", seed][-1]
            needed = images_until(of["pdae", seed], key, end[key])
            shares.append(None if needed is None else needed / end["images"])
        out[key] = shares
    return out


def card(o: dict) -> str:
    """The record as Markdown; every number comes from `o`."""
    seeds, said = sorted({r["seed"] for r in o["runs"]}), {"loss": "loss", "mse": "MSE from random x_T"}
    rows = []
    for i, point in enumerate(o["runs"][0]["points"]):
        cells = []
        for method in ("pdae", "diffae"):
            at = [r["points"][i] for r in o["runs"] if r["method"] == method]
            for key, form in (("loss", ".4f"), ("mse", ".4f"), ("found", ".2f")):
                values = [p[key] for p in at]
                cells.append(f"{sum(values) / len(values):{form}} ({min(values):{form}} … {max(values):{form}})")
        rows.append(f"| {point['images']:,} | {' | '.join(cells)} |")
    shares = {key: ", ".join("not reached" if v is None else f"{v:.2f}" for v in values)
              for key, values in o["summary"].items()}
    needed = "; ".join(f"{said[key]} {v}" for key, v in shares.items())
    trained = {m: next(r["parameters_trained"] for r in o["runs"] if r["method"] == m) for m in ("pdae", "diffae")}
    return f"""# Training efficiency: PDAE against Diff-AE (Section 4.1)

Both on the 4,500 training digits with the same network, encoder, batches and noise, {len(seeds)} seeds, measured on \
{o['held_out']}
held-out digits. PDAE trains {trained['pdae']:,} parameters on the DPM of `digits_pdae`, whose own images aren't \
counted, as in the
paper; Diff-AE trains {trained['diffae']:,} from scratch. The paper reports that PDAE needs a third to a half of the \
images.

Share of Diff-AE's images that PDAE needs to reach what Diff-AE has at the end, a value for each seed: {needed}.
(0: it is there at the start, as the DPM is.)

Mean over seeds (least … most); *found*: nearest held-out digit to the reconstruction, in pixels, is the original.

| images | PDAE: loss | MSE | found | Diff-AE: loss | MSE | found |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Command: `{o['command']}`; {o['date']}, torch {o['torch']}, Python {o['python']}, one core of a CPU. Everything: \
`training_efficiency.json`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=25_600, help="images that each run sees (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/efficiency"))
    parser.add_argument("--result", type=Path, default=data.ASSETS / "training_efficiency.json")
    args = parser.parse_args()
    steps = args.images // DIGITS_PAPER.train.batch_size
    config = replace(DIGITS_PAPER.train, steps=steps, log_every=max(steps // 8, 1), save_every=max(steps // 8, 1))
    runs = []
    for seed in args.seeds:
        for method in ("pdae", "diffae"):
            runs.append(run(method, seed, config, args.out / f"{method}_{seed}"))
            print(method, seed, runs[-1]["points"][-1], flush=True)
    facts = {"command": f"python scripts/results/training_efficiency.py --seeds {' '.join(map(str, args.seeds))} "
                        f"--images {args.images}",
             "config": asdict(config), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__,
             "python": platform.python_version(), "device": "CPU", "t": TS, "held_out": 100}
    out = facts | {"summary": summary(runs), "runs": runs}
    write_text(args.result, json.dumps(out, indent=1) + "\n")
    write_text(args.result.with_suffix(".md"), card(out))


if __name__ == "__main__":
    main()
