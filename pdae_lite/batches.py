"""The images of a training step, as a pure function of (seed, step): order, flips and augmentation."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import keyed
from .data import to_float

IN_MEMORY_BYTES = 2 << 30  # data sets below this live on the device


class Batches:
    """Images of a step. Epochs are permutations keyed by (seed, epoch); a step's samples are a pure function of it."""

    def __init__(self, data, config, device: torch.device):
        self.data, self.config, self.device = data, config, device
        self.n = len(data)
        if self.n < 1:
            raise ValueError("data is empty; want at least one image")
        tensors = getattr(data, "tensors", None)
        self.images = self.labels = self.loader = None
        if tensors is not None:
            small = tensors[0].numel() * tensors[0].element_size() < IN_MEMORY_BYTES
            self.images, *rest = [x.to(device) if small else x for x in tensors]
            self.labels = rest[0] if rest else None
        self.epoch, self.order = -1, None

    def _order(self, epoch: int) -> Tensor:
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + epoch) % 2**63)
            self.epoch, self.order = epoch, torch.randperm(self.n, generator=generator)
        return self.order

    def get(self, step: int, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """x_0 float [n, C, H, W] and labels for the samples at places `index` of the step's batch."""
        places = step * self.config.batch_size + index.cpu()
        chosen = torch.empty_like(places)
        for epoch in torch.unique(places // self.n).tolist():
            here = places // self.n == epoch
            chosen[here] = self._order(epoch)[places[here] % self.n]
        if self.images is not None:
            chosen = chosen.to(self.images.device)
            x, y = self.images[chosen], None if self.labels is None else self.labels[chosen]
        else:
            items = [self.data[i] for i in chosen.tolist()]
            pairs = [item if isinstance(item, (tuple, list)) else (item, None) for item in items]
            x = torch.stack([p[0] for p in pairs])
            y = None if pairs[0][1] is None else torch.as_tensor([int(p[1]) for p in pairs])
        x = to_float(x.to(self.device, non_blocking=True))
        y = None if y is None else y.to(self.device, non_blocking=True)
        if self.config.flip:
            flip = keyed.uniform(self.config.seed, step, index, 1, "flip")[:, 0] < 0.5
            x = torch.where(flip[:, None, None, None], x.flip(-1), x)
        if self.config.augment == "affine":
            x = affine(x, keyed.uniform(self.config.seed, step, index, 7, "augment"))
        return x, y


def affine(x: Tensor, u: Tensor, share: float = 0.5) -> Tensor:
    """Light distortion of a share of the images: shift ±2 pixels of 32, rotation ±10°, scale ±8 %, shear ±0.1.

    x [N, C, H, W] on a background of −1; u [N, 7] uniform in [0, 1) decides.
    """
    v = 2 * u - 1
    angle, scale, shear = v[:, 0] * math.radians(10), 1 + 0.08 * v[:, 1], 0.1 * v[:, 2]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin + shear, v[:, 3] / 8], 1), torch.stack([sin, cos, v[:, 4] / 8], 1)], 1)
    theta = torch.where((u[:, 6] < share)[:, None, None], theta, torch.eye(2, 3, device=x.device))
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, mode="bicubic", padding_mode="zeros", align_corners=False).clamp(0, 2) - 1
