"""Samplers: free functions over a denoiser, a callable (x_t, t) -> ε.

They know nothing of z, classes or guidance: those live in the denoiser. Each step has explicit end points `t_cur`,
`t_next`; t = −1 is the clean image (ᾱ = 1). Denoisers are told t as a 0-d int64 tensor on the CPU."""
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .counter_rng import PerSample
from .progress import progress_bar
from .schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
Grid = str | Sequence[int]
Callback = Callable[[int, Tensor], None]
POWERS = {"quadratic": 2, "cubic": 3}


def time_grid(schedule: NoiseSchedule, steps: int = 100, grid: Grid = "uniform") -> list[int]:
    """End points of the steps, increasing; the first is the end of sampling.

    - ``"uniform"``: round(linspace(−1, T−1, steps+1)), ends at the clean image, t = −1
    - ``"paper"``: the integer parts of linspace(0, T−1, steps+1), as in the authors' release: ends at ᾱ_0, not 1
    - ``"quadratic"``: T·u² − 1 for u = 0 … 1 (as in Song et al. 2021), at least 1 apart
    - ``"cubic"``: T·u³ − 1, likewise: for `dpm_solver`, with `correct`, the most exact of these with 12 or more steps
    - a sequence of t: the denoiser is evaluated there and nowhere else; −1 is added if it is absent"""
    if not isinstance(grid, str):
        own = sorted({int(t) for t in grid} | {-1})
        if len(own) < 2 or own[0] < -1 or own[-1] > schedule.T - 1:
            raise ValueError(f"grid runs from {own[0]} to {own[-1]} in {len(own)} points; want some t in "
                             f"0…{schedule.T - 1}")
        return own
    if not 1 <= steps <= schedule.T or int(steps) != steps:
        raise ValueError(f"steps={steps}; want a whole number from 1 to T={schedule.T}")
    if grid == "uniform":
        points: Iterable[float] = map(round, _linspace(-1, schedule.T - 1, steps))
    elif grid == "paper":
        points = _linspace(0, schedule.T - 1, steps)
    elif grid in POWERS:
        points = (max(round(schedule.T * (i / steps) ** POWERS[grid]), i) - 1 for i in range(steps + 1))
    else:
        raise ValueError(f"grid {grid!r}; want 'uniform', 'paper', 'quadratic', 'cubic' or a sequence of t")
    return sorted({int(t) for t in points})


def _linspace(start: int, stop: int, steps: int) -> list[float]:
    """As torch.linspace: from both ends to the middle."""
    step = (stop - start) / steps
    return [start + step * i if i < (steps + 1) // 2 else stop - step * (steps - i) for i in range(steps + 1)]


def ddim_step(x: Tensor, eps: Tensor, t_cur: int, t_next: int, schedule: NoiseSchedule, *, clip_range=None,
              eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """One step of DDIM (eq. 4), up or down in t:

        x_next = √ᾱ_next x̂_0 + √(1−ᾱ_next−σ²) ε + σ·noise,   x̂_0 = (x − √(1−ᾱ_cur) ε)/√ᾱ_cur

    With `clip_range`, x̂_0 is clamped and ε derived from it anew. σ² = η² β̃ for the step, so η = 1 is DDPM."""
    a, s = schedule.level(t_cur)
    a_next, s_next = schedule.level(t_next)
    x_0 = (x - s * eps) / a
    if clip_range is not None:
        x_0 = x_0.clamp(*clip_range)
        if s > 0:
            eps = (x - a * x_0) / s
    if eta == 0.0 or noise is None or t_next < 0:
        return a_next * x_0 + s_next * eps
    sigma_sq = eta**2 * (s_next / s) ** 2 * (1 - (a / a_next) ** 2)
    return a_next * x_0 + max(s_next**2 - sigma_sq, 0.0) ** 0.5 * eps + sigma_sq**0.5 * noise


def clip_range(denoiser: Denoiser, clip: bool) -> tuple[float, float] | None:
    """The range that x̂_0 is clamped to: the denoiser's own `data_range`, [−1, 1] if it has none; None: no clamp."""
    return getattr(denoiser, "data_range", (-1.0, 1.0)) if clip else None


def randn(shape: Sequence[int], device, generator: torch.Generator | None = None,
          dtype: torch.dtype = torch.float32) -> Tensor:
    """Gaussian noise on a device, float32, or float64 where `dtype` is. It is drawn where the generator lives and
    moved, so a CPU generator's seed gives the same noise everywhere; `counter_rng.PerSample` is one, too."""
    dtype = torch.promote_types(torch.float32, dtype)
    if isinstance(generator, PerSample):
        return generator.randn(shape).to(device, dtype)
    source = device if generator is None else generator.device
    return torch.randn(tuple(shape), dtype=dtype, device=source, generator=generator).to(device)


def now(t: int) -> Tensor:
    """t as denoisers are told it. The clean image, t = −1, is shown to networks as t = 0."""
    return torch.tensor(max(t, 0), device="cpu")


def _pairs(points: list[int], progress: bool, name: str) -> Iterable[tuple[int, int]]:
    return progress_bar(list(zip(points[:-1], points[1:])), desc=name, show=progress)


@torch.no_grad()
def ddim(denoiser: Denoiser, x_T: Tensor, schedule: NoiseSchedule, steps: int = 100, eta: float = 0.0,
         clip: bool = True, grid: Grid = "uniform", progress: bool = False, generator: torch.Generator | None = None,
         callback: Callback | None = None) -> Tensor:
    """DDIM sampling (Song et al. 2021; the paper's eq. 4), from x_T [N, …] to x_0 [N, …].

    Args:
        denoiser: (x_t, t) -> ε.
        eta: 0 is deterministic, 1 is DDPM on the grid.
        clip: clamp x̂_0 to the denoiser's data range in every step.
        grid: see `time_grid`.
        callback: called with (t_next, x) after each step.
    """
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta={eta}; want 0 or more (1 is DDPM)")
    limits = clip_range(denoiser, clip)
    x, points = x_T, time_grid(schedule, steps, grid)[::-1]
    for t_cur, t_next in _pairs(points, progress, "ddim"):
        eps = denoiser(x, now(t_cur))
        noise = randn(x.shape, x.device, generator, x.dtype) if eta > 0 else None
        x = ddim_step(x, eps, t_cur, t_next, schedule, clip_range=limits, eta=eta, noise=noise)
        if callback is not None:
            callback(t_next, x)
    return x


def ddpm(denoiser: Denoiser, x_T: Tensor, schedule: NoiseSchedule, steps: int | None = None, clip: bool = True,
         grid: Grid = "uniform", progress: bool = False, generator: torch.Generator | None = None,
         callback: Callback | None = None) -> Tensor:
    """Ancestral sampling (Ho et al. 2020): x_{t−1} ~ N(μ_θ, β̃_t), `steps` = T unless said otherwise.

    It is DDIM with η = 1: √ᾱ_s x̂_0 + √(1−ᾱ_s−β̃) ε is the posterior mean at x̂_0. A denoiser shifted by z must be made
    with ``shift="ddpm"``: ε_θ − k_t G then gives the mean μ_θ + β̃_t G of eq. (7)."""
    steps = schedule.T if steps is None else steps
    return ddim(denoiser, x_T, schedule, steps, eta=1.0, clip=clip, grid=grid, progress=progress, generator=generator,
                callback=callback)


@torch.no_grad()
def dpm_solver(denoiser: Denoiser, x_T: Tensor, schedule: NoiseSchedule, steps: int = 20, clip: bool = True,
               grid: Grid = "uniform", correct: bool = False, progress: bool = False,
               generator: torch.Generator | None = None, callback: Callback | None = None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): second order, one evaluation a step, x_T [N, …] to x_0 [N, …].

    In λ = log(√ᾱ/√(1−ᾱ)), with h = λ_next − λ_cur and h' the step before it:

        x_next = σ_next/σ_cur · x − √ᾱ_next (e^{−h} − 1) D,   D = x̂_0 + (h/2h')(x̂_0 − x̂_0')

    The first step has no predecessor and the last, to the clean image, has h = ∞: both are DDIM's. Arguments as for
    `ddim`.

    Args:
        correct: once x̂_0 at x_next is known, take the step that led there anew, with the parabola through the three
            guesses: UniPC of order 2 (Zhao et al. 2023), no evaluation more. What `callback` gets isn't corrected yet.
        generator: not used, as nothing is drawn.
    """
    limits = clip_range(denoiser, clip)
    x = x_T
    before: Any = None  # λ and x̂_0 of the last point
    last: Any = None  # the step that led here
    points = time_grid(schedule, steps, grid)[::-1]
    for t_cur, t_next in _pairs(points, progress, "dpm_solver"):
        (a, s), (a_next, s_next) = schedule.level(t_cur), schedule.level(t_next)
        x_0 = (x - s * denoiser(x, now(t_cur))) / a
        if limits is not None:
            x_0 = x_0.clamp(*limits)
        if correct and last is not None:
            x = _corrected(*last, x_0)  # type: ignore[call-arg]
        lam = math.log(a / s)
        estimate, shrink = x_0, s_next / s * (a / a_next)  # e^{−h}
        h = math.log(a_next / s_next) - lam if s_next > 0 else math.inf
        if correct:
            last = s_next / s * x + a_next * (1 - shrink) * x_0, a_next, h, (lam, x_0), before
        if before is not None and s_next > 0:
            estimate = x_0 + 0.5 * h / (lam - before[0]) * (x_0 - before[1])
        x = s_next / s * x + a_next * (1 - shrink) * estimate
        before = lam, x_0
        if callback is not None:
            callback(t_next, x)
    return x


def _corrected(first_order: Tensor, a: float, h: float, left: tuple[float, Tensor], before: tuple[float, Tensor] | None,
               arrived: Tensor) -> Tensor:
    """A step of `dpm_solver` with x̂_0 as the polynomial of λ through the guesses where it left, where it arrived and
    one before (λ and x̂_0 each), from `first_order`, where the guess leads that it left with."""
    lam, x_0 = left
    rise, weight = arrived - x_0, -math.expm1(-h)  # ∫ e^{u−h} du over the step, below the same with (u/h)^1 and (u/h)^2
    if before is None:
        return first_order + a * 0.5 * weight * rise
    linear = 1 - weight / h
    square = 1 - 2 * linear / h
    r = (lam - before[0]) / h
    bend = (rise - (x_0 - before[1]) / r) / (1 + r)  # the parabola is x̂_0 + (rise − bend)(u/h) + bend (u/h)²
    return first_order + a * (linear * (rise - bend) + square * bend)


@torch.no_grad()
def invert(denoiser: Denoiser, x_0: Tensor, schedule: NoiseSchedule, steps: int = 100, clip: bool = False,
           grid: Grid = "uniform", fixed_point: int = 0, order: int = 1, progress: bool = False,
           callback: Callback | None = None) -> Tensor:
    """DDIM run backwards (eq. 8): x_0 [N, …] to the x_T [N, …] that decodes to it.

    The plain step takes ε at the point it leaves, which is off by O(1/steps). `fixed_point` more evaluations a step
    take ε at the point it arrives at, so that `ddim` on the same grid retraces it. `order` 2 (Adams–Bashforth), at no
    further evaluation, is off by O(1/steps²): for `dpm_solver` and `belm`. `belm_invert` is exact.

    Args:
        clip: clamp x̂_0 in every step, as the authors' release does. That loses information: for parity only.
    """
    if order not in (1, 2) or (order == 2 and fixed_point):
        raise ValueError(f"order={order}, fixed_point={fixed_point}; want order 1, or order 2 without fixed_point")
    limits = clip_range(denoiser, clip)
    x, before, points = x_0, None, time_grid(schedule, steps, grid)
    for t_cur, t_next in _pairs(points, progress, "invert"):
        eps = denoiser(x, now(t_cur))
        if order == 2:
            (a, s), (a_next, s_next) = schedule.level(t_cur), schedule.level(t_next)
            h = s_next / a_next - s / a  # the step in σ̄ = √(1−ᾱ)/√ᾱ, where the equation is dx̄/dσ̄ = ε
            eps, before = (eps if before is None else eps + 0.5 * h / before[1] * (eps - before[0])), (eps, h)
        x_next = ddim_step(x, eps, t_cur, t_next, schedule, clip_range=limits)
        for _ in range(fixed_point):
            eps = denoiser(x_next, now(t_next))
            x_next = ddim_step(x, eps, t_cur, t_next, schedule, clip_range=limits)
        x = x_next
        if callback is not None:
            callback(t_next, x)
    return x


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation between two noises [N, …], each sample on its own; `weight` is a number or [N].

    The angle is taken between directions, lengths are interpolated linearly. Equal or opposite inputs are, too."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    norm_a, norm_b = flat_a.norm(dim=1, keepdim=True), flat_b.norm(dim=1, keepdim=True)
    w = torch.as_tensor(weight, dtype=a.dtype, device=a.device).reshape(-1, 1)
    cosine = (flat_a * flat_b).sum(1, keepdim=True) / (norm_a * norm_b).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    safe = sine > 1e-4
    direction = (((1 - w) * angle).sin() * flat_a / norm_a.clamp(min=1e-12)
                 + (w * angle).sin() * flat_b / norm_b.clamp(min=1e-12)) / torch.where(safe, sine, 1.0)
    mixed = torch.where(safe, direction * ((1 - w) * norm_a + w * norm_b), (1 - w) * flat_a + w * flat_b)
    return mixed.reshape(a.shape)
