"""PDAE: a frozen DPM, a semantic encoder and a gradient estimator (Section 3)."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder, check_sampler
from .checkpoint import build, describe, keep_by
from .clock import on_host
from .losses import pdae_loss
from .schedule import NoiseSchedule, expand

# How G enters ε̂ = ε_θ − c_t G: the training form k_t, exact for DDPM steps (eq. 7), and the DDIM form (eq. 6).
SHIFTS = {"ddpm": "shift_coefficient", "ddim": "sqrt_one_minus_alpha_bar"}
SHIFT_OF_SAMPLER = {"ddim": "ddim", "ddpm": "ddpm", "dpm_solver": "ddim"}

Scale = float | Tensor | Callable[[Tensor], Tensor]  # a number, [N], or a function of t [N] that gives one of them


def scale_at(scale: Scale, t: Tensor, like: Tensor) -> Tensor:
    """The scale of a shift at t [N] for each of `like` [N, …]: [N], in its dtype, but on the CPU, where it decides what is run."""
    value = torch.as_tensor(scale(on_host(t)) if callable(scale) else scale, dtype=like.dtype, device="cpu").reshape(-1)
    if len(value) not in (1, len(like)):
        raise ValueError(f"scale has {len(value)} values for {len(like)} images; want a number or [N]")
    return value.expand(len(like))


def some_rows(scale: Tensor) -> Tensor | slice | None:
    """Where a scale [N] isn't 0: the index of all rows, of some, or None."""
    used = scale.ne(0)
    return None if not used.any() else slice(None) if used.all() else used.nonzero()[:, 0]


def of_rows(values: Tensor, rows: Tensor | slice) -> Tensor:
    """Some rows of values [N, …]; of [1, …], which are for all, that one."""
    return values if len(values) == 1 else values[rows]


def batch_map(features, n: int, change: Callable[[Tensor], Tensor]):
    """A trunk's features, with every part that has a row for each of n images changed. Rows that stand for all stay."""
    if torch.is_tensor(features):
        return change(features) if len(features) == n else features
    if isinstance(features, tuple):
        parts = [batch_map(part, n, change) for part in features]
        return type(features)(*parts) if hasattr(features, "_fields") else tuple(parts)
    return features


class ShiftedDenoiser:
    """ε̂(x_t, t) = ε_θ − scale · c_t G(x_t, z, t): a noise predictor like any other. Made by `PDAE.denoiser`."""

    def __init__(self, pdae: "PDAE", z: Tensor, scale: Scale = 1.0, off_last: float = 0.0, shift: str = "ddim"):
        if shift not in SHIFTS:
            raise ValueError(f"shift {shift!r}; want one of {', '.join(SHIFTS)}")
        if not 0.0 <= off_last <= 1.0:
            raise ValueError(f"off_last={off_last}; want a share of the steps, from 0 to 1")
        self.pdae, self.z = pdae, z
        self.scale = scale.cpu() if torch.is_tensor(scale) else scale  # once, not in every step
        self.data_range = pdae.data_range
        self.first_t = off_last * pdae.schedule.T  # plain DPM where t is below
        self.shift = shift

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        if len(self.z) not in (1, len(x_t)):
            raise ValueError(f"z holds {len(self.z)} codes for {len(x_t)} images; want one each, or one for all")
        features = self.pdae.features(x_t, t)
        eps = self.pdae.eps(features)
        scale = scale_at(self.scale, t, eps) * (on_host(t) >= self.first_t)
        rows = some_rows(scale)
        if rows is None:
            return eps  # the estimator isn't run where it has no say
        coefficient = expand(scale.to(eps.device), eps) * self.pdae.schedule.at(SHIFTS[self.shift], t, eps)
        if isinstance(rows, slice):
            return eps - coefficient * self.gradient(features, rows, len(x_t))
        rows = rows.to(eps.device)
        some = batch_map(features, len(x_t), lambda part: part[rows])
        return eps.index_add(0, rows, -coefficient[rows] * self.gradient(some, rows, len(rows)))

    def gradient(self, features, rows: Tensor | slice, n: int) -> Tensor:
        """G [n, C, H, W] at the features of n images, which are those `rows` of the batch."""
        return self.pdae.gradient(features, of_rows(self.z, rows))


class PDAE(Autoencoder):
    """A pre-trained DPM as an autoencoder.

    Args:
        dpm: the noise predictor, cut in two: `trunk(x_t, t)` and `head(features)`. It is frozen here, and stays in
            eval mode whatever `train()` says.
        encoder: x_0 [N, C, H, W] -> z [N, z_dim], with a `z_dim`; or a `LabelEncoder`, for a class-conditional G.
        schedule: the DPM's noise schedule.
        estimator: features, z -> G [N, C, H, W]; None: a fresh one on the DPM's trunk (output zero).
        precondition: None: the estimator's output is G, as in the paper. "v": G = √SNR(t) · output, so that the
            output is the shift in units of v, of similar size at all but the smallest t (see the chapter on
            filling the gap).
    """

    def __init__(self, dpm: nn.Module, encoder: nn.Module, schedule: NoiseSchedule, estimator: nn.Module | None = None,
                 precondition: str | None = None):
        super().__init__()
        if precondition not in (None, "v"):
            raise ValueError(f"precondition {precondition!r}; want None or 'v'")
        self.dpm, self.encoder, self.schedule = dpm.eval().requires_grad_(False), encoder, schedule
        self.estimator = dpm.gradient_estimator(encoder.z_dim) if estimator is None else estimator
        self.precondition = precondition

    default_weight = "pdae"

    def train(self, mode: bool = True) -> "PDAE":
        """Train mode for encoder and estimator; the DPM stays in eval mode."""
        super().train(mode)
        self.dpm.eval()
        return self

    def trainable(self) -> nn.ModuleDict:
        """Encoder and estimator: all that an optimizer or an EMA should see."""
        return nn.ModuleDict({"encoder": self.encoder, "estimator": self.estimator})

    @property
    def network(self) -> nn.Module:
        """The frozen DPM."""
        return self.dpm

    def training_loss(self, x_0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None, schedule: NoiseSchedule, weight) -> Tensor:
        """What `train` minimises: `losses.pdae_loss`. `schedule` is the model's own, whatever is given."""
        return pdae_loss(self, x_0, t, eps, weight, self.training_codes(x_0, y))

    # ---- the parts ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, x_t: Tensor, t: Tensor):
        """Trunk features of the frozen DPM; never part of a graph."""
        return self.dpm.trunk(x_t, t)

    @torch.no_grad()
    def eps(self, features) -> Tensor:
        """ε_θ [N, C, H, W] of the frozen DPM."""
        return self.dpm.head(features)

    def gradient(self, features, z: Tensor) -> Tensor:
        """G_ψ(x_t, z, t) [N, C, H, W]: the estimate of ∇ log p(z | x_t)."""
        gradient = self.estimator(features, z)
        if self.precondition == "v":
            snr = self.schedule.at("snr", features.t, gradient)
            gradient = snr.sqrt() * gradient
        return gradient

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """(ε_θ, G), each [N, C, H, W], from x_t [N, C, H, W], t int64 [N] in 0 … T−1, z [N, z_dim]."""
        self.schedule.check_t(t)
        features = self.features(x_t, t)
        return self.eps(features), self.gradient(features, z)

    # ---- an autoencoder -------------------------------------------------------------------------------------------

    def denoiser(self, z: Tensor, scale: Scale = 1.0, off_last: float = 0.0, shift: str = "ddim") -> ShiftedDenoiser:
        """The noise predictor ε̂ = ε_θ − scale · c_t G(x_t, z, t).

        Args:
            z: [N, z_dim].
            scale: multiplies the shift; a number, [N], or a function of t int64 [N] that gives one of them, for example
                ``lambda t: 2.0 * ((t >= 300) & (t < 700))`` (an interval) or ``lambda t: 3 * t / 1000`` (a ramp). 0 is the plain
                DPM: where it is 0 for all, the estimator isn't run.
            off_last: plain DPM where t < off_last · T (the paper's unconditional samples: 0.3).
            shift: "ddim", c_t = √(1−ᾱ_t) (eq. 6), right for a true ∇ log p(z | x_t); "ddpm", c_t = k_t, the form it was trained
                in: exact for DDPM (eq. 7), and consistent in DDIM too, since the loss makes ε_θ − k_t G the best guess at ε. They
                differ where t is small and z has little to add, so images hardly do; the default is the paper's.
        """
        return ShiftedDenoiser(self, z, scale, off_last, shift)

    @torch.no_grad()
    def decode(self, z: Tensor, x_T: Tensor | None = None, steps: int = 100, sampler: str = "ddim", scale: Scale = 1.0,
               off_last: float = 0.0, shift: str | None = None, generator: torch.Generator | None = None, **options) -> Tensor:
        """Images [N, C, H, W] from codes z [N, z_dim].

        Args:
            x_T: the stochastic code; None draws Gaussian noise.
            steps: network evaluations, 1 … T.
            sampler: "ddim", "ddpm" or "dpm_solver". It decides the form of the shift unless `shift` says otherwise.
            scale, off_last: see `denoiser`.
            options: passed to the sampler (`eta`, `clip`, `grid`, `progress`, `callback`).
        """
        check_sampler(sampler)
        denoiser = self.denoiser(z, scale, off_last, SHIFT_OF_SAMPLER[sampler] if shift is None else shift)
        return super().decode(z, x_T, steps, sampler, generator, denoiser, **options)

    @torch.no_grad()
    def invert(self, x_0: Tensor, z: Tensor | None = None, steps: int = 100, shift: str = "ddim", **options) -> Tensor:
        """The stochastic code x_T [N, C, H, W] of images x_0 (eq. 8); z is encoded from x_0 if it isn't given.

        `options` go to `sampling.invert` (`fixed_point`, `grid`, `clip`, `progress`, `callback`).
        """
        z = self.encode(x_0) if z is None else z
        return super().invert(x_0, z, steps, self.denoiser(z, shift=shift), **options)

    # ---- files ----------------------------------------------------------------------------------------------------

    def save(self, path, metadata: dict | None = None, dpm: str | None = None) -> None:
        """Write one self-describing safetensors file; `metadata` is any JSON-able provenance. Never pickle.

        `dpm`: "value" or "reference", for one of `interop.from_diffusers`; see `keep` there, which is the default.
        """
        if dpm is not None:
            keep_by(self.dpm, dpm)
        super().save(path, metadata)

    def to_config(self) -> dict:
        return {"dpm": describe(self.dpm), "encoder": describe(self.encoder), "schedule": self.schedule.to_config(),
                "precondition": self.precondition}

    @classmethod
    def from_config(cls, config: dict) -> "PDAE":
        return cls(build(config["dpm"]), build(config["encoder"]), NoiseSchedule.from_config(config["schedule"]),
                   precondition=config["precondition"])
