"""diffusers in: models and schedulers from memory, folders and the hub; and diffusers' schedulers as samplers for our
denoisers. diffusers is imported where it is used.
"""
import inspect
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, Source, keep_by, tensors_digest
from ..networks.dpm import as_epsilon
from ..progress import progress_bar
from ..schedule import NoiseSchedule
from .diffusers_unet import DiffusersDPM, import_diffusers

PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x_0"}


def from_diffusers(unet_or_path, scheduler=None, *, keep: str = "value", download: bool = False) -> tuple[nn.Module, NoiseSchedule]:
    """A diffusers model as a pre-trained DPM: (dpm, schedule), ready for `PDAE(dpm, encoder, schedule)`.

    Args:
        unet_or_path: a `UNet2DModel` (used as it is, not copied: a PDAE freezes it); the folder of a saved one; the
            folder of a pipeline that has one; or a hub id.
        scheduler: the diffusers scheduler that the model was trained with. Its betas become the schedule; a model that
            predicts v or x_0 (its `prediction_type`) is wrapped, so that it predicts ε like any other; `clip_sample`
            says whether the data have a range: [−clip_sample_range, clip_sample_range], or none (latents). None: the
            pipeline's own; for a model that comes without any, the DDPM's: linear, 1e-4 … 0.02, T = 1000, ε, [−1, 1].
        keep: what a file of a PDAE holds of the DPM: "value", its weights; "reference", where they were read from
            and their SHA-256.
        download: fetch a hub id. Otherwise it has to be in the hub's cache already.

    Raises:
        ImportError: diffusers isn't installed.
        ValueError: a network or scheduler of an unsupported kind; names it.
        CheckpointError: nothing there, or a damaged file.
    """
    unet = unet_or_path
    if isinstance(unet_or_path, (str, os.PathLike)):
        path = os.fspath(unet_or_path)
        unet, own = read(path, download)
        unet.source = Source("diffusers", str(Path(path).resolve()) if Path(path).is_dir() else path, tensors_digest(unet.state_dict()))
        scheduler = own if scheduler is None else scheduler
    settings = getattr(scheduler, "config", {})
    prediction = settings.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ValueError(f"scheduler has prediction_type={prediction!r}; want one of {', '.join(PREDICTION_TYPES)}")
    limit = settings.get("clip_sample_range", 1.0) if scheduler is None or settings.get("clip_sample", False) else None
    schedule = NoiseSchedule.linear() if scheduler is None else NoiseSchedule.from_diffusers(scheduler)
    dpm = DiffusersDPM(unet, None if limit is None else (-float(limit), float(limit)))
    keep_by(dpm, keep)
    return as_epsilon(dpm, PREDICTION_TYPES[prediction], schedule).train(unet.training), schedule


# ---- diffusers' schedulers on our denoisers -----------------------------------------------------------------------------


@torch.no_grad()
def sample_with(scheduler, denoiser: Callable[[Tensor, Tensor], Tensor], x_T: Tensor, schedule: NoiseSchedule, steps: int = 20,
                progress: bool = False, generator: torch.Generator | None = None, **options) -> Tensor:
    """Sample from a denoiser, (x_t, t) -> ε, with a diffusers scheduler: DDIM, DPMSolverMultistep, UniPCMultistep, …

    Args:
        scheduler: its settings are followed (spacing of the steps, order of the solver, clipping), but for its betas,
            which become the schedule's, and its `prediction_type`, for a denoiser gives ε. It isn't changed.
        x_T: Gaussian noise [N, …].
        generator, options: passed to its `step`, for schedulers that draw noise or take an `eta`.

    Raises:
        ValueError: a scheduler that evaluates at fractional t, or that has no betas.
    """
    betas = {"trained_betas": schedule.beta.tolist(), "num_train_timesteps": schedule.T}
    parameters = inspect.signature(type(scheduler).__init__).parameters
    if not {*betas, "prediction_type"} <= set(parameters):
        raise ValueError(f"scheduler {type(scheduler).__name__} takes no betas and prediction_type; want one of the DDPM/DDIM family")
    scheduler = type(scheduler).from_config(scheduler.config, prediction_type="epsilon", **betas)
    scheduler.set_timesteps(steps, device=x_T.device)
    if generator is not None and "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    x = x_T * scheduler.init_noise_sigma
    for t in progress_bar(scheduler.timesteps, desc=type(scheduler).__name__, show=progress):
        if t != t.round():
            raise ValueError(f"scheduler {type(scheduler).__name__} evaluates at t = {t:g}; want whole numbers, as timestep_spacing="
                             "'leading' or 'trailing' gives")
        eps = denoiser(scheduler.scale_model_input(x, t), torch.full((len(x),), int(t), dtype=torch.int64, device=x.device))
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x


# ---- reading --------------------------------------------------------------------------------------------------------


def weights(source: str) -> dict[str, Tensor]:
    """The weights of the `UNet2DModel` in a folder or the hub's cache: what a file that refers to it leaves out."""
    return read(source, download=False)[0].state_dict()


def read(source: str, download: bool) -> tuple[nn.Module, object]:
    """What a folder or a hub id holds: (UNet2DModel, its scheduler or None). No network unless `download`."""
    diffusers, local = import_diffusers(), Path(source).is_dir()
    config, folder = _find(diffusers.UNet2DModel, source, ("unet", ""), download)
    if config is None:
        what = "has no UNet2DModel (no config.json, nor unet/config.json)" if local else (
            "is neither a folder nor a model of the hub" if download else "is neither a folder nor a model in the hub's cache")
        raise CheckpointError(f"{source} {what}; correct the path" + ("" if local or download else ", or pass download=True to fetch it"))
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{source}: model {config['_class_name']}; want a UNet2DModel of diffusers (unconditional)")
    try:
        unet, info = diffusers.UNet2DModel.from_pretrained(source, subfolder=folder or None, local_files_only=not download,
                                                           low_cpu_mem_usage=False, output_loading_info=True)
    except Exception as e:  # a foreign file can fail in any way
        raise CheckpointError(f"{source}: the weights can't be read ({_line(e)}); copy or download it again") from None
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    if wrong:  # diffusers would only warn, and fill in random numbers
        raise CheckpointError(f"{source}: the weights don't fit config.json ({wrong[0]}); copy or download it again")
    inside = local and (Path(source).parent / "model_index.json").is_file()  # a pipeline's model, given by its own folder
    settings, _ = _find(diffusers.DDPMScheduler, str(Path(source).parent) if inside else source, ("scheduler", ""), download)
    scheduler = None
    if settings is not None:
        kind = getattr(diffusers, settings.get("_class_name", ""), None)
        if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin)):
            raise ValueError(f"{source}: scheduler {settings.get('_class_name')!r} isn't one of diffusers {diffusers.__version__}")
        scheduler = kind.from_config(settings)
    return unet, scheduler


def _find(kind, source: str, folders: tuple[str, ...], download: bool) -> tuple[dict | None, str]:
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
