"""The images of a training step, as a pure function of (seed, step): order, flips and augmentation."""
import itertools
import math
import signal
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import counter_rng
from ..data.builtin import to_float
from ..data.items import LeftOut, Unreadable, item, stacked
from ..networks.blocks import check_range

SHARE_OF_DEVICE = 0.25  # data sets in memory that take less of what is free on the device live there


class Batches:
    """Images of a step. Epochs are permutations keyed by (seed, epoch); a step's samples are a pure function of it.

    Args:
        data: with `.tensors` (images, labels) that fit on `device` they live there; otherwise items, images or (image,
            label), come through a DataLoader with `config.workers` processes. In place of one that can't be read
            (`data.Unreadable`) comes the next of its epoch's order.
        places: of each micro-batch, the places [n] on `device` of this process's samples in the whole batch.
        start: the first step that will be asked for.
        data_range: the model's, for `check_range`: of all data if they are in memory, otherwise of the first batch.
    """

    def __init__(self, data, config, device: torch.device, places: list[Tensor], start: int = 0,
                 data_range: tuple[float, float] | None = None):
        self.config, self.device, self.places, self.n = config, device, places, len(data)
        self.data_range, self.checked = data_range, False
        if self.n < 1:
            raise ValueError("data is empty; want at least one image")
        self.left_out = LeftOut(self.n)
        tensors = getattr(data, "tensors", None)
        self.orders: dict[int, Tensor] = {}
        self.loader = None
        if tensors is not None and _fits(tensors[0], device):
            self.images, *rest = [x.to(device) for x in tensors]
            self._check_range(self.images)
            self.labels = rest[0] if rest else None
        else:
            items, sampler = _InOrder(data, config.seed), self._chosen_from(start, [p.cpu() for p in places])
            self.loader = iter(DataLoader(items, batch_sampler=sampler, num_workers=config.workers, collate_fn=_collate,
                                          pin_memory=device.type == "cuda", worker_init_fn=_deaf))

    def get(self, step: int, micro: int) -> tuple[Tensor, Tensor | None]:
        """x_0 float [n, C, H, W] in [−1, 1], and labels or None. Steps and micro-batches are asked for in order."""
        if self.loader is None:
            chosen = self._chosen(step, self.places[micro])
            x, y = self.images[chosen], None if self.labels is None else self.labels[chosen]
        else:
            x, y, unreadable = next(self.loader)
            self.left_out.add(*unreadable)
            self._check_range(x)
        x = to_float(x.to(self.device, non_blocking=True))
        y = None if y is None else y.to(self.device, non_blocking=True)
        index = self.places[micro]
        if x.ndim != 4 and (self.config.flip or self.config.augment):
            raise ValueError(f"flip={self.config.flip}, augment={self.config.augment}, but the data have shape "
                             f"{list(x.shape)}; want images [N, C, H, W]")
        if self.config.flip:
            flip = counter_rng.uniform(self.config.seed, step, index, 1, "flip")[:, 0] < 0.5
            x = torch.where(flip[:, None, None, None], x.flip(-1), x)
        if self.config.augment == "affine":
            x = affine(x, counter_rng.uniform(self.config.seed, step, index, 7, "augment"))
        return x, y

    def _check_range(self, x: Tensor) -> None:
        if not self.checked:
            self.checked = True
            check_range(x, self.data_range, "data", finite=False, enough=1)  # a NaN is for the loop to skip and report

    def _chosen(self, step: int, places: Tensor) -> Tensor:
        """Indices into the data set [n], on the device of `places`; nothing is read from there."""
        first = step * self.config.batch_size
        epochs = range(first // self.n, (first + self.config.batch_size - 1) // self.n + 1)
        known, self.orders = self.orders, {}  # those of other epochs go
        for e in epochs:
            order = known[e] if e in known else epoch_order(self.config.seed, e, self.n)
            order = order.pin_memory() if places.is_cuda and not order.is_cuda else order
            self.orders[e] = order.to(places.device, non_blocking=True)
        order = torch.cat(list(self.orders.values())) if len(epochs) > 1 else self.orders[epochs[0]]
        return order[places + (first - epochs[0] * self.n)]

    def _chosen_from(self, start: int, places: list[Tensor]) -> Iterator[list[tuple[int, int]]]:
        """Of each micro-batch: the items, and their positions in the sequence of all epochs."""
        for step in itertools.count(start):
            for part in places:
                yield list(zip(self._chosen(step, part).tolist(), (part + step * self.config.batch_size).tolist()))


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """The permutation of 0 … n−1 that an epoch goes through."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63))


class _InOrder(Dataset):
    """(image, label, messages of what can't be read) for (item, its position in the sequence of all epochs)."""

    def __init__(self, data, seed: int):
        self.data, self.seed = data, seed

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor, object, list[str]]:
        (index, position), n = at, len(self.data)
        unreadable: list[str] = []

        def in_its_place() -> Iterator[int]:
            yield index
            yield from epoch_order(self.seed, position // n, n).roll(-(position % n))[1:].tolist()

        for i in in_its_place():
            try:
                return *item(self.data, i), unreadable
            except Unreadable as e:
                unreadable.append(str(e))
        raise ValueError(f"none of the {n} images can be read: {unreadable[0]}")


def _deaf(worker: int) -> None:
    """Ctrl-C is for the process that trains, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fits(x: Tensor, device: torch.device) -> bool:
    if device.type != "cuda" or x.device == device:
        return True  # it is there already, or memory is shared
    return x.numel() * x.element_size() < SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]


def _collate(items: list) -> tuple[Tensor, Tensor | None, list[str]]:
    images, labels, unreadable = zip(*items)
    return *stacked(images, labels), [reason for some in unreadable for reason in some]


def affine(x: Tensor, u: Tensor, share: float = 0.5) -> Tensor:
    """Light distortion of a share of the images x [N, C, H, W] on a background of −1: shift ±2 pixels of 32, rotation
    ±10°, scale ±8 %, shear ±0.1. u [N, 7], uniform in [0, 1), decides."""
    v = 2 * u - 1
    angle, scale, shear = v[:, 0] * math.radians(10), 1 + 0.08 * v[:, 1], 0.1 * v[:, 2]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin + shear, v[:, 3] / 8], 1), torch.stack([sin, cos, v[:, 4] / 8], 1)], 1)
    theta = torch.where((u[:, 6] < share)[:, None, None], theta, torch.eye(2, 3, device=x.device))
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, mode="bicubic", padding_mode="zeros", align_corners=False).clamp(0, 2) - 1
