"""Measure the shipped digits model on held-out digits, and write its card.

    python scripts/evaluate_digits.py            # measures pdae_lite/assets/digits_pdae.safetensors: about 10 CPU minutes

Writes pdae_lite/assets/digits_pdae.json (every figure) and digits_pdae.md (the card).

Feature spaces come from a small convolutional classifier that is trained here on the 4,500 training digits (seed 0), never
on held-out ones: its 64 penultimate activations ("class features", for precision, recall and memorisation) and its last
1,024 convolutional activations ("shape features", which still tell two digits of one class apart).
"""
import hashlib
import json
import platform
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import pdae_lite
from pdae_lite import data, keyed, losses, sampling
from pdae_lite.batches import affine

ASSETS = data.ASSETS
FILE = ASSETS / "digits_pdae.safetensors"


def train_classifier(images, labels, steps=1500, batch_size=128):
    """A small classifier; its penultimate layer is the feature space."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Conv2d(48, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    index = torch.arange(batch_size)
    for step in range(steps):
        chosen = (keyed.uniform(0, step, index, 1, "t")[:, 0] * len(images)).long()
        x = affine(images[chosen], keyed.uniform(0, step, index, 7, "augment"))
        loss = F.cross_entropy(net(x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def in_batches(function, x, size=125):
    """function over x in batches, concatenated."""
    return torch.cat([function(x[i : i + size]) for i in range(0, len(x), size)])


def radii(features, k=3):
    """Distance of each point to its k-th nearest neighbour."""
    d = torch.cdist(features, features)
    return d.kthvalue(k + 1, dim=1).values


def precision_recall(generated, real, k=3):
    """Kynkäänniemi et al. 2019: shares of points inside the other set's k-nearest-neighbour balls."""
    d = torch.cdist(generated, real)
    return float((d <= radii(real, k)[None]).any(1).float().mean()), float((d <= radii(generated, k)[:, None]).any(0).float().mean())


def linear_probe(z_train, y_train, z_test, y_test):
    """(accuracy, L2) of multinomial logistic regression on normalised codes; L2 by five-fold cross-validation on the
    training codes."""
    mean, std = z_train.mean(0), z_train.std(0)
    a, b = (z_train - mean) / std, (z_test - mean) / std
    fold = torch.arange(len(a)) % 5

    def cross_validated(l2):
        return sum(_probe(a[fold != k], y_train[fold != k], a[fold == k], y_train[fold == k], l2) for k in range(5))

    best = max((1e-5, 1e-4, 1e-3, 1e-2), key=cross_validated)
    return _probe(a, y_train, b, y_test, best), best


def _probe(a, y_train, b, y_test, l2):
    w, c = torch.zeros(a.shape[1], 10, requires_grad=True), torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, c], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(a @ w + c, y_train) + l2 * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(((b @ w + c).argmax(1) == y_test).float().mean())


def random_x_T(pdae, net, x_test, z_test, steps=50):
    """Rebuild every held-out digit from z and two random noises: is the nearest held-out digit the original?"""
    spaces = {"pixels": nn.Flatten(), "shape features": net[:-4], "class features": net[:-2]}
    found, errors = dict.fromkeys(spaces, 0), []
    for seed in (0, 1):
        x_T = pdae.noise(len(x_test), torch.Generator().manual_seed(seed))
        rebuilt = torch.cat([pdae.decode(z, x, steps=steps) for z, x in zip(z_test.split(125), x_T.split(125))])
        errors.append(mse01(rebuilt, x_test))
        for name, space in spaces.items():
            nearest = torch.cdist(in_batches(space, rebuilt), in_batches(space, x_test)).argmin(1)
            found[name] += int((nearest == torch.arange(len(x_test))).sum())
    cases = 2 * len(x_test)
    return {"cases": cases, "steps": steps, "nearest_is_original": {k: v / cases for k, v in found.items()}, "mse": sum(errors) / 2}


def mse01(a, b):
    """Mean square error on [0, 1]."""
    return float(((a - b) / 2).square().mean())


def main():
    start = time.time()
    pdae = pdae_lite.load("digits")
    dpm, schedule = pdae.dpm, pdae.schedule
    train, test = data.digits("train"), data.digits("test")
    x_train, x_test = train.floats(), test.floats()
    out = {}

    ts = list(range(50, 1000, 50))

    def plain(x):
        return dpm

    def coded(x):
        return pdae.denoiser(pdae.encode(x), shift="ddpm")

    def at(values, chosen):
        return float(torch.tensor([float(values[ts.index(t)]) for t in chosen]).mean())

    e_dpm, e_pdae = (losses.noise_error(f, x_test, schedule, ts) for f in (plain, coded))
    fill = losses.fill(e_pdae, e_dpm)
    linear = losses.LinearGaussian(x_train, pdae.z_dim).fill(schedule, ts)
    out["fill"] = {"t": ts, "pdae": fill.tolist(), "linear": linear.tolist(), "error_dpm": e_dpm.tolist(), "error_pdae": e_pdae.tolist(),
                   "mean_300_600": at(fill, range(300, 601, 50)), "mean_100_900": at(fill, range(100, 901, 100)),
                   "linear_mean_300_600": at(linear, range(300, 601, 50)), "linear_mean_100_900": at(linear, range(100, 901, 100))}
    fine = sorted({1, 2, 4, 7, 12, 18, 25, 35, *ts, 999})
    f_dpm, f_pdae = (losses.noise_error(f, x_test[:250], schedule, fine) for f in (plain, coded))
    out["nats"] = losses.nats(f_pdae, f_dpm, schedule, fine, x_test[0].numel())
    # Overfitting shows as a smaller error on training digits than on held-out ones.
    out["fill"]["on_training_digits_100_900"] = float(losses.fill(
        *(losses.noise_error(f, x_train[:500], schedule, list(range(100, 901, 100))) for f in (coded, plain))).mean())
    means = {k: v for k, v in out["fill"].items() if "mean" in k or "on_" in k}
    print(means, out["nats"], f"{time.time() - start:.0f} s", flush=True)

    z_train, z_test = (in_batches(pdae.encode, x, 500) for x in (x_train, x_test))
    out["probe_accuracy"], out["probe_l2"] = linear_probe(z_train, train.labels, z_test, test.labels)
    flat_train, flat_test = x_train.flatten(1), x_test.flatten(1)
    basis = torch.linalg.svd(flat_train - flat_train.mean(0), full_matrices=False).Vh[: pdae.z_dim].T
    out["probe_accuracy_pca"], _ = linear_probe(flat_train @ basis, train.labels, flat_test @ basis, test.labels)
    net = train_classifier(x_train, train.labels)

    def features(x):
        return in_batches(net[:-2], x, 500)

    out["classifier_accuracy"] = float((in_batches(net, x_test, 500).argmax(1) == test.labels).float().mean())
    print("probe", out["probe_accuracy"], "classifier", out["classifier_accuracy"], f"{time.time() - start:.0f} s", flush=True)

    out["random_x_T"] = random_x_T(pdae, net, x_test, z_test)
    f_test = features(x_test)
    halves = zip(x_test[:100].split(50), z_test[:100].split(50))
    inferred = torch.cat([pdae.decode(z, pdae.invert(x, z, steps=100), steps=100) for x, z in halves])
    out["inferred_x_T"] = {"images": 100, "steps": "100 + 100", "mse": mse01(inferred, x_test[:100])}
    print(out["random_x_T"], out["inferred_x_T"], f"{time.time() - start:.0f} s", flush=True)

    x_T = pdae.noise(500, torch.Generator().manual_seed(7))
    samples = torch.cat([sampling.ddim(dpm, x, schedule, steps=50) for x in x_T.split(125)])
    f_samples, f_train = features(samples), features(x_train)
    precision, recall = precision_recall(f_samples, f_test)
    baseline = precision_recall(f_train[:500], f_test)

    def to_train(f):
        return float(torch.cdist(f, f_train).min(1).values.median())

    out["samples"] = {"count": 500, "sampler": "DDIM, 50 steps, DPM alone", "precision": precision, "recall": recall,
                      "precision_recall_of_training_digits": baseline, "median_distance_to_nearest_training_digit": to_train(f_samples),
                      "the_same_for_held_out_digits": to_train(f_test)}
    print(out["samples"], f"{time.time() - start:.0f} s", flush=True)

    out["file"] = {"name": FILE.name, "bytes": FILE.stat().st_size, "sha256": hashlib.sha256(FILE.read_bytes()).hexdigest()}
    out["parameters"] = {k: sum(p.numel() for p in getattr(pdae, k).parameters()) for k in ("dpm", "encoder", "estimator")}
    out["made_with"] = {"torch": torch.__version__, "python": platform.python_version(), "device": "CPU"}
    out["training"] = pdae.metadata
    (ASSETS / "digits_pdae.json").write_text(json.dumps(out, indent=1) + "\n")
    (ASSETS / "digits_pdae.md").write_text(card(out))
    return 0


def card(o):
    """The card as Markdown; every number comes from `o`."""
    f, s, r, meta = o["fill"], o["samples"], o["random_x_T"], o["training"]
    pre, nearest = meta["dpm_training"], r["nearest_is_original"]
    rows = "\n".join(f"| {t} | {a:.2f} | {b:.2f} |" for t, a, b in zip(f["t"], f["pdae"], f["linear"]))
    checks = [
        ("fill, mean over t = 300 … 600 (held-out digits)", f"{f['mean_300_600']:.3f}", "≥ 0.65", f["mean_300_600"] >= 0.65),
        ("fill, mean over t = 100, 200, … 900", f"{f['mean_100_900']:.3f}", "≥ 0.45", f["mean_100_900"] >= 0.45),
        ("random x_T: nearest held-out digit is the original (1,000 cases), shape features", f"{nearest['shape features']:.3f}", "≥ 0.95",
         nearest["shape features"] >= 0.95),
        (f"linear probe on z: accuracy (32 principal components: {o['probe_accuracy_pca']:.3f})", f"{o['probe_accuracy']:.3f}", "≥ 0.95",
         o["probe_accuracy"] >= 0.95),
        ("samples of the DPM: precision", f"{s['precision']:.3f}", "> 0.6", s["precision"] > 0.6),
        ("samples of the DPM: recall", f"{s['recall']:.3f}", "> 0.6", s["recall"] > 0.6),
        ("samples: median distance to the nearest training digit (held-out digits: "
         f"{s['the_same_for_held_out_digits']:.2f})", f"{s['median_distance_to_nearest_training_digit']:.2f}", "no smaller",
         s["median_distance_to_nearest_training_digit"] >= s["the_same_for_held_out_digits"]),
    ]
    table = "\n".join(f"| {a} | {b} | {c} | {'met' if d else '**not met**'} |" for a, b, c, d in checks)
    params = ", ".join(f"{k} {v:,}" for k, v in o["parameters"].items())
    return f"""# digits_pdae

A PDAE on handwritten digits, 1×32×32, z_dim 32, with its frozen DPM inside. Parameters: {params};
stored as float16, {o['file']['bytes'] / 1e6:.1f} MB.

- Data: `digits` (see `digits.md`), 4,500 training digits; every figure below is on the 500 held-out ones.
- Licence of the weights: MIT, like the code. The data are MNIST, CC BY-SA 3.0.
- SHA-256 of the file: `{o['file']['sha256']}`

## How it was made

```
pdae pretrain --data digits --out runs/dpm
pdae train --dpm runs/dpm/model.safetensors --data digits --out runs/pdae
python scripts/ship.py runs/pdae/model.safetensors digits_pdae --dpm runs/dpm/model.safetensors
python scripts/evaluate_digits.py
```

(`make weights` runs these.) DPM: {pre['images_seen']:,} images seen in {pre['training']['steps']:,} steps. PDAE: {meta['images_seen']:,}
images seen in {meta['training']['steps']:,} steps, loss weight `{meta['training']['weight']}`, about 35 minutes each. Batch
{meta['training']['batch_size']}, seed {meta['training']['seed']}, torch {meta['torch']}, two CPU cores with bf16 autocast. The DPM's run
was stopped and resumed five times, partly as two processes, while a mistake in resuming (mended since) mixed up Adam's
moments each time: the commands above give a model of this kind, not these bits.
Numbers and settings in full: `digits_pdae.json`.

## Quality

| what | measured | wanted | |
|---|---|---|---|
{table}

- z improves the variational bound by {o['nats']:.0f} nats an image.
- Fill on 500 *training* digits, mean over t = 100 … 900: {f['on_training_digits_100_900']:.3f} (held out: {f['mean_100_900']:.3f}).
- Reconstruction, MSE on [0, 1]: {r['mse']:.4f} from z and random x_T ({r['steps']} steps); {o['inferred_x_T']['mse']:.2e} with the
  inferred x_T ({o['inferred_x_T']['steps']} steps, {o['inferred_x_T']['images']} images).
- Nearest held-out digit is the original, in other spaces: pixels {nearest['pixels']:.3f}, class features {nearest['class features']:.3f} (a
  classifier's last layer is trained to forget what tells two digits of one class apart).
- Feature spaces: a classifier with {o['classifier_accuracy']:.3f} held-out accuracy, trained by `scripts/evaluate_digits.py`; its 64
  penultimate activations (class features) and its last 1,024 convolutional ones (shape features). Precision, recall and
  memorisation are measured in class features, where training digits against held-out ones have precision
  {s['precision_recall_of_training_digits'][0]:.3f} and recall {s['precision_recall_of_training_digits'][1]:.3f}.

Fill per t, beside the linear-Gaussian reference with 32 principal components:

| t | PDAE | linear |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    sys.exit(main())
