"""Settings that others wrote: any scheduler of diffusers with any settings is followed as it says, or refused in one
line."""
import inspect
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_unets import T, diffusers, unet

from pdae_lite import NoiseSchedule, interop

KINDS = sorted(name for name in dir(diffusers) if name.endswith("Scheduler")
               and inspect.isclass(getattr(diffusers, name))
               and hasattr(getattr(diffusers, name), "from_config") and "Flax" not in name and name != "SchedulerMixin")
VALUES = {"prediction_type": ["epsilon", "v_prediction", "sample", "flow_prediction"],
          "beta_schedule": ["linear", "scaled_linear",
          "squaredcos_cap_v2"], "timestep_spacing": ["leading", "trailing", "linspace"],
          "variance_type": ["fixed_small", "fixed_large",
          "learned", "learned_range"], "algorithm_type": ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"],
          "solver_order": [1, 2, 3],
          "final_sigmas_type": ["zero", "sigma_min"], "shift": [1.0, 3.0], "beta_end": [0.02, 0.2],
          "clip_sample_range": [1.0, 2.0]}
FLAGS = ("clip_sample", "thresholding", "use_karras_sigmas", "use_exponential_sigmas", "use_flow_sigmas",
         "rescale_betas_zero_snr", "invert_sigmas", "set_alpha_to_one", "steps_offset", "skip_prk_steps")
SCHEDULE = NoiseSchedule.linear(T, 1e-3, 0.1)


@st.composite
def schedulers(draw):
    """A scheduler with some of its settings drawn; diffusers may refuse them itself."""
    kind = getattr(diffusers, draw(st.sampled_from(KINDS)))
    known = inspect.signature(kind.__init__).parameters
    drawn = {"num_train_timesteps": T} if "num_train_timesteps" in known else {}
    for name in draw(st.lists(st.sampled_from([*VALUES, *FLAGS]), max_size=4, unique=True)):
        if name in known:
            drawn[name] = draw(st.sampled_from(VALUES.get(name, [False, True])))
    return kind, drawn


def made(kind, drawn):
    """The scheduler, or None where diffusers doesn't make one: it refuses settings by any of these errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(**drawn)
    except (ValueError, NotImplementedError, ImportError, AssertionError, TypeError):
        return None


@pytest.fixture(scope="module")
def network():
    return unet("celebahq")


@settings(derandomize=True, deadline=None, max_examples=250)
@given(schedulers())
def test_any_scheduler_is_followed_or_refused(network, drawn):
    scheduler = made(*drawn)
    if scheduler is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dpm, schedule = interop.from_diffusers(network, scheduler)
    except ValueError as e:
        assert "\n" not in str(e) and ("scheduler" in str(e) or "schedule" in str(e)), e
        return
    config, name = scheduler.config, drawn[0].__name__
    if config.get("prediction_type") in ("epsilon", "v_prediction", "sample") and "EDM" not in name:
        assert torch.allclose(schedule.beta, scheduler.betas.float(), atol=1e-7)
        means = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x_0"}[config["prediction_type"]]
        assert means == getattr(dpm, "prediction", "epsilon")
        if "clip_sample" in config:  # said
            limit = config.get("clip_sample_range", 1.0)
            assert dpm.data_range == ((-limit, limit) if config["clip_sample"] else None)
        else:  # not said isn't no
            assert dpm.data_range == (-1.0, 1.0)


@settings(derandomize=True, deadline=None, max_examples=250)
@given(schedulers(), st.integers(2, 6))
def test_any_scheduler_samples_on_the_schedule_or_is_refused(drawn, steps):
    """On unit Gaussian data ε = √(1−ᾱ) x_t is exact: a sampler that used other betas would change the spread of x."""
    scheduler, told = made(*drawn), []
    if scheduler is None:
        return
    before = dict(scheduler.config)

    def denoiser(x, t):
        told.extend(t.tolist())
        return SCHEDULE.at("sqrt_one_minus_alpha_bar", t, x) * x

    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = interop.sample_with(scheduler, denoiser, x_T, SCHEDULE, steps,
                                    generator=torch.Generator().manual_seed(1))
    except (ValueError, ImportError) as e:
        assert "\n" not in str(e).strip(), e
        return
    assert x.shape == x_T.shape and bool(x.isfinite().all()) and told and all(0 <= t < T for t in told)
    assert dict(scheduler.config) == before
