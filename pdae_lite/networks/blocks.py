"""The parts that networks are made of: time embedding, residual blocks with AdaGN, attention, resampling."""
import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..warning import PDAEWarning


def timestep_embedding(t: int | Tensor, channels: int, like: Tensor, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of t, cosines, then sines: [N, channels] of t [N], [1, channels] of one t; like `like`."""
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=like.device) / half)
    angles = torch.as_tensor(t, device=like.device).reshape(-1, 1).float() * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, channels % 2)).to(like.dtype)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 at least, whatever the precision around it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()  # a model that was cast as a whole holds halves here, too
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def group_norm(channels: int) -> GroupNorm:
    """32 groups, or as many as divide the channels."""
    return GroupNorm(math.gcd(32, channels), channels, eps=1e-5)


def zeroed(module):
    """The module with every parameter set to zero."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class ResBlock(nn.Module):
    """Residual block with adaptive group normalisation (AdaGN), eq. (9):

        AdaGN(h, t, z) = (1 + z_s) · ((1 + t_s) · GroupNorm(h) + t_b) + z_b

    [t_s, t_b] and [z_s, z_b] are linear projections of SiLU(embedding). Without z, or without t (`emb_channels` None),
    its scale and shift are absent; without `scale_shift` the time embedding is added to h before the normalisation.
    With `z_scale_only` there is no z_b; without `out_layers` it ends at its first convolution, as Diff-AE's authors
    have it."""

    def __init__(self, channels: int, out_channels: int, emb_channels: int | None, dropout: float = 0.0,
                 resample: str | None = None, scale_shift: bool = True, z_channels: int | None = None,
                 z_scale_only: bool = False):
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        if emb_channels is not None:
            width = (2 if scale_shift else 1) * out_channels
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, width))
        if z_channels is not None:
            width = (1 if z_scale_only else 2) * out_channels
            self.emb_z_layers = nn.Sequential(nn.SiLU(), nn.Linear(z_channels, width))
        self.z_scale_only = z_scale_only
        self.out_layers = nn.Sequential(group_norm(out_channels), nn.SiLU(), nn.Dropout(dropout),
                                        zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)))
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, emb: Tensor | None, emb_z: Tensor | None = None) -> Tensor:
        h = self.in_layers[2](self._resample(self.in_layers[1](self.in_layers[0](x))))
        x = self._resample(x)
        if self.out_layers is None:
            return self.skip_connection(x) + h
        emb_out = None if emb is None else self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        if emb_out is None:
            h = self.out_layers[0](h)
        elif self.scale_shift:
            t_s, t_b = emb_out.chunk(2, 1)
            h = self.out_layers[0](h) * (1 + t_s) + t_b
        else:
            h = self.out_layers[0](h + emb_out)
        if emb_z is not None:
            z_s, *z_b = self.emb_z_layers(emb_z)[:, :, None, None].to(h.dtype).chunk(1 if self.z_scale_only else 2, 1)
            h = h * (1 + z_s) + sum(z_b)
        return self.skip_connection(x) + self.out_layers[1:](h)


class AttentionBlock(nn.Module):
    """Self-attention over positions. Two orders of the qkv channels exist in released files: "legacy" splits heads
    first, then q, k, v; "new" splits q, k, v first."""

    def __init__(self, channels: int, num_heads: int = 1, head_channels: int | None = None, new_order: bool = False):
        super().__init__()
        if head_channels is not None and channels % head_channels:
            raise ValueError(f"head_channels={head_channels}; want a divisor of {channels}, the channels of this level")
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
        # Contiguous, with the channels last: else scaled_dot_product_attention takes its slow path on a CPU.
        if self.new_order:
            q, k, v = qkv.reshape(n, 3, self.num_heads, d, -1).transpose(-1, -2).contiguous().unbind(1)
        else:
            q, k, v = qkv.reshape(n, self.num_heads, 3, d, -1).transpose(-1, -2).contiguous().unbind(2)
        a = attend(q, k, v)  # [N, heads, L, d]
        return (x + self.proj_out(a.transpose(-1, -2).reshape(n, c, -1))).reshape(n, c, *spatial)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v. In bf16 the CPU kernel's backward pass takes two to four times as long as plain products as
    long as the map of attention is small, so short sequences (L ≤ 256) are written out there."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= 256:
        with torch.autocast("cpu", enabled=False):
            return torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), -1) @ v
    return F.scaled_dot_product_attention(q, k, v)


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

    def forward(self, x: Tensor, emb: Tensor | None, emb_z: Tensor | None = None):  # type: ignore[override]
        for layer in self:
            x = layer(x, emb, emb_z) if isinstance(layer, ResBlock) else layer(x)
        return x


def brief(x) -> str:
    """A tensor in a message, by its dtype and shape; anything else by its type."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" if torch.is_tensor(x) else type(x).__name__


def check_images(x: Tensor, channels: int, multiple: int, name: str = "images", data_range=None) -> None:
    """Raise a one-line ValueError unless x is a float [N, channels, H, W] with H and W divisible by `multiple`. With
    `data_range`, values are checked too (that reads the tensor: not for inner loops)."""
    want = f"want float [N, {channels}, H, W] with H and W multiples of {multiple}"
    if not torch.is_tensor(x) or not x.is_floating_point():
        raise ValueError(f"{name} is {getattr(x, 'dtype', type(x).__name__)}; {want}")
    if x.ndim != 4 or len(x) < 1 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
        raise ValueError(f"{name} has shape {list(x.shape)}; {want}")
    if data_range is not None:
        check_range(x, data_range, name)


def check_range(x: Tensor, data_range: tuple[float, float] | None, name: str = "images", finite: bool = True,
                enough: int = 8) -> None:
    """Raise a ValueError unless x is what data may be: uint8, or floats in the model's range.

    Args:
        data_range: of the model; None: any floats. Values may leave it by 5 % of its width, as a bicubic resize does.
        finite: NaN and infinite values are refused, too.
        enough: so many images, all in [0, 1] where the range begins below 0, give a `PDAEWarning`: most likely
            unscaled.
    """
    if x.dtype == torch.uint8:
        return
    if not x.is_floating_point():
        raise ValueError(f"{name} is {str(x.dtype).removeprefix('torch.')}; want uint8 in 0 … 255, or floats")
    if data_range is None:
        return
    low, high = (v.item() for v in torch.stack((x if finite else x.nan_to_num(nan=0, posinf=0, neginf=0)).aminmax()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite values")
    slack, runs = 0.05 * (data_range[1] - data_range[0]), f"{name} runs from {low:.3g} to {high:.3g}"
    if low < data_range[0] - slack or high > data_range[1] + slack:
        raise ValueError(f"{runs}; want values in [{data_range[0]:g}, {data_range[1]:g}]")
    if len(x) >= enough and data_range[0] < 0 <= low < high <= 1:
        warnings.warn(f"{runs}, nothing is negative; the model's range is [{data_range[0]:g}, {data_range[1]:g}]: "
                      f"if 0 is black, give 2 * {name} - 1", PDAEWarning, stacklevel=3)


def check_labels(y: Tensor, num_classes: int | None = None, n: int | None = None) -> None:
    """Raise a one-line ValueError unless y is int64 [n] in 0 … num_classes−1; None: unknown. Values are read on the CPU
    only: reading them would make a GPU wait."""
    if not torch.is_tensor(y) or y.dtype != torch.int64 or y.ndim != 1 or n not in (None, len(y)):
        raise ValueError(f"y is {brief(y)}; want int64 [{'N' if n is None else n}]")
    if num_classes is not None and y.device.type == "cpu" and len(y):
        low, high = int(y.min()), int(y.max())
        if not 0 <= low <= high < num_classes:
            raise ValueError(f"y runs from {low} to {high}; want 0 … {num_classes - 1}")
