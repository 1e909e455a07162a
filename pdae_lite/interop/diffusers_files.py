"""diffusers in: models with their schedulers and prompts, from memory, folders and the hub's cache."""
import inspect
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, Source, keep_by, tensors_digest
from ..schedule import NoiseSchedule
from ..warning import PDAEWarning
from .diffusers_dpm import DiffusersDPM, cut_of, import_diffusers, supported
from .diffusers_schedulers import Trained, trained_with
from .paths import as_epsilon

FOLDERS = ("unet_ema", "unet", "transformer", "")  # where a model may be
CODECS = ("vae", "vqvae", "movq")
VARIANTS = (None, "fp16", "bf16")  # of the files' names; all are read as float32


def from_diffusers(unet_or_path, scheduler=None, *, keep: str = "value", download: bool = False, prompt: str = "",
                   prompt_embeds: Tensor | None = None, pooled_prompt_embeds: Tensor | None = None,
                   added_cond_kwargs: dict[str, Tensor] | None = None,
                   label: int | None = None) -> tuple[nn.Module, NoiseSchedule]:
    """A diffusers model as a pre-trained DPM: (dpm, schedule), ready for `PDAE(dpm, encoder, schedule)`.

    Args:
        unet_or_path: a `UNet2DModel`, `UNet2DConditionModel`, `DiTTransformer2DModel` or `SD3Transformer2DModel` (used
            as it is, not copied: a PDAE freezes it); the folder of a saved one; the folder of a pipeline that has one;
            or a hub id. Of a folder with `unet` and `unet_ema`, the average is taken.
        scheduler: the diffusers scheduler that the model was trained with. It says the path: betas; or flow matching,
            or EDM, which become one of ours by a division (see `as_epsilon`). A model that predicts something else than
            ε is wrapped. `clip_sample` says whether the data have a range: [−clip_sample_range, clip_sample_range], or
            none; where it says nothing, images are in [−1, 1], and latents (of a pipeline with a codec, or of any
            network but `UNet2DModel`) have none. None: the pipeline's own; for a model that comes without any, the
            DDPM's: linear, 1e-4 … 0.02, T = 1000, ε, [−1, 1].
        keep: what a file of a PDAE holds of the DPM: "value", its weights; "reference", where they are, and their
            SHA-256.
        download: fetch a hub id. Otherwise it has to be in the hub's cache already.
        prompt: of a text-conditional model; a constant of the DPM, encoded once by the pipeline's text encoders.
        prompt_embeds, pooled_prompt_embeds, added_cond_kwargs: in its place, what the network is told: [1, L, D]; for
            `SD3Transformer2DModel` [1, D']; for SDXL {"text_embeds": [1, D'], "time_ids": [1, 6]}.
        label: the class of a class-conditional model, a constant as well; None, for a DiT: its null class.

    Raises:
        ImportError: diffusers (or, for a prompt, transformers) isn't installed.
        ValueError: a network or scheduler of an unsupported kind, or what it is conditional on is missing; names it.
        CheckpointError: nothing there, or a damaged file.
    """
    unet, latents, root = unet_or_path, None, None
    if isinstance(unet_or_path, (str, os.PathLike)):
        path = os.fspath(unet_or_path)
        unet, own, root = read(path, download)
        unet.source = source_of("diffusers", path, unet)
        if scheduler is None and own is None:
            warnings.warn(f"{path} has no scheduler; taking DDPM's linear schedule and prediction of ε. If it was "
                          "trained otherwise, ε is wrong: give scheduler=", PDAEWarning, stacklevel=2)
        scheduler = own if scheduler is None else scheduler
        latents = has_codec(path, download)
    cut_of(unet)
    trained = Trained(NoiseSchedule.linear(), "epsilon") if scheduler is None else trained_with(scheduler)
    given = {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds, **(added_cond_kwargs or {}),
             "label": None if label is None else torch.tensor([label])}
    prompted = type(unet).__name__ in ("UNet2DConditionModel", "SD3Transformer2DModel")
    given["prompt"] = None if prompted else prompt or None  # which then is too much
    if prompt_embeds is None and root is not None and prompted:
        given |= encode_prompt(root, unet, prompt, download)
    free = latents or (latents is None and type(unet).__name__ != "UNet2DModel")
    data_range = trained.clip if trained.clip != "unsaid" else None if free else (-1.0, 1.0)
    dpm = DiffusersDPM(unet, data_range, given)
    keep_by(dpm, keep)
    return as_epsilon(dpm, trained.kind, trained.schedule, **trained.options).train(unet.training), trained.schedule


def source_of(place: str, path: str, model: nn.Module) -> Source:
    """Where a model was read from, for files that are to refer to it."""
    return Source(place, str(Path(path).resolve()) if Path(path).is_dir() else path, tensors_digest(model.state_dict()))


# ---- reading --------------------------------------------------------------------------------------------------------


def weights(source: str) -> dict[str, Tensor]:
    """The weights of the network in a folder or the hub's cache: what a file that refers to it leaves out."""
    return read(source, download=False)[0].state_dict()


def read(source: str, download: bool) -> tuple[nn.Module, object, str]:
    """What a folder or a hub id holds: (network, its scheduler or None, the folder of its pipeline or its own). No
    network access unless `download`."""
    diffusers, local = import_diffusers(), Path(source).is_dir()
    config, folder = find_config(diffusers.UNet2DModel, source, FOLDERS, download)
    if config is None:
        hub = "of the hub" if download else "in the hub's cache"
        what = ("has no model (no config.json, nor unet/config.json or transformer/config.json)" if local else
                f"is neither a folder nor a model {hub}")
        more = "" if local or download else ", or pass download=True to fetch it"
        raise CheckpointError(f"{source} {what}; correct the path{more}")
    if folder == "unet_ema" and (Path(source) / "unet").is_dir():
        warnings.warn(f"{source} has unet and unet_ema; taking the average, unet_ema", PDAEWarning, stacklevel=3)
    root = _root(source)
    if "controlnet" in pipeline_of(root, download):
        raise ValueError(f"{source} is the pipeline of a ControlNet, which is told an image in every step; want none")
    unet = from_pretrained(getattr(diffusers, supported(config.get("_class_name"))), source, folder, download)
    places = [source] if source == root else [source, root]
    found = (find_config(diffusers.DDPMScheduler, place, ("scheduler", ""), download)[0] for place in places)
    settings = next(filter(None, found), None)
    scheduler = None
    if settings is not None:
        kind = getattr(diffusers, settings.get("_class_name", ""), None)
        if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
            name = settings.get("_class_name")
            raise ValueError(f"{source}: scheduler {name!r} isn't one of diffusers {diffusers.__version__}")
        scheduler = kind.from_config(settings)
    return unet, scheduler, root


def from_pretrained(kind: type, source: str, folder: str, download: bool) -> nn.Module:
    """A model of a class of diffusers, from safetensors and nothing else, in any precision.

    Raises:
        CheckpointError: its weights can't be read, or don't fit.
    """
    first = None
    for variant in VARIANTS:
        try:
            model, info = kind.from_pretrained(source, subfolder=folder or None, local_files_only=not download,
                                               low_cpu_mem_usage=False, output_loading_info=True, use_safetensors=True,
                                               variant=variant)
            break
        except Exception as e:  # a foreign file can fail in any way
            first = first or e
    else:
        what = f"the weights can't be read ({_line(first)})"
        if any((Path(source) / folder).glob("*.bin")):
            what = "the weights are a pickle, which could run code; convert them to safetensors (save_pretrained)"
        raise CheckpointError(f"{source}: {what}; copy or download it again") from None
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    if wrong:  # diffusers would only warn, and fill in random numbers
        raise CheckpointError(f"{source}: the weights don't fit config.json ({wrong[0]}); copy or download it again")
    return model


def encode_prompt(root: str, network: nn.Module, prompt: str, download: bool) -> dict[str, Tensor]:
    """What the text encoders of a pipeline say of a prompt: prompt_embeds, and what else `network` is told."""
    diffusers, parts = import_diffusers(), pipeline_of(root, download)
    if not any(parts.get(name, [None])[0] for name in ("text_encoder", "text_encoder_2", "text_encoder_3")):
        raise ValueError(f"{root} has no text encoder; give prompt_embeds= in place of prompt=")
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ImportError("a prompt needs transformers, which isn't installed; pip install 'pdae_lite[text]', or give "
                          "prompt_embeds=") from None
    text = ("text_encoder", "tokenizer", "scheduler")
    absent = {name: None for name, value in parts.items()
              if isinstance(value, list) and (value[0] is None or not name.startswith(text))}
    absent |= {name: network for name in ("unet", "transformer") if name in parts}
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(root, local_files_only=not download,
                                                               use_safetensors=True, **absent)
    except Exception as e:
        raise CheckpointError(f"{root}: its text encoders can't be read ({_line(e)}); copy or download it again, or "
                              "give prompt_embeds=") from None
    wishes = {"prompt": prompt, "prompt_2": None, "prompt_3": None, "device": torch.device("cpu"),
              "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    takes = inspect.signature(pipeline.encode_prompt).parameters
    with torch.no_grad():
        found = pipeline.encode_prompt(**{k: v for k, v in wishes.items() if k in takes})
    told = {"prompt_embeds": found[0]}
    if type(network).__name__ == "SD3Transformer2DModel":
        told["pooled_prompt_embeds"] = found[2]
    elif network.config.addition_embed_type == "text_time":
        codec, _ = find_config(diffusers.AutoencoderKL, root, ("vae",), download)
        side = network.config.sample_size * 2 ** (len((codec or {}).get("block_out_channels", "1234")) - 1)
        ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=found[0].dtype)
        told |= {"text_embeds": found[2], "time_ids": ids}
    return told


def has_codec(source: str, download: bool = False) -> bool:
    """Whether a folder or hub id is a pipeline of latents."""
    return any(part in pipeline_of(_root(source), download) for part in CODECS)


def _root(source: str) -> str:
    """The folder of the pipeline that a model's folder is in: pipeline/unet, pipeline/checkpoint-N/unet_ema; else its
    own."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    above, *higher = folder.resolve().parents
    above = [folder, above] + (higher[:1] if above.name.startswith("checkpoint-") else [])
    return str(next((path for path in above if (path / "model_index.json").is_file()), source))


def pipeline_of(root: str, download: bool) -> dict:
    """A pipeline's parts, [library, class] each; {}: a model without one."""
    if Path(root).is_dir() and not (Path(root) / "model_index.json").is_file():
        return {}
    try:
        return import_diffusers().DiffusionPipeline.load_config(root, local_files_only=not download)
    except (OSError, ValueError):
        return {}


def find_config(kind, source: str, folders: tuple[str, ...], download: bool) -> tuple[dict | None, str]:
    """The configuration of a `kind`, from the first of `folders` that has one, and that folder; None: none has."""
    local = Path(source).is_dir()
    for folder in folders:
        if local and not (Path(source) / folder / kind.config_name).is_file():
            continue
        try:
            return kind.load_config(source, subfolder=folder or None, local_files_only=not download), folder
        except (OSError, ValueError) as e:
            if local:
                raise CheckpointError(f"{source}: {_line(e)}; copy or download it again") from None
    return None, ""


def _line(e: Exception) -> str:
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 200 else text[:199] + "…"
