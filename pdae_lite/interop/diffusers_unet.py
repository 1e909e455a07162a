"""A diffusers `UNet2DModel` as a DPM, cut in two, and a gradient estimator made of copies of its upper half. They walk the
model's own modules; diffusers itself is imported only to make a new one. `diffusers_files` reads the models.
"""
import copy
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoint import Source
from ..networks.blocks import check_images, zeroed
from ..networks.dpm import NoisePredictor
from ..networks.unet import Features

# Blocks whose forward is (h, emb) -> (h, skips), or (h, skips, emb) -> h, with residual blocks of one kind.
BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "UNetMidBlock2D", "UpBlock2D", "AttnUpBlock2D",
          "ResnetUpsampleBlock2D")


@dataclass(frozen=True)
class DiffusersConfig:
    """What the rest of the library asks of a network's configuration. `image_size`: one number, or (height, width), or
    None, for a model that doesn't say; `network`: the arguments of `UNet2DModel`."""

    network: dict
    in_channels: int
    image_size: int | tuple[int, int] | None
    size_multiple: int


class DiffusersDPM(NoisePredictor):
    """A noise predictor ε_θ(x_t, t) that walks a `UNet2DModel`'s own modules, so its ε is the model's, bit for bit.

    Made by `from_diffusers`. `data_range` None: free.
    """

    def __init__(self, unet: nn.Module, data_range: tuple[float, float] | None = (-1.0, 1.0)):
        super().__init__()
        _check_supported(unet)
        network = json.loads(json.dumps({k: v for k, v in unet.config.items() if not k.startswith("_")}))
        size = network["sample_size"]
        self.config = DiffusersConfig(network, network["in_channels"], tuple(size) if isinstance(size, list) else size,
                                      2 ** (len(unet.down_blocks) - 1))
        self.unet, self.data_range = unet, data_range

    def trunk(self, x_t: Tensor, t: Tensor) -> Features:
        """Time embedding and down blocks: all of the network that a gradient estimator shares."""
        check_images(x_t, self.config.in_channels, self.config.size_multiple, "x_t")
        unet, dtype = self.unet, self.unet.conv_in.weight.dtype
        emb = unet.time_embedding(unet.time_proj(torch.as_tensor(t, device=x_t.device).reshape(-1)).to(dtype))
        x = x_t.to(dtype)  # computed in the weights' precision; heads give back x_t's
        h = unet.conv_in(2 * x - 1 if self.config.network["center_input_sample"] else x)
        skips = (h,)
        for block in unet.down_blocks:
            h, outputs = block(h, emb)
            skips += outputs
        return Features(x_t, t, emb, h, skips)

    def head(self, features: Features) -> Tensor:
        """Features to ε [N, C, H, W] (or v, or x_0); a learned variance is dropped."""
        out = _run_head(self.unet, features.h, features.skips, features.emb)
        return out[:, : self.config.in_channels].to(features.x_t.dtype)

    def gradient_estimator(self, z_dim: int, init: str = "dpm") -> "DiffusersEstimator":
        """A fresh gradient estimator on this network's trunk; `init` "dpm" or "random"."""
        return DiffusersEstimator(self.unet, z_dim, init)

    # ---- files ----------------------------------------------------------------------------------------------------

    def to_config(self) -> dict:
        return {"network": self.config.network, "data_range": self.data_range}

    @classmethod
    def from_config(cls, config: dict) -> "DiffusersDPM":
        dpm = cls(import_diffusers().UNet2DModel.from_config(config["network"]), config["data_range"] and tuple(config["data_range"]))
        if "reference" in config:  # how version 0.1 kept it by reference
            dpm.unet.source = Source("diffusers", config["reference"]["path"], config["reference"]["sha256"], by_reference=True)
        return dpm


def import_diffusers():
    """The diffusers package, or an ImportError that says how to install it."""
    try:
        import diffusers
    except ImportError:
        raise ImportError("this needs diffusers, which isn't installed; pip install 'pdae_lite[diffusers]'") from None
    return diffusers


# ---- the gradient estimator ------------------------------------------------------------------------------------------


class DiffusersEstimator(nn.Module):
    """G_ψ(x_t, z, t): copies of a `UNet2DModel`'s middle block, up blocks and output, with z in every residual block.

    Call: features of the trunk, z [N, z_dim] -> [N, C, H, W]. `init`: "dpm" copies the DPM's weights, "random" its shapes
    alone. In either case the output convolution starts at zero, so G = 0 at first, and the projections of z at random:
    starting them at zero too delays learning. Weights are float32 or better, whatever the DPM's.
    """

    def __init__(self, unet: nn.Module, z_dim: int, init: str = "dpm"):
        super().__init__()
        if init not in ("dpm", "random"):
            raise ValueError(f"init {init!r}; want 'dpm' or 'random'")
        self.z_dim = z_dim
        origin = unet if init == "dpm" else type(unet).from_config(unet.config)
        for name in ("mid_block", "up_blocks", "conv_norm_out", "conv_act"):
            setattr(self, name, copy.deepcopy(getattr(origin, name)))
        self.conv_out = zeroed(nn.Conv2d(unet.conv_out.in_channels, unet.config.in_channels, 3, padding=1))
        width = unet.time_embedding.linear_2.out_features
        self.label_emb = nn.Linear(z_dim, width)
        for parent in list(self.modules()):
            for name, child in parent.named_children():
                if type(child).__name__ == "ResnetBlock2D":
                    setattr(parent, name, ShiftedResnet(child, width))
        self.to(unet.conv_in.weight.device, torch.promote_types(unet.conv_in.weight.dtype, torch.float32))
        self.requires_grad_(True).train()  # copies of a frozen network

    def forward(self, features: Features, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z has shape {list(z.shape)}; want [N, {self.z_dim}]")
        dtype = self.conv_out.weight.dtype
        h, skips, emb = features.h, features.skips, features.emb
        if not torch.is_autocast_enabled(h.device.type) and h.dtype != dtype:  # a DPM in bfloat16
            h, emb, skips = h.to(dtype), emb.to(dtype), tuple(s.to(dtype) for s in skips)
        emb_z = self.label_emb(z.to(dtype))
        # diffusers' blocks hand `temb` on to their residual blocks untouched, so it can carry both embeddings.
        return _run_head(self, h, skips, (emb, emb_z)).to(features.x_t.dtype)


class ShiftedResnet(nn.Module):
    """diffusers' `ResnetBlock2D` with z in its second normalisation, eq. (9):

        AdaGN(h, t, z) = (1 + z_s) · AdaGN(h, t) + z_b

    where AdaGN(h, t) is the block's own: GroupNorm(h + t), or (1 + t_s) · GroupNorm(h) + t_b ("scale_shift").
    """

    def __init__(self, block: nn.Module, z_channels: int):
        super().__init__()
        self.block = block
        self.emb_z_layers = nn.Sequential(nn.SiLU(), nn.Linear(z_channels, 2 * block.norm2.num_channels))

    def forward(self, x: Tensor, temb: tuple[Tensor, Tensor]) -> Tensor:
        b, (emb, emb_z) = self.block, temb
        h, resample = b.nonlinearity(b.norm1(x)), b.upsample or b.downsample
        if resample is not None:
            h, x = resample(h), resample(x)
        h = b.conv1(h)
        emb_out = b.time_emb_proj(b.nonlinearity(emb))[:, :, None, None]
        if b.time_embedding_norm == "scale_shift":
            t_s, t_b = emb_out.chunk(2, 1)
            h = b.norm2(h) * (1 + t_s) + t_b
        else:
            h = b.norm2(h + emb_out)
        z_s, z_b = self.emb_z_layers(emb_z)[:, :, None, None].chunk(2, 1)
        h = b.conv2(b.dropout(b.nonlinearity(h * (1 + z_s) + z_b)))
        if b.conv_shortcut is not None:
            x = b.conv_shortcut(x)
        return (x + h) / b.output_scale_factor


def _run_head(network: nn.Module, h: Tensor, skips: tuple[Tensor, ...], temb) -> Tensor:
    """The upper half of a `UNet2DModel`, of the model itself or of an estimator, which names its parts alike."""
    if network.mid_block is not None:
        h = network.mid_block(h, temb)
    for block in network.up_blocks:
        n = len(block.resnets)
        h = block(h, skips[-n:], temb)
        skips = skips[:-n]
    return network.conv_out(network.conv_act(network.conv_norm_out(h)))


def _check_supported(unet) -> None:
    if type(unet).__name__ != "UNet2DModel":
        raise ValueError(f"model {type(unet).__name__}; want a UNet2DModel of diffusers (unconditional), or a path to one")
    config = unet.config
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        if block is not None and type(block).__name__ not in BLOCKS:
            raise ValueError(f"UNet2DModel has a block {type(block).__name__}; supported are {', '.join(BLOCKS)}")
    if config.time_embedding_type == "fourier":
        raise ValueError("UNet2DModel has time_embedding_type='fourier' (a score-SDE model); supported are 'positional' and 'learned'")
    if unet.class_embedding is not None:
        raise ValueError(f"UNet2DModel has class embeddings (class_embed_type={config.class_embed_type!r}, num_class_embeds="
                         f"{config.num_class_embeds}); supported are unconditional models")
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise ValueError(f"UNet2DModel has in_channels={config.in_channels}, out_channels={config.out_channels}; supported are as "
                         "many, or twice as many with a learned variance")
