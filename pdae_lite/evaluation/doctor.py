"""What is right or wrong with a trained diffusion autoencoder, in plain words: `examine`, which is `pdae doctor`.

Every check measures on images that the model has not seen and gives a finding: a verdict, a sentence with the numbers,
and the cure if something looks wrong. The limits of the verdicts are rules of thumb; `checks` and `losses` do the
measuring."""
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from textwrap import wrap

import torch
from torch import Tensor

from .. import sampling
from ..autoencoder import Autoencoder
from ..losses import fill, nats, noise_error
from ..metrics.features import FeatureNet
from ..metrics.gap import LinearGaussian
from ..metrics.images import mse
from ..metrics.neighbours import nearest_is_own
from ..pdae import PDAE
from ..progress import progress_bar
from .checks import (
    copying,
    log_grid,
    noise_statistics,
    noisy_invert,
    own_error,
    pick,
    probe_scores,
    space_of,
    times,
    x_0_of,
    z_sensitivity,
)

VERDICTS = ("ok", "look", "bad")
REFERENCE_IMAGES = 1000  # for the linear reference: of fewer, a linear code looks better than it is
PROBE_IMAGES = 2000
TRAIN_IMAGES, OTHER_IMAGES = 20_000, 1000  # to look for copies in, and to compare with
FILL_AT = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # shares of T
NATS_AT = (0.001, 0.004, 0.012, 0.035, *FILL_AT, 0.999)

CURES = {
    "not finite": "go back to the last good checkpoint and train on with a lower learning rate",
    "same z": "look whether the images differ, and whether the encoder is among the trained parameters",
    "narrow z": "a smaller z_dim would do; or train longer, or with another loss weight",
    "harmful": "look whether encoder, estimator and DPM come from one run, and images are like those of training",
    "no fill": "train longer (the estimator starts at zero), with a higher learning rate, or loss weight 'v' or 'pdae'",
    "little fill": "train longer; then train the DPM better (its own errors can't be filled) or raise z_dim",
    "ignored z": "train longer (z gets its first gradient after two or three steps, and its say grows slowly); if it "
                 "stays so, look whether encoder and estimator are among the trained parameters",
    "wrong z": "look whether encoder and estimator come from one run, images and codes in one order; else train longer",
    "weak z": "train longer, or raise z_dim",
    "overfitting": "fewer steps, more images or augmentation, a smaller encoder or z_dim",
    "x_T": "train longer, the DPM too: x_T is as Gaussian as ε̂ is right; till then random x_T give worse images",
    "not rebuilt": "z doesn't say which image it is: see fill and z above",
    "rebuilt badly": "train longer or raise z_dim; for the inferred x_T take more steps",
    "copies": "more training images, augmentation, or fewer steps for the DPM",
    "few labels": "give more images, --images N",
    "no labels in z": "see fill and z above; or labels and images are not in one order",
    "pca": "train longer, or with another loss weight",
}


@dataclass(frozen=True)
class Finding:
    """One check: `verdict` "ok", "look" or "bad"; what was seen; the cure, "" where none is needed; the numbers."""

    check: str
    verdict: str
    says: str
    cure: str = ""
    numbers: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What `examine` found. `print(report)` gives a table, `report["fill"]` one finding, `to_dict` JSON-able values."""

    model: str
    findings: list[Finding]

    @property
    def verdict(self) -> str:
        """The worst of all verdicts."""
        return max((f.verdict for f in self.findings), key=VERDICTS.index)

    def __getitem__(self, check: str) -> Finding:
        return {f.check: f for f in self.findings}[check]

    def to_dict(self) -> dict:
        """Everything, as JSON-able values."""
        return {"model": self.model, "verdict": self.verdict, "findings": [asdict(f) for f in self.findings]}

    def __str__(self) -> str:
        lines = [self.model]
        for f in self.findings:
            text = wrap(f.says, 100) + (wrap(f"Cure: {f.cure}.", 100) if f.cure else [])
            lines += [f"{f.verdict:5} {f.check:15} {text[0]}", *(" " * 22 + line for line in text[1:])]
        return "\n".join(lines)


@torch.no_grad()
def examine(model: Autoencoder, held_out, train=None, labels=None, train_labels=None, *, names=None,
            features: FeatureNet | None = None, images: int = 100, checks: Iterable[str] | None = None, seed: int = 0,
            progress: bool = False) -> Report:
    """Look a trained model over: about a minute on two quiet CPU cores for 100 digits of 32×32. Of a model with a
    codec, what concerns the noise is measured on latents, and the rest on images.

    Args:
        model: a `PDAE` or a `DiffAE` with an encoder of images.
        held_out: images that the model wasn't trained on, at least 10: [N, C, H, W], uint8 or float in the model's
            range, or a data set of images or of (image, label).
        train: images that it was trained on: adds the linear reference, and the checks for overfitting and for copies.
        labels: of held_out, int64 [N] (classes) or [N, A] of 0 and 1 (attributes): adds linear probes. `train_labels`:
            of train; without them half of held_out trains the probes. `names`: of the classes or attributes.
        features: where to tell images apart; None: in pixels, where a blurry image is near to all others.
        images: how many to measure on, taken at random by `seed`.
        checks: the names of some checks, for only these; None: all for which there are data.

    Raises:
        ValueError: images that the model doesn't take, too few of them, or labels that don't fit.
    """
    if not isinstance(model, Autoencoder) or getattr(model.encoder, "takes_labels", False):
        raise ValueError(f"model is a {type(model).__name__}; want a PDAE or a DiffAE that encodes images")
    x = pick(held_out, images, seed).to(model.device)
    if len(x) < 10:
        raise ValueError(f"{len(x)} held-out images; want at least 10")
    title = f"{type(model).__name__}, z_dim {model.z_dim}, on {len(x)} images of {'×'.join(map(str, x.shape[1:]))}"
    z = model.encode(x)  # says what is wrong with the images
    if not all(bool(p.isfinite().all()) for p in model.parameters()) or not bool(z.isfinite().all()):
        says = "the weights, or the codes they give, hold NaN or infinite values"
        return Report(title, [Finding("weights", "bad", says, CURES["not finite"])])
    inner, x_0 = model if model.codec is None else model.of_latents(), x_0_of(model, x)
    seen = None if train is None else x_0_of(model, pick(train, images, seed)).to(model.device)
    identity, kind = space_of(features, "shape"), space_of(features, "class")
    able = {
        "codes": lambda: _codes(z),
        "fill": isinstance(model, PDAE) and (
            lambda: _fill(inner, x_0, None if train is None else x_0_of(model, pick(train, REFERENCE_IMAGES, seed)),
                          seed)),
        "z": lambda: _z(inner, x_0, seed),
        "overfitting": seen is not None and (lambda: _overfitting(inner, x_0, seen, seed)),
        "x_T": lambda: _x_T(inner, x_0[:32], seed),
        "reconstruction": lambda: _reconstruction(model, x[:50], seed, identity),
        "memorisation": seen is not None and (
            lambda: _memorisation(model, pick(held_out, OTHER_IMAGES, seed), pick(train, TRAIN_IMAGES, seed), seed,
                                  kind)),
        "probes": labels is not None and (lambda: _probes(model, held_out, labels, train, train_labels, names, seed))}
    able = {name: check for name, check in able.items() if check}
    chosen = list(able if checks is None else checks)
    if not chosen or not set(chosen) <= set(able):
        raise ValueError(f"checks is {','.join(chosen)}; for this model and these data want some of {','.join(able)}")
    return Report(title, [able[name]() for name in progress_bar(chosen, show=progress, desc="doctor")])


def _judged(check: str, says: str, numbers: dict, *cases) -> Finding:
    """The first of (whether it is so, verdict, cure, more words) that is so; "ok" if none is."""
    for so, verdict, cure, *more in cases:
        if so:
            return Finding(check, verdict, says + "".join(more), CURES[cure], numbers)
    return Finding(check, "ok", says, numbers=numbers)


# ---- the checks -------------------------------------------------------------------------------------------------


def _codes(z: Tensor) -> Finding:
    z = z.double().cpu()
    std, dims = z.std(0), z.shape[1]
    alive = int((std > 1e-3 * std.max()).sum()) if std.max() > 1e-5 * z.abs().max() else 0
    power = torch.linalg.svdvals(z - z.mean(0)).square()
    effective = float(power.sum() ** 2 / power.square().sum()) if alive else 0.0
    says = f"{alive} of {dims} dimensions vary; their variance is spread as over {effective:.1f} equal ones"
    return _judged("codes", says if alive else "z is the same for all images", {"alive": alive, "effective": effective},
                   (not alive, "bad", "same z"), (alive < dims / 2 or effective < min(3, dims / 2), "look", "narrow z"))


def _fill(model: PDAE, x: Tensor, reference: Tensor | None, seed: int) -> Finding:
    schedule, fills, ts = model.schedule, times(model, FILL_AT), times(model, NATS_AT)
    e_dpm = noise_error(lambda _: model.dpm, x, schedule, ts, seed)
    e_own = own_error(model, x, ts, seed)
    filled = fill(e_own, e_dpm)[[ts.index(t) for t in fills]]
    mean, gained, wanted = float(filled.mean()), nats(e_own, e_dpm, schedule, ts, x[0].numel()), 0.3
    numbers = {"t": fills, "fill": filled.tolist(), "mean": mean, "nats": gained}
    says = f"z fills {mean:.2f} of the gap (mean over t = {fills[0]} … {fills[-1]}), worth {gained:.0f} nats an image"
    if reference is not None:
        line = LinearGaussian(reference, min(model.z_dim, len(reference) - 1)).fill(schedule, fills)
        numbers |= {"linear": line.tolist(), "linear_mean": float(line.mean())}
        says += f"; a linear code of this size would fill {float(line.mean()):.2f}"
        wanted = 0.95 * float(line.mean())
    return _judged("fill", says, numbers, (not math.isfinite(mean), "bad", "not finite"),
                   (mean < -0.02, "bad", "harmful", ": with z it is worse than without"),
                   (mean < 0.05, "bad", "no fill", ": next to nothing"), (mean < wanted, "look", "little fill"))


def _z(model: Autoencoder, x: Tensor, seed: int) -> Finding:
    ts = times(model, FILL_AT[::2])
    found = z_sensitivity(model, x, ts, seed)
    change, cost = found["change"] / found["error"], found["swapped"] / found["error"]
    most, typical = float(change.max()), float(cost.log().mean().exp())
    numbers = {"t": ts, "change": change.tolist(), "cost": cost.tolist()}
    if not math.isfinite(most + typical):
        return _judged("z", "ε̂ holds NaN or infinite values", numbers, (True, "bad", "not finite"))
    if most < 1e-3:
        says = f"z is ignored: another image's z changes ε̂ by {most:.1g} of the error at most"
        return _judged("z", says, numbers, (True, "bad", "ignored z"))
    says = f"another image's z makes the error {typical:.2f} times as large, and changes ε̂ by up to {most:.2g} of it"
    return _judged("z", says, numbers,  # 1.1: as of a z that fills 0.05
                   (typical < 1.1, "bad", "wrong z", ": its own z serves an image no better"),
                   (typical < 1.25, "look", "weak z", ": z matters little"))


def _overfitting(model: Autoencoder, x: Tensor, seen: Tensor, seed: int) -> Finding:
    ts = times(model, FILL_AT[:5:2])
    held_out, train = (own_error(model, y, ts, seed) for y in (x, seen))
    ratio = float((held_out / train).log().mean().exp())
    return _judged("overfitting", f"the error on held-out images is {ratio:.2f} times that on training images",
                   {"t": ts, "held_out": held_out.tolist(), "train": train.tolist(), "ratio": ratio},
                   (not ratio <= 3, "bad", "overfitting"), (ratio > 1.5, "look", "overfitting"))


def _x_T(model: Autoencoder, x: Tensor, seed: int) -> Finding:
    z, grid, generator = model.encode(x), log_grid(model.schedule.T), torch.Generator().manual_seed(seed)
    s = noise_statistics(noisy_invert(model, x, z, grid, generator))
    clean = noise_statistics(model.invert(x, z, grid=grid))
    true = noise_statistics(torch.randn(x.shape, generator=generator))
    numbers = {"steps": len(grid) - 1, "x_T": s, "from_clean_images": clean, "gaussian_noise": true}
    if not all(map(math.isfinite, s.values())):
        return _judged("x_T", "inversion gives NaN or infinite values", numbers, (True, "bad", "not finite"))
    off = {"the mean": abs(s["mean"]) / 0.1, "the std": abs(math.log(max(s["std"], 1e-9))) / 0.1,
           "means of single pixels": (s["pixel_means"] - 1) / 0.5, "kurtosis": abs(s["kurtosis"]) / 0.5,
           "correlation of neighbours": abs(s["neighbours"]) / 0.1}
    worst = max(off, key=off.get)
    says = (f"inverted, images with the least noise of the schedule become x_T of mean {s['mean']:.2f}, std "
            f"{s['std']:.2f}, correlation of neighbours {s['neighbours']:.3f}, excess kurtosis {s['kurtosis']:.2f}; "
            f"Gaussian noise has 0, 1, 0, 0. (From clean images the std is {clean['std']:.2f}: their flat patches hold "
            "no noise to find, and become about 0)")
    more = f". Most off: {worst}"
    return _judged("x_T", says, numbers, (off[worst] > 4, "bad", "x_T", more), (off[worst] > 1, "look", "x_T", more))


def _reconstruction(model: Autoencoder, x: Tensor, seed: int, space) -> Finding:
    z, n, T = model.encode(x), min(16, len(x)), model.schedule.T
    random = model.decode(z, model.noise(len(x), torch.Generator().manual_seed(seed)), steps=min(20, T))
    inferred = model.decode(z[:n], model.invert(x[:n], z[:n], grid=log_grid(T)), grid=log_grid(T))
    if not bool(random.isfinite().all() and inferred.isfinite().all()):
        return _judged("reconstruction", "rebuilt images hold NaN or infinite values", {}, (True, "bad", "not finite"))
    own = nearest_is_own(space(random), space(x))
    error, exact = (float(mse(a.clamp(-1, 1), b.clamp(-1, 1)).mean()) for a, b in ((random, x), (inferred, x[:n])))
    says = (f"rebuilt from z and random x_T, {own.value:.2f} of {len(x)} images are nearest to their own original "
            f"({own.space}; MSE {error:.4f} on [0, 1]); with the inferred x_T the MSE is {exact:.1e}")
    numbers = {"nearest_is_own": own.value, "mse_random_x_T": error, "mse_inferred_x_T": exact, "space": own.space}
    if model.codec is not None:
        numbers["mse_codec"] = lost = float(mse(model.codec.decode(x_0_of(model, x)), x).mean())
        says += f", and {lost:.1e} by the codec alone"
    return _judged("reconstruction", says, numbers, (own.value < 0.5, "bad", "not rebuilt"),
                   (own.value < 0.9 or exact > max(error, 1e-3), "look", "rebuilt badly"))


def _memorisation(model: Autoencoder, x: Tensor, train: Tensor, seed: int, space) -> Finding:
    generator, steps = torch.Generator().manual_seed(seed), min(20, model.schedule.T)
    if isinstance(model, PDAE):
        what, x_T = "samples of the DPM", model.noise(50, generator)
        made = sampling.dpm_solver(model.dpm, x_T, model.schedule, steps=steps)
        made = made if model.codec is None else model.codec.decode(made)
    else:
        what = "images rebuilt from z"
        made = model.decode(model.encode(x[:50].to(model.device)), steps=steps, generator=generator)
    if not bool(made.isfinite().all()):
        return _judged("memorisation", f"{what} hold NaN or infinite values", {}, (True, "bad", "not finite"))
    ratio = copying(space(made), space(train), space(x))
    says = (f"{what} are {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times as far from training images, "
            f"relative to held-out ones, as held-out images are ({ratio.space})")
    numbers = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "space": ratio.space}
    return _judged("memorisation", says, numbers,
                   (ratio.high < 0.5, "bad", "copies"), (ratio.high < 0.9, "look", "copies"))


def _probes(model: Autoencoder, held_out, labels, train, train_labels, names, seed: int) -> Finding:
    x, y = pick(held_out, PROBE_IMAGES, seed, labels)
    if train is None or train_labels is None:
        half = len(x) // 2
        fit, test = (x[:half], y[:half]), (x[half:], y[half:])
    else:
        fit, test = pick(train, PROBE_IMAGES, seed, train_labels), (x, y)
    try:
        found = probe_scores(model, fit, test, names)
    except ValueError as e:
        return _judged("probes", str(e), {}, (True, "look", "few labels"))
    own, pca, chance = (found[k] for k in ("z", "pca", "chance"))
    says = (f"linear probes trained on the z of {found['train']} images have {found['measure']} {own:.3f} on "
            f"{found['test']} others; on as many principal components {pca:.3f}; by chance {chance:.2f}")
    return _judged("probes", says, found, (own < chance + 0.2 * (1 - chance), "bad", "no labels in z"),
                   (own < pca - 0.02, "look", "pca"))
