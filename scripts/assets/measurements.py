"""What evaluate.py measures of a model that ships: a function for each figure, on held-out images, from a `Subject` to
numbers."""
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import pdae_lite
from pdae_lite import data, losses, metrics, sampling
from pdae_lite.applications.attributes import LinearProbe, encode_all
from pdae_lite.autoencoder import Autoencoder
from pdae_lite.checkpoint import load_model
from pdae_lite.evaluation.checks import own_error
from pdae_lite.metrics.features import FeatureNet, Features, extract
from pdae_lite.pdae import PDAE

TS = list(range(50, 1000, 50))
FINE = sorted({1, 2, 4, 7, 12, 18, 25, 35, *TS, 999})  # for nats: most of them lie at small t


@dataclass(frozen=True)
class Counts:
    """How many images each figure is measured on, and in how many steps."""

    fill: int = 500
    nats: int = 250
    cases: int = 1000  # rebuilt from random x_T
    inferred: int = 100
    samples: int = 1000
    steps: int = 50
    inferred_steps: int = 100
    linear: int = 4500  # training images that the linear reference is made of
    probe: int | None = None  # training codes; None: all
    shown: int = 10


QUICK = Counts(fill=10, nats=10, cases=20, inferred=4, samples=20, steps=4, inferred_steps=4, linear=200, probe=300)


@dataclass(frozen=True)
class Subject:
    """A model, the DPM that its errors are compared with, and the images of its data set."""

    name: str
    kind: str
    path: Path
    model: Autoencoder
    dpm: torch.nn.Module | None
    train: data.Images
    test: data.Images
    net: FeatureNet | None
    counts: Counts

    @classmethod
    def open(cls, name: str, kind: str, path: Path, counts: Counts) -> "Subject":
        model = load_model(path, expect=Autoencoder)
        shipped = pdae_lite.shipped()
        dpm = (model.dpm if isinstance(model, PDAE) else pdae_lite.load(name, "dpm")
               if (name, "pdae") in shipped else None)
        net = pdae_lite.load(name, "features") if (name, "features") in shipped else None
        train, test = (data.shipped_images(name, split, model.network.config.image_size) for split in ("train", "test"))
        return cls(name, kind, path, model, dpm, train, test, net, counts)

    @property
    def has_classes(self) -> bool:
        """Whether the data have classes, not attributes."""
        return self.train.labels.ndim == 1

    def space(self, images: Tensor, layer: str) -> Features:
        """Features of images; "pixels" need no network."""
        return Features(images.flatten(1), "pixels") if layer == "pixels" else extract(self.net, images, layer)

    def error(self, x: Tensor, ts: list[int], which: str) -> Tensor:
        """E‖ε − ε̂‖² of the model, or of the DPM alone, at each t."""
        return (own_error(self.model, x, ts)
                if which == "model" else losses.noise_error(lambda v: self.dpm, x, self.model.schedule, ts))


# ---- noise errors: fill, nats, overfitting ---------------------------------------------------------------------------


def fill(s: Subject) -> dict:
    """The share of the DPM's error that z removes, per t, and that of a linear code of the same width."""
    x = s.test.floats(slice(s.counts.fill))
    e_dpm, e_model = s.error(x, TS, "dpm"), s.error(x, TS, "model")
    filled = losses.fill(e_model, e_dpm)
    linear = metrics.LinearGaussian(s.train.floats(slice(s.counts.linear)), s.model.z_dim).fill(s.model.schedule, TS)

    def at(values, chosen):
        return float(values[[TS.index(t) for t in chosen]].mean())

    middle, wide = range(300, 601, 50), range(100, 901, 100)
    seen = s.train.floats(slice(s.counts.fill))  # overfitting shows as a smaller error there
    on_training = losses.fill(s.error(seen, list(wide), "model"), s.error(seen, list(wide), "dpm"))
    return {"t": TS, "images": len(x), "model": filled.tolist(), "linear": linear.tolist(),
            "linear_from_images": min(s.counts.linear, len(s.train)), "error_dpm": e_dpm.tolist(),
            "error_model": e_model.tolist(),
            "mean_300_600": at(filled, middle), "mean_100_900": at(filled, wide),
            "linear_mean_300_600": at(linear, middle), "linear_mean_100_900": at(linear, wide),
            "on_training_images_100_900": float(on_training.mean())}


def nats(s: Subject) -> dict:
    """What z improves the variational bound by."""
    x = s.test.floats(slice(s.counts.nats))
    value = losses.nats(s.error(x, FINE, "model"), s.error(x, FINE, "dpm"), s.model.schedule, FINE, x[0].numel())
    return {"value": value, "images": len(x)}


# ---- what z knows ----------------------------------------------------------------------------------------------------


def probe(s: Subject) -> tuple[dict, LinearProbe]:
    """Linear probes on z, fitted on training codes alone, and on as many principal components; and the one on z."""
    chosen = slice(s.counts.probe)
    y_train, y_test = s.train.labels[chosen], s.test.labels
    names = [str(i) for i in range(int(s.train.labels.max()) + 1)] if s.has_classes else list(s.train.attributes)
    flat_train, flat_test = s.train.floats(chosen).flatten(1), s.test.floats().flatten(1)
    basis = metrics.principal_components(flat_train, s.model.z_dim)
    of_z = LinearProbe.fit(encode_all(s.model, s.train.images[chosen], 500), y_train, names)
    of_pca = LinearProbe.fit(flat_train @ basis, y_train, names)
    z_test, pca_test = encode_all(s.model, s.test.images, 500), flat_test @ basis
    out = {"measure": "accuracy" if s.has_classes else "auroc", "names": names, "l2": of_z.l2.tolist(),
           "train": len(y_train),
           "test": len(y_test)}
    for key, fitted, codes in (("", of_z, z_test), ("_pca", of_pca, pca_test)):
        auroc, precision = fitted.auroc(codes, y_test), fitted.average_precision(codes, y_test)
        accuracy = fitted.accuracy(codes, y_test)
        out |= {f"accuracy{key}": accuracy.tolist(), f"auroc{key}": auroc.tolist(),
                f"average_precision{key}": precision.tolist(),
                f"mean_accuracy{key}": float(accuracy.mean()), f"mean_auroc{key}": float(auroc.nanmean()),
                f"mean_average_precision{key}": float(precision.nanmean())}
    return out, of_z


def feature_space(s: Subject) -> dict:
    """How well the network that measures knows held-out images itself."""
    with torch.no_grad():
        logits = torch.cat([s.net(x) for x in s.test.floats().split(250)])
    if s.has_classes:
        return {"accuracy": float((logits.argmax(1) == s.test.labels).float().mean())}
    from torchmetrics.functional.classification import multilabel_auroc

    return {"auroc": float(multilabel_auroc(logits, s.test.labels, logits.shape[1]))}


# ---- images: rebuilt, drawn ------------------------------------------------------------------------------------------


def random_x_T(s: Subject) -> dict:
    """Held-out images rebuilt from z and random noise: is the nearest held-out image the original?"""
    n = min(len(s.test), s.counts.cases)
    x, layers = s.test.floats(slice(n)), ("pixels", "shape", "class")
    every = {layer: s.space(s.test.floats(), layer) for layer in layers}
    z, own, errors, similar = encode_all(s.model, x, 500), {layer: [] for layer in layers}, [], []
    for seed in range(max(1, s.counts.cases // n)):
        x_T = s.model.noise(n, torch.Generator().manual_seed(seed))
        rebuilt = torch.cat([s.model.decode(a, b, steps=s.counts.steps) for a, b in zip(z.split(125), x_T.split(125))])
        errors.append(metrics.mse(rebuilt, x))
        similar.append(metrics.ssim(rebuilt, x))
        for layer in layers:
            distance = torch.cdist(s.space(rebuilt, layer).values.double(), every[layer].values.double())
            own[layer].append(distance.argmin(1) == torch.arange(n))
    return {"cases": n * len(errors), "steps": s.counts.steps, "candidates": len(s.test),
            "nearest_is_original": {layer: metrics.proportion(torch.cat(hits)).to_dict()
                                    for layer, hits in own.items()},
            "mse": metrics.mean(torch.cat(errors)).to_dict(), "ssim": metrics.mean(torch.cat(similar)).to_dict()}


def inferred_x_T(s: Subject) -> dict:
    """Held-out images rebuilt from z and the x_T found by inversion."""
    x, steps = s.test.floats(slice(s.counts.inferred)), s.counts.inferred_steps
    parts = [(a, s.model.encode(a)) for a in x.split(50)]
    with torch.no_grad():
        rebuilt = torch.cat([s.model.decode(z, s.model.invert(a, z, steps=steps), steps=steps) for a, z in parts])
    return {"images": len(x), "steps": f"{steps} + {steps}", "mse": metrics.mean(metrics.mse(rebuilt, x)).to_dict(),
            "ssim": metrics.mean(metrics.ssim(rebuilt, x)).to_dict()}


def drawn(s: Subject, n: int, seed: int) -> Tensor:
    """Images that the DPM draws, without z."""
    x_T = s.model.noise(n, torch.Generator().manual_seed(seed))
    return torch.cat([sampling.ddim(s.dpm, x, s.model.schedule, steps=s.counts.steps) for x in x_T.split(125)])


def likeness(generated: Features, train: Features, test: Features, real: Features, n: int) -> dict:
    """How like real images n generated ones are, and, beside it, n training images."""
    out = {}
    for key, made in (("", generated), ("_of_training_images", train[:n])):
        found = metrics.precision_recall(made, test[:n])
        out |= {f"precision{key}": found.precision.to_dict(), f"recall{key}": found.recall.to_dict(),
                f"kid{key}": metrics.kid(made, real).to_dict()}
        if len(real) >= 5000:  # a Fréchet distance from fewer is mostly bias
            out[f"fid{key}"] = metrics.fid(made, real).to_dict()
    return out


def samples(s: Subject) -> dict:
    """The DPM alone: are its images like held-out ones, and no copies of training images?"""
    n = min(s.counts.samples, len(s.test))
    generated, test, train = (s.space(x, "class") for x in (drawn(s, n, 7), s.test.floats(), s.train.floats()))
    fresh = (data.ASSETS / f"{s.name}_reference.npz.xz").is_file()
    real = metrics.reference(s.name) if fresh else test
    near = metrics.memorisation(generated, train, test)
    return {"count": n, "sampler": f"DDIM, {s.counts.steps} steps, DPM alone", "space": test.space,
            "distance_to_nearest_training_image": near.generated.to_dict(),
            "the_same_for_held_out_images": near.held_out.to_dict(),
            "ratio": near.ratio.to_dict()} | likeness(generated, train, test, real, n)


def pictures(s: Subject) -> dict[str, Tensor]:
    """Rows of images for the card."""
    n, steps = min(s.counts.shown, 10 if s.has_classes else 8), s.counts.inferred_steps
    if s.has_classes:  # one of each
        chosen = torch.stack([(s.test.labels == c).nonzero()[0, 0] for c in range(n)])
    else:
        chosen = torch.linspace(0, len(s.test) - 1, n).round().long()
    x = s.test.floats(chosen)
    noise, z = s.model.noise(n, torch.Generator().manual_seed(1)), s.model.encode(x)
    with torch.no_grad():
        rows = {"held-out images": x, "from z and random x_T": s.model.decode(z, noise, steps=steps),
                "from z and inferred x_T": s.model.decode(z, s.model.invert(x, z, steps=steps), steps=steps)}
    if isinstance(s.model, PDAE):
        rows["drawn by the DPM alone"] = sampling.ddim(s.dpm, noise, s.model.schedule, steps=steps)
    return rows


MEASUREMENTS = {"fill": fill, "nats": nats, "probe": probe, "feature_space": feature_space, "random_x_T": random_x_T,
                "inferred_x_T": inferred_x_T, "samples": samples}


def measured(s: Subject) -> dict:
    """The measurements that such a model allows, by name."""
    without = {"samples"} if s.kind != "pdae" else set()  # of the DPM, which ships with that kind
    if s.dpm is None:  # nothing to compare the errors with
        without |= {"fill", "nats"}
    return {k: f for k, f in MEASUREMENTS.items() if k not in without}
