"""The U-Net of the ADM family (Dhariwal & Nichol 2021), cut in two, and the gradient estimator on its trunk.

    trunk(x_t, t)  -> Features     time embedding and input blocks: frozen and shared
    head(Features) -> ε            middle block, output blocks, output layer
    GradientEstimator(Features, z) a second head on the same features, with z in every block's AdaGN

State-dict names follow guided-diffusion and, for the estimator, the PDAE release, so those files load unrenamed.
"""
import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net. The defaults are the paper's 64×64 network.

    `attention_downsampling` names the levels with attention by their downsampling factor, counted from the first
    feature map (guided-diffusion's `attention_resolutions`): 4 means 16×16 for a 64×64 image with `patch_size` 1.
    `head_channels` fixes the width of an attention head and overrides `num_heads`. `patch_size` p works on p×p
    pixels at once (pixel-unshuffle in, shuffle and one small convolution out): p² fewer positions, for small machines.
    `learn_variance` networks predict 2C channels; the first C are the noise. `data_range` None: latents, free.
    """

    image_size: int = 64
    in_channels: int = 3
    base_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
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
    data_range: tuple[float, float] | None = (-1.0, 1.0)

    def __post_init__(self):
        for name in ("channel_mult", "attention_downsampling", "data_range"):
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
        if self.image_size % self.size_multiple:
            raise ValueError(f"image_size={self.image_size}; want a multiple of {self.size_multiple} "
                             f"({len(self.channel_mult)} levels, patch_size {self.patch_size})")

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    @property
    def embedding_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.base_channels

    @property
    def out_channels(self) -> int:
        """Channels of the raw output: C, or 2C with a learned variance."""
        return self.in_channels * (2 if self.learn_variance else 1)


class Features(NamedTuple):
    """What the trunk hands to the heads."""

    x_t: Tensor  # [N, C, H, W], the input, for heads that convert what they predict
    t: Tensor  # [N]
    emb: Tensor  # [N, embedding_channels], time (and class) embedding
    h: Tensor  # features at the lowest resolution
    skips: tuple[Tensor, ...]  # one for each input block


def timestep_embedding(t: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding [N, channels] of t [N]: cosines, then sines."""
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies[None]
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, channels % 2))


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 at least, whatever the precision around it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)


def group_norm(channels: int) -> GroupNorm:
    """32 groups, or as many as divide the channels."""
    return GroupNorm(math.gcd(32, channels), channels, eps=1e-5)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with every parameter set to zero."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class ResBlock(nn.Module):
    """Residual block with adaptive group normalisation (AdaGN), eq. (9):

        AdaGN(h, t, z) = (1 + z_s) · ((1 + t_s) · GroupNorm(h) + t_b) + z_b

    [t_s, t_b] and [z_s, z_b] are linear projections of SiLU(embedding). Without z the outer scale and shift are
    absent; without `scale_shift` the time embedding is added to h before the normalisation instead.
    """

    def __init__(self, channels: int, out_channels: int, emb_channels: int, dropout: float = 0.0, resample: str | None = None,
                 scale_shift: bool = True, z_channels: int | None = None):
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, (2 if scale_shift else 1) * out_channels))
        if z_channels is not None:
            self.emb_z_layers = nn.Sequential(nn.SiLU(), nn.Linear(z_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(group_norm(out_channels), nn.SiLU(), nn.Dropout(dropout),
                                        zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)))
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, emb: Tensor, emb_z: Tensor | None = None) -> Tensor:
        h = self.in_layers[2](self._resample(self.in_layers[1](self.in_layers[0](x))))
        x = self._resample(x)
        emb_out = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        if self.scale_shift:
            t_s, t_b = emb_out.chunk(2, 1)
            h = self.out_layers[0](h) * (1 + t_s) + t_b
        else:
            h = self.out_layers[0](h + emb_out)
        if emb_z is not None:
            z_s, z_b = self.emb_z_layers(emb_z)[:, :, None, None].to(h.dtype).chunk(2, 1)
            h = h * (1 + z_s) + z_b
        return self.skip_connection(x) + self.out_layers[1:](h)


class AttentionBlock(nn.Module):
    """Self-attention over positions. Two orders of the qkv channels exist in released files: "legacy" splits heads
    first, then q, k, v; "new" splits q, k, v first."""

    def __init__(self, channels: int, num_heads: int = 1, head_channels: int | None = None, new_order: bool = False):
        super().__init__()
        self.num_heads = num_heads if head_channels is None else channels // head_channels
        if self.num_heads < 1 or channels % self.num_heads:
            raise ValueError(f"{channels} channels don't split into {self.num_heads} attention heads")
        self.new_order = new_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, *spatial = x.shape
        x = x.reshape(n, c, -1)
        qkv = self.qkv(self.norm(x))  # [N, 3C, L]
        d = c // self.num_heads
        if self.new_order:
            q, k, v = qkv.reshape(n, 3, self.num_heads, d, -1).transpose(-1, -2).unbind(1)
        else:
            q, k, v = qkv.reshape(n, self.num_heads, 3, d, -1).transpose(-1, -2).unbind(2)
        a = F.scaled_dot_product_attention(q, k, v)  # [N, heads, L, d]
        return (x + self.proj_out(a.transpose(-1, -2).reshape(n, c, -1))).reshape(n, c, *spatial)


class Downsample(nn.Module):
    """÷2 by a strided convolution, or by averaging."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """×2 by nearest neighbour, then a convolution if asked for."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.Sequential):
    """A sequence whose residual blocks also receive the embeddings."""

    def forward(self, x: Tensor, emb: Tensor, emb_z: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, emb, emb_z) if isinstance(layer, ResBlock) else layer(x)
        return x


# ---- the three parts, built alike for the U-Net and for the estimator -----------------------------------------


def _res(config: UNetConfig, channels: int, out_channels: int, resample: str | None = None, z: bool = False) -> ResBlock:
    return ResBlock(channels, out_channels, config.embedding_channels, config.dropout, resample, config.scale_shift_norm,
                    config.embedding_channels if z else None)


def _attention(config: UNetConfig, channels: int) -> AttentionBlock:
    return AttentionBlock(channels, config.num_heads, config.head_channels, config.new_attention_order)


def _input_blocks(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Input blocks and the channels of each one's output (the skips)."""
    channels = config.base_channels * config.channel_mult[0]
    blocks = [Stage(nn.Conv2d(config.in_channels * config.patch_size**2, channels, 3, padding=1))]
    skips, factor = [channels], 1
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            layers = [_res(config, channels, config.base_channels * mult)]
            channels = config.base_channels * mult
            if factor in config.attention_downsampling:
                layers.append(_attention(config, channels))
            blocks.append(Stage(*layers))
            skips.append(channels)
        if level < len(config.channel_mult) - 1:
            down = _res(config, channels, channels, "down") if config.resblock_updown else Downsample(channels, config.conv_resample)
            blocks.append(Stage(down))
            skips.append(channels)
            factor *= 2
    return nn.ModuleList(blocks), skips


def _middle_block(config: UNetConfig, z: bool = False) -> Stage:
    channels = config.base_channels * config.channel_mult[-1]
    return Stage(_res(config, channels, channels, z=z), _attention(config, channels), _res(config, channels, channels, z=z))


def _output_blocks(config: UNetConfig, skips: list[int], z: bool = False) -> nn.ModuleList:
    skips, blocks = list(skips), []
    channels, factor = config.base_channels * config.channel_mult[-1], 2 ** (len(config.channel_mult) - 1)
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        for i in range(config.num_res_blocks + 1):
            layers = [_res(config, channels + skips.pop(), config.base_channels * mult, z=z)]
            channels = config.base_channels * mult
            if factor in config.attention_downsampling:
                layers.append(_attention(config, channels))
            if level and i == config.num_res_blocks:
                layers.append(_res(config, channels, channels, "up", z=z) if config.resblock_updown
                              else Upsample(channels, config.conv_resample))
                factor //= 2
            blocks.append(Stage(*layers))
    return nn.ModuleList(blocks)


def _out(config: UNetConfig, out_channels: int) -> nn.Sequential:
    channels, p = config.base_channels * config.channel_mult[0], config.patch_size
    if p == 1:
        return nn.Sequential(group_norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, out_channels, 3, padding=1)))
    # The last convolution runs on pixels, not patches: each pixel sees its neighbours in the next patch, which
    # removes the grid that a bare shuffle leaves. It has no bias, so zero in is zero out.
    width = 16
    return nn.Sequential(group_norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, width * p**2, 3, padding=1)),
                         nn.PixelShuffle(p), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1, bias=False))


def _run_head(features: Features, middle: Stage, outputs: nn.ModuleList, out: nn.Module, emb_z: Tensor | None = None) -> Tensor:
    h = middle(features.h, features.emb, emb_z)
    for block, skip in zip(outputs, reversed(features.skips)):
        h = block(torch.cat([h, skip], 1), features.emb, emb_z)
    return out(h)


class UNet(nn.Module):
    """A noise predictor ε_θ(x_t, t). `unet(x_t, t)` is `unet.head(unet.trunk(x_t, t))`.

    Args of the call: x_t [N, C, H, W]; t int64 [N]; y int64 [N], the class, for networks with `num_classes`.
    Returns ε [N, C, H, W].
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        base, width = config.base_channels, config.embedding_channels
        self.time_embed = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, width)
        self.input_blocks, self._skips = _input_blocks(config)
        self.middle_block = _middle_block(config)
        self.output_blocks = _output_blocks(config, self._skips)
        self.out = _out(config, config.out_channels)

    @property
    def data_range(self) -> tuple[float, float] | None:
        """Range of the data that it was trained on; None: free."""
        return self.config.data_range

    def trunk(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Features:
        """Time embedding and input blocks: all of the network that a gradient estimator shares."""
        check_images(x_t, self.config.in_channels, self.config.size_multiple, "x_t")
        if (y is None) != (self.config.num_classes is None):
            raise ValueError(f"y={'missing' if y is None else 'given'}, but num_classes={self.config.num_classes}")
        emb = self.time_embed(timestep_embedding(t, self.config.base_channels).to(self.time_embed[0].weight.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        h, skips = F.pixel_unshuffle(x_t, self.config.patch_size), []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        return Features(x_t, t, emb, h, tuple(skips))

    def head(self, features: Features) -> Tensor:
        """Features to ε [N, C, H, W]; a learned variance is dropped."""
        out = _run_head(features, self.middle_block, self.output_blocks, self.out)
        return out[:, : self.config.in_channels].to(features.x_t.dtype)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.head(self.trunk(x_t, t, y))

    def gradient_estimator(self, z_dim: int) -> "GradientEstimator":
        """A fresh gradient estimator on this network's trunk."""
        return GradientEstimator(self.config, z_dim)

    def to_config(self) -> dict:
        """The configuration as JSON-able values."""
        return asdict(self.config)

    @classmethod
    def from_config(cls, config: dict) -> "UNet":
        """The inverse of `to_config`; weights are random."""
        return cls(UNetConfig(**config))


class GradientEstimator(nn.Module):
    """G_ψ(x_t, z, t): a second head on the frozen trunk, with z in every residual block's AdaGN (eq. 9).

    Middle block, output blocks and output layer have the DPM's shapes; the output convolution starts at zero, so
    G = 0 at first and the shifted model is the DPM. Call: features of the trunk, z [N, z_dim] -> [N, C, H, W].
    """

    def __init__(self, config: UNetConfig, z_dim: int):
        super().__init__()
        self.z_dim = z_dim
        skips = _input_blocks_channels(config)
        self.label_emb = nn.Linear(z_dim, config.embedding_channels)
        self.shift_middle_block = _middle_block(config, z=True)
        self.shift_output_blocks = _output_blocks(config, skips, z=True)
        self.shift_out = _out(config, config.in_channels)

    def forward(self, features: Features, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z has shape {list(z.shape)}; want [N, {self.z_dim}]")
        gradient = _run_head(features, self.shift_middle_block, self.shift_output_blocks, self.shift_out, self.label_emb(z))
        return gradient.to(features.x_t.dtype)


def _input_blocks_channels(config: UNetConfig) -> list[int]:
    with torch.device("meta"):  # shapes only: no memory, no random numbers drawn
        return _input_blocks(config)[1]


def check_images(x: Tensor, channels: int, multiple: int, name: str = "images", data_range=None) -> None:
    """Raise a one-line ValueError unless x is a float [N, channels, H, W] with H and W divisible by `multiple`.
    With `data_range`, values are checked too (that reads the tensor: not for inner loops)."""
    want = f"want float [N, {channels}, H, W] with H and W multiples of {multiple}"
    if not torch.is_tensor(x) or not x.is_floating_point():
        raise ValueError(f"{name} is {getattr(x, 'dtype', type(x).__name__)}; {want}")
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
        raise ValueError(f"{name} has shape {list(x.shape)}; {want}")
    if data_range is not None:
        low, high = x.amin().item(), x.amax().item()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{name} holds NaN or infinite values")
        slack = 1e-3 * (data_range[1] - data_range[0])
        if low < data_range[0] - slack or high > data_range[1] + slack:
            raise ValueError(f"{name} runs from {low:.3g} to {high:.3g}; want values in [{data_range[0]:g}, {data_range[1]:g}]")
