"""Losses against their formulas, and the measurements on Gaussian data where every answer is known."""
import pytest
import torch

from pdae_lite import losses
from pdae_lite.losses import fill, nats, noise_error, posterior_mean_gap
from pdae_lite.metrics import LinearGaussian
from pdae_lite.schedule import NoiseSchedule

LINEAR = NoiseSchedule.linear()
SHORT = NoiseSchedule.linear(40, 1e-3, 0.4)
VARIANCES = torch.tensor([2.0, 1.0, 0.5, 0.2, 0.05, 0.01], dtype=torch.float64)
Z_DIM = 2
TS = [0, 1, 50, 200, 500, 900]


def gaussian_data(n=3000):
    """[n, 1, 2, 3] whose sample mean is zero and sample covariance is diag(VARIANCES), rotated, exactly."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T * VARIANCES.sqrt()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64))[0]
    return (x @ rotation.T + 0.1).reshape(n, 1, 2, 3)


X = gaussian_data()
MODEL = LinearGaussian(X, Z_DIM)


def plain(schedule=LINEAR):
    return lambda x: MODEL.denoiser(schedule)


def coded(schedule=LINEAR):
    return lambda x: MODEL.denoiser(schedule, x)


# ---- losses --------------------------------------------------------------------------------------------------------


def batch(n=4):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 4, 4, generator=g), torch.tensor([0, 10, 500, 999])[:n], torch.randn(n, 1, 4, 4,
                                                                                                  generator=g)


def test_weighted_mse():
    error, t = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([0, 2])
    weight = torch.tensor([1.0, 100.0, 10.0])
    assert float(losses.weighted_mse(error, t, LINEAR, weight)) == pytest.approx((1 * 5 + 10 * 4) / 2)


@pytest.mark.parametrize("weight", ["simple", "vlb", "pdae"])
def test_dpm_loss(weight):
    x_0, t, eps = batch()

    def dpm(x_t, t):
        return 0.5 * x_t

    bar = LINEAR.alpha_bar[t].reshape(4, 1, 1, 1)
    error = eps - 0.5 * (bar.sqrt() * x_0 + (1 - bar).sqrt() * eps)
    want = (LINEAR.loss_weight(weight)[t] * error.square().mean((1, 2, 3))).mean()
    torch.testing.assert_close(losses.dpm_loss(dpm, x_0, t, eps, LINEAR, weight), want, rtol=1e-5, atol=1e-6)
    perfect = losses.dpm_loss(lambda x_t, t: LINEAR.predict_eps(x_t, t, x_0), x_0, t, eps, LINEAR)
    assert float(perfect) < 1e-6


def test_dpm_loss_with_classes():
    x_0, t, eps = batch()
    y = torch.tensor([0, 1, 2, 3])
    loss = losses.dpm_loss(lambda x_t, t, y: eps - y.reshape(4, 1, 1, 1), x_0, t, eps, LINEAR, y=y)
    assert float(loss) == pytest.approx((0 + 1 + 4 + 9) / 4, rel=1e-5)


class FakePDAE:
    """ε_θ = x_t/2 and G = z · x_t, with z the mean of the image."""

    schedule = LINEAR

    def encoder(self, x_0):
        return x_0.mean((1, 2, 3))[:, None]

    def known_eps(self, x_t, t, z):
        return 0.5 * x_t - LINEAR.at("shift_coefficient", t, x_t) * z.reshape(-1, 1, 1, 1) * x_t


def test_pdae_loss():
    """E[λ_t ‖ε − ε_θ + k_t G‖²]."""
    x_0, t, eps = batch()
    x_t = LINEAR.add_noise(x_0, t, eps)
    k, weight = LINEAR.shift_coefficient[t].reshape(4, 1, 1, 1), LINEAR.loss_weight("pdae")[t]
    for z in (None, torch.tensor([[1.0], [-2.0], [0.5], [0.0]])):
        code = x_0.mean((1, 2, 3))[:, None] if z is None else z
        error = eps - 0.5 * x_t + k * code.reshape(4, 1, 1, 1) * x_t
        want = (weight * error.square().mean((1, 2, 3))).mean()
        torch.testing.assert_close(losses.pdae_loss(FakePDAE(), x_0, t, eps, z=z), want, rtol=1e-5, atol=1e-6)


def test_the_loss_says_nothing_to_g_at_t_0():
    x_0, _, eps = batch()
    z = torch.ones(4, 1, requires_grad=True)
    for t, silent in ((0, True), (1, False)):
        gradient, = torch.autograd.grad(losses.pdae_loss(FakePDAE(), x_0, torch.full((4,), t), eps, z=z), z)
        assert bool((gradient == 0).all()) is silent


# ---- measuring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_code", [False, True])
def test_noise_error_is_the_closed_form(with_code):
    """Per component of variance v: E(ε − ε̂)² = SNR v/(SNR v + 1), zero for the components that the code holds."""
    error = noise_error(coded() if with_code else plain(), X, LINEAR, TS).double()
    snr = LINEAR.snr.double()[TS][:, None]
    per_component = snr * VARIANCES / (snr * VARIANCES + 1)
    want = per_component[:, Z_DIM if with_code else 0 :].sum(1) / 6
    # 18,000 squared normals: 1 % and more, few components
    torch.testing.assert_close(error, want, rtol=0.08, atol=1e-6)
    torch.testing.assert_close(MODEL.error(LINEAR, TS, with_code).double(), want, rtol=1e-5, atol=1e-8)


def test_noise_error_is_keyed_by_image_and_timestep():
    one = noise_error(plain(), X[:300], LINEAR, [100, 500])
    assert torch.equal(one, noise_error(plain(), X[:300], LINEAR, [100, 500]))
    torch.testing.assert_close(one, noise_error(plain(), X[:300], LINEAR, [100, 500], batch_size=7))
    torch.testing.assert_close(one[1:], noise_error(plain(), X[:300], LINEAR, [500]))
    assert not torch.allclose(one, noise_error(plain(), X[:300], LINEAR, [100, 500], seed=1), rtol=1e-4)


def test_posterior_mean_gap():
    """It is the mean square of μ̃_t − μ_θ itself."""
    from pdae_lite import counter_rng

    t = 300
    index = torch.arange(len(X))
    eps = counter_rng.normal(0, t, index, (1, 2, 3)).double()
    t_batch = torch.full((len(X),), t)
    x_t = LINEAR.add_noise(X, t_batch, eps)
    mean = LINEAR.model_mean(x_t, t_batch, MODEL.denoiser(LINEAR)(x_t, t_batch))
    want = (LINEAR.posterior_mean(X, x_t, t_batch) - mean).square().mean()
    assert float(posterior_mean_gap(plain(), X, LINEAR, [t])) == pytest.approx(float(want), rel=1e-4)


def test_uniform_noise_of_the_release():
    """Noise on [0, 1) has second moments 1/12 + 1/4 per pixel, all of the 1/4 along the constant image. On a Gaussian
    the error follows in closed form: Σ (a² m + b² v), a = SNR v/(SNR v + 1), b² = SNR/(SNR v + 1)²."""
    ts = [100, 500, 900]
    moments = 1 / 12 + (0.5 * MODEL.basis.sum(0)) ** 2
    snr = LINEAR.snr.double()[ts][:, None]
    denominator = snr * VARIANCES + 1
    want = ((snr * VARIANCES / denominator) ** 2 * moments + snr * VARIANCES / denominator**2).sum(1) / 6
    uniform = noise_error(plain(), X, LINEAR, ts, noise="uniform")
    torch.testing.assert_close(uniform.double(), want, rtol=0.05, atol=0)
    assert float(noise_error(plain(), X, LINEAR, [100])) > 1.5 * float(uniform[0])  # it is another measurement
    with pytest.raises(ValueError, match="noise 'normal'"):
        noise_error(plain(), X, LINEAR, [1], noise="normal")


def test_uniform_noise_inflates_the_gap_at_large_t():
    """The release's curve: a predictor that takes x_t for noise at large t has error E(ε − x_t/√(1−ᾱ_t))², which a
    Gaussian ε leaves small; one that has learnt zero-mean noise of unit variance rescales x_t, and errs by the mean
    and the missing variance of uniform noise."""
    def normalising(x):
        def predict(x_t, t):
            flat = x_t.flatten(1)
            return ((flat - flat.mean()) / flat.std()).reshape(x_t.shape)
        return predict

    gaussian, uniform = (noise_error(normalising, X, LINEAR, [900, 999], noise=n) for n in ("gaussian", "uniform"))
    assert bool((uniform > 10 * gaussian).all())


def test_fill_is_the_closed_form():
    error, error_dpm = (noise_error(d, X, LINEAR, TS) for d in (coded(), plain()))
    want = MODEL.fill(LINEAR, TS)
    torch.testing.assert_close(fill(error, error_dpm), want, rtol=0, atol=0.02)
    snr = LINEAR.snr.double()[TS][:, None]
    share = snr * VARIANCES / (snr * VARIANCES + 1)
    torch.testing.assert_close(want.double(), share[:, :Z_DIM].sum(1) / share.sum(1), rtol=1e-5, atol=1e-7)
    assert bool((want[1:] > want[:-1]).all())  # noise hides the small components first
    assert fill(error_dpm, error_dpm).tolist() == [0] * len(TS)


def direct_nats(schedule, dims=6):
    """Σ_{t ≥ 1} of the closed-form gaps over 2β̃_t, written out."""
    total, bar_before = 0.0, None
    for t in range(schedule.T):
        beta, bar = float(schedule.beta.double()[t]), float(schedule.alpha_bar.double()[t])
        if t >= 1:
            coefficient = beta / ((1 - beta) * (1 - bar)) ** 0.5
            variance = beta * (1 - bar_before) / (1 - bar)
            v = VARIANCES[:Z_DIM]
            snr = bar / (1 - bar)
            total += coefficient**2 * float((snr * v / (snr * v + 1)).sum()) / (2 * variance)
        bar_before = bar
    return total


@pytest.mark.parametrize("schedule", [SHORT, LINEAR])
def test_nats_against_the_direct_sum(schedule):
    ts = torch.arange(1, schedule.T)
    got = nats(MODEL.error(schedule, ts, True), MODEL.error(schedule, ts, False), schedule, ts, 6)
    assert got == pytest.approx(direct_nats(schedule), rel=1e-3)


def test_nats_from_a_few_timesteps():
    ts = torch.unique(torch.cat([torch.arange(1, 30), torch.logspace(1.4, 2.999, 60).long()]))
    got = nats(MODEL.error(LINEAR, ts, True), MODEL.error(LINEAR, ts, False), LINEAR, ts, 6)
    assert got == pytest.approx(direct_nats(LINEAR), rel=0.02)


def test_nats_approach_the_information_in_the_code():
    """With ever finer steps the sum tends to ½ Σ log((1 + SNR_0 v)/(1 + SNR_T v)): what x_0's code tells beyond the
    first noise level. At T steps it exceeds that by what the steps' discreteness costs the plain DPM."""
    v = VARIANCES[:Z_DIM]

    def limit(s):
        snr = s.snr.double()
        return float(0.5 * (torch.log1p(snr[0] * v) - torch.log1p(snr[-1] * v)).sum())

    excess = []
    for T in (250, 1000, 4000):
        s = NoiseSchedule.linear(T, 0.1 / T, 20 / T)
        ts = torch.arange(1, T)
        excess.append(nats(MODEL.error(s, ts, True), MODEL.error(s, ts, False), s, ts, 6) / limit(s) - 1)
    assert excess[0] > excess[1] > excess[2] > -0.01 and excess[2] < 0.1, excess


def test_nats_refuses_what_has_no_value():
    for ts in ([0, 1], [5], [5, 5], [7, 3], []):
        with pytest.raises(ValueError, match="ts is .*; want at least two increasing values"):
            nats(torch.ones(len(ts)), torch.ones(len(ts)), LINEAR, ts, 6)


# ---- the linear reference --------------------------------------------------------------------------------------------


def test_linear_gaussian_denoisers():
    t, eps = torch.full((len(X),), 400), torch.randn(X.shape, generator=torch.Generator().manual_seed(3),
                                                     dtype=torch.float64)
    x_t = LINEAR.add_noise(X, t, eps)
    # all components known: the noise itself
    torch.testing.assert_close(LinearGaussian(X, 6).denoiser(LINEAR, X)(x_t, t), eps, rtol=1e-6, atol=1e-6)
    # none known: the plain predictor
    torch.testing.assert_close(LinearGaussian(X, 0).denoiser(LINEAR, X)(x_t, t), MODEL.denoiser(LINEAR)(x_t, t))
    torch.testing.assert_close(MODEL.variance, VARIANCES, rtol=1e-9, atol=1e-9)
    assert MODEL.denoiser(LINEAR)(x_t.float(), t).dtype == torch.float32
    with pytest.raises(ValueError, match="z_dim=7"):
        LinearGaussian(X, 7)
