"""The checkpoints of Diff-AE's authors (Preechakul et al. 2022), written by Lightning."""
import torch
from torch import Tensor

from ..applications.latent import LatentConfig, LatentDPM, LatentStats
from ..checkpoint import CheckpointError
from ..diffae import DiffAE
from ..networks.encoder import UNetEncoder, UNetEncoderConfig
from ..networks.unet import UNet, UNetConfig
from ..sampling import ddim_step
from ..schedule import NoiseSchedule
from .weights import PathLike, described, fill, fill_latent, part, read_state, read_yaml

CALLBACKS = r"(pytorch_lightning|lightning\.pytorch)\.callbacks\.[\w.]+"  # keys of part of Lightning 1.4's checkpoints
WEIGHTS = "ema_model."  # what the authors sample with; `model.*` is the same without averaging


def load_released_diffae(checkpoint: PathLike, config: PathLike | dict | None = None) -> DiffAE:
    """A Diff-AE of its authors: `last.ckpt`.

    Args:
        checkpoint: a Lightning checkpoint whose `state_dict` has `ema_model.*`.
        config: hyper-parameters by name, or a JSON file of them; None: the checkpoint's own.

    Returns the autoencoder in eval mode, float32, on the CPU. Its `latent` is the latent DPM, and `stats` the codes'
    `LatentStats`, each None if the file has none; they neither move nor are saved with it. The authors' images of N
    steps are those of ``decode(z, x_T, grid=range(0, 1000, 1000 // N))``, and their x_T those of `stochastic_code`.

    Raises:
        CheckpointError: the file is missing, damaged, names code to be run, or holds another network.
    """
    weights, rest, settings = _read(checkpoint, config)
    encoder, latent = part(weights, "encoder."), part(weights, "latent_net.")
    if not encoder:
        raise CheckpointError(f"{checkpoint}: has no encoder: a plain DPM; load it with load_released_diffae_dpm")
    unet = {k.replace("time_embed.time_embed.", "time_embed.").replace(".cond_emb_layers.", ".emb_z_layers."): v
            for k, v in weights.items() if not k.startswith(("encoder.", "latent_net."))}
    with _described(checkpoint):
        encoder_net, latent_dpm = UNetEncoder(_encoder_config(settings, unet)), None
        model = DiffAE(UNet(_unet_config(settings, unet, coded=True)), encoder_net, _schedule(settings))
        stats = LatentStats(rest["conds_mean"].flatten(), rest["conds_std"].flatten()) if "conds_mean" in rest else None
        if latent:
            layers = LatentConfig(settings["style_ch"], settings["net_latent_layers"],
                                  settings["net_latent_num_hid_channels"], settings["net_latent_time_emb_channels"])
            used = stats if settings.get("latent_znormalize", True) else None
            latent_dpm = LatentDPM(layers, _schedule(settings, "latent_"), used)
    fill(model.denoise_net, unet, checkpoint, "its hyper-parameters")
    fill(model.encoder, encoder, checkpoint, "its hyper-parameters")
    if latent_dpm is not None:
        fill_latent(latent_dpm, latent, checkpoint, "its hyper-parameters")
    model.__dict__.update(latent=latent_dpm, stats=stats)  # beside the module's own parts
    return model.eval()


def load_released_diffae_dpm(checkpoint: PathLike, config: PathLike | dict | None = None) -> tuple[UNet, NoiseSchedule]:
    """A plain DPM of Diff-AE's authors, and its schedule. Arguments and errors as for `load_released_diffae`."""
    weights, _, settings = _read(checkpoint, config)
    if any(k.startswith("encoder.") for k in weights):
        raise CheckpointError(f"{checkpoint}: holds an autoencoder, which wants z; load it with load_released_diffae")
    with _described(checkpoint):
        dpm, schedule = UNet(_unet_config(settings, weights, coded=False)), _schedule(settings)
    fill(dpm, weights, checkpoint, "its hyper-parameters")
    return dpm.eval(), schedule


@torch.no_grad()
def stochastic_code(model: DiffAE, x_0: Tensor, z: Tensor | None = None, steps: int = 250) -> Tensor:
    """x_T [N, C, H, W] of images x_0 as the authors' code finds it: x_0 counts as the image at t = 0, x̂_0 is clamped,
    and the last step ends at ᾱ = 0, so that x_T is its ε. `DiffAE.invert` is the exact form."""
    denoiser, schedule = model.denoiser(model.encode(x_0) if z is None else z), model.schedule
    if steps < 1 or schedule.T % steps:
        raise ValueError(f"steps={steps}; want a divisor of {schedule.T}")
    times, x = range(0, schedule.T, schedule.T // steps), x_0
    for t, t_next in zip(times, [*times[1:], None]):
        eps = denoiser(x, torch.full((len(x),), t, dtype=torch.int64, device=x.device))
        if t_next is not None:
            x = ddim_step(x, eps, t, t_next, schedule, clip_range=model.data_range)
    a, s = schedule.level(t)
    return (x - a * ((x - s * eps) / a).clamp(*model.data_range)) / s


def _described(checkpoint: PathLike):
    return described(checkpoint, "its hyper-parameters have no", "its hyper-parameters describe no such network",
                     "give the config that came with it")


def _read(checkpoint: PathLike, config: PathLike | dict | None) -> tuple[dict, dict, dict]:
    """Averaged weights, the state dict's other tensors, and hyper-parameters."""
    content = read_state(checkpoint, ("state_dict",), CALLBACKS)
    settings = content.get("hyper_parameters") if config is None else config
    if settings is not None and not isinstance(settings, dict):
        settings = read_yaml(settings, ())
    if not isinstance(settings, dict):
        raise CheckpointError(f"{checkpoint}: has no hyper_parameters; give config, the JSON file that came with it")
    state = content["state_dict"]
    weights = part(state, WEIGHTS)
    if not weights:
        raise CheckpointError(f"{checkpoint}: its state_dict has no {WEIGHTS}*; want a checkpoint of Diff-AE's authors")
    return weights, {k: v for k, v in state.items() if not k.startswith((WEIGHTS, "model."))}, dict(settings)


def _unet_config(settings: dict, weights: dict[str, Tensor], coded: bool) -> UNetConfig:
    shape = _shape(settings, weights)
    return UNetConfig(**shape, channel_mult=tuple(settings["net_ch_mult"]),
                      num_res_blocks=settings["net_num_res_blocks"],
                      attention_downsampling=_factors(settings, settings["net_attn"]),
                      time_width=settings["net_beatgans_embed_channels"], z_dim=settings["style_ch"] if coded else None,
                      z_scale_only=coded, learn_variance=len(weights["out.2.weight"]) == 2 * shape["in_channels"])


def _encoder_config(settings: dict, weights: dict[str, Tensor]) -> UNetEncoderConfig:
    if settings.get("net_enc_pool", "adaptivenonzero") != "adaptivenonzero":
        raise ValueError(f"net_enc_pool is {settings['net_enc_pool']!r}; want 'adaptivenonzero'")
    unet = UNetConfig(**_shape(settings, weights),
                      channel_mult=tuple(settings.get("net_enc_channel_mult") or settings["net_ch_mult"]),
                      num_res_blocks=settings["net_enc_num_res_blocks"],
                      attention_downsampling=_factors(settings, settings.get("net_enc_attn") or settings["net_attn"]))
    return UNetEncoderConfig(unet, settings["style_ch"], short_blocks=True)


def _shape(settings: dict, weights: dict[str, Tensor]) -> dict:
    return {"image_size": settings["img_size"], "in_channels": weights["input_blocks.0.0.weight"].shape[1],
            "base_channels": settings["net_ch"], "dropout": settings.get("dropout", 0.0),
            "num_heads": settings.get("net_beatgans_attn_head", 1),
            "resblock_updown": settings.get("net_resblock_updown", True)}


def _factors(settings: dict, sides) -> tuple[int, ...]:
    return tuple(settings["img_size"] // side for side in sides if side <= settings["img_size"])


def _schedule(settings: dict, part: str = "") -> NoiseSchedule:
    name, T = settings.get(f"{part}beta_scheduler", "linear"), settings.get("T", 1000)
    if name.startswith("const"):
        return NoiseSchedule.constant(float(name.removeprefix("const")), T)
    if name not in ("linear", "cosine"):
        raise ValueError(f"{part}beta_scheduler is {name!r}; want 'linear', 'cosine' or 'const…'")
    return NoiseSchedule.cosine(T) if name == "cosine" else NoiseSchedule.linear(T, 0.1 / T, 20 / T)
