"""Measured values with 95 % intervals: by bootstrap, by Wilson's formula for shares, or by the jackknife."""
import math
from dataclasses import dataclass

import torch
from torch import Tensor

Z = 1.959964  # 97.5 % quantile of the normal distribution
BLOCK = 1 << 24  # numbers in memory at a time


@dataclass(frozen=True)
class Estimate:
    """A measured value, its 95 % interval, the sample sizes it rests on, and the feature space if there is one.

    `a - b` is the difference of two independent estimates with an interval of its own (Zou & Donner 2008). Where both
    share images or noise, it is too wide: take the mean of paired differences instead."""

    value: float
    low: float
    high: float
    n: tuple[int, ...]
    space: str = ""

    def __str__(self) -> str:
        sizes = " and ".join(f"{n:,}" for n in self.n)
        space = f", {self.space}" if self.space else ""
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] (n = {sizes}{space})"

    def __float__(self) -> float:
        return self.value

    def __sub__(self, other: "Estimate") -> "Estimate":
        if not isinstance(other, Estimate):
            return NotImplemented
        if self.space != other.space:
            spaces = self.space or "no feature space", other.space or "none"
            raise ValueError(f"a value in {spaces[0]} minus one in {spaces[1]}; want the same space")
        value = self.value - other.value
        low = value - math.hypot(self.value - self.low, other.high - other.value)
        high = value + math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(value, low, high, self.n + other.n, self.space)

    def to_dict(self) -> dict:
        """JSON-able values."""
        known = {"value": self.value, "low": self.low, "high": self.high, "n": list(self.n)}
        return known | ({"space": self.space} if self.space else {})

    def excludes(self, value: float = 0.0) -> bool:
        """Whether the interval leaves out a value. A difference that doesn't exclude 0 was not measured."""
        return not self.low <= value <= self.high


def mean(values: Tensor, resamples: int = 2000, generator: torch.Generator | None = None) -> Estimate:
    """Mean of values [N], N ≥ 2, with a percentile bootstrap interval; without a generator, always the same one."""
    return bootstrap(lambda x: x.mean(-1), resamples, generator, _numbers(values))


def median(values: Tensor, resamples: int = 2000, generator: torch.Generator | None = None) -> Estimate:
    """Median of values [N], N ≥ 2, with a percentile bootstrap interval."""
    return bootstrap(middle, resamples, generator, _numbers(values))


def proportion(hits: Tensor) -> Estimate:
    """Share of True in hits bool [N], with Wilson's interval."""
    hits = torch.as_tensor(hits)
    if hits.dtype != torch.bool or hits.ndim != 1 or not len(hits):
        raise ValueError(f"hits is {hits.dtype} {list(hits.shape)}; want bool [N]")
    n, p = len(hits), hits.double().mean().item()
    centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return Estimate(p, min(p, max(0.0, (centre - half) / scale)), max(p, min(1.0, (centre + half) / scale)), (n,))


def _numbers(values) -> Tensor:
    values = torch.as_tensor(values).detach().double().cpu()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"values has shape {list(values.shape)}; want [N], N ≥ 2: one value has no interval")
    if not bool(values.isfinite().all()):
        raise ValueError("values hold NaN or infinite ones (PSNR is infinite for equal images)")
    return values


def middle(x: Tensor) -> Tensor:
    """The median of the last dimension; between the two middle values if their number is even."""
    return x.quantile(0.5, -1)


def bootstrap(statistic, resamples: int, generator, *samples: Tensor) -> Estimate:
    """A statistic of one or two samples [N], resampled independently."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    draws, each = [], max(1, min(resamples, BLOCK // max(map(len, samples))))
    for _ in range(-(-resamples // each)):
        picks = [x[torch.randint(len(x), (each, len(x)), generator=generator)] for x in samples]
        draws.append(statistic(*picks))
    low, high = torch.quantile(torch.cat(draws), torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Estimate(float(statistic(*samples)), low, high, tuple(map(len, samples)))


def jackknife_variance(parts) -> float:
    """Variance of a statistic from its values with one part left out in turn."""
    parts = torch.as_tensor(parts, dtype=torch.double)
    return float((parts - parts.mean()).square().sum() * (len(parts) - 1) / len(parts))


