"""Models measured: Tables 1 and 2 by the paper's protocol, and the reconstructions of any model.

The protocol is the release's: its grid of t (`grid="paper"`), x̂_0 clamped in every step, inversion included, and its
metrics."""
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import counter_rng, metrics, sampling
from ..applications.latent import LatentDPM
from ..autoencoder import Autoencoder
from ..data.builtin import to_float
from ..data.items import in_batches
from ..diffae import DiffAE
from ..metrics.features import FeatureNet, Features
from ..metrics.intervals import Estimate, mean
from ..pdae import PDAE
from ..progress import progress_bar
from .partial import Partial
from .published import OFF_LAST, STEPS, TABLE_1_STEPS

PAPER = {"grid": "paper", "clip": True}

# ---- reconstructions ----------------------------------------------------------------------------------------------


@torch.no_grad()
def compare(images, count: int, device, rows: Callable, columns: dict[str, Callable], seed: int = 0,
            batch_size: int = 50, partial: Partial | None = None, progress: bool = False,
            what: str = "rebuilt") -> dict[str, dict[str, Estimate]]:
    """{row: {column: mean with its 95 % interval}} over the first `count` images of a data set, of (image, label) too;
    what can't be read is left out.

    Args:
        rows: (x_0, x_T) -> {row: images [N, C, H, W] rebuilt from x_0}. x_T is random noise; that of image i depends on
            `seed` and i alone.
        columns: name -> function of (x_0, rebuilt) that gives a figure for each pair, [N].
        partial: what was measured before a stop; the rest is added.
    """
    partial = Partial(None, {}) if partial is None else partial
    done, batches = partial.count(), in_batches(images, batch_size, range(count))
    for index, x, _ in progress_bar(batches, total=-(-count // batch_size), show=progress, desc=what):
        index, x_0, done = index[done:], to_float(x[done:]).to(device), max(done - len(index), 0)
        if not len(index):
            continue
        made = rows(x_0, counter_rng.normal(seed, 0, index, tuple(x_0.shape[1:])).to(x_0))
        partial.extend({f"{row}|{c}": f(x_0, x) for row, x in made.items() for c, f in columns.items()})
    found = dict.fromkeys(key.split("|")[0] for key in partial.tensors)
    return {row: {c: mean(partial.tensors[f"{row}|{c}"]) for c in columns} for row in found}


def both_x_T(model: Autoencoder, x_0: Tensor, x_T: Tensor, steps: int, name: str = "", **options) -> dict[str, Tensor]:
    """{"random x_T": images, "inferred x_T": images}, rebuilt from z and either noise; `name` comes before each."""
    z = model.encode(x_0)
    inferred = model.invert(x_0, z, steps, **options)
    x_T = x_T.flatten(1)[:, : inferred[0].numel()].reshape(inferred.shape)  # as many as a latent has values
    made = {f"{name}random x_T": model.decode(z, x_T, steps, **options),
            f"{name}inferred x_T": model.decode(z, inferred, steps, **options)}
    if model.codec is not None:
        made[f"{name}codec alone"] = model.codec.decode(model.codec.encode(x_0))
    return made


def reconstruction(model: Autoencoder, images, steps: int = 100, seed: int = 0, batch_size: int = 50,
                   progress: bool = False) -> dict[str, dict[str, Estimate]]:
    """{"random x_T": {"MSE": …, "SSIM": …, "PSNR": …}, "inferred x_T": …}, all on [0, 1], over a data set of images.

    Args:
        steps: network evaluations, in the inversion too.

    Raises:
        ValueError: a model of data that aren't in [−1, 1].
    """
    if model.image_range != (-1.0, 1.0):
        raise ValueError(f"the model's data range is {model.image_range}; these metrics are for images in [-1, 1]")
    return compare(images, len(images), model.device, lambda x_0, x_T: both_x_T(model, x_0, x_T, steps),
                   {"MSE": metrics.mse, "SSIM": metrics.ssim, "PSNR": metrics.psnr}, seed, batch_size, None, progress)


# ---- Table 1: reconstruction --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distance:
    """A distance between images [N, C, H, W] in [−1, 1]: [N]; `name` is "LPIPS" for LPIPS alone."""

    name: str
    function: Callable[[Tensor, Tensor], Tensor]


def lpips_distance() -> Distance:
    """LPIPS on AlexNet, which torchvision fetches unless it is in torch's cache."""
    return Distance("LPIPS", lambda a, b: metrics.lpips(a, b, download=True))


def feature_distance(space: "FeatureSpace") -> Distance:
    """Euclidean distance in a feature space. Not LPIPS."""
    return Distance(f"distance in {space.name}", lambda a, b: (space(a) - space(b)).norm(dim=1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of each pair [N, C, H, W] on [0, 1], as published: the 11×11 Gaussian window (σ = 1.5) sees zeros beyond the
    border, and border pixels count. (`metrics.ssim` leaves them out, as Wang et al. 2004 do.)"""
    u = torch.arange(-5, 6, dtype=a.dtype, device=a.device)
    g = torch.exp(-u.square() / (2 * 1.5**2))
    window = (g[:, None] * g / g.sum() ** 2).expand(a.shape[1], 1, 11, 11)

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x, window, padding=5, groups=x.shape[1])

    mean_a, mean_b = local(a), local(b)
    var_a, var_b, cov = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
    c_1, c_2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c_1) * (2 * cov + c_2) / ((mean_a**2 + mean_b**2 + c_1) * (var_a + var_b + c_2))
    return value.mean((1, 2, 3))


@torch.no_grad()
def rebuilt(x_0: Tensor, x_T: Tensor, steps: int, pdae: PDAE | None = None, diffae: DiffAE | None = None,
            **options) -> dict[str, Tensor]:
    """The rows of Table 1 that models give: images [N, C, H, W] rebuilt from x_0; x_T is random noise, `options` those
    of samplers. The plain DPM has no row with random x_T: it knows nothing of the image then."""
    out = {}
    if pdae is not None:
        inferred = sampling.invert(pdae.dpm, x_0, pdae.schedule, steps, **options)
        out["DDIM, inferred x_T"] = sampling.ddim(pdae.dpm, inferred, pdae.schedule, steps, **options)
    for name, model in (("Diff-AE, ", diffae), ("PDAE, ", pdae)):
        out |= both_x_T(model, x_0, x_T, steps, name, **options) if model is not None else {}
    return out


@torch.no_grad()
def table_1(pdae: PDAE, images, distance: Distance, steps: int = TABLE_1_STEPS, long_inversion: int | None = None,
            seed: int = 0, batch_size: int = 100, progress: bool = False) -> dict[str, dict[str, Estimate]]:
    """{row: {"SSIM": …, distance.name: …, "MSE": …}}, means over a data set of images, with 95 % intervals."""
    columns = {"SSIM": lambda a, b: ssim((a + 1) / 2, (b + 1) / 2), distance.name: distance.function,
               "MSE": lambda a, b: ((a - b) / 2).square().mean((1, 2, 3))}

    def rows(x_0: Tensor, x_T: Tensor) -> dict[str, Tensor]:
        out = rebuilt(x_0, x_T, steps, pdae, **PAPER)
        if long_inversion is not None:
            z = pdae.encode(x_0)
            out[f"PDAE, x_T inferred in {long_inversion} steps"] = pdae.decode(
                z, pdae.invert(x_0, z, long_inversion, **PAPER), steps, **PAPER)
        return out

    return compare(images, len(images), pdae.device, rows, columns, seed, batch_size, None, progress,
                   f"Table 1, T = {steps}")


# ---- Table 2: unconditional samples -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureSpace:
    """Images [N, C, H, W] in [−1, 1] to features [N, D]. Distances in Inception's space alone are FIDs:
    `is_inception`."""

    name: str
    function: Callable[[Tensor], Tensor]
    is_inception: bool = False

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x).float()


def inception_space(path: str | Path, device="cpu") -> FeatureSpace:
    """FID's own features, from a TorchScript file of Inception that takes uint8 RGB images of any size and gives [N,
    2048] (that of StyleGAN2-ADA, inception-2015-12-05.pt, does).

    Raises:
        FileNotFoundError: no such file.  ValueError: no TorchScript.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; want a TorchScript of Inception, such as StyleGAN2-ADA's "
                                "inception-2015-12-05.pt")
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # files are as they are
            net = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as e:
        raise ValueError(f"{path}: not a TorchScript file ({str(e).strip().splitlines()[0][:100]})") from None

    def features(x: Tensor) -> Tensor:
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return net(pixels.expand(-1, 3, -1, -1), return_features=True)

    return FeatureSpace("Inception features", features, True)


def small_space(net: FeatureNet) -> FeatureSpace:
    """The class features of one of this library's small networks, on images resized to what it takes."""
    side, channels = net.config.image_size, net.config.in_channels

    def features(x: Tensor) -> Tensor:
        x = x.clamp(-1, 1)
        x = x.expand(-1, channels, -1, -1) if x.shape[1] == 1 else x
        x = x.mean(1, keepdim=True) if channels == 1 else x
        if x.shape[2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp(-1, 1)
        return net.features(x)

    return FeatureSpace(f"{net.config.name} class features at {side}×{side}", features)


@torch.no_grad()
def real_statistics(space: FeatureSpace, images, device, batch_size: int = 100,
                    progress: bool = False) -> metrics.Statistics:
    """Mean and covariance of the features of a data set of uint8 images; what can't be read is left out."""
    batches = progress_bar(in_batches(images, batch_size), total=-(-len(images) // batch_size), show=progress,
                           desc="real images")
    parts = [space(to_float(x).to(device)).cpu() for _, x, _ in batches]
    return metrics.statistics(Features(torch.cat(parts), space.name))


@torch.no_grad()
def latent_samples(latent: LatentDPM, z_T: Tensor, steps: int) -> Tensor:
    """Codes [N, z_dim] as the release draws them: z_T and, in every step, ẑ_0 clamped to [−1, 1] (`LatentDPM.sample`
    doesn't)."""

    def clamped(z_t: Tensor, t: Tensor) -> Tensor:
        return latent(z_t, t)

    clamped.data_range = (-1.0, 1.0)
    return latent.stats.denormalise(sampling.ddim(clamped, z_T.clamp(-1, 1), latent.schedule, steps, grid="paper"))


def table_2(pdae: PDAE, latent: LatentDPM, space: FeatureSpace, real: metrics.Statistics, count: int,
            steps: Iterable[int] = STEPS, seed: int = 0, batch_size: int = 100,
            progress: bool = False) -> dict[str, dict[int, Estimate]]:
    """{"DDIM": {T: distance}, "PDAE": {T: distance}}: Fréchet distances of `count` samples to the real images.

    Both rows and all T start from the same noise. As in the release the latent DPM takes T steps too."""
    shape = (pdae.network.config.in_channels, *[pdae.network.config.image_size] * 2)
    out: dict[str, dict[int, Estimate]] = {"DDIM": {}, "PDAE": {}}
    for T in steps:
        parts: dict[str, list[Tensor]] = {row: [] for row in out}
        for index in progress_bar(torch.arange(count).split(batch_size), show=progress, desc=f"Table 2, T = {T}"):
            x_T = counter_rng.normal(seed, 0, index, shape).to(pdae.device)
            z = latent_samples(latent, counter_rng.normal(seed, 1, index, (latent.z_dim,)).to(pdae.device), T)
            parts["DDIM"].append(space(sampling.ddim(pdae.dpm, x_T, pdae.schedule, T, grid="paper")).cpu())
            parts["PDAE"].append(space(pdae.decode(z, x_T, T, grid="paper", off_last=OFF_LAST)).cpu())
        for row, features in parts.items():
            out[row][T] = metrics.fid(Features(torch.cat(features), space.name), real)
    return out
