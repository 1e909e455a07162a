"""diffusers' schedulers: the path that a model was trained on, and samplers for our denoisers."""
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..progress import progress_bar
from ..schedule import NoiseSchedule
from .paths import edm_schedule, flow_schedule

PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x_0"}
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
ADVICE = "make it with {0}(…) or {0}.from_pretrained(folder)"


@dataclass(frozen=True)
class Trained:
    """What a scheduler says of the model that was trained with it: the schedule; what it predicts, for `as_epsilon`;
    the range that it clips data to; None: it clips nothing."""

    schedule: NoiseSchedule
    kind: str
    options: dict = field(default_factory=dict)
    clip: tuple[float, float] | str | None = "unsaid"


def trained_with(scheduler) -> Trained:
    """What a scheduler says of the model that was trained with it, or a ValueError that names what isn't supported."""
    check_scheduler(scheduler)
    name, config = type(scheduler).__name__, scheduler.config
    T = config.get("num_train_timesteps", 1000)
    if config.get("invert_sigmas", False):  # of flow matching alone
        raise ValueError(f"scheduler {name} has invert_sigmas=True, a path from noise at 0 to data at 1; supported is "
                         "its inverse")
    if name in FLOWS:
        return Trained(flow_schedule(T, config["shift"]), "flow", {"told": T})
    if name in EDM:
        options = {"sigma_data": config["sigma_data"], "sign": -1 if config["prediction_type"] == "epsilon" else 1}
        sigmas = (config["sigma_min"], config["sigma_max"], config["rho"], config["sigma_schedule"])
        return Trained(edm_schedule(T, *sigmas), "edm", options)
    prediction = config.get("prediction_type")
    if prediction == "flow_prediction" and "flow_shift" in config:
        return Trained(flow_schedule(T, config["flow_shift"]), "flow", {"told": T})
    flows = config.get("use_flow_sigmas", False)
    if prediction not in PREDICTION_TYPES or flows or getattr(scheduler, "betas", None) is None:
        says = f"prediction_type={prediction!r}" + (", use_flow_sigmas=True" if flows else "")
        raise ValueError(f"scheduler {name} has {says}: it doesn't say what path the model was trained on; give one of "
                         f"the DDPM and DDIM family ({', '.join(PREDICTION_TYPES)}), of flow matching or of EDM")
    limit = float(config.get("clip_sample_range", 1.0))
    clip = {True: (-limit, limit), False: None}.get(config.get("clip_sample"), "unsaid")  # many have no such setting
    return Trained(NoiseSchedule.from_diffusers(scheduler), PREDICTION_TYPES[prediction], clip=clip)


def check_scheduler(scheduler) -> None:
    """Raise a ValueError unless it is a scheduler, rather than a class or the configuration of one."""
    if inspect.isclass(scheduler):
        raise ValueError(f"scheduler is the class {scheduler.__name__}; {ADVICE.format(scheduler.__name__)}")
    if isinstance(scheduler, dict):
        name = scheduler.get("_class_name", "DDPMScheduler")
        raise ValueError(f"scheduler is a dict, the configuration of one; make it with {name}.from_config(…)")
    if "SdeVe" in type(scheduler).__name__:
        raise ValueError(f"scheduler {type(scheduler).__name__} is of a variance-exploding model (NCSN++), which lives "
                         "in [0, 1] and divides by σ inside; supported are variance-preserving models, flow matching "
                         "and EDM")
    if not hasattr(scheduler, "config") or not hasattr(scheduler, "step"):
        raise ValueError(f"scheduler is {type(scheduler).__name__}; want one of diffusers' schedulers")


@torch.no_grad()
def sample_with(scheduler, denoiser: Callable[[Tensor, Tensor], Tensor], x_T: Tensor, schedule: NoiseSchedule,
                steps: int = 20, progress: bool = False, generator: torch.Generator | None = None, **options) -> Tensor:
    """Sample from a denoiser, (x_t, t) -> ε, with a diffusers scheduler: DDIM, DPMSolverMultistep, UniPCMultistep, …

    Args:
        scheduler: its settings are followed (spacing of the steps, order of the solver, clipping), but for its betas,
            which become the schedule's, and its `prediction_type`, for a denoiser gives ε. It isn't changed.
        x_T: Gaussian noise [N, …].
        generator, options: passed to its `step`, for schedulers that draw noise or take an `eta`.

    Raises:
        ValueError: no scheduler; one that evaluates at fractional t, that has no betas, or whose settings belong to
            another path or to a network with a learned variance.
    """
    check_scheduler(scheduler)
    name, config = type(scheduler).__name__, scheduler.config
    ours = {"trained_betas": schedule.beta.tolist(), "num_train_timesteps": schedule.T, "prediction_type": "epsilon"}
    parameters = inspect.signature(type(scheduler).__init__).parameters
    if not set(ours) <= set(parameters):
        raise ValueError(f"scheduler {name} takes no betas and prediction_type; want one of the DDPM/DDIM family")
    if config.get("use_flow_sigmas", False):
        raise ValueError(f"scheduler {name} has use_flow_sigmas=True, another path than the schedule's; want False")
    if str(config.get("variance_type")).startswith("learned"):
        raise ValueError(f"scheduler {name} has variance_type={config['variance_type']!r}, but a denoiser gives no "
                         "variance; want 'fixed_small' or 'fixed_large'")
    if "rescale_betas_zero_snr" in parameters:  # it would change the schedule's betas
        ours["rescale_betas_zero_snr"] = False
    wanted = [p.name for p in inspect.signature(scheduler.step).parameters.values() if p.default is p.empty]
    if wanted != ["model_output", "timestep", "sample"]:
        raise ValueError(f"scheduler {name}'s step takes {', '.join(wanted)}; want one of the DDPM/DDIM family")
    scheduler = type(scheduler).from_config(config, **ours)
    scheduler.set_timesteps(steps, device=x_T.device)
    if generator is not None and "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    x = x_T * scheduler.init_noise_sigma
    for t in progress_bar(scheduler.timesteps, desc=name, show=progress):
        if t != t.round():
            raise ValueError(f"scheduler {name} evaluates at t = {t:g}; want whole numbers, as "
                             "timestep_spacing='leading' or 'trailing' gives")
        now = torch.full((len(x),), int(t), dtype=torch.int64, device=x.device)
        eps = denoiser(scheduler.scale_model_input(x, t), now)
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x
