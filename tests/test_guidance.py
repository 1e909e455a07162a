"""Denoisers made from other denoisers, against closed forms where every answer is known."""
import pytest
import torch
from guided_parts import (
    MIXTURE,
    SCHEDULE,
    T_BATCH,
    K,
    Y,
    at,
    classifier,
    codes,
    dpm,
    filled,
    noise,
    noisy,
    patterns,
    pdae,
    similarity,
    untrained,
)
from torch.utils.data import TensorDataset

from pdae_lite import sampling
from pdae_lite.guidance import guided, mixed, staged
from pdae_lite.networks.classifier import ClassifierConfig, classifier_gradient
from pdae_lite.networks.encoder import LabelEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.schedule import NoiseSchedule
from pdae_lite.training import train


class Calls:
    """A denoiser or a module that counts its calls and remembers the size of the last batch."""

    def __init__(self, function):
        self.function, self.count, self.n = function, 0, 0

    def __call__(self, x_t, *rest):
        self.count, self.n = self.count + 1, len(x_t)
        return self.function(x_t, *rest)


def spy(monkeypatch, module, name="forward"):
    calls = Calls(getattr(module, name))
    monkeypatch.setattr(module, name, calls)
    return calls


# ---- an ideal denoiser: every answer in closed form ------------------------------------------------------------------


def test_guidance_at_scale_1_makes_the_ideal_denoiser_class_conditional():
    """Eq. (6), ε̂ = ε − √(1−ᾱ_t) ∇ log p(y | x_t), is Bayes' rule."""
    x_t, t, y = noisy()
    for target in (y, (y + 1) % K):
        eps_hat = guided(MIXTURE.eps, MIXTURE.log_joint, target, SCHEDULE)(x_t, t)
        torch.testing.assert_close(eps_hat, MIXTURE.eps(x_t, t, target), rtol=1e-9, atol=1e-9)
    assert float((eps_hat - MIXTURE.eps(x_t, t)).abs().max()) > 0.1
    torch.testing.assert_close(guided(MIXTURE.eps, MIXTURE.log_joint, y[:1], SCHEDULE)(x_t, t),
                               MIXTURE.eps(x_t, t, y[:1].expand(12)))


def test_the_mean_shift_of_the_ideal_denoiser():
    """E[μ̃ | x_t, y] − E[μ̃ | x_t] = β_t/√α_t ∇ log p(y | x_t), which is what form (6) adds to the mean of a DDPM step.
    Form (5) adds β̃_t ∇ log p, the share k_t/√(1−ᾱ_t) of it: none at t = 0."""
    x_t, t, y = noisy()
    gradient = classifier_gradient(MIXTURE.log_joint, x_t, t, y)
    plain = SCHEDULE.posterior_mean(MIXTURE.x_0(x_t, t), x_t, t)
    difference = SCHEDULE.posterior_mean(MIXTURE.x_0(x_t, t, y), x_t, t) - plain
    torch.testing.assert_close(difference, at("beta", x_t, t) / at("alpha", x_t, t).sqrt() * gradient, rtol=1e-8,
                               atol=1e-10)
    means = {shift: SCHEDULE.model_mean(x_t, t,
                                        guided(MIXTURE.eps, MIXTURE.log_joint, y, SCHEDULE, shift=shift)(x_t, t))
             for shift in ("ddim", "ddpm")}
    torch.testing.assert_close(means["ddim"], plain + difference, rtol=1e-8, atol=1e-10)
    share = at("shift_coefficient", x_t, t) / at("sqrt_one_minus_alpha_bar", x_t, t)
    torch.testing.assert_close(means["ddpm"], plain + share * difference, rtol=1e-8, atol=1e-10)
    assert float(share[0]) == 0 and 0.9 < float(share.max()) < 1 and float(difference.abs().max()) > 1e-3


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
def test_guided_samples_are_those_of_the_conditional_denoiser(sampler):
    def sample(denoiser):
        seed = {} if sampler == "dpm_solver" else {"generator": torch.Generator().manual_seed(4)}
        return getattr(sampling, sampler)(denoiser, noise(6, dtype=torch.float64), SCHEDULE, 20, clip=False, **seed)

    y = torch.arange(6) % K
    samples = sample(guided(MIXTURE.eps, MIXTURE.log_joint, y, SCHEDULE))
    torch.testing.assert_close(samples, sample(lambda x_t, t: MIXTURE.eps(x_t, t, y)), rtol=1e-7, atol=1e-7)
    log_p = MIXTURE.log_joint(samples, torch.zeros(6, dtype=torch.int64)).log_softmax(1)
    assert bool((log_p.argmax(1) == y).all())


# ---- guided --------------------------------------------------------------------------------------------------------


def test_both_forms_of_guidance():
    """Eq. (6) for DDIM; and with k_t the mean of a DDPM step is exactly that of eq. (5), μ + β̃_t ∇ log p."""
    model, x = filled(classifier()).double(), noise(dtype=torch.float64)
    plain = dpm().double()
    eps, gradient = plain(x, T_BATCH), classifier_gradient(model, x, T_BATCH, Y)
    scale = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    for s in (1.0, scale, lambda t: t / 33):  # 0, 1, 3 or so
        s_t = (s(T_BATCH) if callable(s) else torch.as_tensor(s)).reshape(-1, 1, 1, 1)
        eps_hat = guided(plain, model, Y, SCHEDULE, s)(x, T_BATCH)
        torch.testing.assert_close(eps_hat, eps - s_t * at("sqrt_one_minus_alpha_bar", x) * gradient, rtol=1e-7,
                                   atol=1e-9)
        mean = SCHEDULE.model_mean(x, T_BATCH, guided(plain, model, Y, SCHEDULE, s, "ddpm")(x, T_BATCH))
        want = SCHEDULE.model_mean(x, T_BATCH, eps) + s_t * at("posterior_variance", x) * gradient
        torch.testing.assert_close(mean, want, rtol=1e-7, atol=1e-9)
    assert torch.equal(guided(plain, model, Y, SCHEDULE, scale)(x, T_BATCH)[0], eps[0])


def test_guidance_composes_and_keeps_the_data_range():
    model, z = pdae(), codes()
    shifted = model.denoiser(z)
    twice = guided(shifted, filled(classifier()), Y, SCHEDULE)(noise(), T_BATCH)
    gradient = classifier_gradient(filled(classifier()), noise(), T_BATCH, Y)
    want = shifted(noise(), T_BATCH) - at("sqrt_one_minus_alpha_bar", noise()) * gradient
    torch.testing.assert_close(twice, want)
    latent = UNet(UNetConfig(8, 1, 8, (1, 2), 1, (2,), data_range=None))
    assert guided(shifted, classifier(), Y, SCHEDULE).data_range == (-1.0, 1.0)
    assert (guided(latent, classifier(), Y, SCHEDULE).data_range is None
            and staged(latent, latent, 0, 5).data_range is None)
    assert mixed(model, z, z, 0.5, "gradient").data_range == (-1.0, 1.0)
    with pytest.raises(ValueError, match=r"inside is for data in None, outside for \(-1.0, 1.0\)"):
        staged(latent, shifted, 0, 5)


def test_the_classifier_is_not_run_where_it_has_no_say():
    network, model = Calls(dpm()), Calls(filled(classifier()))
    plain = sampling.ddim(network, noise(), SCHEDULE, 10)
    for scale in (0.0, torch.zeros(3), lambda t: 0 * t):
        assert (torch.equal(sampling.ddim(guided(network, model, Y, SCHEDULE, scale), noise(), SCHEDULE, 10), plain)
                and model.count == 0)
    network.count = 0
    sampling.ddim(guided(network, model, Y, SCHEDULE, lambda t: 2.0 * ((t >= 30) & (t < 70))), noise(), SCHEDULE, 10)
    assert (network.count, model.count) == (10, sum(30 <= t < 70 for t in sampling.time_grid(SCHEDULE, 10)[1:])) == (10,
                                                                                                                     4)


# ---- staged --------------------------------------------------------------------------------------------------------


def test_stages():
    network, model = Calls(dpm()), filled(classifier())
    inside = Calls(guided(network.function, model, Y, SCHEDULE, 2.0))

    def sample(denoiser):
        return sampling.ddim(denoiser, noise(), SCHEDULE, 10)

    plain, full = sample(network.function), sample(inside.function)
    for start, stop, want in ((0, 100, full), (50, 50, plain), (0, 0, plain)):
        assert torch.equal(sample(staged(inside, network, start, stop)), want)
    assert (inside.count, network.count) == (10, 20)  # each only where it is used
    inside.count = network.count = 0
    critical = sample(staged(inside, network, 40, 70))
    assert (inside.count, network.count) == (3, 7)
    assert not torch.equal(critical, full) and not torch.equal(critical, plain)
    # the same as guidance whose scale is an interval
    interval = guided(network.function, model, Y, SCHEDULE, lambda t: 2.0 * ((t >= 40) & (t < 70)))
    assert torch.equal(critical, sample(interval))
    # in a batch that straddles the border each sample keeps to its own side
    both = staged(inside, network, 50, 99)(noise(), T_BATCH)
    assert torch.equal(both[[0, 2]], network.function(noise(), T_BATCH)[[0, 2]])
    assert torch.equal(both[1], inside.function(noise(), T_BATCH)[1])


# ---- scaled --------------------------------------------------------------------------------------------------------


def test_the_scale_of_a_shift_may_follow_t(monkeypatch):
    model, z = pdae(), codes()
    eps, gradient = model(noise(), T_BATCH, z)
    for shift in ("ddim", "ddpm"):
        def ramp(t):
            return 3 * t / 100
        c = at({"ddim": "sqrt_one_minus_alpha_bar", "ddpm": "shift_coefficient"}[shift], eps)
        want = eps - ramp(T_BATCH).reshape(3, 1, 1, 1) * c * gradient
        torch.testing.assert_close(model.denoiser(z, ramp, shift=shift)(noise(), T_BATCH), want, rtol=1e-4, atol=1e-5)
    for number in (2.0, torch.full((3,), 2.0)):
        assert torch.equal(model.decode(z, noise(), 5, scale=number), model.decode(z, noise(), 5, scale=lambda t: 2.0))
    calls = spy(monkeypatch, model.estimator)
    assert torch.equal(model.decode(z, noise(), 5, scale=torch.zeros(3)),
                       sampling.ddim(model.dpm, noise(), SCHEDULE, 5))
    assert calls.count == 0
    early = model.decode(z, noise(), 10, scale=lambda t: t >= 30)
    assert calls.count == 7
    assert torch.equal(early, model.decode(z, noise(), 10, off_last=0.3))
    with pytest.raises(ValueError, match=r"scale has 2 values for 3 images; want a number or \[N\]"):
        model.decode(z, noise(), 5, scale=lambda t: torch.ones(2))


# ---- mixed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", ["ddim", "ddpm"])
def test_mixing_two_codes(shift):
    model, a, b, t = pdae(), codes(), codes(seed=4), T_BATCH
    eps, g_a = model(noise(), t, a)
    _, g_b = model(noise(), t, b)
    c = at({"ddim": "sqrt_one_minus_alpha_bar", "ddpm": "shift_coefficient"}[shift], eps)
    for weight in (0.3, torch.tensor([0.0, 0.3, 1.0])):
        w = torch.as_tensor(weight).reshape(-1, 1)
        in_z = mixed(model, a, b, weight, "z", shift)(noise(), t)
        torch.testing.assert_close(in_z, model.denoiser((1 - w) * a + w * b, shift=shift)(noise(), t), rtol=1e-4,
                                   atol=1e-5)
        w = w[:, :, None, None]
        in_g = mixed(model, a, b, weight, "gradient", shift)(noise(), t)
        torch.testing.assert_close(in_g, eps - c * ((1 - w) * g_a + w * g_b), rtol=1e-4, atol=1e-5)
        assert float((in_z - in_g).abs().amax((1, 2, 3))[1]) > 1e-3  # G isn't linear in z
    scaled = mixed(model, a, b, 0.3, "gradient", shift, scale=2.0, off_last=0.4)(noise(), t)
    want = eps - 2 * c * (0.7 * g_a + 0.3 * g_b) * (t >= 40).reshape(3, 1, 1, 1)
    torch.testing.assert_close(scaled, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["z", "gradient"])
def test_mixing_evaluates_each_part_once(how, monkeypatch):
    model, a, b = pdae(), codes(), codes(seed=4)
    trunk, head = spy(monkeypatch, model.dpm, "trunk"), spy(monkeypatch, model.dpm, "head")
    estimator = spy(monkeypatch, model.estimator.shift_out)
    sampling.ddim(mixed(model, a, b, 0.5, how), noise(), SCHEDULE, 6)
    assert (trunk.count, head.count, estimator.count) == (6, 6, 6)
    assert (trunk.n, estimator.n) == (3, 6 if how == "gradient" else 3)
    sampling.ddim(mixed(model, a, b, 0.5, how, scale=lambda t: 1.0 * (t >= 50)), noise(), SCHEDULE, 6)
    assert (trunk.count, head.count, estimator.count) == (12, 12, 9)


@pytest.mark.parametrize("how", ["z", "gradient"])
def test_one_pair_of_codes_for_many_weights_or_images(how):
    model, a, b, w = pdae(), codes(1), codes(1, seed=4), torch.tensor([0.0, 0.4, 1.0])
    path = sampling.ddim(mixed(model, a, b, w, how), noise(), SCHEDULE, 5)
    want = sampling.ddim(mixed(model, a.repeat(3, 1), b.repeat(3, 1), w, how), noise(), SCHEDULE, 5)
    assert torch.equal(path, want)
    for i, z in ((0, a), (2, b)):
        torch.testing.assert_close(path[i : i + 1], model.decode(z, noise()[i : i + 1], 5), rtol=1e-4, atol=1e-5)
    same = sampling.ddim(mixed(model, a, b, 0.4, how), noise(), SCHEDULE, 5)
    torch.testing.assert_close(same[1], path[1], rtol=1e-4, atol=1e-5)


# ---- a class-conditional G -------------------------------------------------------------------------------------------


def test_class_conditional_gradient_estimator(tmp_path):
    x_T, y = noise(), torch.arange(K)
    model = untrained()
    plain = sampling.ddim(model.dpm, x_T, SCHEDULE, 6)
    for scale in (0, 1, 2, 3):  # without training it is the DPM
        assert torch.equal(model.decode(model.encode(y), x_T, 6, scale=scale), plain)
    result = train(model, patterns(), steps=30, batch_size=24, lr=1e-2, ema=0.9, out=tmp_path, progress=False)
    again = PDAE.load(result.path)
    z = again.encode(y)
    assert torch.equal(z, model.encode(y)) and isinstance(again.encoder, LabelEncoder)
    images = [again.decode(z, x_T, 6, scale=scale) for scale in (0, 1, 2, 3)]
    assert torch.equal(images[0], plain)
    for scale, image in enumerate(images):
        # one is channels_last
        torch.testing.assert_close(image, model.decode(z, x_T, 6, scale=scale), rtol=1e-4, atol=1e-5)
    shifts = [float((image - plain).square().mean()) for image in images]
    assert 0 == shifts[0] < shifts[1] < shifts[2] < shifts[3], shifts
    # what it adds is of the class: from the same noise, each image is more like its own pattern than another class's
    # image is
    other = similarity(again.decode(again.encode((y + 1) % K), x_T, 6))
    assert bool(((similarity(images[1]) - other).diagonal() > 0.05).all()), (similarity(images[1]), other)
    with pytest.raises(ValueError, match="y runs from 0 to 3; want 0 … 2"):
        again.encode(torch.arange(4))
    with pytest.raises(ValueError, match="the data set has none"):
        train(untrained(), TensorDataset(patterns().tensors[0]), steps=1, progress=False)


# ---- refusals -----------------------------------------------------------------------------------------------------


def dpm_and(**changes):
    arguments = ({"denoiser": lambda x_t, t: x_t, "classifier": filled(classifier()), "y": Y, "schedule": SCHEDULE}
                 | changes)
    return guided(**arguments)(noise(), T_BATCH)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m, z: dpm_and(y=Y.float()), r"y is float32 \[3\]; want int64 \[N\]"),
    (lambda m, z: dpm_and(y=Y.int()), r"y is int32 \[3\]; want int64 \[N\]"),
    (lambda m, z: dpm_and(y=torch.tensor(1)), r"y is int64 \[\]; want int64 \[N\]"),
    (lambda m, z: dpm_and(y=[0, 1, 2]), r"y is list; want int64 \[N\]"),
    (lambda m, z: dpm_and(y=Y + 1), "y runs from 1 to 3; want 0 … 2"),
    (lambda m, z: dpm_and(y=Y + 1, classifier=lambda x, t: x.mean((2, 3)).expand(-1, K)),
     "y runs from 1 to 3; want 0 … 2"),
    (lambda m, z: dpm_and(y=Y - 1), "y runs from -1 to 1"),
    (lambda m, z: dpm_and(y=Y[:2]), r"y is int64 \[2\]; want int64 \[3\]"),
    (lambda m, z: dpm_and(shift="both"), "shift 'both'; want one of ddpm, ddim"),
    (lambda m, z: dpm_and(scale=torch.ones(2)), "scale has 2 values for 3 images"),
    (lambda m, z: dpm_and(schedule=NoiseSchedule.linear(100)),
     "the classifier is for NoiseSchedule.*; want the denoiser's"),
    (lambda m, z: dpm_and(classifier=lambda x, t: x), r"the classifier gives \[3, 1, 8, 8\]; want logits \[N, K\]"),
    (lambda m, z: staged(m.dpm, m.dpm, 70, 40), "stage from 70 to 40; want 0 <= start <= stop"),
    (lambda m, z: staged(m.dpm, m.dpm, -1, 40), "stage from -1 to 40"),
    (lambda m, z: mixed(m, z, z[:2], 0.5), r"z_a has shape \[3, 4\], z_b \[2, 4\]; want \[N, 4\] for both"),
    (lambda m, z: mixed(m, z, z, 0.5, "latent"), "how 'latent'; want 'z' or 'gradient'"),
    (lambda m, z: mixed(m, z, z, torch.ones(2)), r"weight has 2 values for 3 pairs of codes; want a number or \[N\]"),
    (lambda m, z: mixed(m, z, z, 0.5, shift="both"), "shift 'both'"),
    (lambda m, z: mixed(m, z[:2], z[:2], 0.5, "gradient")(noise(), T_BATCH),
     "z holds 2 codes for 3 images; want one each, or one for all"),
    (lambda m, z: filled(classifier())(noise(), T_BATCH + 1), "t runs from 2 to 100"),
    (lambda m, z: classifier(patch_size=2)(torch.zeros(3, 1, 6, 6), T_BATCH),
     r"x_t has shape \[3, 1, 6, 6\]; want float \[N, 1, H, W\]"),
    (lambda m, z: classifier().accuracy(3 * noise(), Y, [0]), r"x_0 runs from .*\[-1, 1\]"),
    (lambda m, z: ClassifierConfig(num_classes=1), "num_classes=1; want at least 2"),
    (lambda m, z: ClassifierConfig(UNetConfig(num_classes=10)), "unet has num_classes=10, which conditions a U-Net"),
])
def test_one_line_errors(call, message):
    with pytest.raises(ValueError, match=message) as e:
        call(pdae(), codes())
    assert "\n" not in str(e.value)
