"""A diffusers `UNet2DModel` as a DPM, cut in two, and a gradient estimator made of copies of its upper half. They walk the
model's own modules, so diffusers itself isn't imported here; `diffusers_io` reads the models.
"""
import copy
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, tensors_digest
from ..clock import GridEmbedding
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

    Made by `from_diffusers`. `data_range` None: free. `keep`: "value" or "reference", see there.
    """

    def __init__(self, unet: nn.Module, data_range: tuple[float, float] | None = (-1.0, 1.0), source: dict | None = None):
        super().__init__()
        _check_supported(unet)
        network = json.loads(json.dumps({k: v for k, v in unet.config.items() if not k.startswith("_")}))
        size = network["sample_size"]
        self.config = DiffusersConfig(network, network["in_channels"], tuple(size) if isinstance(size, list) else size,
                                      2 ** (len(unet.down_blocks) - 1))
        self.unet, self.data_range, self.source, self._keep = unet, data_range, source, "value"
        self._grid_embedding = GridEmbedding()

    def trunk(self, x_t: Tensor, t: Tensor) -> Features:
        """Time embedding and down blocks: all of the network that a gradient estimator shares."""
        check_images(x_t, self.config.in_channels, self.config.size_multiple, "x_t")
        unet, dtype = self.unet, self.unet.conv_in.weight.dtype
        emb = self._grid_embedding(t, lambda ts: unet.time_embedding(unet.time_proj(ts).to(dtype)))
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

    @property
    def keep(self) -> str:
        """What a file holds of this DPM: "value" or "reference"."""
        return self._keep

    @keep.setter
    def keep(self, keep: str) -> None:
        if keep not in ("value", "reference"):
            raise ValueError(f"keep {keep!r}; want 'value' or 'reference'")
        if keep == "reference" and self.source is None:
            raise ValueError("keep 'reference' is for a DPM that from_diffusers read from a folder or the hub; this one was in memory")
        self._keep = keep

    @property
    def weights_elsewhere(self) -> bool:
        """Whether a file leaves the weights out, and `from_config` brings them."""
        return self.keep == "reference"

    def to_config(self) -> dict:
        """The configuration as JSON-able values."""
        config = {"network": self.config.network, "data_range": self.data_range}
        if self.weights_elsewhere:
            if weights_digest(self.unet) != self.source["sha256"]:
                raise ValueError(f"the DPM's weights aren't those of {self.source['path']} any more (trained, or in another precision); "
                                 "keep it by value")
            config["reference"] = self.source
        return config

    @classmethod
    def from_config(cls, config: dict) -> "DiffusersDPM":
        """The inverse of `to_config`; weights are random, or those that it refers to."""
        from .diffusers_files import new_unet, read

        data_range = config["data_range"] and tuple(config["data_range"])
        if "reference" not in config:
            return cls(new_unet(config["network"]), data_range)
        path, want = config["reference"]["path"], config["reference"]["sha256"]
        try:
            unet, _, source = read(path, download=False)
        except CheckpointError as e:
            raise CheckpointError(f"its DPM is kept by reference, and can't be read: {e}") from None
        dpm = cls(unet, data_range, source)
        # A newer diffusers may know more settings; those that both know have to agree.
        other = [k for k, v in config["network"].items() if dpm.config.network.get(k, v) != v]
        if other or source["sha256"] != want:
            what = f"{other[0]} differs" if other else f"SHA-256 {source['sha256'][:12]}…, want {want[:12]}…"
            raise CheckpointError(f"its DPM is kept by reference, and {path} holds another one now ({what}); put the old one back")
        dpm.keep = "reference"
        return dpm


def keep_dpm(dpm: nn.Module, keep: str) -> None:
    """Keep a DPM (or the one that it wraps) by "value" or by "reference" from now on."""
    parts = [part for part in dpm.modules() if isinstance(part, DiffusersDPM)]
    if not parts and keep != "value":
        raise ValueError(f"dpm {keep!r}; want 'value', as this DPM doesn't come from diffusers")
    for part in parts:
        part.keep = keep


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


def weights_digest(unet: nn.Module) -> str:
    """SHA-256 of a model's weights, however many files they are in."""
    return tensors_digest({k: v.detach().cpu() for k, v in unet.state_dict().items()})
