"""Ways to make a denoiser from another one: every experiment is one of them, and samplers know no other.

    PDAE.denoiser   shifted by z, at any scale: a number, one a sample, a function of t    eq. (7), Fig. 9
    guided          shifted by the gradient of a classifier                                eq. (5), (6)
    staged          one denoiser in a stretch of t, another one outside                    Fig. 3
    mixed           shifted by a mix of two z                                              Fig. 7

`sweep` decodes at several scales in one batch."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .networks.blocks import check_labels
from .networks.classifier import classifier_gradient
from .pdae import PDAE, SHIFTS, Scale, ShiftedDenoiser, everywhere, scale_at, times
from .sampling import Denoiser, clip_range
from .schedule import NoiseSchedule, Time, expand


def batch_map(features, n: int, change: Callable[[Tensor], Tensor]):
    """A trunk's features, with every part that has a row for each of n images changed. Rows that stand for all stay."""
    if torch.is_tensor(features):
        return change(features) if features.ndim and len(features) == n else features
    if isinstance(features, tuple):
        parts = [batch_map(part, n, change) for part in features]
        return type(features)(*parts) if hasattr(features, "_fields") else tuple(parts)
    return features


class ConditionedDenoiser:
    """ε(x_t, t) = network(x_t, t, condition), for a network that takes labels y [N] or codes z [N, z_dim]."""

    def __init__(self, network: nn.Module, condition: Tensor):
        self.network, self.condition = network, condition
        self.data_range = getattr(network, "data_range", (-1.0, 1.0))

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.network(x_t, t, self.condition)


class _Made:
    """A function (x_t, t) -> ε, with the data range of the denoiser that it is made from."""

    def __init__(self, eps: Denoiser, origin: Denoiser):
        self.eps, self.data_range = eps, clip_range(origin, True)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.eps(x_t, t)


def guided(denoiser: Denoiser, classifier: Callable[[Tensor, Tensor], Tensor], y: Tensor, schedule: NoiseSchedule,
           scale: Scale = 1.0, shift: str = "ddim") -> Denoiser:
    """Classifier guidance (Dhariwal & Nichol 2021): ε̂ = ε − scale · c_t ∇ log p(y | x_t).

    Args:
        denoiser: the noise predictor to guide; not necessarily a plain DPM.
        classifier: (x_t, t) -> logits or log-probabilities [N, K] of noisy images: a `NoisyClassifier`, or any function
            that autograd can follow, each sample on its own (`networks.dpm.per_sample`).
        y: the classes to draw, int64 [N], or [1] for all.
        schedule: the denoiser's.
        scale: multiplies the shift, as in `PDAE.denoiser`. Where it is 0, the classifier isn't run.
        shift: "ddim", c_t = √(1−ᾱ_t), eq. (6): with the true ∇ log p, the ideal class-conditional denoiser; "ddpm", c_t
            = k_t, with which the mean of DDPM steps is that of eq. (5).

    Raises:
        ValueError: labels of another type, or out of range; a classifier made for another schedule.
    """
    if shift not in SHIFTS:
        raise ValueError(f"shift {shift!r}; want one of {', '.join(SHIFTS)}")
    if not schedule.same_as(getattr(classifier, "schedule", schedule)):
        raise ValueError(f"the classifier is for {classifier.schedule}; want the denoiser's schedule, {schedule}")
    check_labels(y.cpu() if torch.is_tensor(y) else y, getattr(classifier, "num_classes", None))

    def eps_hat(x_t: Tensor, t: Time) -> Tensor:
        eps = denoiser(x_t, t)
        scales = scale_at(scale, t, eps)
        if everywhere(scales, 0):
            return eps
        gradient = classifier_gradient(classifier, x_t, t, y.expand(len(x_t)) if len(y) == 1 else y).to(eps.dtype)
        return eps - times(scales, schedule.at(SHIFTS[shift], t, eps) * gradient)

    return _Made(eps_hat, denoiser)


def staged(inside: Denoiser, outside: Denoiser, start: int, stop: int) -> Denoiser:
    """`inside` in the stage start ≤ t < stop, `outside` elsewhere, each run only where it is used (Fig. 3).

    Raises:
        ValueError: start < 0, start > stop, or denoisers for data of different ranges.
    """
    if not 0 <= start <= stop:
        raise ValueError(f"stage from {start} to {stop}; want 0 <= start <= stop")
    ranges = [clip_range(denoiser, True) for denoiser in (inside, outside)]
    if ranges[0] != ranges[1]:
        raise ValueError(f"inside is for data in {ranges[0]}, outside for {ranges[1]}; want the same")

    def eps_hat(x_t: Tensor, t: Time) -> Tensor:
        here = scale_at(1.0, t, x_t, start) - scale_at(1.0, t, x_t, stop)
        if everywhere(here, 1):
            return inside(x_t, t)
        if everywhere(here, 0):
            return outside(x_t, t)
        return torch.where(expand(here.to(x_t.device), x_t) > 0, inside(x_t, t), outside(x_t, t))

    return _Made(eps_hat, outside)


def mixed(pdae: PDAE, z_a: Tensor, z_b: Tensor, weight: float | Tensor, how: str = "z", shift: str | None = None,
          scale: Scale = 1.0, off_last: float = 0.0) -> ShiftedDenoiser:
    """Shifted by a mix of two codes (Fig. 7).

    Args:
        z_a, z_b: [N, z_dim], or [1, z_dim] for all: the codes at weight 0 and at weight 1.
        weight: a number or [N].
        how: "z", G at (1−w) z_a + w z_b; "gradient", (1−w) G(z_a) + w G(z_b). They agree as far as G is linear in z.
        shift, scale, off_last: see `PDAE.denoiser`.

    Raises:
        ValueError: codes of different shapes, or as many weights as there aren't codes.
    """
    if how not in ("z", "gradient"):
        raise ValueError(f"how {how!r}; want 'z' or 'gradient'")
    if z_a.ndim != 2 or z_a.shape != z_b.shape:
        raise ValueError(f"z_a has shape {list(z_a.shape)}, z_b {list(z_b.shape)}; want [N, {pdae.z_dim}] for both")
    w = torch.as_tensor(weight, dtype=z_a.dtype, device=z_a.device).reshape(-1)
    if len(w) != 1 and len(z_a) not in (1, len(w)):
        raise ValueError(f"weight has {len(w)} values for {len(z_a)} pairs of codes; want a number or [N]")
    n = max(len(z_a), len(w))
    z_a, z_b, w = z_a.expand(n, -1), z_b.expand(n, -1), w.expand(n)
    if how == "z":
        return ShiftedDenoiser(pdae, torch.lerp(z_a, z_b, w[:, None]), scale, off_last, shift)
    return _MixedGradients(pdae, z_a, z_b, w, scale, off_last, shift)


class _MixedGradients(ShiftedDenoiser):
    """ε̂(x_t, t) with (1−w) G(x_t, z_a, t) + w G(x_t, z_b, t) for G, or the same mix of two ε_z."""

    def __init__(self, pdae: PDAE, z_a: Tensor, z_b: Tensor, weight: Tensor, *options):
        super().__init__(pdae, z_a, *options)
        self.z_b, self.weight = z_b, weight

    def estimate(self, features, n: int) -> Tensor:
        z = torch.cat([z.expand(n, -1) for z in (self.z, self.z_b)])
        a, b = self.pdae.estimate(batch_map(features, n, lambda part: torch.cat([part, part])), z).split(n)
        return torch.lerp(a, b, expand(self.weight.to(a), a))


@torch.no_grad()
def sweep(model: PDAE, z: Tensor, x_T: Tensor, scales: Sequence[float] | Tensor, **options) -> Tensor:
    """Decode with the shift at several scales, in one batch: [S, N, C, H, W] for S scales.

    Args:
        z: [N, z_dim], or [1, z_dim] for all.
        x_T: [N, C, H, W], the same noise for each scale.
        scales: numbers [S].
        options: of `PDAE.decode`.
    """
    scales, n = torch.as_tensor(scales, dtype=torch.float32).reshape(-1), len(x_T)
    z, x_T = z.expand(n, -1).repeat(len(scales), 1), x_T.repeat(len(scales), *[1] * (x_T.ndim - 1))
    return model.decode(z, x_T, scale=scales.repeat_interleave(n), **options).unflatten(0, (len(scales), n))
