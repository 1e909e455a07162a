"""Encoders E_φ: x_0 -> z. The paper's, strided convolutions and one attention (Section 3.3); Diff-AE's, half a U-Net;
labels."""
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import Saved, lists_to_tuples
from .blocks import AttentionBlock, ResBlock, check_images, check_labels, group_norm
from .unet import HalfUNetConfig, UNetConfig, input_blocks, middle_block


@dataclass(frozen=True)
class EncoderConfig:
    """`channels`: one stride-2 3×3 convolution each, followed by GroupNorm and SiLU. `attention_after`: index of the
    convolution that a 4-head attention follows, or None."""

    image_size: int = 64
    in_channels: int = 3
    channels: tuple[int, ...] = (64, 128, 128, 128)
    attention_after: int | None = 1
    num_heads: int = 4
    z_dim: int = 512
    data_range: tuple[float, float] | None = (-1.0, 1.0)

    def __post_init__(self):
        lists_to_tuples(self)
        if self.image_size % 2 ** len(self.channels):
            raise ValueError(f"image_size={self.image_size}; want a multiple of {2 ** len(self.channels)} "
                             f"for {len(self.channels)} stride-2 convolutions")


class SemanticEncoder(Saved):
    """Images x_0 [N, C, H, W] to codes z [N, z_dim]. Layers are one Sequential, `encoder.<index>`, as in the release.
    """

    Config = EncoderConfig

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        layers, previous = [], config.in_channels
        for i, channels in enumerate(config.channels):
            layers.append(nn.Conv2d(previous, channels, 3, stride=2, padding=1))
            if i == config.attention_after:
                layers.append(AttentionBlock(channels, config.num_heads))
            layers += [group_norm(channels), nn.SiLU()]
            previous = channels
        side = config.image_size // 2 ** len(config.channels)
        layers += [nn.Flatten(), nn.Linear(previous * side**2, config.z_dim)]
        self.encoder = nn.Sequential(*layers)

    @classmethod
    def for_images(cls, size: int, channels: int, z_dim: int = 512) -> "SemanticEncoder":
        """The encoder for square images: halved down to 4×4 (or the first odd side), attention at 16×16.

        The paper's widths at 64 (64, 128, 128, 128) and 128 (64, 128, 256, 256, 256); other sizes follow them."""
        sides, side = [], size
        while side > 4 and side % 2 == 0:
            side //= 2
            sides.append(side)
        if len(sides) < 2:
            raise ValueError(f"size={size}; want a multiple of 4 of at least 16, so that two halvings or more fit")
        widest = 128 if size <= 64 else 256
        widths = tuple(min(64 * 2**i, widest) for i in range(len(sides)))
        attention_after = next(i for i, s in enumerate(sides) if s <= 16)
        return cls(EncoderConfig(size, channels, widths, attention_after, z_dim=z_dim))

    @property
    def z_dim(self) -> int:
        """Width of z."""
        return self.config.z_dim

    def forward(self, x_0: Tensor) -> Tensor:
        _check_size(x_0, self.config)
        return self.encoder(x_0.to(next(self.encoder.parameters()).dtype))


def _check_size(x_0: Tensor, config: EncoderConfig | UNetConfig) -> None:
    size = config.image_size
    check_images(x_0, config.in_channels, 1, "x_0")
    if x_0.shape[2:] != (size, size):
        raise ValueError(f"x_0 is {x_0.shape[2]}×{x_0.shape[3]}; this encoder takes {size}×{size}")


@dataclass(frozen=True)
class UNetEncoderConfig(HalfUNetConfig):
    """`unet`: the U-Net whose lower half this is. `short_blocks`: residual blocks of one convolution, which is what the
    authors' code makes of blocks that aren't told t."""

    z_dim: int = 512
    short_blocks: bool = False


class UNetEncoder(Saved):
    """Diff-AE's encoder (Preechakul et al. 2022): half a U-Net that isn't told t, its features averaged over positions,
    and a linear layer. Images x_0 [N, C, H, W] to codes z [N, z_dim].

    At 128×128 it takes sixty times the arithmetic of the paper's encoder, and as much as the DPM's trunk."""

    Config = UNetEncoderConfig

    def __init__(self, config: UNetEncoderConfig):
        super().__init__()
        self.config, self.z_dim = config, config.z_dim
        self.input_blocks, skips = input_blocks(config.unet, t=False)
        self.middle_block = middle_block(config.unet, t=False)
        for block in self.modules():
            if config.short_blocks and isinstance(block, ResBlock):
                block.out_layers = None  # type: ignore[assignment]
        self.out = nn.Sequential(group_norm(skips[-1]), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
                                 nn.Conv2d(skips[-1], config.z_dim, 1), nn.Flatten())

    @classmethod
    def beside(cls, unet: UNetConfig, z_dim: int = 512) -> "UNetEncoder":
        """The encoder that Diff-AE puts beside a U-Net: its levels, and more as wide as the last one down to 4×4."""
        side, mult = (unet.image_size or 0) // unet.size_multiple, unet.channel_mult
        while side > 4 and side % 2 == 0:
            side, mult = side // 2, (*mult, mult[-1])
        unet = replace(unet, channel_mult=mult, num_classes=None, z_dim=None, learn_variance=False)
        return cls(UNetEncoderConfig(unet, z_dim))

    def forward(self, x_0: Tensor) -> Tensor:
        _check_size(x_0, self.config.unet)
        h = F.pixel_unshuffle(x_0.to(next(self.out.parameters()).dtype), self.config.unet.patch_size)
        for block in self.input_blocks:
            h = block(h, None)
        return self.out(self.middle_block(h, None))


class LabelEncoder(Saved):
    """Labels y int64 [N] in 0 … num_classes−1 to codes z [N, z_dim]: a PDAE with it is a class-conditional G(x_t, y, t)
    (the truncation experiment, Fig. 9)."""

    takes_labels = True

    def __init__(self, num_classes: int, z_dim: int):
        super().__init__()
        self.num_classes, self.z_dim = num_classes, z_dim
        self.embedding = nn.Embedding(num_classes, z_dim)

    def forward(self, y: Tensor) -> Tensor:
        check_labels(y, self.num_classes)
        return self.embedding(y)

    def to_config(self) -> dict:
        return {"num_classes": self.num_classes, "z_dim": self.z_dim}
