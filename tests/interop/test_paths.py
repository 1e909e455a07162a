"""Flow matching and EDM as noise predictors: against the raw network by formula, and against diffusers' first-order
samplers."""
import math
from typing import NamedTuple

import pytest
import torch
from refusals import refuses
from small_unets import Linear, diffusers, random, unet

from pdae_lite import PDAE, NoiseSchedule, UNet, UNetConfig, as_epsilon, interop, sampling
from pdae_lite.checkpoint import load_model, save_model
from pdae_lite.commands.main import main
from pdae_lite.interop.references import load_dpm
from pdae_lite.losses import dpm_loss, pdae_loss

pytestmark = pytest.mark.filterwarnings(  # of diffusers' own making
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

ALL = torch.tensor([0, 1, 10, 100, 500, 900, 999])
SCHEDULERS = {
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
    "flow, shifted": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False),
    "flow of UniPC": lambda: diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                                               flow_shift=2.0),
    "edm": lambda: diffusers.EDMEulerScheduler(),
    "edm, exponential v": lambda: diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.01, sigma_max=50, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction",
        solver_order=1),
}


class Heard(NamedTuple):
    x_t: torch.Tensor
    t: torch.Tensor
    given: torch.Tensor
    told: torch.Tensor


class Listens(torch.nn.Module):
    """A network that keeps what it is given and told."""

    config = data_range = None

    def trunk(self, x_t, t):
        return Heard(x_t, t, x_t, t)


@pytest.fixture(params=SCHEDULERS)
def family(request):
    """(the raw network, the DPM, its schedule, the scheduler)"""
    model, scheduler = unet("celebahq"), SCHEDULERS[request.param]()
    return model, *interop.from_diffusers(model, scheduler), scheduler


def level(schedule, t):
    return [torch.tensor(v, dtype=torch.float64)[:, None, None, None]
            for v in zip(*(schedule.level(int(i)) for i in t))]


def test_against_the_raw_network_by_formula(family):
    model, dpm, schedule, scheduler = family
    x = random("celebahq", len(ALL)).double()
    a, s = level(schedule, ALL)
    with torch.no_grad():
        if dpm.prediction == "flow":  # path (1−τ) x_0 + τ ε, u on it, v = ε − x_0
            tau = s / (a + s)
            u = x * ((1 - tau) ** 2 + tau**2).sqrt()
            want = u + (1 - tau) * model(u.float(), (1000 * tau).flatten().float()).sample
        else:  # Karras et al. (2022), eq. 7: D, and ε = (x − D)/σ
            sigma, c = s / a, scheduler.config
            path, width = x * (1 + sigma**2).sqrt(), (sigma**2 + c.sigma_data**2).sqrt()
            f = model((path / width).float(), (sigma.log() / 4).flatten().float()).sample
            f = f if c.prediction_type == "epsilon" else -f
            want = (path - c.sigma_data**2 / width**2 * path - sigma * c.sigma_data / width * f) / sigma
        got = dpm(x.float(), ALL)
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=2e-5)
    assert want.abs().max() > 0.5


def test_first_order_samplers_are_ddim(family):
    """On the same points: diffusers' steps on its path, ours behind the division. `set_timesteps` would place them
    otherwise."""
    model, dpm, schedule, scheduler = family
    grid = [0, 50, 200, 500, 800, 999]
    a, s = (v.flatten() for v in level(schedule, torch.tensor(grid[::-1])))
    points = s / (a + s) if dpm.prediction == "flow" else s / a
    scale = 1 / (a + s) if dpm.prediction == "flow" else 1 / a  # of the path, to ours
    name = type(scheduler).__name__
    if name == "UniPCMultistepScheduler":
        scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
                                                      solver_order=1, disable_corrector=list(range(10)))
    scheduler.set_timesteps(len(grid))
    scheduler.sigmas = torch.cat([points, torch.zeros(1, dtype=torch.float64)]).float()
    scheduler.timesteps = (1000 * points if dpm.prediction == "flow" else points.log() / 4).float()
    x_T = random("celebahq", 2)
    x = scale[0].float() * x_T
    with torch.no_grad():
        for t in scheduler.timesteps:
            inside = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(model(inside, t.expand(2)).sample, t, x).prev_sample
    got = sampling.ddim(dpm, x_T, schedule, grid=grid, clip=False)
    assert (got - x_T).abs().max() > 0.1
    torch.testing.assert_close(got, x, rtol=1e-3, atol=1e-3)


def test_schedules(family):
    _, dpm, schedule, scheduler = family
    assert schedule.T == 1000 and schedule.alpha_bar[-1] > 1e-10
    assert NoiseSchedule.from_config(schedule.to_config()).same_as(schedule)
    a, s = (v.flatten() for v in level(schedule, torch.arange(1000)))
    if dpm.prediction == "flow":
        r = (torch.arange(1000, dtype=torch.float64) + 1) / 1001
        shift = scheduler.config.get("shift", scheduler.config.get("flow_shift"))
        torch.testing.assert_close(s / (a + s), shift * r / (1 + (shift - 1) * r), rtol=1e-10, atol=0)
    else:
        theirs = scheduler.sigmas[:-1].double().flip(0)  # 1000 or 1001 points of the same curve
        sigma = (s / a).numpy()
        assert math.isclose(sigma[0], scheduler.config.sigma_min, rel_tol=1e-9)
        assert math.isclose(sigma[-1], scheduler.config.sigma_max, rel_tol=1e-9)
        at = torch.arange(1000, dtype=torch.float64) * (len(theirs) - 1) / 999  # position on theirs
        low = at.floor().long().clamp(max=len(theirs) - 2)
        between = theirs[low].log() + (at - low) * (theirs[low + 1].log() - theirs[low].log())
        torch.testing.assert_close((s / a).log(), between, rtol=0, atol=1e-3)
    assert dpm.data_range == (-1.0, 1.0)  # images, and no clip_sample


def test_told_times_are_exact_where_float32_is_not():
    dpm = as_epsilon(Listens(), "edm", schedule := interop.edm_schedule())
    told = dpm.trunk(random("celebahq", 1), torch.tensor([0])).told
    assert math.isclose(float(told), math.log(0.002) / 4, rel_tol=1e-6)
    from_float32 = math.log(math.sqrt((1 - float(schedule.alpha_bar[0])) / float(schedule.alpha_bar[0]))) / 4
    assert abs(from_float32 - float(told)) > 1e-4


@pytest.mark.parametrize(("kind", "schedule"),
                         [("flow", interop.flow_schedule(100, 2.0)), ("edm", interop.edm_schedule(100)),
                          ("flow", NoiseSchedule.linear(100))])
def test_ones_own_network(kind, schedule, tmp_path):
    torch.manual_seed(0)
    net = UNet(UNetConfig(16, 3, 8, (1, 2), 1, ()))
    torch.nn.init.normal_(net.out[-1].weight, std=0.3)
    dpm = as_epsilon(net.eval(), kind, schedule, **({"sigma_data": 0.7} if kind == "edm" else {}))
    x, t = random("celebahq"), torch.tensor([0, 50, 99])
    assert torch.allclose(dpm(x, torch.tensor(50)), dpm(x, torch.tensor([50] * 3)), atol=1e-6)
    save_model(tmp_path / "dpm.safetensors", dpm)
    loaded = load_model(tmp_path / "dpm.safetensors")
    assert torch.equal(loaded(x, t), dpm(x, t)) and loaded.options == dpm.options
    pdae = PDAE(dpm, Linear(x[0].numel()), schedule, dpm.gradient_estimator(4))
    with torch.no_grad():
        assert torch.equal(pdae.decode(torch.ones(3, 4), x, steps=3), sampling.ddim(dpm, x, schedule, 3))
    pdae_loss(pdae, x.clamp(-1, 1), t, x).backward()
    assert pdae.estimator.shift_out[-1].weight.grad.abs().max() > 0


def test_an_ideal_network_on_each_path():
    """Unit Gaussian data: ε = √(1−ᾱ) x_t in our coordinates; v of flow and F of EDM are linear, too, and come out as
    that."""
    x, t = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 300, 999])
    for kind, schedule in (("flow", interop.flow_schedule()), ("edm", interop.edm_schedule())):
        door = as_epsilon(Listens(), kind, schedule)
        a, s = level(schedule, t)
        u = door.trunk(x, t).given
        if kind == "flow":  # E[ε − x_0 | x_t] = (s − a) x_t
            output = ((s - a) * x).float()
        else:  # D = a² path, so F = (D − c_skip path)/c_out
            sigma, path, width2 = s / a, x / a, (s / a) ** 2 + 0.25
            output = ((a**2 - 0.25 / width2) * path / (sigma * 0.5 / width2.sqrt())).float()
        torch.testing.assert_close(door.convert(output, door.trunk(x, t)), (s * x).float(), rtol=1e-4, atol=1e-5)
        assert u.abs().max() < 10


def test_a_dpm_is_trained_by_flow_matching(tmp_path):
    """`--set prediction=flow --weight flow`: what is minimised is the mean of |v − (ε − x_0)|², over uniform τ."""
    small = "--set unet.base_channels=8 --set unet.channel_mult=1,1 --set train.augment=none --steps 2 --batch-size 4"
    short = "--precision no --set prediction=flow --weight flow"
    assert main(["pretrain", "--data", "digits", *small.split(), *short.split(), "--out", str(tmp_path / "dpm")]) == 0
    dpm, schedule = load_dpm(str(tmp_path / "dpm" / "model.safetensors"))
    assert schedule.same_as(interop.flow_schedule()) and dpm.prediction == "flow"
    x_0, t = random("gray", 7).clamp(-1, 1).repeat(1, 1, 2, 2), ALL
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(3))
    tau = ((t + 1) / 1001).view(-1, 1, 1, 1)
    with torch.no_grad():
        v = dpm.model((1 - tau) * x_0 + tau * eps, 1000 * tau.flatten())
        want = (v - (eps - x_0)).square().mean()
        assert dpm_loss(dpm, x_0, t, eps, schedule, "flow") == pytest.approx(float(want), rel=2e-3)


def test_refusals():
    model = unet("celebahq")
    for scheduler, message in [
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas=True"),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas=True: it doesn't say what path"),
        (diffusers.IPNDMScheduler(), "IPNDMScheduler has prediction_type=None"),
        (diffusers.ScoreSdeVeScheduler(), "ScoreSdeVeScheduler is of a variance-exploding model"),
        (diffusers.DDIMScheduler, "scheduler is the class DDIMScheduler; make it with"),
        (diffusers.DDIMScheduler().config, "scheduler is a dict"),
        ({"_class_name": "PNDMScheduler"}, r"make it with PNDMScheduler.from_config"),
        ("ddim", "scheduler is str; want one of diffusers' schedulers"),
    ]:
        refuses(message, interop.from_diffusers, model, scheduler)
        refuses("scheduler", interop.sample_with, scheduler, None, None, NoiseSchedule.linear())
    refuses("prediction 'score'; want one of epsilon, v, x_0, flow, edm", as_epsilon, model, "score",
            NoiseSchedule.linear())
    refuses("sigma_min=3, sigma_max=2", interop.edm_schedule, 10, 3, 2)
