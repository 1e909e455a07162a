"""diffusers' networks as DPMs, each cut in two, and estimators made of copies of its upper half. They walk the
network's own modules, so ε is the network's, bit for bit. Where each is cut, and how z enters, are files of their own.
"""
import copy
import json
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checkpoint import Source
from ..networks.blocks import check_images, zeroed
from ..networks.dpm import NoisePredictor
from . import diffusers_dit, diffusers_sd3, diffusers_unet

# What a cut is: a module with these functions. A `network` is the model of diffusers.
#   check(network), size_multiple(network): a ValueError for what isn't supported; what divides height and width
#   constants(network, given): the tensors that say what it is conditional on, [1, …] each, from those that were given
#   lower(network, x, t, constants): what the upper half needs of the lower: h, told, skips, context (see `CutFeatures`)
#   upper(network): the modules of the upper half, by name
#   head(parts, features, emb_z, run): the upper half's output [N, C or 2C, H, W], of the network's modules or of copies
#   add_z(parts, width), z_width(network): z's projections put into copies; the width of z's embedding
#   OUTPUT: which of the parts is the last layer
CUTS = {"UNet2DModel": diffusers_unet, "UNet2DConditionModel": diffusers_unet, "DiTTransformer2DModel": diffusers_dit,
        "SD3Transformer2DModel": diffusers_sd3}
REFUSED = {"Flux": "Flux, whose guidance is distilled into it", "ControlNet": "a ControlNet, which only steers another",
           "3D": "video", "SpatioTemporal": "video", "Motion": "video"}


@dataclass(frozen=True)
class DiffusersConfig:
    """`network`: the arguments of its class. `image_size`: a number, (height, width), or None: it doesn't say."""

    network: dict
    in_channels: int
    image_size: int | tuple[int, int] | None
    size_multiple: int


class CutFeatures(NamedTuple):
    """What the lower half hands to the heads."""

    x_t: Tensor  # [N, C, H, W], the input, for heads that convert what they predict
    t: int | Tensor  # one for all, or [N]
    h: Tensor  # features, [N, C', H', W'] or tokens [N, L, D]
    told: Tensor  # of time and class: an embedding [N, E], or t itself [N]
    skips: tuple[Tensor, ...] = ()
    context: Tensor | None = None  # the prompt [N, L', D'], or labels [N]


class DiffusersDPM(NoisePredictor):
    """A noise predictor ε_θ(x_t, t) that walks the modules of a diffusers network. Made by `from_diffusers`.

    Args:
        unet: a network of one of `CUTS`.
        data_range: of the data; None: free.
        constants: what a conditional network is always told, by name; see `from_diffusers`.
    """

    def __init__(self, unet: nn.Module, data_range: tuple[float, float] | None = (-1.0, 1.0),
                 constants: dict[str, Tensor] | None = None):
        super().__init__()
        cut = cut_of(unet)
        network = json.loads(json.dumps({k: v for k, v in unet.config.items() if not k.startswith("_")}))
        size = network["sample_size"]
        self.config = DiffusersConfig(network, network["in_channels"], tuple(size) if isinstance(size, list) else size,
                                      cut.size_multiple(unet))
        self.unet, self.data_range, self.constants = unet, data_range, []
        for name, value in cut.constants(unet, constants or {}).items():
            self.register_buffer(name, value.detach().to(next(unet.parameters()).device, copy=True))
            self.constants.append(name)

    @property
    def cut(self):
        """Where it is cut: one of `CUTS`."""
        return CUTS[type(self.unet).__name__]

    @property
    def dtype(self) -> torch.dtype:
        """The weights' precision, which it computes in; heads give back x_t's."""
        return next(self.unet.parameters()).dtype

    def trunk(self, x_t: Tensor, t: int | Tensor) -> CutFeatures:
        """The lower half: all of the network that an estimator shares."""
        check_images(x_t, self.config.in_channels, self.config.size_multiple, "x_t")
        constants = {name: _cast(getattr(self, name), self.dtype) for name in self.constants}
        constants = {name: value.repeat(x_t.shape[0], *[1] * (value.ndim - 1)) for name, value in constants.items()}
        times = torch.as_tensor(t, device=x_t.device).reshape(-1)  # one for all is embedded once
        times = times.expand(x_t.shape[0]) if constants else times
        return CutFeatures(x_t, t, **self.cut.lower(self.unet, x_t.to(self.dtype), times, constants))

    def head(self, features: CutFeatures) -> Tensor:
        """Features to ε [N, C, H, W] (or what else the network predicts); a learned variance is dropped."""
        out = self.cut.head(self.cut.upper(self.unet), features, None, _run)
        return out[:, : self.config.in_channels].to(features.x_t.dtype)

    def gradient_estimator(self, z_dim: int, init: str = "dpm") -> "DiffusersEstimator":
        """A fresh estimator of G on this network's trunk, the paper's; `init` "dpm" or "random"."""
        return DiffusersEstimator(self.unet, z_dim, init, "paper")

    def noise_estimator(self, z_dim: int) -> "DiffusersEstimator":
        """A copy of this network's head that knows z: it predicts what that predicts, until it is trained."""
        return DiffusersEstimator(self.unet, z_dim)

    def to_config(self) -> dict:
        kind = {} if type(self.unet).__name__ == "UNet2DModel" else {"kind": type(self.unet).__name__}
        values = {name: getattr(self, name) for name in self.constants}
        told = {name: [list(v.shape), str(v.dtype).removeprefix("torch.")] for name, v in values.items()}
        constants = {"constants": told} if told else {}
        return {"network": self.config.network, "data_range": self.data_range} | constants | kind

    @classmethod
    def from_config(cls, config: dict) -> "DiffusersDPM":
        unet = getattr(import_diffusers(), config.get("kind", "UNet2DModel")).from_config(config["network"])
        constants = {name: torch.zeros(shape, dtype=getattr(torch, dtype))
                     for name, (shape, dtype) in config.get("constants", {}).items()}
        dpm = cls(unet, config["data_range"] and tuple(config["data_range"]), constants)
        if "reference" in config:  # how version 0.1 kept it by reference
            where = config["reference"]
            dpm.unet.source = Source("diffusers", where["path"], where["sha256"], by_reference=True)
        return dpm


class DiffusersEstimator(nn.Module):
    """Copies of a diffusers network's upper half, with z in every block. Call: features of the trunk, z [N, z_dim] ->
    [N, C, H, W]. Weights are float32 or better, whatever the network's.

    `form`: "difference" copies the output layer, too, and z's projections start at zero, so that it predicts at first
    what the network's own head predicts. "paper" starts the output at zero, so that G = 0 at first, and the projections
    at random: zero would delay learning. `init`: "dpm" copies the network's weights, "random" its shapes alone."""

    def __init__(self, network: nn.Module, z_dim: int, init: str = "dpm", form: str = "difference"):
        super().__init__()
        if init not in ("dpm", "random"):
            raise ValueError(f"init {init!r}; want 'dpm' or 'random'")
        cut, origin = cut_of(network), network if init == "dpm" else type(network).from_config(network.config)
        self.z_dim, self.kind, self.channels = z_dim, type(network).__name__, network.config.in_channels
        for name, part in cut.upper(origin).items():
            setattr(self, name, copy.deepcopy(part))
        self.names = tuple(cut.upper(origin))
        width = cut.z_width(network)
        self.label_emb = nn.Linear(z_dim, width)
        cut.add_z(self, width)
        if form == "difference":
            for part in self.modules():
                if hasattr(part, "emb_z_layers"):
                    zeroed(part.emb_z_layers)
        else:
            output = getattr(self, cut.OUTPUT)
            if isinstance(output, nn.Conv2d):  # files of version 0.1 have no channels for a variance here
                output = nn.Conv2d(output.in_channels, self.channels, output.kernel_size, padding=output.padding)
            setattr(self, cut.OUTPUT, zeroed(output))
        weight = next(network.parameters())
        self.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        self.requires_grad_(True).train()  # copies of a frozen network
        self.enable_gradient_checkpointing(False)

    def enable_gradient_checkpointing(self, on: bool = True) -> None:
        """Compute activations anew in the backward pass in place of keeping them: less memory, a slower step."""
        self.checkpointing = on
        for part in self.modules():
            if hasattr(part, "gradient_checkpointing"):
                part.gradient_checkpointing, part._gradient_checkpointing_func = on, _run_again

    def forward(self, features: CutFeatures, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z has shape {list(z.shape)}; want [N, {self.z_dim}]")
        weight = self.label_emb.weight
        if weight.is_meta or not torch.is_autocast_enabled(weight.device.type):  # a DPM in bfloat16
            features = CutFeatures(features.x_t, features.t, *_cast(features[2:], weight.dtype))
        parts = {name: getattr(self, name) for name in self.names}
        emb_z = self.label_emb(z.to(weight.dtype)).expand(features.x_t.shape[0], -1)  # not len(): tracing would fix it
        run = _run_again if self.checkpointing and torch.is_grad_enabled() else _run
        return CUTS[self.kind].head(parts, features, emb_z, run)[:, : self.channels].to(features.x_t.dtype)


def cut_of(network: nn.Module):
    """The cut for a network, or a ValueError that names what it is: none fits."""
    kind = supported(type(network).__name__)
    CUTS[kind].check(network)
    return CUTS[kind]


def supported(kind: str | None) -> str:
    """The name of a class, if it is one of `CUTS`; else a ValueError that says what it is."""
    if kind not in CUTS:
        what = next((f"is {what}" for part, what in REFUSED.items() if part in str(kind)), "isn't supported")
        raise ValueError(f"model {kind} {what}; want a network of diffusers that denoises images or latents: "
                         f"{', '.join(CUTS)}")
    return kind


def import_diffusers():
    """The diffusers package, or an ImportError that says how to install it."""
    try:
        import diffusers
    except ImportError:
        raise ImportError("this needs diffusers, which isn't installed; pip install 'pdae_lite[diffusers]'") from None
    return diffusers


def _run(block, *args):
    return block(*args)


def _run_again(block, *args):
    return checkpoint(block, *args, use_reentrant=False)


def _cast(parts, dtype: torch.dtype):
    """Floats among tensors, and in tuples of them, in another precision; but times [N], which have to stay exact."""
    if torch.is_tensor(parts):
        return parts.to(dtype) if parts.is_floating_point() and parts.ndim > 1 else parts
    return tuple(_cast(part, dtype) for part in parts) if isinstance(parts, tuple) else parts
