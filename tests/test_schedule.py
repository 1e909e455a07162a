"""The noise schedule against closed forms (method.md's equations, written out here again in float64)."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdae_lite.schedule import NoiseSchedule

few = settings(max_examples=15, deadline=None)


@st.composite
def schedules(draw):
    T = draw(st.integers(2, 400))
    kind = draw(st.sampled_from(["linear", "cosine", "constant"]))
    if kind == "cosine":
        return NoiseSchedule.cosine(T)
    if kind == "constant":
        return NoiseSchedule.constant(draw(st.floats(1e-5, 0.03)), T)
    start = draw(st.floats(1e-5, 1e-2))
    return NoiseSchedule.linear(T, start, start + draw(st.floats(0, 0.03)))


def table(schedule, name):
    """A table in float64, [T]."""
    return schedule.at(name, torch.arange(schedule.T), torch.zeros(schedule.T, dtype=torch.float64))


def close(a, b, rtol=1e-9, atol=1e-12):
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_linear_closed_form():
    s = NoiseSchedule.linear()
    beta = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
    bar, product = [], 1.0
    for b in beta:
        product *= 1 - b
        bar.append(product)
    assert s.T == 1000
    close(table(s, "beta"), beta)
    close(table(s, "alpha_bar"), bar)
    close(table(s, "snr"), [a / (1 - a) for a in bar], rtol=1e-8)
    assert s.alpha_bar.dtype == torch.float32 and s.alpha_bar.shape == (1000,)


def test_cosine_closed_form():
    T = 50
    s = NoiseSchedule.cosine(T)

    def f(t):
        return math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2

    close(table(s, "alpha_bar")[:-1], [f(t + 1) / f(0) for t in range(T - 1)], rtol=1e-8)
    assert table(s, "beta")[-1] == 0.999


def test_constant_closed_form():
    close(table(NoiseSchedule.constant(0.008, 30), "alpha_bar"), [0.992 ** (t + 1) for t in range(30)])


@few
@given(schedules())
def test_posterior_closed_form(s):
    beta, bar = table(s, "beta"), table(s, "alpha_bar")
    prev = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    close(table(s, "posterior_x_0"), prev.sqrt() * beta / (1 - bar), rtol=1e-6)
    close(table(s, "posterior_x_t"), (1 - beta).sqrt() * (1 - prev) / (1 - bar), rtol=1e-6)
    close(table(s, "posterior_variance"), beta * (1 - prev) / (1 - bar), rtol=1e-6)
    assert bool((bar[1:] < bar[:-1]).all()) and 0 < bar[-1] and bar[0] < 1


@few
@given(schedules(), st.integers(0, 10**6))
def test_true_noise_gives_the_true_posterior_mean(s, seed):
    """μ̃_t(x_0, x_t) is μ_θ with ε_θ = ε."""
    g = torch.Generator().manual_seed(seed)
    x_0, eps = (torch.randn(s.T, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.arange(s.T)
    x_t = s.add_noise(x_0, t, eps)
    close(s.posterior_mean(x_0, x_t, t), s.model_mean(x_t, t, eps), rtol=1e-7, atol=1e-7)
    close(s.predict_x_0(x_t, t, eps), x_0, rtol=1e-7, atol=1e-7)
    close(s.predict_eps(x_t, t, x_0), eps, rtol=1e-7, atol=1e-7)


@few
@given(schedules(), st.integers(0, 10**6))
def test_gap_identity(s, seed):
    """μ̃_t − μ_θ = β_t/(√α_t √(1−ᾱ_t)) (ε_θ − ε)."""
    g = torch.Generator().manual_seed(seed)
    x_0, eps, eps_theta = (torch.randn(s.T, 3, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.arange(s.T)
    x_t = s.add_noise(x_0, t, eps)
    gap = s.posterior_mean(x_0, x_t, t) - s.model_mean(x_t, t, eps_theta)
    beta, bar = table(s, "beta"), table(s, "alpha_bar")
    close(gap, (beta / ((1 - beta) * (1 - bar)).sqrt())[:, None] * (eps_theta - eps), rtol=1e-6, atol=1e-6)
    close(gap, table(s, "gap_coefficient")[:, None] * (eps_theta - eps), rtol=1e-6, atol=1e-7)


@few
@given(schedules())
def test_shift_coefficient(s):
    """k_t = √α_t √(1−ᾱ_t)/β_t · β̃_t; k_0 = 0, and 0 ≤ k_t < √(1−ᾱ_t)."""
    beta, bar = table(s, "beta"), table(s, "alpha_bar")
    k = table(s, "shift_coefficient")
    close(k, ((1 - beta) * (1 - bar)).sqrt() / beta * table(s, "posterior_variance"), rtol=1e-6)
    assert float(s.shift_coefficient[0]) == 0.0
    assert bool((k[1:] > 0).all()) and bool((k < table(s, "sqrt_one_minus_alpha_bar")).all())


def test_shift_forms_differ_most_at_small_t():
    s = NoiseSchedule.linear()
    ratio = table(s, "shift_coefficient") / table(s, "sqrt_one_minus_alpha_bar")
    for t, want in {0: 0.0, 1: 0.45, 10: 0.86, 100: 0.98}.items():
        assert abs(float(ratio[t]) - want) < 0.006, (t, float(ratio[t]))
    assert 1 / float(ratio[1]) == pytest.approx(2.2, abs=0.05)  # DDPM with the DDIM form over-shifts this much


def test_loss_weights():
    s = NoiseSchedule.linear()
    snr, beta, bar = table(s, "snr"), table(s, "beta"), table(s, "alpha_bar")
    close(s.loss_weight(), (1 / (1 + snr)) ** 0.9 * (snr / (1 + snr)) ** 0.1, rtol=1e-6)
    close(s.loss_weight("pdae", gamma=0.5), snr**0.5 / (1 + snr), rtol=1e-6)
    close(s.loss_weight("simple"), torch.ones(1000))
    close(s.loss_weight("vlb"), beta / ((1 - beta) * (1 - bar)), rtol=1e-6)
    close(s.loss_weight("p2"), 1 / (1 + snr), rtol=1e-6)
    close(s.loss_weight("p2", gamma=0.5, k=2.0), 1 / (2 + snr) ** 0.5, rtol=1e-6)
    close(s.loss_weight("min_snr"), torch.minimum(snr, torch.tensor(5.0)) / snr, rtol=1e-6)
    close(s.loss_weight("v"), (1 + snr) / snr, rtol=1e-6)
    close(s.loss_weight("flow"), (1 + snr**-0.5) ** 2, rtol=1e-6)
    # the bound's weight is the gap coefficient squared over 2β, up to the factor 1/2
    close(s.loss_weight("vlb"), table(s, "gap_coefficient") ** 2 / beta, rtol=1e-6)


def test_pdae_weight_without_gamma_is_p2():
    s = NoiseSchedule.cosine(200)
    torch.testing.assert_close(s.loss_weight("pdae", gamma=0.0), s.loss_weight("p2"), rtol=1e-6, atol=0)


def test_float64_images_see_float64_constants():
    s = NoiseSchedule.linear()
    t, x = torch.tensor([999]), torch.ones(1, 1)
    assert s.add_noise(x, t, x).dtype == torch.float32
    both = s.add_noise(x.double(), t, 0 * x.double())
    assert both.dtype == torch.float64
    exact = math.sqrt(math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(1000)))
    assert float(both) == pytest.approx(exact, rel=1e-12)
    assert float(s.add_noise(x, t, 0 * x)) == pytest.approx(exact, rel=1e-6)
    assert float(s.add_noise(x, t, 0 * x)) != exact


def test_small_noise_has_no_cancellation():
    """1 − ᾱ_0 = β_0 to the last digit, also for β_0 below float32's resolution of 1."""
    s = NoiseSchedule.linear(10, 1e-12, 1e-3)
    assert float(table(s, "sqrt_one_minus_alpha_bar")[0]) == pytest.approx(1e-6, rel=1e-14)


def test_level():
    s = NoiseSchedule.linear(10)
    assert s.level(-1) == (1.0, 0.0)
    a, b = s.level(4)
    assert a**2 + b**2 == pytest.approx(1, abs=1e-12) and a**2 == pytest.approx(float(s.alpha_bar[4]), rel=1e-6)


def test_config_round_trip():
    for s in (NoiseSchedule.linear(12, 1e-3, 0.1), NoiseSchedule.cosine(9), NoiseSchedule.constant(0.01, 7),
              NoiseSchedule([0.1, 0.2])):
        again = NoiseSchedule.from_config(s.to_config())
        assert again.same_as(s) and again.to_config() == s.to_config()
    assert NoiseSchedule.linear(12) != NoiseSchedule.linear(13)


def test_from_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed")
    for options in ({}, {"beta_schedule": "squaredcos_cap_v2"}):
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, **options)
        s = NoiseSchedule.from_diffusers(scheduler)
        torch.testing.assert_close(s.alpha_bar, scheduler.alphas_cumprod, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="zero-terminal-SNR"):
        NoiseSchedule.from_diffusers(diffusers.DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="has no betas"):
        NoiseSchedule.from_diffusers(object())


@pytest.mark.parametrize(("make", "message"), [
    (lambda: NoiseSchedule([0.5, 1.0]), "zero-terminal-SNR"),
    (lambda: NoiseSchedule([0.1, 0.0]), "beta"),
    (lambda: NoiseSchedule([0.1, 1.5]), "beta"),
    (lambda: NoiseSchedule([]), "beta is empty"),
    (lambda: NoiseSchedule.linear(0), "T=0"),
    (lambda: NoiseSchedule.linear(2.5), "T=2.5"),
    (lambda: NoiseSchedule.from_config({"name": "quadratic"}), "quadratic"),
    (lambda: NoiseSchedule.linear(5).loss_weight("p3"), "p3"),
    (lambda: NoiseSchedule.linear(5).loss_weight("vlb", gamma=1.0), "gamma"),
])
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message) as e:
        make()
    assert "\n" not in str(e.value)


def test_unknown_table():
    with pytest.raises(AttributeError, match="sigma"):
        NoiseSchedule.linear(5).sigma


def test_timesteps_out_of_range_are_refused():
    x = torch.zeros(2, 1, 4, 4)
    for t, says in (([-1, 3], "t runs from -1 to 3; want 0 … 999"), ([0, 1000], "t runs from 0 to 1000"),
                    ([0.5, 1.0], "t is torch.float32")):
        with pytest.raises(ValueError, match=says):
            NoiseSchedule.linear().add_noise(x, torch.tensor(t), x)
