"""U-Nets of guided-diffusion (ADM) and improved-diffusion: their state dicts, and the arguments of their `UNetModel`.
"""
import re
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, describe
from ..networks.dpm import Wrapped
from ..networks.unet import Features, UNet, UNetConfig
from ..warning import PDAEWarning
from .weights import PathLike, fill, read_state

# UNetModel's arguments: those it demands, those with a default, others; and what `UNetConfig` calls otherwise.
REQUIRED = ("in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
DEFAULTS = {"image_size": None, "dropout": 0.0, "channel_mult": (1, 2, 4, 8), "conv_resample": True,
            "num_classes": None, "num_heads": 1, "use_scale_shift_norm": False, "resblock_updown": False,
            "use_new_attention_order": False}
OURS = {"model_channels": "base_channels", "attention_resolutions": "attention_downsampling",
        "use_scale_shift_norm": "scale_shift_norm", "use_new_attention_order": "new_attention_order"}
OTHER = ("dims", "use_checkpoint", "use_fp16", "num_head_channels", "num_heads_upsample")
ARGUMENTS = (*REQUIRED, *DEFAULTS, *OTHER)
PREFIXES = ("module.", "_orig_mod.")  # of networks that were saved inside DataParallel or torch.compile


def load_adm(checkpoint: PathLike, config: dict | None = None, label: int | None = None) -> "UNet | WithClass":
    """A U-Net of guided-diffusion (Dhariwal & Nichol 2021) or improved-diffusion (Nichol & Dhariwal 2021).

    Args:
        checkpoint: a file that holds the network's state dict.
        config: arguments of its `UNetModel`, by name: all of them, or those that the weights don't show:

            - `num_head_channels` or `num_heads`. With neither, guided-diffusion's layout (resampling in residual
              blocks) gets heads of 64 channels, and improved-diffusion's 4 heads; a warning says so, because with the
              wrong heads the network computes something else;
            - `image_size`, which is needed to draw noise only: without it give x_T, [N, C, H, W], to `decode`;
            - `use_new_attention_order` (default: False, as in all released models) and `dropout` (0).

            `attention_resolutions` are downsampling factors, as in `UNetModel`: image_size/32, /16, /8 for the scripts'
            "32,16,8". Where all that `UNetModel` demands is given, its defaults stand for the rest.
        label: of a class-conditional network, which wants labels in every call otherwise: a DPM of that class's images.

    A learned variance is dropped. Networks trained with `rescale_timesteps` and T other than 1000 want t·1000/T for t.

    Returns the network in eval mode, float32, on the CPU.

    Raises:
        ValueError: an unknown or unsupported argument in `config`.
        CheckpointError: the file is missing, damaged, or holds another network; says which layer differs.
    """
    config = {} if config is None else dict(config)
    unknown = [k for k in config if k not in ARGUMENTS]
    if unknown:
        raise ValueError(f"config has {', '.join(unknown)}; want arguments of UNetModel: {', '.join(ARGUMENTS)}")
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


class WithClass(Wrapped):
    """A class-conditional network as a DPM of one class's images: ε_θ(x_t, t) with y fixed.

    Raises:
        ValueError: a network without classes, or a label that is none of them.
    """

    def __init__(self, model: UNet, label: int):
        super().__init__(model)
        classes = model.config.num_classes
        if classes is None or not 0 <= label < classes:
            want = "None: the network has no classes" if classes is None else f"0 … {classes - 1}"
            raise ValueError(f"label={label}; want {want}")
        self.label, self.config = int(label), replace(model.config, num_classes=None)

    def trunk(self, x_t: Tensor, t: Tensor) -> Features:
        """Features of the network, told the class."""
        return self.model.trunk(x_t, t, torch.full((len(x_t),), self.label, device=x_t.device))

    def to_config(self) -> dict:
        return {"model": describe(self.model), "label": self.label}


def arguments_of(state: dict[str, Tensor], path: PathLike = "state") -> dict:
    """The arguments of the `UNetModel` that a state dict belongs to, as far as it shows them."""
    for name in ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight",
                 "input_blocks.1.0.emb_layers.1.weight", "middle_block.1.qkv.weight", "out.2.weight"):
        if name not in state:
            raise CheckpointError(f"{path}: has no {name}; want the state dict of a UNetModel (guided-diffusion, "
                                  "improved-diffusion)")
    base, classes = state["time_embed.0.weight"].shape[1], state.get("label_emb.weight")
    inputs, outputs = ({int(m[1]) for k in state if (m := re.match(rf"{name}_blocks\.(\d+)\.", k))}
                       for name in ("input", "output"))
    # Levels are counted by what leads from one to the next: strided convolutions; residual blocks behind the last block
    # of a level on the way up; or averages, which have no weights and leave a gap in the numbers of the input blocks.
    strided = sum(bool(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", k)) for k in state)
    residual = sum(bool(re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", k)) for k in state)
    levels = 1 + (strided or residual or max(inputs) + 1 - len(inputs))
    blocks, rest = divmod(len(outputs), levels)
    if rest or blocks < 2:
        raise CheckpointError(f"{path}: has {len(outputs)} output blocks in {levels} levels; want as many in each "
                              "level, two at least")
    firsts = range(1, 1 + levels * blocks, blocks)  # a level has as many input blocks, with the one that leads on
    names = [f"input_blocks.{first}.0.in_layers.2.weight" for first in firsts]
    if missing := [name for name in names if name not in state]:
        raise CheckpointError(f"{path}: {missing[0]} is missing; want a residual block, the first of a level of "
                              f"{blocks - 1}")
    widths = [state[name].shape[0] for name in names]
    return {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "model_channels": base,
        "out_channels": state["out.2.weight"].shape[0],
        "num_res_blocks": blocks - 1,
        "attention_resolutions": tuple(2**i for i, n in enumerate(firsts) if f"input_blocks.{n}.1.qkv.weight" in state),
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
    mult = shown["channel_mult"]
    told = {mult[-1], *(m for i, m in enumerate(mult) if 2**i in shown["attention_resolutions"])}  # [-1]: middle block
    wide = shown["resblock_updown"] and not any(shown["model_channels"] * m % 64 for m in told)
    name, value = ("num_head_channels", 64) if wide else ("num_heads", 4)
    warnings.warn(f"{path}: the weights don't show how many attention heads there are; taking {name}={value}. If it is "
                  "another number, ε is wrong: say it, for example config={'num_heads': 4} or {'num_head_channels': "
                  "64}", PDAEWarning, stacklevel=3)
    return {name: value}


def _unet_config(config: dict) -> UNetConfig:
    channels, out, heads = config["in_channels"], config["out_channels"], config.get("num_heads", 1)
    if channels == 6:
        raise ValueError(f"in_channels=6, out_channels={out}: an upsampler, which is told a small image in every step; "
                         "want a network of images alone")
    if out not in (channels, 2 * channels):
        raise ValueError(f"config has out_channels={out}; want in_channels={channels}, or twice that for a learned "
                         "variance")
    if config.get("dims", 2) != 2:
        raise ValueError(f"config has dims={config['dims']}; want 2, images")
    own_width = config.get("num_head_channels", -1) != -1  # then UNetModel ignores both head counts
    if not own_width and config.get("num_heads_upsample", -1) not in (-1, heads):
        raise ValueError(f"config has num_heads_upsample={config['num_heads_upsample']}; want -1 or num_heads={heads}")
    known = {name: value for name, value in (DEFAULTS | config).items() if name not in (*OTHER, "out_channels")}
    values = {OURS.get(name, name): value for name, value in known.items()}
    for name in ("attention_downsampling", "channel_mult"):
        values[name] = tuple(values[name])
    return UNetConfig(**values, head_channels=config["num_head_channels"] if own_width else None,
                      learn_variance=out == 2 * channels)
