"""The settings of a training run, and what it gives."""
import math
import numbers
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. `batch_size` counts images over all processes and accumulated micro-batches.

    The learning rate rises linearly over `warmup` steps and falls to zero over the last `decay` share of the run
    (cosine). The EMA's decay is min(`ema`, (1+n)/(10+n)) after n steps. `weight` None: the loss's own default.
    `precision`: "no" or "bf16". `grad_clip`: of the gradient's norm; 0 or None: none. `augment`: None or "affine"."""

    steps: int = 10_000
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 0
    decay: float = 0.0
    grad_clip: float | None = 1.0
    ema: float = 0.9999
    weight: str | None = None
    gamma: float | None = None
    flip: bool = False
    augment: str | None = None
    seed: int = 0
    save_every: int = 1000
    log_every: int = 50
    precision: str = "no"
    channels_last: bool = True
    compile: bool = False
    workers: int = 0
    tensorboard: bool = False

    def __post_init__(self):
        ranges = {name: (1, math.inf, True)
                  for name in ("steps", "batch_size", "accumulate", "save_every", "log_every")}
        ranges |= {name: (0, math.inf, True) for name in ("warmup", "workers")} | {"seed": (0, 2**63 - 1, True)}
        ranges |= {name: (0, math.inf, False) for name in ("lr", "weight_decay", "grad_clip")}
        ranges |= {"decay": (0, 1, False), "ema": (0, 1, False), "gamma": (-math.inf, math.inf, False)}
        for name, (low, high, whole) in ranges.items():
            value = getattr(self, name)
            if value is None and name in ("grad_clip", "gamma"):
                continue
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not number or not low <= value <= high or abs(value) == math.inf or whole and value != int(value):
                limits = (f"from {low} to {high}" if high < math.inf else f"of at least {low}"
                          if low > -math.inf else "or None")
                raise ValueError(f"{name}={value}; want a {'whole ' if whole else ''}number {limits}")
            if whole:
                object.__setattr__(self, name, int(value))
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"precision {self.precision!r}; want 'no' or 'bf16'")
        if self.augment not in (None, "affine"):
            raise ValueError(f"augment {self.augment!r}; want None or 'affine'")


@dataclass
class TrainResult:
    """`model` holds the EMA weights, in eval mode; `history` one dict per log step (step, images, loss, lr, …)."""

    model: nn.Module
    history: list[dict] = field(default_factory=list)
    path: Path | None = None
