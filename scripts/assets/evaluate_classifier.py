"""Measure the noisy classifier that ships on held-out digits, and write its card.

    python scripts/assets/evaluate_classifier.py               # digits_classifier.{json,md}: some 15 seconds of one CPU
    core

At t = 0, 100, … 900: accuracy; cross-entropy in nats; and calibration, how sure it is beside how often it is right, and
the expected calibration error over ten bins of confidence. Guidance by the true class fills a share of the gap, which
is measured, too."""
import argparse
import json
import platform
from dataclasses import asdict, replace
from pathlib import Path

import torch
from cards import differing, file_facts, trained_with
from torch import Tensor

import pdae_lite
from pdae_lite import counter_rng, data, losses
from pdae_lite.checkpoint import load_model, shipped_file, write_text
from pdae_lite.data import ASSETS
from pdae_lite.guidance import guided
from pdae_lite.metrics import intervals
from pdae_lite.networks.classifier import NoisyClassifier
from pdae_lite.presets import PRESETS

TS = tuple(range(0, 1000, 100))


def calibration_error(sure: Tensor, right: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): |confidence − accuracy| in equal bins of confidence [N],
    weighted by count."""
    bin_of = (sure * bins).long().clamp(max=bins - 1)
    return float(sum(abs(sure[bin_of == b].sum() - right[bin_of == b].float().sum()) for b in range(bins)) / len(sure))


@torch.no_grad()
def quality(model: NoisyClassifier, x_0: Tensor, y: Tensor, ts=TS, seed: int = 0) -> list[dict]:
    """One entry per t; the noise is that of `NoisyClassifier.accuracy`."""
    rows = []
    for t in ts:
        t_batch = torch.full((len(x_0),), t)
        eps = counter_rng.normal(seed, t, torch.arange(len(x_0)), tuple(x_0.shape[1:]))
        log_p = model.log_prob(model.schedule.add_noise(x_0, t_batch, eps), t_batch)
        sure, seen = log_p.exp().max(1)
        rows.append({"t": t, "accuracy": asdict(intervals.proportion(seen == y)),
                     "cross_entropy": asdict(intervals.mean(-log_p.gather(1, y[:, None])[:, 0])),
                     "confidence": float(sure.mean()),
                     "calibration_error": calibration_error(sure, seen == y)})
    return rows


def filled(model: NoisyClassifier, x_0: Tensor, y: Tensor, ts=TS[1:]) -> dict:
    """Fill by guidance towards the true class, scale 1, and what it improves the variational bound by."""
    dpm, labels = pdae_lite.load("digits", "dpm"), iter(y.split(250))
    plain = losses.noise_error(lambda x: dpm, x_0, model.schedule, ts)
    told = losses.noise_error(lambda x: guided(dpm, model, next(labels), model.schedule), x_0, model.schedule, ts)
    return {"t": list(ts), "fill": losses.fill(told, plain).tolist(),
            "nats": losses.nats(told, plain, model.schedule, ts, x_0[0].numel())}


def command(model: NoisyClassifier) -> str:
    """The command that trains such a classifier: preset digits, and every setting in which the file differs from it."""
    trained, preset = trained_with(model.metadata), PRESETS["digits"]
    trained = replace(trained, weight=trained.weight or model.default_weight)
    actual = replace(preset, unet=model.config.unet, train_classifier=trained)
    differ = [f" \\\n    --set {setting}" for setting in differing(actual, preset, "classifier")]
    return "pdae train --method classifier --data digits --out runs/classifier" + "".join(differ)


def card(o: dict) -> str:
    t, f, q, unet = o["training"]["training"], o["file"], o["held_out"], o["unet"]
    rows = "\n".join(f"| {r['t']} | {r['accuracy']['value']:.3f} [{r['accuracy']['low']:.3f}, "
                     f"{r['accuracy']['high']:.3f}] | {r['confidence']:.3f} | {r['calibration_error']:.3f} | "
                     f"{r['cross_entropy']['value']:.3f} [{r['cross_entropy']['low']:.3f}, "
                     f"{r['cross_entropy']['high']:.3f}] | {fill} |"
                     for r, fill in zip(q, ["–", *(f"{v:.3f}" for v in o["filled"]["fill"])]))
    return f"""# digits_classifier

A classifier of *noisy* digits, p(y | x_t, t), for classifier guidance: `pdae_lite.load("digits", kind="classifier")`,
`pdae_lite.guidance.guided(dpm, classifier, y, schedule, scale)`.

- Architecture: the lower half of a U-Net (time embedding, input and middle blocks; {unet['base_channels']} channels, \
times
  {', '.join(map(str, unet['channel_mult']))}, patches of {unet['patch_size']}×{unet['patch_size']}), features \
averaged over 4×4 cells, a
  linear layer to {o['num_classes']} logits. {o['parameters']:,} parameters, stored as float16, \
{f['bytes'] / 1e6:.1f} MB.
- Data: `digits` (see `digits.md`), {o['train_images']:,} training digits with their labels; every figure below is on \
the
  {o['test_images']:,} held-out ones.
- Schedule: that of the DPM in `digits_pdae`; t drawn uniformly, cross-entropy of the same weight at every t.
- {o['training']['images_seen']:,} images seen in {t['steps']:,} steps, batch {t['batch_size']}, seed {t['seed']}, \
precision
  {t['precision']}, torch {o['training']['torch']}.
- Licence of the weights: MIT, like the code. The data are MNIST, CC BY-SA 3.0.
- File: `{f['name']}`, SHA-256 `{f['sha256']}`

```
{o['command']}
python scripts/assets/ship.py runs/classifier/model.safetensors digits_classifier
python scripts/assets/evaluate_classifier.py
```

## Quality

Confidence is the mean probability of the class that it names; well calibrated, it equals the accuracy. Knowing \
nothing costs
{o['nothing']:.3f} nats of cross-entropy. Fill: the share of the posterior-mean gap of the DPM in `digits_pdae` that \
guidance towards the
true class fills, at scale 1.

| t | accuracy | confidence | calibration error | cross-entropy | fill |
| ---: | ---: | ---: | ---: | ---: | ---: |
{rows}

In all, guidance by the true class improves the variational bound by {o['filled']['nats']:.2f} nats an image (errors \
interpolated linearly
between these t); by the class one could learn {o['nothing']:.2f} at most.
In brackets: 95 % intervals. All figures in full: `digits_classifier.json`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=shipped_file("digits", "classifier"))
    parser.add_argument("--out", type=Path, default=ASSETS, help="where to write (default: beside the shipped models)")
    parser.add_argument("--images", type=int, default=500, help="held-out digits to measure on (default: all)")
    args = parser.parse_args()
    model, test = load_model(args.file, expect=NoisyClassifier), data.digits("test")
    x_0, y = test.floats()[: args.images], test.labels[: args.images]
    o = {"file": file_facts(args.file),
         "unet": asdict(model.config.unet), "num_classes": model.num_classes,
         "parameters": sum(p.numel() for p in model.parameters()),
         "training": model.metadata, "command": command(model), "train_images": len(data.digits("train")),
         "test_images": len(x_0),
         "nothing": float(torch.tensor(float(model.num_classes)).log()),
         "made_with": {"torch": torch.__version__, "python": platform.python_version()},
         "held_out": quality(model, x_0, y), "filled": filled(model, x_0, y)}
    write_text(args.out / "digits_classifier.json", json.dumps(o, indent=1) + "\n")
    write_text(args.out / "digits_classifier.md", card(o))
    print(card(o))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
