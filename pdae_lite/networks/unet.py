"""The U-Net of the ADM family (Dhariwal & Nichol 2021), cut in two, and the gradient estimator on its trunk.

    trunk(x_t, t)  -> Features     time embedding and input blocks: frozen and shared
    head(Features) -> ε            middle block, output blocks, output layer
    GradientEstimator(Features, z) a second head on the same features, with z in every block's AdaGN

State-dict names follow guided-diffusion and, for the estimator, the PDAE release, so those files load unrenamed."""
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint import lists_to_tuples
from .blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    Stage,
    Upsample,
    brief,
    check_images,
    group_norm,
    timestep_embedding,
    zeroed,
)
from .dpm import NoisePredictor


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net. The defaults are the paper's 64×64 network.

    `image_size` None: unknown, as of some foreign networks; then noise to decode has to be given.
    `attention_downsampling` names the levels with attention by their downsampling factor, counted from the first
    feature map (guided-diffusion's `attention_resolutions`): 4 means 16×16 for a 64×64 image with `patch_size` 1.
    `head_channels` fixes the width of an attention head and overrides `num_heads`. `patch_size` p works on p×p pixels
    at once (pixel-unshuffle in, shuffle and one small convolution out): p² fewer positions, for small machines.
    `learn_variance` networks predict 2C channels; the first C are the noise. `num_classes`: conditional on a label.
    `z_dim`: conditional on a code, by AdaGN in every residual block (Diff-AE); `z_scale_only`: by a scale alone, as
    Diff-AE's authors have it. `time_width`: of the time embedding; None: 4·`base_channels`. `data_range` None: free."""

    image_size: int | None = 64
    in_channels: int = 3
    base_channels: int = 64
    channel_mult: tuple[float, ...] = (1, 2, 4, 8)
    num_res_blocks: int = 2
    attention_downsampling: tuple[int, ...] = (4,)
    dropout: float = 0.0
    num_heads: int = 1
    head_channels: int | None = None
    new_attention_order: bool = False
    resblock_updown: bool = True
    conv_resample: bool = True
    scale_shift_norm: bool = True
    learn_variance: bool = False
    patch_size: int = 1
    num_classes: int | None = None
    z_dim: int | None = None
    z_scale_only: bool = False
    time_width: int | None = None
    data_range: tuple[float, float] | None = (-1.0, 1.0)

    def __post_init__(self):
        lists_to_tuples(self)
        if self.image_size is not None and self.image_size % self.size_multiple:
            raise ValueError(f"image_size={self.image_size}; want a multiple of {self.size_multiple} "
                             f"({len(self.channel_mult)} levels, patch_size {self.patch_size})")
        if self.num_classes is not None and self.z_dim is not None:
            raise ValueError(f"num_classes={self.num_classes} and z_dim={self.z_dim}; want one condition at most")

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    @property
    def embedding_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.base_channels if self.time_width is None else self.time_width

    @property
    def out_channels(self) -> int:
        """Channels of the raw output: C, or 2C with a learned variance."""
        return self.in_channels * (2 if self.learn_variance else 1)


@dataclass(frozen=True)
class HalfUNetConfig:
    """`unet`: the U-Net whose lower half this is; its own `num_classes` and `z_dim` would condition it, and stay None.
    """

    unet: UNetConfig = UNetConfig()

    def __post_init__(self):
        if isinstance(self.unet, dict):  # from JSON
            object.__setattr__(self, "unet", UNetConfig(**self.unet))
        for name in ("num_classes", "z_dim"):
            if getattr(self.unet, name) is not None:
                raise ValueError(f"unet has {name}={getattr(self.unet, name)}, which conditions a U-Net; want None")


class Features(NamedTuple):
    """What the trunk hands to the heads."""

    x_t: Tensor  # [N, C, H, W], the input, for heads that convert what they predict
    t: int | Tensor  # one for all, or [N]
    emb: Tensor  # [N, embedding_channels], time (and class) embedding; [1, …] where it is the same for all
    h: Tensor  # features at the lowest resolution
    skips: tuple[Tensor, ...]  # one for each input block
    emb_z: Tensor | None = None  # [N, embedding_channels], of the code that the trunk was given (or the code itself)


# ---- the three parts, built alike for the U-Net and for the estimator -----------------------------------------


def _res(config: UNetConfig, channels: int, out_channels: int, resample: str | None = None, *,
         z: bool = False, t: bool = True) -> ResBlock:
    z_channels = config.z_dim if config.z_scale_only else config.embedding_channels
    return ResBlock(channels, out_channels, config.embedding_channels if t else None, config.dropout, resample,
                    config.scale_shift_norm, z_channels if z else None, config.z_scale_only)


def _attention(config: UNetConfig, channels: int) -> AttentionBlock:
    return AttentionBlock(channels, config.num_heads, config.head_channels, config.new_attention_order)


def input_blocks(config: UNetConfig, z: bool = False, t: bool = True) -> tuple[nn.ModuleList, list[int]]:
    """Input blocks and the channels of each one's output (the skips). `z`, `t`: whether the blocks are told them."""
    channels = int(config.base_channels * config.channel_mult[0])
    blocks = [Stage(nn.Conv2d(config.in_channels * config.patch_size**2, channels, 3, padding=1))]
    skips, factor = [channels], 1
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            width = int(config.base_channels * mult)  # ADM's 512×512 network has a multiplier of 0.5
            layers: list[nn.Module] = [_res(config, channels, width, z=z, t=t)]
            channels = width
            if factor in config.attention_downsampling:
                layers.append(_attention(config, channels))
            blocks.append(Stage(*layers))
            skips.append(channels)
        if level < len(config.channel_mult) - 1:
            down = (_res(config, channels, channels, "down", z=z, t=t) if config.resblock_updown
                    else Downsample(channels, config.conv_resample))
            blocks.append(Stage(down))
            skips.append(channels)
            factor *= 2
    return nn.ModuleList(blocks), skips


def middle_block(config: UNetConfig, z: bool = False, t: bool = True) -> Stage:
    """Residual block, attention, residual block, at the lowest resolution."""
    channels = int(config.base_channels * config.channel_mult[-1])
    first, second = (_res(config, channels, channels, z=z, t=t) for _ in range(2))
    return Stage(first, _attention(config, channels), second)


def _output_blocks(config: UNetConfig, skips: list[int], z: bool = False) -> nn.ModuleList:
    skips, blocks = list(skips), []
    channels, factor = int(config.base_channels * config.channel_mult[-1]), 2 ** (len(config.channel_mult) - 1)
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        for i in range(config.num_res_blocks + 1):
            width = int(config.base_channels * mult)
            layers: list[nn.Module] = [_res(config, channels + skips.pop(), width, z=z)]
            channels = width
            if factor in config.attention_downsampling:
                layers.append(_attention(config, channels))
            if level and i == config.num_res_blocks:
                layers.append(_res(config, channels, channels, "up", z=z) if config.resblock_updown
                              else Upsample(channels, config.conv_resample))
                factor //= 2
            blocks.append(Stage(*layers))
    return nn.ModuleList(blocks)


def _out(config: UNetConfig, out_channels: int) -> nn.Sequential:
    channels, p = int(config.base_channels * config.channel_mult[0]), config.patch_size
    if p == 1:
        return nn.Sequential(group_norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, out_channels, 3, padding=1)))
    # The last convolution runs on pixels, not patches: that removes the grid that a bare shuffle leaves.
    width = 16
    return nn.Sequential(group_norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, width * p**2, 3, padding=1)),
                         nn.PixelShuffle(p), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1, bias=False))


def _run_head(features: Features, middle: Stage, outputs: nn.ModuleList, out: nn.Module,
              emb_z: Tensor | None = None) -> Tensor:
    h = middle(features.h, features.emb, emb_z)
    for block, skip in zip(outputs, reversed(features.skips)):
        h = block(torch.cat([h, skip], 1), features.emb, emb_z)
    return out(h)


class UNet(NoisePredictor):
    """A noise predictor ε_θ(x_t, t). `unet(x_t, t)` is `unet.head(unet.trunk(x_t, t))`.

    Args of the call: x_t [N, C, H, W]; t an int, or int64, 0-d or [N]; and a condition, for networks that have one:
    labels y int64 [N], or codes z float [N, z_dim], [1, z_dim] for all. Returns ε [N, C, H, W]."""

    Config = UNetConfig

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config, self.data_range = config, config.data_range
        base, width = config.base_channels, config.embedding_channels
        self.time_embed = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, width)
        coded = config.z_dim is not None
        if config.z_dim is not None:
            self.z_emb = nn.Identity() if config.z_scale_only else nn.Linear(config.z_dim, width)
        self.input_blocks, skips = input_blocks(config, coded)
        self.middle_block = middle_block(config, coded)
        self.output_blocks = _output_blocks(config, skips, coded)
        self.out = _out(config, config.out_channels)

    def trunk(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Features:
        """Time embedding and input blocks: all of the network that a gradient estimator shares."""
        check_images(x_t, self.config.in_channels, self.config.size_multiple, "x_t")
        self._check_condition(condition)
        weight = next(self.time_embed.parameters())
        emb, dtype = self.time_embed(timestep_embedding(t, self.config.base_channels, weight)), weight.dtype
        if self.config.num_classes is not None:
            emb = emb + self.label_emb(condition)
        emb_z = None if self.config.z_dim is None or condition is None else self.z_emb(condition.to(dtype))
        h, skips = F.pixel_unshuffle(x_t.to(dtype), self.config.patch_size), []
        for block in self.input_blocks:
            h = block(h, emb, emb_z)
            skips.append(h)
        return Features(x_t, t, emb, h, tuple(skips), emb_z)

    def head(self, features: Features) -> Tensor:
        """Features to ε [N, C, H, W]; a learned variance is dropped."""
        out = _run_head(features, self.middle_block, self.output_blocks, self.out, features.emb_z)
        return out[:, : self.config.in_channels].to(features.x_t.dtype)

    def gradient_estimator(self, z_dim: int) -> "GradientEstimator":
        """A fresh gradient estimator on this network's trunk, the paper's: output zero, so G = 0."""
        return GradientEstimator(self.config, z_dim)

    def noise_estimator(self, z_dim: int) -> "GradientEstimator":
        """A second head that knows z, a copy of this network's own: z's projections are zero, so it predicts the same.
        """
        return GradientEstimator(self.config, z_dim).copy_head(self)

    def _check_condition(self, condition: Tensor | None) -> None:
        num_classes, z_dim = self.config.num_classes, self.config.z_dim
        if z_dim is not None:
            z = condition
            if z is None or not z.is_floating_point() or z.ndim != 2 or z.shape[1] != z_dim:
                raise ValueError(f"z is {'missing' if z is None else brief(z)}; want float [N, {z_dim}]")
        elif (condition is None) != (num_classes is None):
            raise ValueError(f"y={'missing' if condition is None else 'given'}, but num_classes={num_classes}")


class GradientEstimator(nn.Module):
    """G_ψ(x_t, z, t): a second head on the frozen trunk, with z in every residual block's AdaGN (eq. 9).

    Middle block, output blocks and output layer have the DPM's shapes; the output convolution starts at zero, so G = 0
    at first and the shifted model is the DPM. Call: features of the trunk, z [N, z_dim] -> [N, C, H, W]."""

    def __init__(self, config: UNetConfig, z_dim: int):
        super().__init__()
        self.z_dim = z_dim
        skips = _input_blocks_channels(config)
        self.label_emb = nn.Linear(z_dim, config.embedding_channels)
        self.shift_middle_block = middle_block(config, z=True)
        self.shift_output_blocks = _output_blocks(config, skips, z=True)
        self.shift_out = _out(config, config.in_channels)

    def forward(self, features: Features, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z has shape {list(z.shape)}; want [N, {self.z_dim}]")
        gradient = _run_head(features, self.shift_middle_block, self.shift_output_blocks, self.shift_out,
                             self.label_emb(z.to(self.label_emb.weight.dtype)))
        return gradient.to(features.x_t.dtype)

    @torch.no_grad()
    def copy_head(self, unet: UNet) -> "GradientEstimator":
        """Start as the head of a U-Net that predicts the same, with or without a variance: the difference form."""
        for mine, its in ((self.shift_middle_block, unet.middle_block), (self.shift_output_blocks, unet.output_blocks),
                          (self.shift_out, unet.out)):
            state = its.state_dict()
            for name, p in mine.named_parameters():
                # What z enters by is its own and starts at zero; of the output layer, the noise comes first.
                p.copy_(state[name][: len(p)]) if name in state else p.zero_()
        device = next(unet.parameters()).device
        return self if self.label_emb.weight.device == device else self.to(device)


def _input_blocks_channels(config: UNetConfig) -> list[int]:
    with torch.device("meta"):  # shapes only: no memory, no random numbers drawn
        return input_blocks(config)[1]
