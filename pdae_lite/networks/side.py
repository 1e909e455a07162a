"""A DPM that can't be cut, any callable, and the network beside it that knows z."""
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..schedule import NoiseSchedule
from .dpm import NoisePredictor, per_sample
from .unet import UNet, UNetConfig


def absent(x_t: Tensor, t: Tensor) -> Tensor:
    """What stands for a callable when a file is read without it."""
    raise ValueError("its DPM is a callable that no file holds; give it, PDAE.load(path, dpm=function)")


class SideConfig(NamedTuple):
    """What the library asks of a network's configuration."""

    in_channels: int
    image_size: int
    data_range: tuple[float, float] | None


class SideFeatures(NamedTuple):
    """All that a black box lets one see."""

    x_t: Tensor  # [N, C, H, W]
    t: int | Tensor
    eps: Tensor  # its answer, ε_θ [N, C, H, W]


class BlackBox(NoisePredictor):
    """A callable (x_t [N, C, H, W], t int64 [N]) -> ε as a DPM: its trunk is all of it, its head only hands ε on.

    What knows z is a small U-Net beside it, U, that answers in units of v, zero at first:

        ε_z = ε_θ + √ᾱ_t · U(x_t, x̂_0, t, z)

    The callable is part of no file: give it again when loading, ``PDAE.load(path, dpm=function)``."""

    def __init__(self, function: Callable, schedule: NoiseSchedule, image_size: int, in_channels: int):
        super().__init__()
        self.function, self.schedule = function, schedule
        self.data_range = getattr(function, "data_range", (-1.0, 1.0))  # None: free
        self.config = SideConfig(in_channels, image_size, self.data_range)

    def to_config(self) -> dict:
        return self.config._asdict() | {"schedule": self.schedule.to_config()}

    @classmethod
    def from_config(cls, config: dict) -> "BlackBox":
        """The inverse of `to_config`, but for the function: see `absent`."""
        box = cls(absent, NoiseSchedule.from_config(config["schedule"]), config["image_size"], config["in_channels"])
        box.data_range = config["data_range"] and tuple(config["data_range"])
        box.config = box.config._replace(data_range=box.data_range)
        return box

    def state_dict(self, *args, destination=None, **options):
        """Nothing: a file holds no foreign weights."""
        return {} if destination is None else destination

    def trunk(self, x_t: Tensor, t: int | Tensor) -> SideFeatures:
        """The function's answer, beside what it was asked."""
        return SideFeatures(x_t, t, per_sample(self.function)(x_t, t))

    def head(self, features: SideFeatures) -> Tensor:
        """ε_θ [N, C, H, W]."""
        return features.eps

    def convert(self, output: Tensor, features: SideFeatures) -> Tensor:
        """A correction in units of v, as ε."""
        return features.eps + self.schedule.at("sqrt_alpha_bar", features.t, output) * output

    def gradient_estimator(self, z_dim: int) -> nn.Module:
        """Refused: G of the paper's form is a head on a DPM's trunk."""
        raise ValueError("this DPM is a black box; the paper's form wants one with trunk and head (interop has many): "
                         "form='difference'")

    def noise_estimator(self, z_dim: int) -> "SideNetwork":
        """The network beside it."""
        return SideNetwork(self, z_dim)


class SideNetwork(nn.Module):
    """U(x_t, x̂_0, t, z) [N, C, H, W], a small U-Net with z in every block. Call: features of a `BlackBox`, z."""

    def __init__(self, box: BlackBox, z_dim: int, base_channels: int = 32):
        super().__init__()
        self.channels, self.limits, self.schedule = box.config.in_channels, box.data_range, box.schedule
        size = box.config.image_size
        patch = 2 if size % 32 == 0 else 1
        levels = next(n for n in (4, 3, 2, 1) if size % (patch * 2 ** (n - 1)) == 0)
        self.unet = UNet(UNetConfig(size, 2 * self.channels, base_channels, (1, 2, 2, 2)[:levels], 1,
                                    (2 ** (levels - 1),), z_dim=z_dim, patch_size=patch, data_range=None))

    def forward(self, features: SideFeatures, z: Tensor) -> Tensor:
        x_0 = self.schedule.predict_x_0(features.x_t, features.t, features.eps)
        x_0 = x_0.clamp(-4, 4) if self.limits is None else x_0.clamp(*self.limits)  # far out where t is large
        return self.unet(torch.cat([features.x_t, x_0], 1), features.t, z)[:, : self.channels]
