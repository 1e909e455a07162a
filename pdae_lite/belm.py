"""An integrator that can be run backwards exactly: O-BELM (Wang et al. 2024, "BELM: Bidirectional Explicit Linear
Multi-step Sampler for Exact Inversion in Diffusion Models").

In x̄ = x/√ᾱ and σ̄ = √(1−ᾱ)/√ᾱ, DDIM's equation is dx̄/dσ̄ = ε(x, t). With h_i = σ̄_i − σ̄_{i−1} and r =
(h_i/h_{i+1})², the step

    x̄_{i−1} = r x̄_{i+1} + (1−r) x̄_i − h_i (1 + h_i/h_{i+1}) ε(x_i, t_i)

is of second order, takes one evaluation, and is linear in x̄_{i+1}: solved for it, it walks back. The price: an image
inverts to a *pair*, from which any image can be rebuilt, whatever the denoiser knows: that says nothing about z."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .progress import progress_bar
from .sampling import Callback, Denoiser, Grid, now, time_grid
from .schedule import NoiseSchedule

Pair = tuple[Tensor, Tensor]


def _levels(schedule: NoiseSchedule, points: list[int]) -> tuple[list[float], list[float]]:
    """√ᾱ and σ̄ at each point of a grid."""
    levels = [schedule.level(t) for t in points]
    return [a for a, _ in levels], [s / a for a, s in levels]


@torch.no_grad()
def belm(denoiser: Denoiser, x_T: Tensor | Pair, schedule: NoiseSchedule, steps: int = 100,
         grid: str | Sequence[int] = "uniform",
         progress: bool = False, callback: Callable[[int, Tensor], None] | None = None) -> Tensor:
    """From noise to x_0 [N, …], `steps` evaluations; nothing is clamped, as that couldn't be undone.

    Args:
        denoiser: (x_t, t) -> ε.
        x_T: Gaussian noise [N, …], and the first step is one of DDIM; or the pair that `belm_invert` gives, which leads
            back to its image up to rounding, in one evaluation less.
        grid: see `time_grid`; for a pair, the grid that it was made with.
        callback: called with (t_next, x) after each step.

    Raises:
        ValueError: a grid of fewer than two steps.
    """
    points = _points(schedule, steps, grid)
    a, sigma = _levels(schedule, points)
    last = len(points) - 1
    if torch.is_tensor(x_T):
        before = x_T / a[last]
        here = before - (sigma[last] - sigma[last - 1]) * denoiser(x_T, now(points[last]))
    else:
        before, here = x_T[0] / a[last], x_T[1] / a[last - 1]
    for i in progress_bar(range(last - 1, 0, -1), desc="belm", show=progress):
        h, h_before = sigma[i] - sigma[i - 1], sigma[i + 1] - sigma[i]
        r = (h / h_before) ** 2
        eps = denoiser(here * a[i], now(points[i]))
        before, here = here, r * before + (1 - r) * here - h * (1 + h / h_before) * eps
        if callback is not None:
            callback(points[i - 1], here * a[i - 1])
    return here * a[0]


@torch.no_grad()
def belm_invert(denoiser: Denoiser, x_0: Tensor, schedule: NoiseSchedule, steps: int = 100, grid: Grid = "uniform",
                progress: bool = False, callback: Callback | None = None) -> Pair:
    """The pair (x_T, x one step before it), each [N, …], from which `belm` on the same grid rebuilds x_0 [N, …].

    The first step, from the clean image, is one of DDIM; `steps` evaluations in all. Arguments as for `belm`."""
    points = _points(schedule, steps, grid)
    a, sigma = _levels(schedule, points)
    before, here = x_0 / a[0], x_0 / a[0] + (sigma[1] - sigma[0]) * denoiser(x_0, now(points[0]))
    for i in progress_bar(range(1, len(points) - 1), desc="belm_invert", show=progress):
        h, h_next = sigma[i] - sigma[i - 1], sigma[i + 1] - sigma[i]
        r = (h / h_next) ** 2
        eps = denoiser(here * a[i], now(points[i]))
        before, here = here, (before - (1 - r) * here + h * (1 + h / h_next) * eps) / r
        if callback is not None:
            callback(points[i + 1], here * a[i + 1])
    return here * a[-1], before * a[-2]


def _points(schedule: NoiseSchedule, steps: int, grid) -> list[int]:
    points = time_grid(schedule, steps, grid)
    if len(points) < 3:
        raise ValueError(f"the grid has {len(points) - 1} step; a two-step integrator wants at least 2")
    return points
