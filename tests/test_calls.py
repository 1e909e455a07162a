"""No wasted work: how often each part of a network runs, and on how many images."""
import pytest
import torch
from guided_parts import SCHEDULE, T_BATCH, Y, classifier, codes, dpm, filled, noise, pdae

from pdae_lite import sampling
from pdae_lite.applications.latent import LatentConfig, LatentDPM
from pdae_lite.belm import belm, belm_invert
from pdae_lite.guidance import guided, mixed, staged, sweep
from pdae_lite.networks.dpm import per_sample
from pdae_lite.speed import accelerate


class Calls:
    """The number of rows of each call's first argument."""

    def __init__(self, module, method=None):
        self.rows = []
        if method is None:
            module.register_forward_pre_hook(lambda _, args: self.rows.append(len(args[0])))
        else:
            function = getattr(module, method)
            setattr(module, method, lambda x, *rest: self.rows.append(len(x)) or function(x, *rest))


def watched():
    """A PDAE, and the calls of its trunk, head, estimator and time embedding."""
    model = pdae()
    return model, Calls(model.dpm,
                        "trunk"), Calls(model.dpm.out), Calls(model.estimator.shift_out), Calls(model.dpm.time_embed)


RUNS = {"ddim": lambda d, x: sampling.ddim(d, x, SCHEDULE, 6), "ddpm": lambda d, x: sampling.ddpm(d, x, SCHEDULE, 6),
        "dpm_solver": lambda d, x: sampling.dpm_solver(d, x, SCHEDULE, 6),
        "corrected": lambda d, x: sampling.dpm_solver(d, x, SCHEDULE, 6, correct=True),
        "invert": lambda d, x: sampling.invert(d, x, SCHEDULE, 6),
        "invert 2": lambda d, x: sampling.invert(d, x, SCHEDULE, 6, order=2),
        "belm": lambda d, x: belm(d, x, SCHEDULE, 6),
        "belm_invert": lambda d, x: belm_invert(d, x, SCHEDULE, 6)}


@pytest.mark.parametrize("run", RUNS)
def test_one_evaluation_a_step_and_one_row_of_time(run):
    model, trunk, head, shift, time = watched()
    RUNS[run](model.denoiser(codes()), noise())
    assert trunk.rows == head.rows == shift.rows == [3] * 6
    assert time.rows == [1] * 6  # t is embedded once for the whole batch


def with_latent():
    """A latent DPM, its noise, and the calls of its time embedding."""
    torch.manual_seed(0)
    model = LatentDPM(LatentConfig(z_dim=4, layers=3, width=8, time_channels=8), SCHEDULE).eval()
    return model, codes(), Calls(model.time_embed)


def with_diffusers():
    """A DPM from diffusers, its noise, and the calls of its time embedding."""
    pytest.importorskip("diffusers")
    from small_unets import random, unet

    from pdae_lite.interop import from_diffusers

    model = from_diffusers(unet("celebahq"))[0]
    return model, random("celebahq"), Calls(model.unet.time_embedding)


@pytest.mark.parametrize("make", [with_latent, with_diffusers])
@pytest.mark.parametrize("run", RUNS)
def test_one_row_of_time_in_other_networks(make, run):
    model, x, time = make()
    RUNS[run](model, x)
    assert time.rows == [1] * 6


def with_unet():
    """A plain DPM, its noise, and the calls of its time embedding."""
    model = dpm()
    return model, noise(), Calls(model.time_embed)


@pytest.mark.parametrize("make", [with_latent, with_diffusers, with_unet])
def test_t_is_an_int_a_0d_tensor_or_one_for_each(make):
    model, x, time = make()
    with torch.no_grad():
        given = [model(x, t) for t in (30, torch.tensor(30), torch.full((len(x),), 30))]
    assert time.rows == [1, 1, len(x)] and torch.equal(given[0], given[1])
    torch.testing.assert_close(given[0], given[2], rtol=1e-4, atol=1e-5)


def test_a_foreign_callable_may_want_t_for_each_sample():
    def foreign(x_t, t):
        assert t.shape == (len(x_t),) and t.dtype == torch.int64
        return x_t * t.reshape(-1, 1, 1, 1) / 100

    wrapped = per_sample(foreign)
    assert torch.equal(wrapped(noise(), 30), foreign(noise(), torch.full((3,), 30)))
    assert sampling.ddim(wrapped, noise(), SCHEDULE, 6).isfinite().all()


def test_the_estimator_runs_only_where_its_scale_is_not_0():
    model, trunk, head, shift, _ = watched()
    scale = torch.tensor([0.0, 1.0, 2.0])
    some = model.decode(codes(), noise(), 6, scale=scale)
    assert trunk.rows == head.rows == shift.rows == [3] * 6
    plain = pdae()
    for i in range(3):
        torch.testing.assert_close(some[[i]], plain.decode(codes()[[i]], noise()[[i]], 6, scale=float(scale[i])),
                                   rtol=1e-4, atol=1e-5)
    shift.rows.clear()
    model.decode(codes(), noise(), 6, scale=0.0)
    model.decode(codes(), noise(), 6, off_last=1.0)
    assert shift.rows == []
    model.decode(codes(), noise(), 6, scale=lambda t: 1.0 * (t >= 50))
    assert shift.rows == [3] * 3
    one = torch.tensor([1.0, 0.0, 1.0])
    want = model.denoiser(codes(1).expand(3, -1), one)(noise(), T_BATCH)
    torch.testing.assert_close(model.denoiser(codes(1), one)(noise(), T_BATCH), want)


@pytest.mark.parametrize("how", ["z", "gradient"])
def test_a_mix_of_two_codes(how):
    model, trunk, head, shift, time = watched()
    sampling.ddim(mixed(model, codes(), codes(seed=4), 0.5, how), noise(), SCHEDULE, 6)
    assert trunk.rows == head.rows == [3] * 6 and time.rows == [1] * 6
    assert shift.rows == [6 if how == "gradient" else 3] * 6
    shift.rows.clear()
    scale = torch.tensor([1.0, 0.0, 1.0])
    got = mixed(model, codes(), codes(seed=4), torch.tensor([0.2, 0.5, 0.8]), how, scale=scale)(noise(), T_BATCH)
    assert shift.rows == [6 if how == "gradient" else 3]
    want = mixed(model, codes(), codes(seed=4), torch.tensor([0.2, 0.5, 0.8]), how)(noise(), T_BATCH)
    torch.testing.assert_close(got[[0, 2]], want[[0, 2]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[1], model.dpm(noise(), T_BATCH)[1], rtol=1e-4, atol=1e-5)


def test_a_sweep_of_scales_shares_a_batch():
    model, trunk, head, shift, time = watched()
    images = sweep(model, codes(), noise(), [0.0, 1.0, 2.0], steps=6)
    assert images.shape == (3, 3, 1, 8, 8)
    assert trunk.rows == head.rows == shift.rows == [9] * 6 and time.rows == [1] * 6
    for scale, image in zip((0.0, 1.0, 2.0), images):
        torch.testing.assert_close(image, pdae().decode(codes(), noise(), 6, scale=scale), rtol=1e-4, atol=1e-5)
    one = sweep(model, codes(1), noise(), torch.tensor([1.0]), steps=6, sampler="dpm_solver")
    torch.testing.assert_close(one[0], pdae().decode(codes(1), noise(), 6, "dpm_solver"), rtol=1e-4, atol=1e-5)


def test_guidance_runs_no_classifier_where_no_row_wants_it():
    network, plain = filled(classifier()), dpm()
    calls = Calls(network)
    got = guided(plain, network, Y, SCHEDULE, scale=torch.tensor([0.0, 1.0, 0.0]))(noise(), T_BATCH)
    assert calls.rows == [3]
    torch.testing.assert_close(got[[0, 2]], plain(noise(), T_BATCH)[[0, 2]])
    want = guided(plain, network, Y, SCHEDULE)(noise(), T_BATCH)
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-5)
    calls.rows.clear()
    off_early = guided(plain, network, Y, SCHEDULE, scale=lambda t: 1.0 * (t > 50))
    assert torch.equal(off_early(noise(), 30), plain(noise(), 30)) and not calls.rows


def test_stages_run_one_denoiser_a_step():
    inside, outside = [], []
    both = staged(lambda x, t: inside.append(int(t)) or x, lambda x, t: outside.append(int(t)) or x, 40, 70)
    sampling.ddim(both, noise(), SCHEDULE, 10)
    assert sorted(inside + outside) == list(range(9, 100, 10)) and inside == [69, 59, 49]


# ---- for sampling only ----------------------------------------------------------------------------------------------


def test_low_precision_is_of_the_networks_alone():
    model = pdae()
    fast = accelerate(model, torch.bfloat16)
    assert next(fast.dpm.parameters()).dtype == next(fast.estimator.parameters()).dtype == torch.bfloat16
    assert fast.dpm.out[0].weight.dtype == torch.float32  # norms stay precise
    assert next(fast.encoder.parameters()).dtype == torch.float32 == next(model.dpm.parameters()).dtype
    image, want = fast.decode(codes(), noise(), 6), model.decode(codes(), noise(), 6)
    assert image.dtype == torch.float32
    assert 0 < (image - want).abs().mean() < 0.1 * want.std()


def test_compiled_parts_are_traced_once(monkeypatch):
    """Each part is one graph, traced once a shape, whatever t is: tried with a compiler that only traces."""
    traced, real = [], torch.compile

    def tracer(graph, inputs):
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile",
                        lambda f, mode=None, **options: real(f, backend=tracer, fullgraph=True, **options))
    torch._dynamo.reset()
    model = pdae()
    fast = accelerate(model, compile=True)
    for steps in (6, 4):
        torch.testing.assert_close(fast.decode(codes(), noise(), steps), model.decode(codes(), noise(), steps),
                                   rtol=1e-4, atol=2e-4)
    assert len(traced) == 3  # trunk, head, estimator
    assert accelerate(dpm(), compile=True)(noise(), T_BATCH).shape == noise().shape
    torch._dynamo.reset()


def test_graphs_want_a_gpu():
    with pytest.raises(ValueError, match="graphs=True with compile=True on cpu; CUDA graphs want compile=True on cuda"):
        accelerate(dpm(), compile=True, graphs=True)
