"""PDAE: a frozen DPM, a semantic encoder and an estimator of what z adds (Section 3)."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder
from .checkpoint import describe, keep_by
from .losses import pdae_loss
from .networks.side import BlackBox
from .schedule import NoiseSchedule, Time, expand

# How the paper's G enters ε̂ = ε_θ − c_t G: the training form k_t, exact for DDPM steps (eq. 7); the DDIM form (eq. 6).
SHIFTS = {"ddpm": "shift_coefficient", "ddim": "sqrt_one_minus_alpha_bar"}
FORMS = ("difference", "paper")

Scale = float | Tensor | Callable[[Tensor], Tensor]  # a number, [N], or a function of t that gives one of them


def scale_at(scale: Scale, t: Time, like: Tensor, first_t: float = 0.0) -> float | Tensor:
    """The scale of a shift at t, 0 below `first_t`: a number, or [N] for `like` [N, …], on the CPU."""
    one = not torch.is_tensor(t) or t.ndim == 0 and t.device.type == "cpu"
    t = torch.tensor(int(t), device="cpu") if one else torch.as_tensor(t).cpu()
    value = scale(t) if callable(scale) else scale
    if not isinstance(value, (int, float)):
        value = torch.as_tensor(value, dtype=torch.float32, device="cpu").reshape(-1)
        if len(value) not in (1, len(like)):
            raise ValueError(f"scale has {len(value)} values for {len(like)} images; want a number or [N]")
        value = float(value) if len(value) == 1 else value
    return value * (int(t) >= first_t if one else (t >= first_t).reshape(-1))


def everywhere(scale: float | Tensor, number: float) -> bool:
    """Whether a scale is this number for all images."""
    return bool((scale == number).all()) if torch.is_tensor(scale) else scale == number


def times(scale: float | Tensor, x: Tensor) -> Tensor:
    """A scale, a number or [N], times x [N, …]."""
    return (expand(scale.to(x), x) if torch.is_tensor(scale) else scale) * x


class ShiftedDenoiser:
    """ε̂(x_t, t): the DPM's noise prediction, shifted by what z adds. Made by `PDAE.denoiser`."""

    def __init__(self, pdae: "PDAE", z: Tensor, scale: Scale = 1.0, off_last: float = 0.0, shift: str | None = None):
        if shift is not None and pdae.form != "paper":
            raise ValueError(f"shift={shift!r}, but this PDAE is in the difference form, whose shift has one form "
                             "only; leave it out")
        if shift not in (None, *SHIFTS):
            raise ValueError(f"shift {shift!r}; want one of {', '.join(SHIFTS)}")
        if not 0.0 <= off_last <= 1.0:
            raise ValueError(f"off_last={off_last}; want a share of the steps, from 0 to 1")
        self.pdae, self.z, self.data_range = pdae, z, pdae.data_range
        self.scale = scale.cpu() if torch.is_tensor(scale) else scale  # once, not in every step
        self.first_t = off_last * pdae.schedule.T  # plain DPM where t is below
        self.coefficient = SHIFTS[shift or "ddim"]

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        if len(self.z) not in (1, len(x_t)):
            raise ValueError(f"z holds {len(self.z)} codes for {len(x_t)} images; want one each, or one for all")
        pdae, features = self.pdae, self.pdae.features(x_t, t)
        scale = scale_at(self.scale, t, x_t, self.first_t)
        if everywhere(scale, 0):
            return pdae.eps(features)  # z has no say: the estimator isn't run
        known = self.estimate(features, len(x_t))
        if pdae.form == "paper":  # ε̂ = ε_θ − s c_t G
            return pdae.eps(features) - times(scale, pdae.schedule.at(self.coefficient, t, x_t) * known)
        if everywhere(scale, 1):
            return known  # ε̂ = ε_z: the frozen head isn't run
        weight = expand(scale.to(known), known) if torch.is_tensor(scale) else scale
        return torch.lerp(pdae.eps(features), known, weight)  # ε̂ = ε_θ + s (ε_z − ε_θ)

    def estimate(self, features, n: int) -> Tensor:
        """G or ε_z [n, C, H, W], by the PDAE's form, at the features of n images."""
        return self.pdae.estimate(features, self.z)


class PDAE(Autoencoder):
    """A pre-trained DPM as an autoencoder.

    Args:
        dpm: the noise predictor, cut in two: `trunk(x_t, t)` and `head(features)`. It is frozen here, and stays in eval
            mode. Any other callable (x_t, t [N]) -> ε gets a network of its own beside it (`networks.side`).
        encoder: x_0 [N, C, H, W] -> z [N, z_dim], with a `z_dim`; or a `LabelEncoder`, for a class-conditional G.
        schedule: the DPM's noise schedule.
        estimator: a module (features, z) -> [N, C, H, W]; None: a fresh one on the DPM's trunk.
        form: what the estimator predicts. "difference": the noise knowing z, ε_z, by a copy of the DPM's head; then G =
            (ε_θ − ε_z)/√(1−ᾱ_t). "paper": G, by a fresh head whose output starts at zero. Either starts as the DPM.
            None: "difference", or "paper" if `estimator` or `precondition` is given.
        precondition: of the paper's form. None: the output is G. "v": G = √SNR(t) · output, the shift in units of v.
        codec: a frozen pair images -> x_0 -> images, for a DPM of latents (`interop.codec_from_diffusers`); or None.

    Raises:
        ValueError: an unknown form; a precondition without the paper's form; a schedule that isn't the DPM's own; a
            class-conditional DPM whose class isn't fixed; a codec of another DPM.
    """

    default_weight = "pdae"
    denoiser_options = ("scale", "off_last", "shift")

    def __init__(self, dpm: Any, encoder: nn.Module, schedule: NoiseSchedule, estimator: nn.Module | None = None,
                 precondition: str | None = None, form: str | None = None, codec: nn.Module | None = None):
        super().__init__()
        if form is None:
            form = "difference" if estimator is None and precondition is None else "paper"
        if form not in FORMS:
            raise ValueError(f"form {form!r}; want one of {', '.join(FORMS)}")
        if precondition not in (None, "v") or precondition and form != "paper":
            raise ValueError(f"precondition {precondition!r}; want None or 'v'" if form == "paper" else
                             f"precondition {precondition!r} is the paper's form's; want form='paper', or None")
        if not hasattr(dpm, "trunk"):
            images: Any = encoder.config
            dpm = BlackBox(dpm, schedule, images.image_size, images.in_channels)
        config: Any = getattr(dpm, "config", None)
        if getattr(config, "num_classes", None) is not None:
            raise ValueError(f"the DPM is class-conditional (num_classes={config.num_classes}); fix a class: "
                             "load_adm(…, label=…)")
        if codec is not None and codec.latent_channels != config.in_channels:
            raise ValueError(f"the codec's latents have {codec.latent_channels} channels, the DPM takes "
                             f"{config.in_channels}; want those of one pipeline")
        own = getattr(dpm, "schedule", schedule)
        if not schedule.same_as(own):
            raise ValueError(f"the schedule is {schedule}, but the DPM's own is {own}; give that one")
        self.dpm, self.encoder, self.schedule = dpm.eval().requires_grad_(False), encoder, schedule
        self.form, self.precondition = form, precondition
        self.codec = None if codec is None else codec.eval().requires_grad_(False)
        if estimator is None:
            estimator = (dpm.gradient_estimator if form == "paper" else dpm.noise_estimator)(encoder.z_dim)
        self.estimator = estimator

    def train(self, mode: bool = True) -> "PDAE":
        """Train mode for encoder and estimator; the DPM and the codec stay in eval mode."""
        super().train(mode)
        self.dpm.eval()
        if self.codec is not None:
            self.codec.eval()
        return self

    def trainable(self) -> nn.ModuleDict:
        """Encoder and estimator: all that an optimizer or an EMA should see."""
        return nn.ModuleDict({"encoder": self.encoder, "estimator": self.estimator})

    @property
    def network(self) -> Any:
        """The frozen DPM."""
        return self.dpm

    def training_loss(self, x_0: Tensor, t: Tensor, eps: Tensor, y, schedule, weight) -> Tensor:
        """What `train` minimises: `losses.pdae_loss`. `schedule` is the model's own, whatever is given."""
        return pdae_loss(self, x_0, t, eps, weight, self.training_codes(x_0, y))

    @torch.no_grad()
    def features(self, x_t: Tensor, t: Time):
        """Trunk features of the frozen DPM; never part of a graph."""
        return self.dpm.trunk(x_t, t)

    @torch.no_grad()
    def eps(self, features) -> Tensor:
        """ε_θ [N, C, H, W] of the frozen DPM."""
        return self.dpm.head(features)

    def estimate(self, features, z: Tensor) -> Tensor:
        """What the estimator says, [N, C, H, W]: ε_z, the noise given z, in the difference form; G in the paper's."""
        output = self.estimator(features, z)
        if self.form == "difference":
            return self.dpm.convert(output, features)
        return output if self.precondition is None else self.schedule.at("snr", features.t, output).sqrt() * output

    def gradient(self, features, z: Tensor) -> Tensor:
        """G_ψ(x_t, z, t) [N, C, H, W], the estimate of ∇ log p(z | x_t). In the difference form it is (ε_θ −
        ε_z)/√(1−ᾱ_t), to be multiplied by √(1−ᾱ_t), never by k_t."""
        known = self.estimate(features, z)
        if self.form == "paper":
            return known
        return (self.eps(features) - known) / self.schedule.at("sqrt_one_minus_alpha_bar", features.t, known)

    def known_eps(self, x_t: Tensor, t: Time, z: Tensor) -> Tensor:
        """The best guess at ε given z, as it is trained, [N, C, H, W]: ε_z, or ε_θ − k_t G (eq. 7)."""
        features = self.features(x_t, t)
        known = self.estimate(features, z)
        if self.form == "difference":
            return known
        return self.eps(features) - self.schedule.at("shift_coefficient", t, x_t) * known

    def forward(self, x_t: Tensor, t: Time, z: Tensor) -> tuple[Tensor, Tensor]:
        """(ε_θ, G), each [N, C, H, W], from x_t [N, C, H, W], t in 0 … T−1, z [N, z_dim]; see `gradient`."""
        self.schedule.check_t(t)
        features = self.features(x_t, t)
        return self.eps(features), self.gradient(features, z)

    def denoiser(self, z: Tensor, scale: Scale = 1.0, off_last: float = 0.0,
                 shift: str | None = None) -> ShiftedDenoiser:
        """The noise predictor ε̂ = ε_θ − scale · √(1−ᾱ_t) G(x_t, z, t), in the difference form ε_z for scale 1.

        Args:
            z: [N, z_dim].
            scale: multiplies the shift; a number, [N], or a function of t (0-d or [N], on the CPU) that gives one, such
                as ``lambda t: 2.0 * ((t >= 300) & (t < 700))``. Where it is 0 for all, G isn't run.
            off_last: plain DPM where t < off_last · T (the paper's unconditional samples: 0.3).
            shift: of the paper's form. "ddim", the default, c_t = √(1−ᾱ_t) (eq. 6), right for a true ∇ log p(z | x_t);
                "ddpm", c_t = k_t (eq. 7), the form it was trained in: ε_θ − k_t G is its best guess at ε.
        """
        return ShiftedDenoiser(self, z, scale, off_last, shift)

    def trained_denoiser(self, z: Tensor) -> ShiftedDenoiser:
        """The denoiser in the form that was trained, whose error `fill` is made of."""
        return self.denoiser(z, shift="ddpm" if self.form == "paper" else None)

    def sampler_options(self, sampler: str) -> dict:
        """The paper's form has one shift for DDPM's steps, another for the rest."""
        return {"shift": "ddpm"} if self.form == "paper" and sampler == "ddpm" else {}

    def of_latents(self) -> "PDAE":
        """The same model, of the same parts, without its codec: of latents in the place of images."""
        return PDAE(self.dpm, self.encoder, self.schedule, self.estimator, self.precondition, self.form)

    def save(self, path, metadata: dict | None = None, dpm: str | None = None) -> None:
        """Write one self-describing safetensors file; `metadata` is any JSON-able provenance. Never pickle. `dpm`:
        "value" or "reference", for one of `interop.from_diffusers`; see `keep` there, which is the default."""
        if dpm is not None:
            keep_by(self.dpm, dpm)
        super().save(path, metadata)

    @classmethod
    def load(cls, path, device: torch.device | str = "cpu", dpm: Callable | None = None) -> "PDAE":
        """Read a file written by `save`. `dpm`: the callable that it was made on, if that is a black box."""
        model = super().load(path)
        if dpm is not None:
            if not isinstance(model.dpm, BlackBox):
                raise ValueError(f"dpm is given, but {path} holds its own; leave it out")
            model.dpm.function = dpm
            model.dpm.requires_grad_(False)
        return model.to(device)

    def to_config(self) -> dict:
        config = {"dpm": describe(self.dpm), "encoder": describe(self.encoder), "schedule": self.schedule.to_config(),
                  "precondition": self.precondition, "form": self.form}
        return config if self.codec is None else config | {"codec": describe(self.codec)}

    @classmethod
    def from_config(cls, config: dict) -> "PDAE":
        """The inverse of `to_config`; weights are random. Files from before there were forms hold the paper's."""
        return super().from_config({"form": "paper"} | config)
