"""PDAE against Diff-AE while they train (Section 4.1): same data, network, encoder, seed and images; what differs is the method.

    python scripts/training_efficiency.py --seeds 0 1 2          # half a CPU hour; a run that was stopped goes on

Trains both on the digits that ship and measures at every eighth of a run, on held-out digits with the same noise for both:

* `loss`: E[λ_t ‖ε − ε̂‖²], the quantity that both minimise, averaged over t = 50, 150, … 950 with λ_t of v-prediction;
* `mse`: rebuilding from z and a random x_T (DDIM, 20 steps), on [0, 1];
* `found`: the share of those whose nearest held-out digit (in pixels) is the original.

PDAE starts from the DPM that ships; the images that the DPM saw are not counted for it, as in the paper. Writes
pdae_lite/assets/training_efficiency.json.
"""
import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

import pdae_lite
from pdae_lite import data, losses
from pdae_lite.checkpoint import write_text
from pdae_lite.presets import DIGITS
from pdae_lite.training import train

TS = list(range(50, 1000, 100))


def build(method: str):
    """A fresh model; the PDAE stands on the shipped DPM."""
    return DIGITS.pdae(pdae_lite.load("digits", "dpm")) if method == "pdae" else DIGITS.diffae()


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
    points = [{k: e[k] for k in ("images", "loss", "mse", "found")} for e in history]  # the measured loss replaces the batch's
    if start is not None:
        write_text(out / "start.json", json.dumps(start))
    points.insert(0, {"images": 0, **json.loads((out / "start.json").read_text())})
    final = measure(model, x_test)  # the EMA weights
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"method": method, "seed": seed, "points": points, "final_ema": final, "parameters_trained": trained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=25_600, help="images that each run sees (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/efficiency"))
    parser.add_argument("--result", type=Path, default=data.ASSETS / "training_efficiency.json")
    args = parser.parse_args()
    steps = args.images // DIGITS.train.batch_size
    config = replace(DIGITS.train, steps=steps, log_every=max(steps // 8, 1), save_every=max(steps // 8, 1))
    runs = []
    for seed in args.seeds:
        for method in ("pdae", "diffae"):
            runs.append(run(method, seed, config, args.out / f"{method}_{seed}"))
            print(method, seed, runs[-1]["points"][-1], flush=True)
    facts = {"command": f"python scripts/training_efficiency.py --seeds {' '.join(map(str, args.seeds))} --images {args.images}",
             "config": asdict(config), "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__,
             "python": platform.python_version(), "device": "CPU", "t": TS, "held_out": 100}
    write_text(args.result, json.dumps(facts | {"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
