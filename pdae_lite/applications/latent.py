"""The latent DPM: a diffusion model of codes z, which turns an autoencoder of images into a generator.

Codes are normalised by the mean and standard deviation of the training set's, which belong to the model."""
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..autoencoder import SAMPLERS, Autoencoder, check_sampler
from ..checkpoint import Saved
from ..counter_rng import PerSample
from ..data.builtin import to_float
from ..data.latents import encoded
from ..losses import dpm_loss, latent_loss
from ..networks.blocks import brief, check_range, timestep_embedding
from ..pdae import PDAE
from ..sampling import randn
from ..schedule import NoiseSchedule

CONSTANT = 1e-6  # a standard deviation below this share of the codes' size is rounding, not variation


class LatentStats(nn.Module):
    """Mean and standard deviation of codes, [z_dim] each, as buffers. A dimension that doesn't vary has std 0: it is
    normalised to about 0, and denormalised to its mean exactly."""

    def __init__(self, mean, std):
        super().__init__()
        mean, std = (torch.as_tensor(v, dtype=torch.float32).detach().clone() for v in (mean, std))
        if mean.ndim != 1 or mean.shape != std.shape:
            raise ValueError(f"mean has shape {list(mean.shape)}, std {list(std.shape)}; want [z_dim] for both")
        if mean.device.type != "meta" and not bool((mean.isfinite() & std.isfinite() & (std >= 0)).all()):
            raise ValueError("mean or std holds NaN, an infinite value or a negative std")
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.z_dim = len(mean)

    @classmethod
    def none(cls, z_dim: int) -> "LatentStats":
        """Those that change nothing."""
        return cls(torch.zeros(z_dim), torch.ones(z_dim))

    @classmethod
    def of(cls, z: Tensor) -> "LatentStats":
        """The statistics of codes z [N, z_dim], N of at least 2. See `latent_codes` for those of a data set."""
        _check_codes(z, "z")
        if len(z) < 2:
            raise ValueError("z holds 1 code; want at least 2")
        std, mean = torch.std_mean(z.double(), 0)
        if not bool((mean.isfinite() & std.isfinite()).all()):
            raise ValueError("z holds NaN or infinite values")
        size = torch.maximum(mean.abs(), std.max())
        return cls(mean, torch.where(std > CONSTANT * size, std, 0.0))

    def normalise(self, z: Tensor) -> Tensor:
        """Codes [N, z_dim] to mean 0 and standard deviation 1."""
        _check_codes(z, "z", self.z_dim)
        std = self.std.to(z)
        return (z - self.mean.to(z)) / torch.where(std > 0, std, 1.0)

    def denormalise(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        _check_codes(z, "z", self.z_dim)
        return z * self.std.to(z) + self.mean.to(z)


@dataclass(frozen=True)
class LatentConfig:
    """Shape of the network, and what it minimises. The defaults are the paper's: 54 million parameters.

    `layers` counts all, the last one too. `loss`: "l1", mean absolute error, the paper's; or "l2", mean squared error.
    The first learns the median of ε given z_t where samplers want the mean: some clusters come up too rarely."""

    z_dim: int = 512
    layers: int = 10
    width: int = 2048
    time_channels: int = 64
    dropout: float = 0.0
    loss: str = "l1"

    def __post_init__(self):
        for name, least in (("z_dim", 1), ("layers", 2), ("width", 1), ("time_channels", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}; want at least {least}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout}; want 0 or more, and less than 1")
        if self.loss not in ("l1", "l2"):
            raise ValueError(f"loss {self.loss!r}; want 'l1' or 'l2'")


class LatentLayer(nn.Module):
    """SiLU(LayerNorm((1 + c(t)) · Wh)), c(t) a linear projection of SiLU(time embedding); the last one is Wh alone."""

    def __init__(self, in_channels: int, config: LatentConfig, last: bool = False):
        super().__init__()
        self.last = last
        self.linear = nn.Linear(in_channels, config.z_dim if last else config.width)
        if not last:
            self.cond_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.z_dim, config.width))
            self.norm = nn.LayerNorm(config.width)
            self.out = nn.Sequential(nn.SiLU(), nn.Dropout(config.dropout))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        h = self.linear(h)
        return h if self.last else self.out(self.norm(h * (1 + self.cond_layers(emb))))


class LatentDPM(Saved):
    """A noise predictor of *normalised* codes, (z_t, t) -> ε [N, z_dim]: an MLP that sees z_t again in every layer.

    It is a denoiser like any other, which samplers take; `sample` denormalises, too.

    Args:
        config: a `LatentConfig`.
        schedule: the noise schedule of the codes; None: the paper's, β = 0.008 at each of 1000 steps.
        stats: what the codes were normalised with; None: mean 0, std 1.
    """

    default_weight = "simple"
    data_range = None  # codes are free: samplers clip nothing

    def __init__(self, config: LatentConfig, schedule: NoiseSchedule | None = None, stats: LatentStats | None = None):
        super().__init__()
        self.config, self.z_dim = config, config.z_dim
        self.schedule = NoiseSchedule.constant() if schedule is None else schedule
        self.stats = LatentStats.none(config.z_dim) if stats is None else stats
        if self.stats.z_dim != config.z_dim:
            raise ValueError(f"stats are of codes with z_dim={self.stats.z_dim}, config says z_dim={config.z_dim}")
        self.time_embed = nn.Sequential(nn.Linear(config.time_channels, config.z_dim), nn.SiLU(),
                                        nn.Linear(config.z_dim, config.z_dim))
        seen = [config.z_dim] + (config.layers - 1) * [config.width + config.z_dim]
        self.layers = nn.ModuleList(LatentLayer(n, config, last=i == len(seen) - 1) for i, n in enumerate(seen))

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """ε [N, z_dim] from normalised noisy codes z_t [N, z_dim] and t."""
        _check_codes(z_t, "z_t", self.z_dim)
        self.schedule.check_t(t)
        emb = self.time_embed(timestep_embedding(t, self.config.time_channels, self.time_embed[0].weight))
        z = z_t.to(self.time_embed[0].weight.dtype)
        h = self.layers[0](z, emb)
        for layer in self.layers[1:]:
            h = layer(torch.cat([h, z], 1), emb)
        return h.to(z_t.dtype)

    def training_loss(self, x_0: Tensor, t: Tensor, eps: Tensor, y, schedule, weight) -> Tensor:
        """What `train` minimises: `losses.latent_loss`, or `dpm_loss` for "l2", of normalised codes x_0 [N, z_dim]."""
        loss = latent_loss if self.config.loss == "l1" else dpm_loss
        return loss(self, x_0, t, eps, schedule, weight)

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian z_T [n, z_dim], float32 (float64 for a float64 model); see `sampling.randn`."""
        dtype = torch.promote_types(torch.float32, self.time_embed[0].weight.dtype)
        return randn((n, self.z_dim), self.device, generator).to(dtype)

    @torch.no_grad()
    def sample(self, n: int | None = None, steps: int = 100, z_T: Tensor | None = None, sampler: str = "ddim",
               grid: str | Sequence[int] = "quadratic", generator: torch.Generator | None = None, **options) -> Tensor:
        """New codes z [n, z_dim], denormalised: what an autoencoder decodes.

        Args:
            n: how many, unless z_T says it.
            steps: network evaluations, 1 … T.
            z_T: the noise to begin with; None draws it.
            sampler: "ddim", "ddpm" or "dpm_solver".
            grid: see `sampling.time_grid`. With the paper's β, the last of 100 uniform steps would start from noise of
                0.28 standard deviations; 100 quadratic steps are as good as all 1000.
            options: passed to the sampler (`eta`, `progress`, `callback`).
        """
        check_sampler(sampler)
        if z_T is None:
            if n is None or n < 1:
                raise ValueError(f"n={n}; want at least 1 sample, or z_T")
            z_T = self.noise(n, generator)
        elif n not in (None, len(z_T)):
            raise ValueError(f"n={n}, but z_T holds {len(z_T)} codes")
        z = SAMPLERS[sampler](self, z_T, self.schedule, steps, grid=grid, generator=generator, **options)
        return self.stats.denormalise(z)

    def to_config(self) -> dict:
        return {"network": asdict(self.config), "schedule": self.schedule.to_config()}

    @classmethod
    def from_config(cls, config: dict) -> "LatentDPM":
        return cls(LatentConfig(**config["network"]), NoiseSchedule.from_config(config["schedule"]))


# ---- with an autoencoder --------------------------------------------------------------------------------------------


def encode_labelled(autoencoder: Autoencoder, data, batch_size: int = 250, flip: bool = False,
                    progress: bool = False) -> tuple[Tensor, Tensor | None]:
    """Codes [N, z_dim] of a data set of images or of (image, label), in its order, not normalised, on the CPU; and the
    labels int64 [N] or [N, A] of the same images, if there are any. Images that can't be read are left out.

    Args:
        autoencoder: a `PDAE` or a `DiffAE` with an encoder of images.
        data: uint8, or float in the autoencoder's range.
        flip: the codes of mirrored images too, after all others.
    """
    if getattr(autoencoder.encoder, "takes_labels", False):
        raise ValueError("the autoencoder embeds labels; want one that encodes images")

    def encode(images: Tensor) -> Tensor:
        check_range(images, autoencoder.image_range, "data")
        return autoencoder.encode(to_float(images)).float()

    z, labels = encoded(encode, data, autoencoder.device, batch_size, flip, progress)
    return z, None if labels is None else labels.long()


def latent_codes(autoencoder: Autoencoder, data, batch_size: int = 256, flip: bool = False,
                 stats: LatentStats | None = None, progress: bool = False) -> tuple[TensorDataset, LatentStats]:
    """The normalised codes of a data set with their labels, ready for ``train(latent, codes)``, and the statistics to
    give to the `LatentDPM`. Arguments as for `encode_labelled`; `stats`: of others to normalise with."""
    z, labels = encode_labelled(autoencoder, data, batch_size, flip, progress)
    stats = LatentStats.of(z) if stats is None else stats
    return TensorDataset(stats.normalise(z), *([] if labels is None else [labels])), stats


@torch.no_grad()
def sample_images(autoencoder: Autoencoder, latent: LatentDPM, n: int, steps: int = 100, latent_steps: int = 100,
                  off_last: float | None = None, generator: torch.Generator | None = None, batch_size: int = 256,
                  **options) -> Tensor:
    """New images [n, C, H, W]: z from the latent DPM, then `autoencoder.decode` from fresh noise (the paper's Table 2).

    Args:
        steps, latent_steps: network evaluations for the images, and for the codes.
        off_last: the last share of the steps that a PDAE leaves to the plain DPM; None: the paper's 0.3. A Diff-AE has
            no plain DPM inside, and takes None only.
        batch_size: images decoded at once; it changes none of them.
        options: passed to `decode` (`sampler`, `scale`, `eta`, …).
    """
    if latent.z_dim != autoencoder.z_dim:
        raise ValueError(f"the latent DPM samples codes with z_dim={latent.z_dim}, the autoencoder decodes "
                         f"z_dim={autoencoder.z_dim}")
    if isinstance(autoencoder, PDAE):
        options["off_last"] = 0.3 if off_last is None else off_last
    elif off_last is not None:
        raise ValueError(f"off_last={off_last}, but a {type(autoencoder).__name__} holds no plain DPM; want None")
    z = latent.sample(n, latent_steps, generator=generator).to(autoencoder.device)
    x_T = autoencoder.noise(n, generator)
    source = generator.device if generator is not None else "cpu"
    seed = int(torch.randint(2**62, (), generator=generator, device=source))
    parts = zip(z.split(batch_size), x_T.split(batch_size), torch.arange(n, device=z.device).split(batch_size))
    return torch.cat([autoencoder.decode(a, b, steps, generator=PerSample(seed, i), **options) for a, b, i in parts])


def _check_codes(z: Tensor, name: str, z_dim: int | None = None) -> None:
    if not (torch.is_tensor(z) and z.is_floating_point() and z.ndim == 2 and len(z) and z_dim in (None, z.shape[1])):
        raise ValueError(f"{name} is {brief(z)}; want float [N, {'z_dim' if z_dim is None else z_dim}]")
