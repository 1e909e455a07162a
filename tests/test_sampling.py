"""Samplers against diffusers, and on a Gaussian whose noise predictor is known exactly."""
import pytest
import torch

from pdae_lite import sampling
from pdae_lite.sampling import time_grid
from pdae_lite.schedule import NoiseSchedule

LINEAR = NoiseSchedule.linear()
MEAN, STD = 0.3, 0.5


class Gaussian:
    """The exact ε for data from N(m, s²): x_t ~ N(√ᾱ m, ᾱ s² + 1 − ᾱ), ε = √(1−ᾱ) (x_t − √ᾱ m)/(ᾱ s² + 1 − ᾱ)."""

    data_range = None

    def __init__(self, schedule=LINEAR):
        self.schedule, self.seen = schedule, []

    def __call__(self, x, t):
        self.seen.append(int(t.reshape(-1)[0]))
        a, s = (self.schedule.at(k, t, x) for k in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"))
        return s * (x - a * MEAN) / (a**2 * STD**2 + s**2)


def network(x, t):
    """A smooth nonlinear stand-in for a network, per sample and pixel."""
    return torch.sin(1.3 * x + 0.01 * t.reshape(-1, *[1] * (x.ndim - 1))) + 0.3 * x


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- the grid ------------------------------------------------------------------------------------------------------


def test_uniform_grid():
    assert time_grid(LINEAR, 1) == [-1, 999]
    assert time_grid(LINEAR, 1000) == list(range(-1, 1000))
    assert time_grid(LINEAR, 10) == [-1, 99, 199, 299, 399, 499, 599, 699, 799, 899, 999]
    for steps in (3, 7, 13, 99, 333, 999):
        points = time_grid(LINEAR, steps)
        assert len(points) == steps + 1 and points[0] == -1 and points[-1] == 999 and points == sorted(set(points))


def test_paper_grid():
    assert time_grid(LINEAR, 10, "paper") == [0, 99, 199, 299, 399, 499, 599, 699, 799, 899, 999]
    assert len(time_grid(LINEAR, 1000, "paper")) - 1 == 999  # the release's 1000 steps are 999
    assert time_grid(LINEAR, 1, "paper") == [0, 999]


def test_quadratic_grid():
    assert time_grid(LINEAR, 10, "quadratic") == [-1, 9, 39, 89, 159, 249, 359, 489, 639, 809, 999]
    assert time_grid(LINEAR, 1000, "quadratic") == list(range(-1, 1000))
    assert time_grid(LINEAR, 10, "cubic") == [-1, 0, 7, 26, 63, 124, 215, 342, 511, 728, 999]
    for steps in range(1, 1001):  # as many evaluations as were asked for, however short the first steps
        assert len(time_grid(LINEAR, steps, "cubic")) == steps + 1
        points = time_grid(LINEAR, steps, "quadratic")
        assert len(points) == steps + 1 and points[0] == -1 and points[-1] == 999


def test_grid_as_a_sequence():
    assert time_grid(LINEAR, grid=[500, 20, 999]) == [-1, 20, 500, 999]
    assert time_grid(LINEAR, grid=range(-1, 1000, 500)) == [-1, 499, 999]
    d = Gaussian()
    sampling.ddim(d, noise(1, 3), LINEAR, grid=[10, 500, 999])
    assert d.seen == [999, 500, 10]


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": 0}, "steps=0"), ({"steps": 1001}, "steps=1001"), ({"steps": 1.5}, "steps=1.5"),
    ({"grid": "karras"}, "karras"),
    ({"grid": []}, "grid runs"), ({"grid": [1000]}, "grid runs"), ({"grid": [-2, 5]}, "grid runs"),
])
def test_bad_grids(options, message):
    with pytest.raises(ValueError, match=message):
        sampling.ddim(network, noise(1, 3), LINEAR, **options)


# ---- against diffusers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_equals_diffusers(clip, to_one, eta):
    """On its own grid: "leading" spacing, T//N apart, ending at ᾱ = 1 or at ᾱ_0."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed")
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=clip, set_alpha_to_one=to_one,
                                        timestep_spacing="leading")
    scheduler.set_timesteps(20)
    x = want = noise(3, 1, 4, 4)
    shared = torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        variance_noise = torch.randn(x.shape, generator=shared, dtype=x.dtype)
        step = scheduler.step(network(want, t.reshape(1)), t, want, eta=eta, use_clipped_model_output=True,
                              variance_noise=variance_noise)
        want = step.prev_sample
    grid = scheduler.timesteps.tolist()
    assert grid[-1] == 0
    if to_one:
        shared = torch.Generator().manual_seed(1)
        got = sampling.ddim(network, x, LINEAR, grid=grid, eta=eta, clip=clip, generator=shared)
    else:  # ends at ᾱ_0: diffusers' last step goes from t = 0 to ᾱ_0, which is no step of ours; take it by hand
        shared, got = torch.Generator().manual_seed(1), x
        limits = (-1.0, 1.0) if clip else None
        for t_cur, t_next in zip(grid, grid[1:] + [0]):
            n = torch.randn(x.shape, generator=shared, dtype=x.dtype)
            eps = network(got, torch.tensor([t_cur]))
            got = sampling.ddim_step(got, eps, t_cur, t_next, LINEAR, clip_range=limits, eta=eta, noise=n)
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)  # diffusers keeps ᾱ in float32


# ---- the analytic Gaussian -------------------------------------------------------------------------------------------


def test_ddim_std_and_mean():
    """DDIM on a Gaussian is an affine map: from the ends of a line to mean and std exactly."""
    x_T = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    x_0 = sampling.ddim(Gaussian(), x_T, LINEAR, 1000, clip=False)
    assert float(x_0[2] - x_0[0]) / 2 == pytest.approx(STD, rel=0.01)
    assert float(x_0[1]) == pytest.approx(MEAN, abs=0.01)
    samples = sampling.ddim(Gaussian(), noise(40_000, 1), LINEAR, 1000, clip=False)
    assert float(samples.std()) == pytest.approx(STD, rel=0.01 + 4 / (2 * 40_000) ** 0.5)


def test_ddpm_std_and_mean():
    """Sampling error of the std of n samples: s/√(2n), here 0.27 %; 4 of them and 1 % for the discretisation."""
    n = 70_000
    samples = sampling.ddpm(Gaussian(), noise(n, 1), LINEAR, clip=False, generator=torch.Generator().manual_seed(1))
    assert float(samples.std()) == pytest.approx(STD, rel=0.01 + 4 / (2 * n) ** 0.5)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.01 + 4 * STD / n**0.5)


def test_one_ddpm_step_is_the_posterior():
    """x_{t−1} ~ N(μ_θ, β̃_t): mean and standard deviation of one step with η = 1."""
    x, t = noise(5, 1), 40
    eps = network(x, torch.tensor([t]))
    mean = LINEAR.model_mean(x, torch.full((5,), t), eps)
    n = noise(5, 1, seed=3)
    got = sampling.ddim_step(x, eps, t, t - 1, LINEAR, eta=1.0, noise=n)
    variance = LINEAR.at("posterior_variance", torch.tensor([t]), x)
    torch.testing.assert_close(got, mean + variance.sqrt() * n, rtol=1e-9, atol=1e-9)


def round_trip(steps, fixed_point=0):
    x_0 = MEAN + STD * noise(200, 1)
    x_T = sampling.invert(Gaussian(), x_0, LINEAR, steps, fixed_point=fixed_point)
    return float((sampling.ddim(Gaussian(), x_T, LINEAR, steps, clip=False) - x_0).abs().mean())


def test_round_trip_error_falls_as_one_over_n():
    errors = {n: round_trip(n) for n in (50, 100, 200, 400, 1000)}
    products = [n * e for n, e in errors.items()]
    assert max(products) / min(products) < 1.5, errors
    assert errors[1000] < errors[100] / 7


def test_fixed_point_inversion_is_exact():
    assert round_trip(100, fixed_point=3) <= 1e-5 < round_trip(100, fixed_point=0)


def test_second_order_inversion():
    """Closer to the exact x_T than the plain one at the same number of evaluations."""
    x_0 = MEAN + STD * noise(200, 1)
    for steps in (25, 50, 100):
        counted = Gaussian()
        plain, second = (sampling.invert(counted, x_0, LINEAR, steps, order=n) for n in (1, 2))
        assert len(counted.seen) == 2 * steps
        error, error_2 = ((x - (x_0 - MEAN) / STD).abs().mean() for x in (plain, second))
        assert error_2 < error / 3, (steps, error, error_2)
    with pytest.raises(ValueError, match="order=2, fixed_point=1; want order 1, or order 2 without fixed_point"):
        sampling.invert(Gaussian(), x_0, LINEAR, 5, order=2, fixed_point=1)


def test_inversion_of_the_exact_map():
    """x_T of a Gaussian datum is its standardised value."""
    x_0 = MEAN + STD * torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(sampling.invert(Gaussian(), x_0, LINEAR, 1000), (x_0 - MEAN) / STD, rtol=0.02, atol=0.02)


# ---- behaviour ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [sampling.ddim, sampling.invert])
@pytest.mark.parametrize("grid", ["uniform", "paper"])
def test_batch_independent(run, grid):
    x = noise(4, 1, 3, 3)
    whole = run(network, x, LINEAR, 7, grid=grid)
    parts = torch.cat([run(network, x[i : i + 1], LINEAR, 7, grid=grid) for i in range(4)])
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 17, 101])
def test_any_number_of_steps(steps):
    d, visited = Gaussian(), []
    sampling.ddim(d, noise(2, 1), LINEAR, steps, callback=lambda t, x: visited.append(t))
    assert len(d.seen) == steps and d.seen == sorted(d.seen, reverse=True) and d.seen[0] == 999
    assert visited == d.seen[1:] + [-1]
    d, visited = Gaussian(), []
    sampling.invert(d, noise(2, 1), LINEAR, steps, callback=lambda t, x: visited.append(t))
    assert len(d.seen) == steps and d.seen[0] == 0 and visited[-1] == 999


def test_paper_grid_ends_short_of_the_clean_image():
    visited = []
    d = Gaussian()
    sampling.ddim(d, noise(2, 1), LINEAR, 10, grid="paper", callback=lambda t, x: visited.append(t))
    assert visited[-1] == 0 and 0 not in d.seen  # the network never sees t = 0
    d.seen.clear()
    sampling.invert(d, noise(2, 1), LINEAR, 10, grid="paper")
    assert d.seen[0] == 0 and 999 not in d.seen


def test_the_callback_sees_the_result():
    last = {}
    x = sampling.ddim(network, noise(2, 1), LINEAR, 5, callback=lambda t, x: last.update(x=x))
    assert torch.equal(last["x"], x)


def test_clip():
    def x_0_of_3(x, t):  # an ε for which x̂_0 is 3 everywhere
        return LINEAR.predict_eps(x, t.expand(len(x)), torch.full_like(x, 3.0))

    x = noise(2, 1, 2, 2)
    torch.testing.assert_close(sampling.ddim(x_0_of_3, x, LINEAR, 5), torch.ones_like(x))
    torch.testing.assert_close(sampling.ddim(x_0_of_3, x, LINEAR, 5, clip=False), torch.full_like(x, 3.0))
    x_0_of_3.data_range = (0.0, 2.0)
    torch.testing.assert_close(sampling.ddim(x_0_of_3, x, LINEAR, 5), torch.full_like(x, 2.0))


def test_latents():
    """Codes [N, D] have no range: clip=False, or a denoiser that says so, leaves them alone."""
    z_T = 4 * noise(5, 8)
    free = sampling.ddim(network, z_T, LINEAR, 9, clip=False)
    network_free = Gaussian()  # data_range None
    assert free.shape == (5, 8) and free.abs().max() > 1
    assert torch.equal(sampling.ddim(network_free, z_T, LINEAR, 9, clip=True),
                       sampling.ddim(network_free, z_T, LINEAR, 9, clip=False))


def test_eta_and_generators():
    x = noise(3, 1, 4, 4)

    def run(seed, eta=1.0):
        return sampling.ddim(network, x, LINEAR, 9, eta=eta, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert (torch.equal(run(1, eta=0.0), run(2, eta=0.0))
            and torch.equal(run(1, eta=0.0), sampling.ddim(network, x, LINEAR, 9)))
    assert not torch.equal(run(1, eta=0.3), run(1, eta=0.6))
    assert torch.equal(sampling.ddpm(network, x, LINEAR, 9, generator=torch.Generator().manual_seed(1)), run(1))
    before = torch.random.get_rng_state()
    run(1)
    assert torch.equal(before, torch.random.get_rng_state())  # no global state is touched


def test_steps_up_and_down_cancel():
    """A step with one and the same ε is undone by the step back."""
    x, eps = noise(3, 1), noise(3, 1, seed=1)
    up = sampling.ddim_step(x, eps, 100, 500, LINEAR)
    torch.testing.assert_close(sampling.ddim_step(up, eps, 500, 100, LINEAR), x, rtol=1e-9, atol=1e-9)


def test_slerp():
    a, b = noise(3, 1, 4, 4), noise(3, 1, 4, 4, seed=1)
    torch.testing.assert_close(sampling.slerp(a, b, 0.0), a)
    torch.testing.assert_close(sampling.slerp(a, b, 1.0), b)
    each = torch.cat([sampling.slerp(a[i : i + 1], b[i : i + 1], 0.3) for i in range(3)])
    torch.testing.assert_close(sampling.slerp(a, b, 0.3), each)  # per sample
    torch.testing.assert_close(sampling.slerp(a, a, 0.3), a)  # no NaN
    assert bool(sampling.slerp(a, -a, 0.3).isfinite().all()) and bool(sampling.slerp(0 * a, a, 0.3).isfinite().all())
    u, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(sampling.slerp(u, v, 0.5), torch.full((1, 2), 0.5**0.5))  # stays on the circle
    torch.testing.assert_close(sampling.slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))[2], b[2])


def test_dpm_solver_equals_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    schedule, denoiser = LINEAR, Gaussian()
    theirs = DPMSolverMultistepScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02,
                                         beta_schedule="linear", solver_order=2, algorithm_type="dpmsolver++",
                                         final_sigmas_type="zero", lower_order_final=False,
                                         timestep_spacing="leading")
    x_T = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = sampling.ddim(denoiser, x_T, schedule, steps=1000, clip=False)
    for steps in (10, 25):
        theirs.set_timesteps(steps)
        x = x_T
        for t in theirs.timesteps:
            x = theirs.step(denoiser(x, t.expand(16)), t, x).prev_sample
        ours = sampling.dpm_solver(denoiser, x_T, schedule, grid=theirs.timesteps.tolist(), clip=False)
        assert (ours - x).abs().max() < 1e-4
    # Second order: closer to the exact solution than DDIM on the same grid.
    ddim = sampling.ddim(denoiser, x_T, schedule, grid=theirs.timesteps.tolist(), clip=False)
    assert (ours - exact).abs().mean() < 0.5 * (ddim - exact).abs().mean()


def two_blobs(x, t, width=0.2):
    """The exact ε for numbers that are ±1, each with a Gaussian error: paths that bend, other than those of one
    Gaussian."""
    a, s = (LINEAR.at(k, t, x)[..., None] for k in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"))
    centres = torch.tensor([-1.0, 1.0], dtype=x.dtype)
    off, variance = x[..., None] - a * centres, (a * width) ** 2 + s**2
    return ((-off.square() / (2 * variance)).softmax(-1) * s * off / variance).sum(-1)


def test_the_corrected_dpm_solver_is_unipc():
    from diffusers import UniPCMultistepScheduler

    theirs = UniPCMultistepScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
                                     solver_order=2, solver_type="bh2", final_sigmas_type="zero",
                                     timestep_spacing="leading")
    x_T = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (10, 25):
        theirs.set_timesteps(steps)
        x, grid = x_T, theirs.timesteps.tolist()
        for t in theirs.timesteps:
            x = theirs.step(two_blobs(x, t.expand(16)), t, x).prev_sample
        ours, plain = (sampling.dpm_solver(two_blobs, x_T, LINEAR, grid=grid, clip=False, correct=correct)
                       for correct in (True, False))
        assert (ours - x).abs().max() < 1e-3 < 0.1 * (ours - plain).abs().max()
    exact = sampling.dpm_solver(two_blobs, x_T, LINEAR, 300, clip=False, grid="quadratic")
    ours, plain = (sampling.dpm_solver(two_blobs, x_T, LINEAR, 12, clip=False, grid="quadratic", correct=correct)
                   for correct in (True, False))
    assert (ours - exact).abs().mean() < 0.7 * (plain - exact).abs().mean()


def test_slerp_per_sample_and_at_the_edges():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 1, 8, 8, generator=g), torch.randn(5, 1, 8, 8, generator=g)
    assert (torch.allclose(sampling.slerp(a, b, 0.0), a, atol=1e-5)
            and torch.allclose(sampling.slerp(a, b, 1.0), b, atol=1e-5))
    assert torch.allclose(sampling.slerp(a, a, 0.3), a, atol=1e-5)  # no NaN for equal inputs
    assert sampling.slerp(a, -a, 0.5).isfinite().all()
    weights = torch.linspace(0, 1, 5)
    mixed = sampling.slerp(a, b, weights)
    for i in range(5):  # each sample on its own, with its own weight
        assert torch.allclose(mixed[[i]], sampling.slerp(a[[i]], b[[i]], float(weights[i])), atol=1e-5)
    halfway = sampling.slerp(a, b, 0.5).flatten(1).norm(dim=1)
    assert torch.allclose(halfway, (a.flatten(1).norm(dim=1) + b.flatten(1).norm(dim=1)) / 2, rtol=1e-4)
