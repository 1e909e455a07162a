"""Random numbers that are a pure function of (seed, step, sample index), the same on every device and for any split of
a batch over processes. Training draws t, noise, flips and augmentations from here, which makes resuming exact.

The hash is SplitMix64 (Steele, Lea & Flood 2014) in wrapping int64 arithmetic."""
import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
STREAMS = {"t": 1, "noise": 2, "flip": 3, "augment": 4, "dropout": 5}


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix(x: Tensor) -> Tensor:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def bits(seed: int, step: int, index: Tensor, count: int, stream: str) -> Tensor:
    """Random int64 [N, count] for sample indices [N]."""
    golden = _signed(_GOLDEN)
    key = torch.full((1,), _signed(seed), dtype=torch.int64, device=index.device)
    for part in (STREAMS[stream], step):
        key = _mix(key + _signed(part * _GOLDEN))
    key = _mix(key + (index + 1) * golden)  # [N]
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=index.device)
    return _mix(key[:, None] + counter * golden)


def uniform(seed: int, step: int, index: Tensor, count: int, stream: str) -> Tensor:
    """float32 [N, count], uniform in [0, 1)."""
    return ((bits(seed, step, index, count, stream) >> 40) & 0xFFFFFF).float() / 2**24


def normal(seed: int, step: int, index: Tensor, shape: tuple[int, ...], stream: str = "noise") -> Tensor:
    """float32 [N, *shape], standard normal (Box–Muller; 24 bits each for radius and angle)."""
    count = math.prod(shape)
    b = bits(seed, step, index, (count + 1) // 2, stream)
    u = (((b >> 40) & 0xFFFFFF).float() + 0.5) / 2**24
    angle = (b & 0xFFFFFF).float() * (2 * math.pi / 2**24)
    radius = (-2 * u.log()).sqrt()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count].reshape(-1, *shape)


class PerSample:
    """A generator for samplers whose draws belong to samples, whatever their batch: `index` [N] are their numbers."""

    def __init__(self, seed: int, index: Tensor):
        self.seed, self.index, self.draws = seed, index, 0

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """float32 [N, …], standard normal; the next draw is another one."""
        self.draws += 1
        return normal(self.seed, self.draws, self.index, tuple(shape[1:]))
