"""PDAE in its two forms against Diff-AE while they train (Section 4.1): same digits, network, encoder, batches and
noise; what differs is the method.

    python scripts/results/contest.py                     # an hour of one CPU core
    python scripts/results/contest.py --methods pdae diffae --seeds 0 --images 6400

Each run is measured at every quarter of it, on held-out digits with the same noise for all, and more thoroughly at its
end; `METHODS` says what runs. Both forms of PDAE stand on the DPM that ships; its own images are not counted for them,
as in the paper. Runs are kept under --out: one that was stopped goes on, one that is complete costs nothing, and the
record holds all that are there. Writes contest.json and contest.md in pdae_lite/assets.
"""
import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

import pdae_lite
from pdae_lite import data, losses, metrics
from pdae_lite.applications.attributes import LinearProbe, encode_all
from pdae_lite.checkpoint import write_text
from pdae_lite.diffae import DiffAE
from pdae_lite.pdae import PDAE
from pdae_lite.presets import DIGITS, DIGITS_PAPER
from pdae_lite.training import train

TS = list(range(100, 1000, 100))
MIDDLE = [TS.index(t) for t in range(300, 601, 100)]


def difference(dpm) -> PDAE:
    """PDAE, the difference form."""
    return DIGITS.pdae(dpm)


def paper(dpm) -> PDAE:
    """PDAE, the paper's form, with G in units of v."""
    return DIGITS_PAPER.pdae(dpm)


def diffae(dpm) -> DiffAE:
    """Diff-AE from scratch."""
    return DIGITS.diffae()


@torch.no_grad()
def diffae_from_dpm(dpm) -> DiffAE:
    """Diff-AE that starts as the DPM: its weights are copied, and z's projections are zero."""
    model = DIGITS.diffae()
    own = dpm.state_dict()
    for name, p in model.network.named_parameters():
        if name in own:
            p.copy_(own[name])
        elif "emb_z_layers" in name:
            p.zero_()
    return model


def without_z(dpm) -> PDAE:
    """The difference form with an encoder that says nothing, z = 0: what its head learns anyway."""
    model = DIGITS.pdae(dpm)
    for p in model.encoder.requires_grad_(False).parameters():
        nn.init.zeros_(p)
    return model


METHODS = {"pdae": difference, "paper": paper, "diffae": diffae, "diffae_dpm": diffae_from_dpm, "no_z": without_z}


def told(model):
    """The denoiser that knows images' own codes, in the form that was trained."""
    return model.trained_denoiser if isinstance(model, PDAE) else model.denoiser


@torch.no_grad()
def measure(model, alone: torch.Tensor, x_0: torch.Tensor) -> dict:
    """Held-out loss, fill (the share of the DPM's error that z removes) and random-x_T reconstruction."""
    model.eval()
    error = losses.noise_error(lambda x: told(model)(model.encode(x)), x_0, model.schedule, TS)
    filled = losses.fill(error, alone)
    some = x_0[:50]
    x_T = model.noise(len(some), torch.Generator().manual_seed(0))
    rebuilt = model.decode(model.encode(some), x_T, steps=20)
    return {"loss": float((model.schedule.loss_weight("v")[TS] * error).mean()), "fill": float(filled[MIDDLE].mean()),
            "mse": float(metrics.mse(rebuilt, some).mean())}


@torch.no_grad()
def measure_end(model, dpm) -> dict:
    """The trained model (EMA weights): fill per t, with its own and with another digit's z; MSE; a linear probe."""
    model.eval()
    test, learnt = data.digits("test"), data.digits("train")
    x_0, schedule = test.floats(slice(200)), model.schedule
    alone = losses.noise_error(lambda x: dpm, x_0, schedule, TS)
    own, other = (losses.fill(losses.noise_error(lambda x: told(model)(model.encode(x).roll(by, 0)), x_0, schedule, TS),
                              alone) for by in (0, 1))
    x_T = model.noise(len(x_0), torch.Generator().manual_seed(0))
    out = {"fill": own.tolist(), "fill_of_another_z": other.tolist(), "fill_300_600": float(own[MIDDLE].mean()),
           "mse": metrics.mean(metrics.mse(model.decode(model.encode(x_0), x_T, steps=20), x_0)).to_dict()}
    codes = encode_all(model, learnt.images, 500)
    if float(codes.std()) > 0:
        probe = LinearProbe.fit(codes, learnt.labels, [str(i) for i in range(10)])
        out["probe"] = float(probe.accuracy(encode_all(model, test.images, 500), test.labels).mean())
    return out


def run(method: str, seed: int, config, out: Path) -> dict:
    """One training, measured as it goes; read from `out` if it is complete."""
    kept = out / "result.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    dpm = pdae_lite.load("digits", "dpm")
    torch.manual_seed(seed)
    model = METHODS[method](dpm)
    x_test = data.digits("test").floats(slice(0, 100))
    alone = losses.noise_error(lambda x: dpm, x_test, model.schedule, TS)
    begin = measure(model, alone, x_test)
    history = train(model, data.digits(), replace(config, seed=seed), out=out, progress=False,
                    callback=lambda step, m: measure(m, alone, x_test)).history
    points = [{"images": 0} | begin] + [{k: e[k] for k in ("images", "loss", "fill", "mse")} for e in history]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = {"method": method, "seed": seed, "points": points, "end": measure_end(model, dpm), "trained": trained}
    write_text(kept, json.dumps(result, indent=1) + "\n")
    return result


def seconds(methods: list[str], config, rounds: int = 3) -> dict:
    """Seconds of a training step of each method, in turns in this process: the least of the rounds."""
    dpm, images, best = pdae_lite.load("digits", "dpm"), data.digits(), {}
    for _ in range(rounds):
        for method in methods:
            model = METHODS[method](dpm)
            train(model, images, config, steps=2, progress=False)
            begin = time.perf_counter()
            train(model, images, config, steps=5, progress=False)
            best[method] = min(best.get(method, float("inf")), (time.perf_counter() - begin) / 5)
    return best


def images_until(points: list[dict], key: str, target: float) -> float | None:
    """Images seen when `key` first reaches `target` (fill from below, an error from above), on the lines between the
    points; 0: it starts there; None: it never does."""
    sign = 1 if key == "fill" else -1
    for before, after in zip([points[0]] + points, points):
        a, b = sign * (before[key] - target), sign * (after[key] - target)
        if b >= 0:
            share = 1.0 if a >= 0 else -a / (b - a)
            return before["images"] + share * (after["images"] - before["images"])
    return None


def summary(runs: list[dict]) -> dict:
    """What share of Diff-AE's images each method needs for what Diff-AE has at the end, a value for each seed."""
    of = {(r["method"], r["seed"]): r["points"] for r in runs}
    out: dict = {}
    for method in {m: None for m, _ in of if m not in ("diffae", "no_z")}:
        for key in ("loss", "fill", "mse"):
            needed = {seed: images_until(points, key, of["diffae", seed][-1][key]) for (m, seed), points in of.items()
                      if m == method and ("diffae", seed) in of}
            out.setdefault(method, {})[key] = [None if n is None else n / of["diffae", s][-1]["images"]
                                               for s, n in sorted(needed.items())]
    return out


def spread(values: list[float], form: str) -> str:
    """A mean, and the least and the most."""
    mean = f"{sum(values) / len(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} … {max(values):{form}})"


def card(o: dict) -> str:
    """The record as Markdown; every number comes from `o`."""
    ends, needed = [], []
    for method, build in METHODS.items():
        found = [r for r in o["runs"] if r["method"] == method]
        if found:
            probes = [r["end"]["probe"] for r in found if "probe" in r["end"]]
            ends.append(f"| {build.__doc__.rstrip('.')} | {len(found)} | "
                        f"{spread([r['end']['fill_300_600'] for r in found], '.3f')} | "
                        f"{spread([r['end']['mse']['value'] for r in found], '.4f')} | "
                        f"{spread(probes, '.3f') if probes else '–'} | {1000 * o['seconds'][method]:.0f} |")
        if method in o["summary"]:
            shares = (", ".join("never" if v is None else f"{v:.2f}" for v in o["summary"][method][k])
                      for k in ("loss", "fill", "mse"))
            needed.append(f"| {build.__doc__.rstrip('.')} | {' | '.join(shares)} |")
    images = o["runs"][0]["points"][-1]["images"]
    return f"""# Contest: PDAE in two forms, Diff-AE in two ways (Section 4.1)

All on the 4,500 training digits with the same network, encoder, batches and noise, {images:,} images each. PDAE's DPM
is that of `digits_pdae`, whose own images aren't counted, as in the paper.

At the end, on 200 held-out digits (mean; least … most of the seeds). *Fill*: the mean over t = 300 … 600.

| method | seeds | fill | MSE, random x_T | probe, accuracy | ms a step |
|---|---|---|---|---|---|
{chr(10).join(ends)}

Share of Diff-AE's images that a method needs to reach what Diff-AE has at the end, a value for each seed. (0: it is
there at the start, as the DPM is.) The paper reports a third to a half.

| method | loss | fill | MSE |
|---|---|---|---|
{chr(10).join(needed)}

Command: `{o['command']}`; {o['date']}, torch {o['torch']}, Python {o['python']}, one core of a CPU. Everything: \
`contest.json`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=25_600, help="images that each run sees (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/contest"))
    parser.add_argument("--result", type=Path, default=data.ASSETS / "contest.json")
    args = parser.parse_args()
    steps = args.images // 64  # smaller batches and a shorter warm-up than the presets', for short runs
    config = replace(DIGITS.train, steps=steps, batch_size=64, warmup=steps // 10, log_every=max(steps // 4, 1),
                     save_every=max(steps // 4, 1))
    for seed in args.seeds:
        for method in args.methods:
            print(method, seed, run(method, seed, config, args.out / f"{method}_{seed}")["points"][-1], flush=True)
    runs = [json.loads(f.read_text()) for f in sorted(args.out.glob("*/result.json"))]
    facts = {"command": "python scripts/results/contest.py", "config": asdict(config),
             "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "python": platform.python_version(),
             "device": "CPU", "t": TS, "held_out": 100, "held_out_at_the_end": 200}
    out = facts | {"seconds": seconds(args.methods, config), "summary": summary(runs), "runs": runs}
    write_text(args.result, json.dumps(out, indent=1) + "\n")
    write_text(args.result.with_suffix(".md"), card(out))


if __name__ == "__main__":
    main()
