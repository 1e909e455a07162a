"""Other people's files in: the PDAE authors' release, and guided-diffusion (ADM). All of them are pickles, read with
`torch.load(weights_only=True)`, which runs no code; all of them load into this library's own classes, whose
state-dict names are theirs. diffusers' models and schedulers, which keep their own classes, are in `diffusers_io`.
"""
import math
import os
import re
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from .checkpoint import CheckpointError
from .diffusers_io import from_diffusers, sample_with
from .encoder import EncoderConfig, SemanticEncoder
from .latent import LatentConfig, LatentDPM, LatentStats
from .model import PDAE
from .schedule import NoiseSchedule
from .unet import UNet, UNetConfig

__all__ = ["from_diffusers", "load_adm", "load_released_dpm", "load_released_latent", "load_released_pdae", "sample_with"]

Path_ = str | os.PathLike

# ---- the PDAE release ---------------------------------------------------------------------------------------------


def load_released_pdae(checkpoint: Path_, config: Path_, ddpm_config: Path_) -> PDAE:
    """A PDAE from the authors' `checkpoint.pt` and the two YAML files that go with it.

    Args:
        checkpoint: a file with `ema_encoder` and `ema_decoder`. The decoder holds the frozen DPM too.
        config: YAML with `diffusion_config`, `encoder_config` and `decoder_config`.
        ddpm_config: YAML with the DPM's `denoise_fn_config`.

    Returns the model in eval mode, float32, on the CPU. ``decode(…, grid="paper")`` and
    ``invert(…, grid="paper", clip=True)`` then give the release's own results.

    Raises:
        CheckpointError: a file is missing, damaged, or not what it should be.
    """
    settings = _yaml(config, ("diffusion_config",))
    state = _state(checkpoint, ("ema_encoder", "ema_decoder"))
    encoder = _released_encoder(state["ema_encoder"], checkpoint)
    unet_config = _released_unet_config(ddpm_config, encoder.config.image_size)
    # The release keeps DPM and estimator in one module; their names tell them apart.
    estimator_state = {k: v for k, v in state["ema_decoder"].items() if k.startswith(("shift", "label_emb"))}
    dpm_state = {k: v for k, v in state["ema_decoder"].items() if k not in estimator_state}
    model = PDAE(UNet(unet_config), encoder, _released_schedule(settings["diffusion_config"], config))
    _fill(model.dpm, dpm_state, checkpoint, ddpm_config)
    _fill(model.estimator, estimator_state, checkpoint, ddpm_config)
    return model.eval()


def load_released_dpm(checkpoint: Path_, ddpm_config: Path_) -> UNet:
    """A pre-trained DPM of the authors' release: `ema_denoise_fn` of its `checkpoint.pt`, and its YAML file.

    The image size comes from `dataset_config.image_size`, or from the digits of the network's class name (64 in
    ``CELEBA64DenoiseFn``). Returns the network in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, or not what it should be.
    """
    model = UNet(_released_unet_config(ddpm_config))
    _fill(model, _state(checkpoint, ("ema_denoise_fn",))["ema_denoise_fn"], checkpoint, ddpm_config)
    return model.eval()


def load_released_latent(checkpoint: Path_, config: Path_, latents: Path_) -> LatentDPM:
    """A latent DPM of the authors' release.

    Args:
        checkpoint: a file with `ema_latent_denoise_fn`.
        config: YAML with `latent_denoise_fn_config`.
        latents: a file with `mean` and `std`, the statistics that codes are normalised with.

    Returns the model in eval mode, float32, on the CPU, on the schedule that the paper gives (β = 0.008 at each of 1000
    steps; the YAML file names none). The release's own sampler clamps z_T and, in every step, ẑ_0 to [−1, 1], which cuts
    normalised codes off at one standard deviation. `LatentDPM.sample` doesn't.

    Raises:
        CheckpointError: a file is missing, damaged, or not what it should be.
    """
    settings = _yaml(config, ("latent_denoise_fn_config",))["latent_denoise_fn_config"]
    state = _state(checkpoint, ("ema_latent_denoise_fn",))["ema_latent_denoise_fn"]
    moments = _state(latents, ())
    if not settings.get("use_norm", True):
        raise CheckpointError(f"{config}: use_norm is false; latent DPMs without LayerNorm aren't supported")
    try:
        network = LatentConfig(settings["input_channel"], settings["num_layers"], settings["model_channel"],
                               settings["time_emb_channel"], settings.get("dropout", 0.0))
        model = LatentDPM(network, stats=LatentStats(moments["mean"], moments["std"]))
    except KeyError as e:
        path, what = (latents, "tensor") if e.args[0] in ("mean", "std") else (config, "entry")
        raise CheckpointError(f"{path}: has no {what} {e.args[0]}; want the file that came with the checkpoint") from None
    except (ValueError, TypeError) as e:
        raise CheckpointError(f"{config} and {latents} describe no latent DPM: {e}") from None
    # The release holds each projection of time under two names.
    state = {k: v for k, v in state.items() if ".linear_emb." not in k}
    _fill(model, state | {f"stats.{k}": v for k, v in model.stats.state_dict().items()}, checkpoint, config)
    return model.eval()


def _released_schedule(settings: dict, path: Path_) -> NoiseSchedule:
    if settings.get("betas_type") != "linear":
        raise CheckpointError(f"{path}: diffusion_config.betas_type is {settings.get('betas_type')!r}; the release knows 'linear' only")
    return NoiseSchedule.linear(int(settings.get("timesteps", 1000)), float(settings.get("linear_beta_start", 1e-4)),
                                float(settings.get("linear_beta_end", 0.02)))


def _released_unet_config(path: Path_, image_size: int | None = None) -> UNetConfig:
    """The network of a `denoise_fn_config`. Residual blocks resample, time enters by scale and shift."""
    settings = _yaml(path, ("denoise_fn_config",))
    network = settings["denoise_fn_config"]
    if network.get("num_class") is not None:
        raise CheckpointError(f"{path}: num_class={network['num_class']}; class-conditional networks of the release aren't supported")
    if image_size is None:
        image_size = (settings.get("dataset_config") or {}).get("image_size") or _digits(network.get("model", ""))
    if image_size is None:
        raise CheckpointError(f"{path}: says no image size; add dataset_config: {{image_size: …}} to it")
    try:
        return UNetConfig(
            image_size=int(image_size),
            in_channels=network["input_channel"],
            base_channels=network["base_channel"],
            channel_mult=tuple(network["channel_multiplier"]),
            num_res_blocks=network["num_residual_blocks_of_a_block"],
            attention_downsampling=tuple(network["attention_resolutions"]),
            dropout=network.get("dropout", 0.0),
            num_heads=network.get("num_heads", 1),
            head_channels=_or_none(network.get("head_channel", -1)),
            new_attention_order=network.get("use_new_attention_order", False),
            learn_variance=network.get("learn_sigma", False),
        )
    except KeyError as e:
        raise CheckpointError(f"{path}: denoise_fn_config has no {e.args[0]}; want the YAML file that came with the network") from None


def _released_encoder(state: dict[str, Tensor], path: Path_) -> SemanticEncoder:
    """The encoder whose layout `state` shows. The names that the YAML files give (CELEBA64Encoder, FFHQEncoder, …)
    differ in layout alone, and each has every convolution, its attention and its Linear in `encoder.<index>`."""
    convolutions = {int(k.split(".")[1]): v for k, v in state.items() if re.fullmatch(r"encoder\.\d+\.weight", k) and v.ndim == 4}
    linears = [v for k, v in state.items() if re.fullmatch(r"encoder\.\d+\.weight", k) and v.ndim == 2]
    if not convolutions or len(linears) != 1:
        raise CheckpointError(f"{path}: ema_encoder has {len(convolutions)} convolutions and {len(linears)} linear layers; "
                              "want an encoder of the PDAE release (convolutions, then one linear layer)")
    order = sorted(convolutions)
    channels = tuple(convolutions[i].shape[0] for i in order)
    attention = [i for i, at in enumerate(order) if f"encoder.{at + 1}.qkv.weight" in state]
    z_dim, width = linears[0].shape
    side = math.isqrt(width // channels[-1])
    if side**2 * channels[-1] != width or len(attention) > 1:
        raise CheckpointError(f"{path}: ema_encoder's linear layer takes {width} values after {channels[-1]} channels, with "
                              f"{len(attention)} attentions; want an encoder of the PDAE release")
    encoder = SemanticEncoder(EncoderConfig(side * 2 ** len(channels), convolutions[order[0]].shape[1], channels,
                                            attention[0] if attention else None, z_dim=z_dim))
    _fill(encoder, state, path, "the encoder that its layers show")
    return encoder


def _digits(name: str) -> int | None:
    """64 for CELEBA64DenoiseFn: the last digits in a class name."""
    found = re.findall(r"\d+", name)
    return int(found[-1]) if found else None


def _or_none(value: int) -> int | None:
    return None if value == -1 else value


# ---- guided-diffusion (ADM) -----------------------------------------------------------------------------------------

# UNetModel's arguments -> ours, with UNetModel's defaults; None: has none.
ADM_ARGUMENTS = {
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
ADM_REQUIRED = ("image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
ADM_OTHER = ("out_channels", "dims", "use_checkpoint", "use_fp16", "num_head_channels", "num_heads_upsample")


def load_adm(checkpoint: Path_, config: dict) -> UNet:
    """A U-Net of guided-diffusion (Dhariwal & Nichol 2021).

    Args:
        checkpoint: a file that holds the network's state dict.
        config: the arguments of its `UNetModel`, by name. `out_channels` twice `in_channels` means a learned
            variance, which `UNet` drops: the first channels are the noise. `attention_resolutions` are downsampling
            factors here, as in `UNetModel`: image_size/32, /16, /8 for the scripts' "32,16,8".

    Returns the network in eval mode, float32, on the CPU.

    Raises:
        ValueError: an unknown, missing or unsupported argument in `config`.
        CheckpointError: the file is missing, damaged, or holds another network; says which layer differs.
    """
    model = UNet(_adm_config(config))
    state = _state(checkpoint, ())
    _fill(model, state, checkpoint, "config")
    return model.eval()


def _adm_config(config: dict) -> UNetConfig:
    unknown = [k for k in config if k not in ADM_ARGUMENTS and k not in ADM_OTHER]
    if unknown:
        raise ValueError(f"config has {', '.join(unknown)}; want the arguments of UNetModel: {', '.join([*ADM_ARGUMENTS, *ADM_OTHER])}")
    missing = [k for k in ADM_REQUIRED if k not in config]
    if missing:
        raise ValueError(f"config has no {', '.join(missing)}; want the arguments of UNetModel")
    channels, out, heads = config["in_channels"], config["out_channels"], config.get("num_heads", 1)
    if out not in (channels, 2 * channels):
        raise ValueError(f"config has out_channels={out}; want in_channels={channels}, or twice that for a learned variance")
    if config.get("dims", 2) != 2:
        raise ValueError(f"config has dims={config['dims']}; want 2, images")
    own_width = config.get("num_head_channels", -1) != -1  # then UNetModel ignores both head counts
    if not own_width and config.get("num_heads_upsample", -1) not in (-1, heads):
        raise ValueError(f"config has num_heads_upsample={config['num_heads_upsample']}; want -1 or num_heads={heads}")
    values = {ours: config.get(theirs, default) for theirs, (ours, default) in ADM_ARGUMENTS.items()}
    for name in ("attention_downsampling", "channel_mult"):
        values[name] = tuple(values[name])
    return UNetConfig(**values, head_channels=_or_none(config.get("num_head_channels", -1)), learn_variance=out == 2 * channels)


# ---- files ----------------------------------------------------------------------------------------------------------


def _state(path: Path_, want: tuple[str, ...]) -> dict:
    """The dict in a `.pt` file, with the state dicts named in `want`; with none named, itself a state dict."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; download it again or correct the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a foreign file can fail in torch.load in any way
        raise CheckpointError(f"{path}: not a complete PyTorch checkpoint of plain tensors ({_line(e)}); download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of tensors; is it the right file?")
    for state, name in [(content.get(k), f"no state dict {k!r}") for k in want] or [(content, "no state dict")]:
        if not isinstance(state, dict) or not state or not all(torch.is_tensor(v) for v in state.values()):
            raise CheckpointError(f"{path}: holds {name} (it has {_some(content)}); is it the right file?")
    return content


def _yaml(path: Path_, want: tuple[str, ...]) -> dict:
    """The mapping in a YAML file, with the sections in `want`."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; want the YAML file that came with the checkpoint")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{path}: not a YAML file ({_line(e)}); want the one that came with the checkpoint") from None
    for name in want:
        if not isinstance(content, dict) or not isinstance(content.get(name), dict):
            raise CheckpointError(f"{path}: has no section {name}; want the YAML file that came with the checkpoint")
    return content


def _fill(module: nn.Module, state: dict[str, Tensor], path: Path_, source) -> None:
    """Load `state`, or say which layer doesn't fit what `source` describes."""
    own = module.state_dict()
    wrong = [f"{k} is missing, want shape {list(v.shape)}" for k, v in own.items() if k not in state]
    wrong += [f"{k} has shape {list(state[k].shape)}, want {list(v.shape)}"
              for k, v in own.items() if k in state and state[k].shape != v.shape]
    wrong += [f"{k} has shape {list(v.shape)}, want no such layer" for k, v in state.items() if k not in own]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{path}: {wrong[0]}{more}; the weights don't fit {source}")
    module.load_state_dict(state)


def _some(content: dict) -> str:
    names = [str(k) for k in content]
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "nothing"


def _line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0][:120]
