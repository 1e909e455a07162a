"""What a sampler tells about time: t as networks want it, and what would be costly to ask again in every step."""
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Moment(NamedTuple):
    """Where on its grid a run of a sampler stands."""

    times: Tensor  # [P], every t of the grid, on the device; one tensor a run
    index: int  # this t's place there
    value: int  # this t, for those who would have to ask a GPU for it


class Clock:
    """The timesteps of one run of a sampler over a batch x [N, …]: `clock(t)` is t for each of its samples, int64 [N]. It is one
    number seen N times, and carries a `Moment`, which `on_host` and `GridEmbedding` read; denoisers that know nothing of that see
    a tensor like any other. The clean image, t = −1, is shown to networks as t = 0."""

    def __init__(self, x: Tensor, points: Iterable[int]):
        values = sorted({max(t, 0) for t in points})
        self.n, self.places = len(x), {t: i for i, t in enumerate(values)}
        self.times = torch.tensor(values, dtype=torch.int64, device=x.device)

    def __call__(self, t: int) -> Tensor:
        t = max(t, 0)
        now = self.times[self.places[t]].expand(self.n)
        now.moment = Moment(self.times, self.places[t], t)
        return now


def on_host(t: Tensor) -> Tensor:
    """t [N] on the CPU, where it decides what is run. Copied only if no sampler made it: a GPU waits for that."""
    moment = getattr(t, "moment", None)
    return t.cpu() if moment is None else torch.tensor([moment.value]).expand(len(t))


class GridEmbedding:
    """Remembers the embedding of a sampler's whole grid, so that a run computes it once, for one row and not for N."""

    def __init__(self):
        self.times = self.values = None

    def __call__(self, t: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """`embed(t)` [N, E]; or, within a run of a sampler, its one row [1, E] for all N."""
        moment = None if torch.compiler.is_compiling() or torch.is_grad_enabled() else getattr(t, "moment", None)
        if moment is None:
            return embed(t)
        if self.times is not moment.times:  # another run, and weights may have changed since
            self.times, self.values = moment.times, embed(moment.times)
        return self.values[moment.index : moment.index + 1]

    def __deepcopy__(self, memo) -> "GridEmbedding":
        return GridEmbedding()
