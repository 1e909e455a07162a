"""The two forms of what z adds: the difference form, whose second head predicts the noise itself, and the paper's G."""
import copy

import pytest
import torch
from torch import nn

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, as_epsilon, sampling
from pdae_lite.belm import belm, belm_invert
from pdae_lite.checkpoint import load_model
from pdae_lite.guidance import mixed, sweep
from pdae_lite.losses import pdae_loss
from pdae_lite.networks.encoder import EncoderConfig, LabelEncoder
from pdae_lite.presets import PRESETS
from pdae_lite.training import train

SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.2)
T = torch.tensor([0, 30, 99])


def filled(module, seed=0):
    """Weights of 0.2 · N(0, 1) everywhere, so that nothing is zero by accident."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=g)
    return module


def dpm(prediction="epsilon", **changes):
    return as_epsilon(filled(UNet(UNetConfig(16, 1, 8, (1, 2), 1, (2,), **changes))), prediction, SCHEDULE)


def encoder():
    return SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 4))


def pdae(prediction="epsilon", **changes):
    torch.manual_seed(0)
    return PDAE(dpm(prediction, **changes), encoder(), SCHEDULE).eval()


def noise(n=3, seed=2):
    return torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def trained(prediction="epsilon"):
    """One whose second head has moved away from the DPM's."""
    model = pdae(prediction)
    filled(model.estimator, seed=5)
    return model


class Count:
    def __init__(self, module):
        self.count = 0
        module.register_forward_hook(lambda *_: setattr(self, "count", self.count + 1))


@pytest.mark.parametrize("changes", [{}, {"learn_variance": True}, {"patch_size": 2}, {"resblock_updown": False},
                                     {"scale_shift_norm": False}])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "x_0"])
def test_at_the_start_it_is_the_dpm_bit_for_bit(prediction, changes):
    model, z = pdae(prediction, **changes), torch.randn(3, 4)
    assert model.form == "difference"
    assert torch.equal(model.known_eps(noise(), T, z), model.dpm(noise(), T))
    eps, gradient = model(noise(), T, z)
    assert torch.equal(eps, model.dpm(noise(), T)) and not gradient.any()
    for sampler in ("ddim", "ddpm", "dpm_solver"):
        g = [torch.Generator().manual_seed(1) for _ in range(2)]
        want = getattr(sampling, sampler)(model.dpm, noise(), SCHEDULE, 5, generator=g[0])
        assert torch.equal(model.decode(z, noise(), 5, sampler, generator=g[1]), want)


def test_the_copies_are_trained_and_the_dpm_is_not():
    model = pdae()
    assert (all(p.requires_grad for p in model.estimator.parameters())
            and not any(p.requires_grad for p in model.dpm.parameters()))
    before = copy.deepcopy(model.dpm.state_dict())
    data = torch.utils.data.TensorDataset(torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8))
    fresh = copy.deepcopy(model.estimator.state_dict())
    train(model, data, steps=4, batch_size=4, lr=1e-2, ema=0.5, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.dpm.state_dict().items())
    assert any(not torch.equal(v, fresh[k]) for k, v in model.estimator.state_dict().items())


def test_z_matters_after_a_few_steps():
    """z enters at zero in every block and its projections move first."""
    model = pdae().train()
    optimizer = torch.optim.Adam(model.trainable().parameters(), lr=1e-2)
    x_0 = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for step in range(4):
        g = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        pdae_loss(model, x_0, torch.randint(1, 100, (8,), generator=g), torch.randn(x_0.shape, generator=g)).backward()
        optimizer.step()
    with torch.no_grad():
        z = model.encode(x_0)
        a, b = (model.known_eps(x_0, torch.tensor(50), code) for code in (z, z.roll(1, 0)))
    assert (a - b).abs().max() > 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_is_of_the_noise_itself(prediction):
    """E[λ_t ‖ε − ε_z‖²]; the frozen head isn't run."""
    model, z = trained(prediction), torch.randn(3, 4)
    x_0, eps = noise(seed=3).clamp(-1, 1), noise(seed=4)
    head = Count(model.dpm.model.out if prediction == "v" else model.dpm.out)
    loss = pdae_loss(model, x_0, T, eps, z=z)
    assert head.count == 0
    error = (eps - model.known_eps(SCHEDULE.add_noise(x_0, T, eps), T, z)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, (SCHEDULE.loss_weight("pdae")[T] * error).mean())


def test_g_is_the_difference():
    """G = (ε_θ − ε_z)/√(1−ᾱ_t), so that ε̂ = ε_θ − √(1−ᾱ_t) G (eq. 6) is ε_z."""
    model, z = trained("v"), torch.randn(3, 4)
    eps, gradient = model(noise(), T, z)
    rebuilt = eps - SCHEDULE.at("sqrt_one_minus_alpha_bar", T, eps) * gradient
    torch.testing.assert_close(rebuilt, model.denoiser(z)(noise(), T), rtol=1e-4, atol=1e-5)


def test_scale_0_is_the_dpm_and_scale_1_runs_no_frozen_head():
    model, z = trained(), torch.randn(3, 4)
    head, second = Count(model.dpm.out), Count(model.estimator.shift_out)
    assert torch.equal(model.decode(z, noise(), 5, scale=0.0), sampling.ddim(model.dpm, noise(), SCHEDULE, 5))
    assert second.count == 0
    head.count = 0
    model.decode(z, noise(), 5)
    assert (head.count, second.count) == (0, 5)
    mixed_scales = model.denoiser(z, torch.tensor([0.0, 1.0, 2.0]))(noise(), T)
    assert torch.equal(mixed_scales[0], model.dpm(noise(), T)[0]) and head.count == 2
    eps, known = model.dpm(noise(), T), model.known_eps(noise(), T, z)
    torch.testing.assert_close(mixed_scales[1], known[1])
    torch.testing.assert_close(mixed_scales[2], 2 * known[2] - eps[2], rtol=1e-4, atol=1e-5)


def test_intervals_and_off_last():
    model, z = trained(), torch.randn(3, 4)
    second = Count(model.estimator.shift_out)
    early = model.decode(z, noise(), 10, scale=lambda t: t >= 30)
    assert second.count == 7
    assert torch.equal(early, model.decode(z, noise(), 10, off_last=0.3))
    assert sweep(model, z, noise(), [0.0, 1.0, 2.0], steps=4).shape == (3, 3, 1, 16, 16)


@pytest.mark.parametrize("how", ["z", "gradient"])
def test_mixing(how):
    model, a, b = trained(), torch.randn(3, 4), torch.randn(3, 4)
    for weight, z in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(mixed(model, a, b, weight, how)(noise(), T), model.denoiser(z)(noise(), T),
                                   rtol=1e-4, atol=1e-5)
    half = mixed(model, a, b, 0.5, "gradient")(noise(), T)
    want = (model.known_eps(noise(), T, a) + model.known_eps(noise(), T, b)) / 2
    torch.testing.assert_close(half, want, rtol=1e-4, atol=1e-5)


def test_belm_and_inversion():
    model, z = trained(), torch.randn(3, 4)
    x_0 = noise(seed=3).clamp(-1, 1)
    pair = belm_invert(model.denoiser(z), x_0, SCHEDULE, 10)
    torch.testing.assert_close(belm(model.denoiser(z), pair, SCHEDULE, 10), x_0, rtol=1e-3, atol=1e-3)
    assert torch.equal(model.invert(x_0, z, 5), sampling.invert(model.denoiser(z), x_0, SCHEDULE, 5))


def test_a_class_conditional_one():
    model = PDAE(dpm(), LabelEncoder(10, 4), SCHEDULE).eval()
    assert torch.equal(model.decode(model.encode(torch.arange(3)), noise(), 5),
                       sampling.ddim(model.dpm, noise(), SCHEDULE, 5))


def test_a_file_says_its_form(tmp_path):
    for model in (trained("v"), PDAE(dpm(), encoder(), SCHEDULE, form="paper").eval()):
        model.save(tmp_path / "m.safetensors")
        again, z = PDAE.load(tmp_path / "m.safetensors"), torch.randn(3, 4)
        assert again.form == model.form and torch.equal(again.decode(z, noise(), 4), model.decode(z, noise(), 4))


def test_forms_by_default_and_refusals():
    assert PDAE(dpm(), encoder(), SCHEDULE, precondition="v").form == "paper"
    assert PDAE(dpm(), encoder(), SCHEDULE, dpm().gradient_estimator(4)).form == "paper"
    assert PRESETS["digits"].form == PRESETS["peeps64"].form == "difference" and PRESETS["ffhq128"].form == "paper"
    for options, says in (({"form": "direct"}, "form 'direct'; want one of difference, paper"),
                          ({"form": "difference", "precondition": "v"}, "precondition 'v' is the paper's form's")):
        with pytest.raises(ValueError, match=says):
            PDAE(dpm(), encoder(), SCHEDULE, **options)
    for call in (lambda m: m.denoiser(torch.zeros(3, 4), shift="ddpm"),
                 lambda m: m.decode(torch.zeros(3, 4), shift="ddim")):
        with pytest.raises(ValueError, match="this PDAE is in the difference form"):
            call(pdae())


def test_the_schedule_is_the_dpms_own():
    with pytest.raises(ValueError, match="but the DPM's own is"):
        PDAE(dpm("v"), encoder(), NoiseSchedule.linear(100, 1e-3, 0.1))


# ---- a black box -----------------------------------------------------------------------------------------------------


class Box(nn.Module):
    """A foreign network that wants t for each sample."""

    def __init__(self):
        super().__init__()
        self.unet = dpm()

    def forward(self, x_t, t):
        assert t.shape == (len(x_t),)
        return self.unet(x_t, t)


@pytest.mark.parametrize("box", [Box(), lambda x_t, t: 0.9 * x_t], ids=["module", "function"])
def test_a_callable_gets_a_network_beside_it(box, tmp_path):
    model = PDAE(box, encoder(), SCHEDULE).eval()
    z = torch.randn(3, 4)
    with torch.no_grad():
        want = box(noise(), T.clone())
    assert torch.equal(model.known_eps(noise(), T, z), want) and not model(noise(), T, z)[1].any()
    data = torch.utils.data.TensorDataset(torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8))
    train(model, data, steps=3, batch_size=4, lr=1e-2, ema=0.5, progress=False)
    assert (model.decode(z, noise(), 3).isfinite().all() and model.invert(noise().clamp(-1, 1), z, 3).shape
            == (3, 1, 16, 16))
    with torch.no_grad():
        assert torch.equal(model.denoiser(z, scale=0.0)(noise(), T), box(noise(), T))
    model.save(tmp_path / "m.safetensors")
    again = PDAE.load(tmp_path / "m.safetensors", dpm=box)
    torch.testing.assert_close(again.decode(z, noise(), 3), model.decode(z, noise(), 3), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="its DPM is a callable that no file holds; give it, PDAE.load"):
        load_model(tmp_path / "m.safetensors").decode(z, noise(), 3)
    with pytest.raises(ValueError, match="black box"):
        PDAE(box, encoder(), SCHEDULE, form="paper")


# ---- other precisions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["difference", "paper"])
def test_a_model_can_be_cast_as_a_whole(form, dtype):
    torch.manual_seed(0)
    model = PDAE(dpm("v"), encoder(), SCHEDULE, form=form).eval().to(dtype)
    x_0 = noise(seed=3).clamp(-1, 1).to(torch.promote_types(torch.float32, dtype))
    z = model.encode(x_0)
    x_T = model.noise(3, torch.Generator().manual_seed(0))
    assert z.dtype == dtype and x_T.dtype == x_0.dtype and model.schedule.alpha_bar.dtype == torch.float32
    assert model.decode(z, x_T, 4).isfinite().all() and model.invert(x_0, z, 4).isfinite().all()


def test_bf16_by_one_argument_of_decode():
    model, z = trained("v"), torch.randn(3, 4)
    fast, want = model.decode(z, noise(), 5, dtype=torch.bfloat16), model.decode(z, noise(), 5)
    assert fast.dtype == torch.float32 and 0 < (fast - want).abs().mean() < 0.1


def test_encode_decode_and_invert_track_no_gradients():
    model, x_0 = trained(), noise(seed=3).clamp(-1, 1)
    z = model.encode(x_0)
    assert (not z.requires_grad and not model.decode(z, noise(), 3).requires_grad
            and not model.invert(x_0, z, 3).requires_grad)
    assert model.encoder(x_0).requires_grad
