"""What `doctor` measures: does z matter, is x_T Gaussian noise, does a linear probe find the labels in z."""
import math
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from .. import counter_rng, sampling
from ..applications.attributes import FEWEST, LinearProbe, encode_all
from ..autoencoder import Autoencoder
from ..data.builtin import to_float
from ..data.items import readable
from ..losses import noise_error
from ..metrics.features import FeatureNet, Features, extract
from ..metrics.gap import principal_components
from ..metrics.intervals import Estimate, bootstrap, middle
from ..metrics.neighbours import nearest_distance


def x_0_of(model: Autoencoder, images: Tensor) -> Tensor:
    """What the networks of a model see of images: latents, where it has a codec."""
    if model.codec is None:
        return images
    return torch.cat([model.codec.encode(part.to(model.device)) for part in images.split(50)])


def times(model: Autoencoder, shares) -> list[int]:
    """Shares of T as distinct t from 1 on."""
    return sorted({min(max(round(share * model.schedule.T), 1), model.schedule.T - 1) for share in shares})


def space_of(net: FeatureNet | None, layer: str):
    """Images -> Features: of the network's layer, or their pixels."""
    if net is None:
        return lambda x: Features(x.detach().float().cpu().flatten(1), "pixels")
    return lambda x: extract(net, x.detach().float().clamp(-1, 1), layer)


def own_error(model: Autoencoder, x_0: Tensor, ts, seed: int = 0) -> Tensor:
    """E‖ε − ε̂‖² per pixel of a model that knows z, on clean images x_0 [N, C, H, W], at each t of `ts`: [len(ts)]."""
    return noise_error(lambda x: model.trained_denoiser(model.encode(x)), x_0, model.schedule, ts, seed)


@torch.no_grad()
def z_sensitivity(model: Autoencoder, x_0: Tensor, ts, seed: int = 0) -> dict[str, Tensor]:
    """Does z matter? ε̂ with an image's own z, and with the z of another one (its neighbour in the batch).

    Args:
        x_0: clean images [N, C, H, W], N ≥ 2.
        ts: the timesteps to measure at.
        seed: of the noise, as in `losses.noise_error`.

    Returns, at each t: "error", E‖ε − ε̂(z)‖² per pixel; "swapped", the same with the other's z; "change", E‖ε̂(z) −
    ε̂(z')‖²; all [len(ts)]. A model that ignores z has change 0; one whose z says nothing true has swapped = error."""
    if len(x_0) < 2:
        raise ValueError("x_0 holds 1 image; want at least 2, to swap their codes")
    z, index = model.encode(x_0), torch.arange(len(x_0), device=x_0.device)
    own, other, out = model.trained_denoiser(z), model.trained_denoiser(z.roll(1, 0)), []
    for t in ts:
        eps = counter_rng.normal(seed, int(t), index, tuple(x_0.shape[1:])).to(x_0)
        t_batch = torch.full((len(x_0),), int(t), dtype=torch.int64, device=x_0.device)
        x_t = model.schedule.add_noise(x_0, t_batch, eps)
        a, b = own(x_t, t_batch), other(x_t, t_batch)
        out.append(torch.stack([(eps - a).square().mean(), (eps - b).square().mean(), (a - b).square().mean()]).cpu())
    return dict(zip(("error", "swapped", "change"), torch.stack(out, 1)))


def noise_statistics(x_T: Tensor) -> dict[str, float]:
    """What tells x_T [N, C, H, W] from Gaussian noise, for which these are 0, 1, 1, 0, 0 and 1, up to chance.

    "mean", "std"; "pixel_means", √N times the RMS over pixels of the mean over images; "neighbours", the correlation of
    adjacent pixels; "kurtosis", in excess of a Gaussian's; "brightness", √(CHW) times the standard deviation of images'
    means."""
    x = x_T.detach().double().cpu()
    mean, std = x.mean(), x.std()
    c = (x - mean) / std.clamp(min=1e-12)
    pairs = torch.cat([(c[..., 1:] * c[..., :-1]).flatten(), (c[..., 1:, :] * c[..., :-1, :]).flatten()])
    return {"mean": float(mean), "std": float(std),
            "pixel_means": float(x.mean(0).square().mean().sqrt() * len(x) ** 0.5),
            "neighbours": float(pairs.mean()), "kurtosis": float(c.pow(4).mean() - 3),
            "brightness": float(x.flatten(1).mean(1).std() * x[0].numel() ** 0.5)}


@torch.no_grad()
def noisy_invert(model: Autoencoder, x_0: Tensor, z: Tensor, grid: list[int],
                 generator: torch.Generator | None = None) -> Tensor:
    """x_T of images to which the noise of t = grid[0] was added, inverted from there.

    A flat patch of a clean image holds no noise and inverts to about 0 whatever the model is, for the ODE only scales
    it. From images with some noise, a perfect model gives perfectly Gaussian x_T."""
    t = torch.full((len(x_0),), grid[0], dtype=torch.int64, device=x_0.device)
    x = model.schedule.add_noise(x_0, t, torch.randn(x_0.shape, generator=generator).to(x_0))
    denoiser = model.denoiser(z)
    for t_cur, t_next in zip(grid[:-1], grid[1:]):
        x = sampling.ddim_step(x, denoiser(x, torch.full_like(t, t_cur)), t_cur, t_next, model.schedule)
    return x


def log_grid(T: int, steps: int = 40) -> list[int]:
    """Points from 0 to T − 1, denser where t is small: there the ODE bends most."""
    return sorted({round(math.expm1(math.log(T) * i / steps)) for i in range(steps)} | {0, T - 1})


def probe_scores(model: Autoencoder, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], names=None) -> dict:
    """A linear probe on z, and one on as many principal components of the pixels.

    Args:
        train, test: float images [N, C, H, W] and labels int64, [N] (classes) or [N, A] of 0 and 1 (attributes).
            Classes with fewer than 5 training images are left out.

    Returns "measure" ("accuracy", or "mean AUROC" of attributes), "z", "pca", "chance", "train" and "test" (numbers of
    images).

    Raises:
        ValueError: too few images.
    """
    (x_a, y_a), (x_b, y_b) = train, test
    if y_a.ndim == 1:
        kept = [c for c in range(int(y_a.max()) + 1) if int((y_a == c).sum()) >= FEWEST]
        (x_a, y_a), (x_b, y_b) = ((x[use], y[use]) for x, y in ((x_a, y_a), (x_b, y_b))
                                  for use in [torch.isin(y, torch.tensor(kept, dtype=y.dtype))])
        y_a, y_b = (torch.tensor([kept.index(int(v)) for v in y], dtype=torch.int64) for y in (y_a, y_b))
        names = [str(names[c] if names else c) for c in kept]
        chance = float(torch.bincount(y_b, minlength=1).max() / max(len(y_b), 1))
    else:
        names, chance = names or [str(i) for i in range(y_a.shape[1])], 0.5
    if len(x_a) < 2 * FEWEST or len(x_b) < 2 or len(names) < (2 if y_a.ndim == 1 else 1):
        raise ValueError(f"{len(x_a)} and {len(x_b)} labelled images are too few to train and to test a probe")
    flat_a, flat_b = x_a.flatten(1), x_b.flatten(1)
    basis, scores = principal_components(flat_a, min(model.z_dim, *flat_a.shape)), {}
    for key, a, b in (("z", encode_all(model, x_a), encode_all(model, x_b)), ("pca", flat_a @ basis, flat_b @ basis)):
        probe = LinearProbe.fit(a, y_a, names, l2=1e-3)
        scores[key] = float(probe.accuracy(b, y_b) if probe.kind == "classes" else probe.auroc(b, y_b).nanmean())
    return {"measure": "accuracy" if y_a.ndim == 1 else "mean AUROC", **scores, "chance": chance, "train": len(x_a),
            "test": len(x_b)}


def copying(generated: Features, train: Features, held_out: Features) -> Estimate:
    """Are generated images nearer to the training images than they should be? The median of (distance to the nearest
    training image)/(distance to the nearest held-out one), over the same for a half of the held-out images that isn't
    measured against. 1: no; towards 0: copies.

    Unlike `metrics.memorisation` it isn't fooled by blur, which brings an image nearer to all others; but it wants more
    images."""
    half = len(held_out) // 2
    ratios = [nearest_distance(x, train) / nearest_distance(x, held_out[half:]).clamp(min=1e-12)
              for x in (generated, held_out[:half])]
    ratio = bootstrap(lambda a, b: middle(a) / middle(b).clamp(min=1e-12), 2000, None, *ratios)
    return replace(ratio, n=(*ratio.n, len(train)), space=generated.space)


# ---- images from anywhere -----------------------------------------------------------------------------------------


def pick(data, n: int | None = None, seed: int = 0, labels=None):
    """n images of a tensor or a data set at random (None: all, in order), passing over what can't be read: float32 on
    the CPU, uint8 in [−1, 1]; with `labels`, (images, their labels)."""
    total = len(data)
    if labels is not None and len(labels) != total:
        raise ValueError(f"{len(labels)} labels for {total} images; want one each")
    order = torch.arange(total) if n is None else torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    pixels = getattr(data, "images", data)
    if torch.is_tensor(pixels):
        chosen = order[:n]
        images = pixels[chosen.to(pixels.device)]
    else:
        chosen, images, _ = zip(*islice(readable(data, order), n))
        chosen, images = torch.tensor(chosen), torch.stack(images)
    images = to_float(images).cpu()
    return images if labels is None else (images, torch.as_tensor(labels)[chosen].long().cpu())
