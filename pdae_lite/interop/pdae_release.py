"""The files of the PDAE authors' release, into this library's own classes, whose state-dict names are theirs. All are
read in eval mode, float32, on the CPU; a CheckpointError says which file is missing, damaged, or not what it should be.
"""
import math
import re
from collections.abc import Sequence

from torch import Tensor

from ..applications.attributes import LinearProbe
from ..applications.latent import LatentConfig, LatentDPM, LatentStats
from ..checkpoint import CheckpointError
from ..networks.encoder import EncoderConfig, SemanticEncoder
from ..networks.unet import UNet, UNetConfig
from ..pdae import PDAE
from ..schedule import NoiseSchedule
from .weights import PathLike, described, fill, fill_latent, read_state, read_yaml

# The columns of CelebA's list_attr_celeba.txt (Liu et al. 2015), in its order.
CELEBA_ATTRIBUTES = tuple((
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young").split())


def load_released_pdae(checkpoint: PathLike, config: PathLike, ddpm_config: PathLike) -> PDAE:
    """A PDAE from the authors' `checkpoint.pt` and the two YAML files that go with it.

    Args:
        checkpoint: a file with `ema_encoder` and `ema_decoder`. The decoder holds the frozen DPM too.
        config: YAML with `diffusion_config`, `encoder_config` and `decoder_config`.
        ddpm_config: YAML with the DPM's `denoise_fn_config`.

    ``decode(…, grid="paper")`` and ``invert(…, grid="paper", clip=True)`` then give the release's own results.
    """
    settings = read_yaml(config, ("diffusion_config",))
    state = read_state(checkpoint, ("ema_encoder", "ema_decoder"))
    encoder = _released_encoder(state["ema_encoder"], checkpoint)
    unet_config = _released_unet_config(ddpm_config, encoder.config.image_size)
    # The release keeps DPM and estimator in one module; their names tell them apart.
    estimator = {k: v for k, v in state["ema_decoder"].items() if k.startswith(("shift", "label_emb"))}
    dpm = {k: v for k, v in state["ema_decoder"].items() if k not in estimator}
    model = PDAE(UNet(unet_config), encoder, released_schedule(settings["diffusion_config"], config), form="paper")
    fill(model.dpm, dpm, checkpoint, ddpm_config)
    fill(model.estimator, estimator, checkpoint, ddpm_config)
    return model.eval()


def load_released_dpm(checkpoint: PathLike, ddpm_config: PathLike) -> UNet:
    """A pre-trained DPM of the authors' release: `ema_denoise_fn` of its `checkpoint.pt`, and its YAML file. The image
    size is its `dataset_config.image_size`, or in the network's class name (64 in ``CELEBA64DenoiseFn``)."""
    model = UNet(_released_unet_config(ddpm_config))
    fill(model, read_state(checkpoint, ("ema_denoise_fn",))["ema_denoise_fn"], checkpoint, ddpm_config)
    return model.eval()


def load_released_latent(checkpoint: PathLike, config: PathLike, latents: PathLike) -> LatentDPM:
    """A latent DPM of the authors' release.

    Args:
        checkpoint: a file with `ema_latent_denoise_fn`.
        config: YAML with `latent_denoise_fn_config`.
        latents: a file with `mean` and `std`, the statistics that codes are normalised with.

    The schedule is the paper's (β = 0.008 at each of 1000 steps; the YAML file names none). The release's own sampler
    clamps z_T and ẑ_0 to [−1, 1], one standard deviation of normalised codes. `LatentDPM.sample` doesn't.
    """
    settings = read_yaml(config, ("latent_denoise_fn_config",))["latent_denoise_fn_config"]
    state = read_state(checkpoint, ("ema_latent_denoise_fn",))["ema_latent_denoise_fn"]
    stats = _released_stats(latents)
    if not settings.get("use_norm", True):
        raise CheckpointError(f"{config}: use_norm is false; latent DPMs without LayerNorm aren't supported")
    with described(config, "has no entry", f"it and {latents} describe no latent DPM"):
        network = LatentConfig(settings["input_channel"], settings["num_layers"], settings["model_channel"],
                               settings["time_emb_channel"], settings.get("dropout", 0.0))
        model = LatentDPM(network, stats=stats)
    return fill_latent(model, state, checkpoint, config)


def load_released_classifier(checkpoint: PathLike, latents: PathLike,
                             names: Sequence[str] | None = None) -> LinearProbe:
    """The linear classifier of attributes of the authors' release, which `attributes.edit` moves codes along (Fig. 8).

    Args:
        checkpoint: a file with `ema_classifier`, one linear layer on normalised codes.
        latents: a file with `mean` and `std`, the statistics that codes are normalised with.
        names: of its outputs; None: CelebA's 40 attributes, in CelebA's order.
    """
    state = read_state(checkpoint, ("ema_classifier",))["ema_classifier"]
    stats = _released_stats(latents)
    weight, bias = state.get("weight"), state.get("bias")
    if set(state) != {"weight", "bias"} or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        has = ", ".join(f"{k} {list(v.shape)}" for k, v in state.items())
        raise CheckpointError(f"{checkpoint}: ema_classifier has {has}; want one linear layer, weight [A, z_dim] and "
                              "bias [A]")
    names = CELEBA_ATTRIBUTES if names is None else tuple(names)
    if len(names) != len(weight):
        raise CheckpointError(f"{checkpoint}: ema_classifier has {len(weight)} outputs for {len(names)} names; give "
                              "names, one each")
    if stats.z_dim != weight.shape[1]:
        raise CheckpointError(f"{checkpoint}: ema_classifier takes codes of {weight.shape[1]}, {latents} has "
                              f"statistics of {stats.z_dim}; want files of one model")
    probe = LinearProbe(names, stats.z_dim, "attributes", stats)
    probe.weight.copy_(weight)
    probe.bias.copy_(bias)
    return probe.eval()


def _released_stats(latents: PathLike) -> LatentStats:
    moments = read_state(latents, ())
    with described(latents, "has no tensor", "holds no statistics of codes"):
        return LatentStats(moments["mean"], moments["std"])


def released_schedule(settings: dict, path: PathLike) -> NoiseSchedule:
    """The schedule of a `diffusion_config`; `path` is for messages."""
    if settings.get("betas_type") != "linear":
        raise CheckpointError(f"{path}: diffusion_config.betas_type is {settings.get('betas_type')!r}; the release "
                              "knows 'linear' only")
    return NoiseSchedule.linear(int(settings.get("timesteps", 1000)), float(settings.get("linear_beta_start", 1e-4)),
                                float(settings.get("linear_beta_end", 0.02)))


def _released_unet_config(path: PathLike, image_size: int | None = None) -> UNetConfig:
    """The network of a `denoise_fn_config`. Residual blocks resample, time enters by scale and shift."""
    settings = read_yaml(path, ("denoise_fn_config",))
    network = settings["denoise_fn_config"]
    if network.get("num_class") is not None:
        raise CheckpointError(f"{path}: num_class={network['num_class']}; class-conditional networks of the release "
                              "aren't supported")
    if image_size is None:
        named = re.findall(r"\d+", network.get("model", ""))  # 64 in CELEBA64DenoiseFn
        image_size = (settings.get("dataset_config") or {}).get("image_size") or (named[-1] if named else None)
    if image_size is None:
        raise CheckpointError(f"{path}: says no image size; add dataset_config: {{image_size: …}} to it")
    width = network.get("head_channel", -1)
    with described(path, "denoise_fn_config has no", "denoise_fn_config describes no network"):
        return UNetConfig(int(image_size), network["input_channel"], network["base_channel"],
                          tuple(network["channel_multiplier"]), network["num_residual_blocks_of_a_block"],
                          tuple(network["attention_resolutions"]), network.get("dropout", 0.0),
                          network.get("num_heads", 1), None if width == -1 else width,
                          network.get("use_new_attention_order", False),
                          learn_variance=network.get("learn_sigma", False))


def _released_encoder(state: dict[str, Tensor], path: PathLike) -> SemanticEncoder:
    """The encoder whose layout `state` shows. The names that the YAML files give (CELEBA64Encoder, FFHQEncoder, …)
    differ in layout alone, and each has every convolution, its attention and its Linear in `encoder.<index>`."""
    layers = {int(k.split(".")[1]): v for k, v in state.items() if re.fullmatch(r"encoder\.\d+\.weight", k)}
    convolutions = {i: v for i, v in layers.items() if v.ndim == 4}
    linears = [v for v in layers.values() if v.ndim == 2]
    if not convolutions or len(linears) != 1:
        raise CheckpointError(f"{path}: ema_encoder has {len(convolutions)} convolutions and {len(linears)} linear "
                              "layers; want an encoder of the PDAE release (convolutions, then one linear layer)")
    order = sorted(convolutions)
    channels = tuple(convolutions[i].shape[0] for i in order)
    attention = [i for i, at in enumerate(order) if f"encoder.{at + 1}.qkv.weight" in state]
    z_dim, width = linears[0].shape
    side = math.isqrt(width // channels[-1])
    if side**2 * channels[-1] != width or len(attention) > 1:
        raise CheckpointError(f"{path}: ema_encoder's linear layer takes {width} values after {channels[-1]} channels, "
                              f"with {len(attention)} attentions; want an encoder of the PDAE release")
    encoder = SemanticEncoder(EncoderConfig(side * 2 ** len(channels), convolutions[order[0]].shape[1], channels,
                                            attention[0] if attention else None, z_dim=z_dim))
    fill(encoder, state, path, "the encoder that its layers show")
    return encoder
