"""U-Nets of guided-diffusion (ADM) and improved-diffusion: their state dicts, and the arguments of their `UNetModel`."""
import re
import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, build, describe
from ..networks.dpm import NoisePredictor
from ..networks.unet import Features, UNet, UNetConfig
from ..warning import PDAEWarning
from .weights import PathLike, fill, read_state

# UNetModel's arguments -> ours, with UNetModel's defaults.
ARGUMENTS = {
    "image_size": ("image_size", None),
    "in_channels": ("in_channels", None),
    "model_channels": ("base_channels", None),
    "num_res_blocks": ("num_res_blocks", None),
    "attention_resolutions": ("attention_downsampling", None),
    "dropout": ("dropout", 0.0),
    "channel_mult": ("channel_mult", (1, 2, 4, 8)),
    "conv_resample": ("conv_resample", True),
    "num_classes": ("num_classes", None),
    "num_heads": ("num_heads", 1),
    "use_scale_shift_norm": ("scale_shift_norm", False),
    "resblock_updown": ("resblock_updown", False),
    "use_new_attention_order": ("new_attention_order", False),
}
REQUIRED = ("in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
PREFIXES = ("module.", "_orig_mod.")  # of networks that were saved inside DataParallel or torch.compile
OTHER = ("out_channels", "dims", "use_checkpoint", "use_fp16", "num_head_channels", "num_heads_upsample")


def load_adm(checkpoint: PathLike, config: dict | None = None, label: int | None = None) -> "UNet | WithClass":
    """A U-Net of guided-diffusion (Dhariwal & Nichol 2021) or improved-diffusion (Nichol & Dhariwal 2021).

    Args:
        checkpoint: a file that holds the network's state dict.
        config: arguments of its `UNetModel`, by name: all of them, or those that the weights don't show. The weights
            show channels, levels, blocks, where attention is, how time enters and how features are resampled. They don't show

            - `num_head_channels` or `num_heads`. With neither, guided-diffusion's layout (resampling in residual blocks) gets
              heads of 64 channels, as most of its released models have, and improved-diffusion's 4 heads, its default; a
              warning says so, because with the wrong heads the network computes something else;
            - `image_size`, which is needed to draw noise only: without it give x_T, [N, C, H, W], to `decode`;
            - `use_new_attention_order` (default: False, as in all released models) and `dropout` (0).

            `attention_resolutions` are downsampling factors here, as in `UNetModel`: image_size/32, /16, /8 for the scripts'
            "32,16,8". Where all that `UNetModel` demands is given, its defaults stand for the rest, one head among them.

    `out_channels` twice `in_channels` means a learned variance, which `UNet` drops: the first channels are the noise. Networks
    trained with `rescale_timesteps` and another number of steps than 1000 want t·1000/T in the place of t. A class-conditional
    network (`num_classes`) wants labels in every call; with a `label` it is a DPM of that class's images, as a PDAE wants it.

    Returns the network in eval mode, float32, on the CPU.

    Raises:
        ValueError: an unknown or unsupported argument in `config`.
        CheckpointError: the file is missing, damaged, or holds another network; says which layer differs.
    """
    config = {} if config is None else dict(config)
    _check_arguments(config)
    state = read_state(checkpoint, ())
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    source = "config"
    if not all(name in config for name in REQUIRED):
        shown = arguments_of(state, checkpoint)
        source = "config and what the weights show" if config else "the UNetModel that they show"
        config = shown | _heads(shown, config, checkpoint) | config
    model = UNet(_unet_config(config))
    fill(model, state, checkpoint, source)
    return (model if label is None else WithClass(model, label)).eval()


class WithClass(NoisePredictor):
    """A class-conditional network as a DPM of one class's images: ε_θ(x_t, t) with y fixed.

    Raises:
        ValueError: a network without classes, or a label that is none of them.
    """

    def __init__(self, model: UNet, label: int):
        super().__init__()
        classes = model.config.num_classes
        if classes is None or not 0 <= label < classes:
            raise ValueError(f"label={label}; want " + ("None: the network has no classes" if classes is None else f"0 … {classes - 1}"))
        self.model, self.label, self.config, self.data_range = model, int(label), replace(model.config, num_classes=None), model.data_range

    def trunk(self, x_t: Tensor, t: Tensor) -> Features:
        """Features of the network, told the class."""
        return self.model.trunk(x_t, t, torch.full((len(x_t),), self.label, device=x_t.device))

    def head(self, features: Features) -> Tensor:
        """ε [N, C, H, W] from features."""
        return self.model.head(features)

    def gradient_estimator(self, z_dim: int) -> nn.Module:
        """A fresh gradient estimator on the network's trunk."""
        return self.model.gradient_estimator(z_dim)

    def noise_estimator(self, z_dim: int) -> nn.Module:
        """A copy of the network's head that knows z."""
        return self.model.noise_estimator(z_dim)

    def to_config(self) -> dict:
        return {"model": describe(self.model), "label": self.label}

    @classmethod
    def from_config(cls, config: dict) -> "WithClass":
        return cls(build(config["model"]), config["label"])


def arguments_of(state: dict[str, Tensor], path: PathLike = "state") -> dict:
    """The arguments of the `UNetModel` that a state dict belongs to, as far as it shows them. `path` is for messages.

    Raises:
        CheckpointError: not a UNetModel; says what is missing.
    """
    for name in ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight",
                 "input_blocks.1.0.emb_layers.1.weight", "middle_block.1.qkv.weight", "out.2.weight"):
        if name not in state:
            raise CheckpointError(f"{path}: has no {name}; want the state dict of a UNetModel (guided-diffusion, improved-diffusion)")
    base, classes = state["time_embed.0.weight"].shape[1], state.get("label_emb.weight")
    inputs, outputs = ({int(m[1]) for k in state if (m := re.match(rf"{name}\.(\d+)\.", k))} for name in ("input_blocks", "output_blocks"))
    # Levels are counted by what leads from one to the next: strided convolutions; residual blocks behind the last block
    # of a level on the way up; or averages, which have no weights and leave a gap in the numbers of the input blocks.
    strided = sum(bool(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", k)) for k in state)
    residual = sum(bool(re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", k)) for k in state)
    levels = 1 + (strided or residual or max(inputs) + 1 - len(inputs))
    blocks, rest = divmod(len(outputs), levels)
    if rest or blocks < 2:
        raise CheckpointError(f"{path}: has {len(outputs)} output blocks in {levels} levels; want as many in each level, two at least")
    firsts = [1 + level * blocks for level in range(levels)]  # a level has as many input blocks, with the one that leads on
    widths = []
    for first in firsts:
        name = f"input_blocks.{first}.0.in_layers.2.weight"
        if name not in state:
            raise CheckpointError(f"{path}: {name} is missing; want a residual block, the first of a level of {blocks - 1}")
        widths.append(state[name].shape[0])
    return {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "model_channels": base,
        "out_channels": state["out.2.weight"].shape[0],
        "num_res_blocks": blocks - 1,
        "attention_resolutions": tuple(2**i for i, first in enumerate(firsts) if f"input_blocks.{first}.1.qkv.weight" in state),
        "channel_mult": tuple(width // base if width % base == 0 else width / base for width in widths),
        "conv_resample": strided > 0 or residual > 0 or levels == 1,
        "num_classes": None if classes is None else classes.shape[0],
        "use_scale_shift_norm": state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[0],
        "resblock_updown": residual > 0,
    }


def _heads(shown: dict, config: dict, path: PathLike) -> dict:
    """The attention heads to assume where `config` doesn't say; warns."""
    if "num_heads" in config or config.get("num_head_channels", -1) != -1:
        return {}
    widths = [shown["model_channels"] * shown["channel_mult"][-1]]  # of the middle block, which always has attention
    widths += [shown["model_channels"] * m for i, m in enumerate(shown["channel_mult"]) if 2**i in shown["attention_resolutions"]]
    heads = {"num_head_channels": 64} if shown["resblock_updown"] and not any(w % 64 for w in widths) else {"num_heads": 4}
    assumed = ", ".join(f"{k}={v}" for k, v in heads.items())
    warnings.warn(f"{path}: the weights don't show how many attention heads there are; taking {assumed}. If it is another number, ε is "
                  "wrong: say it, for example config={'num_heads': 4} or {'num_head_channels': 64}", PDAEWarning, stacklevel=3)
    return heads


def _check_arguments(config: dict) -> None:
    unknown = [k for k in config if k not in ARGUMENTS and k not in OTHER]
    if unknown:
        raise ValueError(f"config has {', '.join(unknown)}; want arguments of UNetModel: {', '.join([*ARGUMENTS, *OTHER])}")


def _unet_config(config: dict) -> UNetConfig:
    channels, out, heads = config["in_channels"], config["out_channels"], config.get("num_heads", 1)
    if channels == 6:
        raise ValueError(f"in_channels=6, out_channels={out}: an upsampler, which is told a small image in every step; want a network "
                         "of images alone")
    if out not in (channels, 2 * channels):
        raise ValueError(f"config has out_channels={out}; want in_channels={channels}, or twice that for a learned variance")
    if config.get("dims", 2) != 2:
        raise ValueError(f"config has dims={config['dims']}; want 2, images")
    own_width = config.get("num_head_channels", -1) != -1  # then UNetModel ignores both head counts
    if not own_width and config.get("num_heads_upsample", -1) not in (-1, heads):
        raise ValueError(f"config has num_heads_upsample={config['num_heads_upsample']}; want -1 or num_heads={heads}")
    values = {ours: config.get(theirs, default) for theirs, (ours, default) in ARGUMENTS.items()}
    for name in ("attention_downsampling", "channel_mult"):
        values[name] = tuple(values[name])
    return UNetConfig(**values, head_channels=config["num_head_channels"] if own_width else None, learn_variance=out == 2 * channels)
