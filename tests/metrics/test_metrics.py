"""Image errors and distances between distributions: closed forms, torchmetrics, coverage of the intervals, refusals."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from pdae_lite import metrics
from pdae_lite.metrics import Estimate, Features


def gaussian(n, d=4, shift=0.0, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def images(n=6, size=16, channels=3, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def coverage(estimates, truth):
    return sum(e.low <= truth <= e.high for e in estimates) / len(estimates)


# ---- estimates ----------------------------------------------------------------------------------------------------


def test_an_estimate_reads_well_and_knows_its_space():
    e = Estimate(0.12345678, 0.1, 0.15, (500, 10_000), "peeps class features")
    assert str(e) == "0.1235 [0.1, 0.15] (n = 500 and 10,000, peeps class features)" and float(e) == 0.12345678
    assert e.excludes() and not e.excludes(0.12)
    with pytest.raises(ValueError, match="a value in peeps class features minus one in none"):
        e - Estimate(0.1, 0.0, 0.2, (5,))


def test_differences_are_as_wide_as_independent_ones_are():
    a, b = Estimate(3.0, 2.0, 4.0, (10,)), Estimate(1.0, -2.0, 4.0, (20,))
    d = a - b
    assert (d.value, d.n) == (2.0, (10, 20)) and (d.high - 2, 2 - d.low) == pytest.approx((math.hypot(1, 3),) * 2)
    assert not d.excludes(0) and (a - Estimate(1.0, 0.9, 1.1, (5,))).excludes(0)


@pytest.mark.parametrize("statistic, truth", [(metrics.mean, 1.0), (metrics.median, math.log(2))])
def test_bootstrap_intervals_cover(statistic, truth):
    draws = torch.empty(200, 80).exponential_(generator=torch.Generator().manual_seed(1))
    estimates = [statistic(x, resamples=400) for x in draws]
    assert 0.88 <= coverage(estimates, truth) <= 0.99
    assert estimates[0] == statistic(draws[0], resamples=400)  # no hidden randomness
    assert estimates[0] != statistic(draws[0], resamples=400, generator=torch.Generator().manual_seed(5))


def test_values_of_the_middle():
    assert (metrics.median(torch.tensor([1.0, 9.0, 2.0, 3.0])).value == 2.5
            and metrics.median(torch.tensor([1.0, 9.0, 2.0])).value == 2.0)


def test_shares_have_wilsons_interval():
    e = metrics.proportion(torch.arange(10) < 1)
    assert (e.value, e.low, e.high) == pytest.approx((0.1, 0.01787621, 0.40415), abs=1e-5)
    every = metrics.proportion(torch.ones(500, dtype=torch.bool))
    assert every.value == every.high == 1 and 0.99 < every.low < 1
    hits = torch.rand(300, 60, generator=torch.Generator().manual_seed(2)) < 0.9
    assert 0.9 <= coverage([metrics.proportion(h) for h in hits], 0.9) <= 0.99


@pytest.mark.parametrize("call, message", [
    (lambda: metrics.mean(torch.ones(1)), r"values has shape \[1\]; want \[N\], N ≥ 2"),
    (lambda: metrics.median(torch.ones(3, 2)), r"values has shape \[3, 2\]"),
    (lambda: metrics.mean(torch.tensor([1.0, math.inf])), "values hold NaN or infinite"),
    (lambda: metrics.proportion(torch.ones(3)), r"hits is torch.float32 \[3\]; want bool"),
])
def test_numbers_that_make_no_estimate(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- pairs of images ----------------------------------------------------------------------------------------------


def test_mse_and_psnr_are_on_the_unit_range():
    a = torch.full((2, 1, 12, 12), -1.0)
    b = a.clone()
    b[1] += 0.2  # 0.1 on [0, 1]
    assert metrics.mse(a, b).tolist() == pytest.approx([0, 0.01])
    assert metrics.psnr(a, b)[0] == math.inf and float(metrics.psnr(a, b)[1]) == pytest.approx(20, abs=1e-4)


def test_ssim_is_torchmetrics_per_image():
    a, noise = images(4), images(4, seed=1)
    b = (0.8 * a + 0.2 * noise).clamp(-1, 1)
    ours = metrics.ssim(a, b)
    for i in range(4):
        theirs = structural_similarity_index_measure((a[i:i + 1] + 1) / 2, (b[i:i + 1] + 1) / 2, data_range=1.0)
        assert float(ours[i]) == pytest.approx(float(theirs), abs=1e-6)
    assert metrics.ssim(a, a).tolist() == pytest.approx([1.0] * 4) and float(metrics.ssim(a, noise).max()) < 0.3


def test_a_paired_difference_is_sharper_than_two_estimates():
    a, g = images(60, 12, 1), torch.Generator().manual_seed(3)
    strength = torch.rand(60, 1, 1, 1, generator=g)  # some images are harder than others
    near, far = ((a + s * strength * torch.randn(a.shape, generator=g)).clamp(-1, 1) for s in (0.30, 0.34))
    paired = metrics.mean(metrics.mse(a, far) - metrics.mse(a, near))
    apart = metrics.mean(metrics.mse(a, far)) - metrics.mean(metrics.mse(a, near))
    assert paired.value == pytest.approx(apart.value, rel=1e-4) and paired.excludes(0) and not apart.excludes(0)


@pytest.mark.parametrize("a, b, message", [
    (images(2), images(3), r"a has shape \[2, 3, 16, 16\], b \[3, 3, 16, 16\]; want pairs"),
    (images(2), images(2) * 3, r"b runs from -3 to 3; want values in \[-1, 1\]"),
    (images(2), images(2) / 0, "b holds NaN or infinite"),
    (((images(2) + 1) * 127).to(torch.uint8), images(2), "a is torch.uint8; want float"),
    (images(2)[0], images(2), r"a has shape \[3, 16, 16\]; want float \[N, C, H, W\]"),
    (images(2, 8), images(2, 8), "images are 8×8; the window of SSIM wants 11×11 or more"),
])
def test_images_that_cant_be_compared(a, b, message):
    with pytest.raises(ValueError, match=message):
        metrics.ssim(a, b)


def test_lpips_only_with_its_own_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="alexnet-owt.*download=True, or use feature_distance"):
        metrics.lpips(images(2, 64), images(2, 64))
    from torchvision.models import AlexNet_Weights, alexnet

    with torch.device("meta"):
        shapes = {k: v.shape for k, v in alexnet().state_dict().items()}
    g = torch.Generator().manual_seed(0)  # random filters; the unused classifier as one number, seen as 59 million
    fake = {k: torch.randn(s, generator=g) * 0.05 if "features" in k else torch.zeros(1).expand(s)
            for k, s in shapes.items()}
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(fake, tmp_path / "hub" / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    a, b = images(2, 64, 1), images(2, 64, 1, seed=1)
    assert metrics.lpips(a, a).tolist() == [0, 0] and float(metrics.lpips(a, b).min()) > 0
    assert metrics.lpips(a[:1], b[:1]).shape == (1,)


# ---- neighbours ---------------------------------------------------------------------------------------------------


def test_precision_and_recall_of_constructed_sets():
    real = torch.cat([gaussian(100, seed=1), gaussian(100, shift=50.0, seed=2)])
    same = torch.cat([gaussian(100, seed=3), gaussian(100, shift=50.0, seed=4)])
    one_mode, elsewhere = gaussian(200, seed=5), gaussian(200, shift=-50.0, seed=6)
    assert all(e.value > 0.75 for e in metrics.precision_recall(same, real))
    precision, recall = metrics.precision_recall(one_mode, real)
    assert precision.value > 0.75 and 0.35 < recall.value < 0.5 and recall.high < 0.6
    assert [e.value for e in metrics.precision_recall(elsewhere, real)] == [0, 0]
    half_good = torch.cat([real[::2] + 1e-3, elsewhere[:100]])
    precision, recall = metrics.precision_recall(half_good, real)
    assert precision.value == 0.5 and precision.low < 0.5 < precision.high and precision.n == (200, 200)
    assert [e.value for e in metrics.precision_recall(real, real)] == [1, 1]


def test_precision_and_recall_by_hand():
    real, generated = torch.tensor([[0.0], [1.0], [3.0], [10.0]]), torch.tensor([[-0.9], [5.1], [14.0], [40.0]])
    # k = 1: real radii 1, 1, 2, 7; -0.9 is in the first ball, 5.1 and 14.0 in the last, 40 in none.
    # Generated radii 6.0, 6.0, 8.9, 26: the balls reach from -6.9 to 5.1, -0.9 to 11.1, 5.1 to 22.9, 14 to 66.
    precision, recall = metrics.precision_recall(generated, real, k=1)
    assert (precision.value, recall.value) == (0.75, 1.0)
    precision, recall = metrics.precision_recall(real, generated, k=1)
    assert (precision.value, recall.value) == (1.0, 0.75)


def test_memorisation_tells_copies_from_samples():
    train, held_out, fresh = (gaussian(300, 8, seed=s) for s in (1, 2, 3))
    honest = metrics.memorisation(fresh, train, held_out)
    assert not honest.ratio.excludes(1) and honest.generated.n == (300, 300) and honest.ratio.n == (300, 300, 300)
    copies = metrics.memorisation(train + 0.1 * fresh, train, held_out)
    assert (copies.ratio.high < 0.5
            and copies.ratio.value == pytest.approx(copies.generated.value / copies.held_out.value))
    assert honest.held_out.value == pytest.approx(float(torch.cdist(held_out, train).min(1).values.median()), rel=1e-2)
    with pytest.raises(ValueError, match="half of held_out or more are training images themselves"):
        metrics.memorisation(fresh, train, train)


def test_nearest_is_own_and_feature_distance():
    originals = gaussian(50, 6, seed=1)
    rebuilt = originals + 0.01 * gaussian(50, 6, seed=2)
    assert metrics.nearest_is_own(rebuilt, originals).value == 1
    shuffled = rebuilt.clone()
    shuffled[:10] = rebuilt[:10].roll(1, 0)
    assert metrics.nearest_is_own(shuffled, originals).value == pytest.approx(0.8)
    assert torch.allclose(metrics.feature_distance(rebuilt, originals), (rebuilt - originals).norm(dim=1).double())
    with pytest.raises(ValueError, match="40 rebuilt images for 50 originals"):
        metrics.nearest_is_own(rebuilt[:40], originals)
    with pytest.raises(ValueError, match="40 features against 50"):
        metrics.feature_distance(rebuilt[:40], originals)


# ---- distances between distributions ------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians():
    def stats(mean, covariance):
        return metrics.Statistics(torch.tensor(mean).double(), torch.tensor(covariance).double(), 10)

    a, b = stats([0.0, 1.0], [[4.0, 0.0], [0.0, 9.0]]), stats([3.0, -3.0], [[1.0, 0.0], [0.0, 25.0]])
    # diagonal: (σ_a − σ_b)²
    assert metrics.frechet_distance(a, b) == pytest.approx(9 + 16 + (2 - 1) ** 2 + (3 - 5) ** 2)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    turned = stats([0.0, 1.0], [[6.5, -2.5], [-2.5, 6.5]])  # a's covariance turned by 45°: they don't commute
    x = torch.linalg.eigvals(a.covariance @ turned.covariance).real.sqrt().sum()
    assert metrics.frechet_distance(a, turned) == pytest.approx(26 - 2 * float(x))
    flat = stats([0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]])  # a singular covariance
    assert metrics.frechet_distance(flat, flat) == pytest.approx(0, abs=1e-7)


def test_fid_is_torchmetrics_in_float64():
    x, y = gaussian(300, 6, seed=1) * 1e3 + 1e4, gaussian(200, 6, 0.3, seed=2) * 1e3 + 1e4
    theirs = _compute_fid(x.double().mean(0), x.double().T.cov(), y.double().mean(0), y.double().T.cov())
    e = metrics.fid(Features(x, "s"), Features(y, "s"))
    assert e.value == pytest.approx(float(theirs), rel=1e-6) and e.n == (300, 200) and e.space == "s"
    known = metrics.fid(Features(x, "s"), metrics.statistics(Features(y, "s")))
    # the reference counts as exact
    assert (known.value == pytest.approx(e.value) and known.high - known.low < e.high - e.low)


def test_fid_intervals_cover_and_its_bias_is_as_stated():
    estimates = [metrics.fid(gaussian(200, seed=s), gaussian(200, shift=0.3, seed=1000 + s)) for s in range(80)]
    middle = sum(e.value for e in estimates) / len(estimates)
    assert 0.88 <= coverage(estimates, middle) <= 1 and sum(e.high - e.low for e in estimates) / len(estimates) < 0.8
    assert middle - 4 * 0.3**2 == pytest.approx(2 * 4 * (4 + 5) / (4 * 200), rel=0.2)


def mmd_of_gaussians(m, d):
    """Squared MMD of N(0, 1) and N(m, 1), by the moments of u = x·y/d for x ~ N(a, 1), y ~ N(b, 1)."""
    def kernel(aa, bb, ab):
        u2 = (d + aa + bb + ab**2) / d**2
        u3 = (ab**3 + 3 * ab * aa + 3 * ab * (bb + d + 2)) / d**3
        return 1 + 3 * ab / d + 3 * u2 + u3

    return kernel(0, 0, 0) + kernel(m, m, m) - 2 * kernel(0, m, 0)


def test_kid_is_unbiased_and_its_intervals_cover():
    for shift in (0.0, 0.3):
        truth = mmd_of_gaussians(4 * shift**2, 4)
        estimates = [metrics.kid(gaussian(100, seed=s), gaussian(80, shift=shift, seed=1000 + s)) for s in range(200)]
        values = torch.tensor([e.value for e in estimates])
        assert abs(float(values.mean()) - truth) < 3 * float(values.std()) / math.sqrt(200)
        assert coverage(estimates, truth) >= 0.9
        assert float(values.std()) * 1.96 < sum(e.high - e.value
                                                for e in estimates) / 200 * 1.1 < 2.2 * 1.96 * float(values.std())
    assert mmd_of_gaussians(0.0, 4) == 0 and float(values.min()) < truth < float(values.max())


def test_kid_knows_of_classes_with_fixed_numbers():
    centres = 4 * gaussian(5, seed=9)

    def draw(seed, stratified):
        g = torch.Generator().manual_seed(seed)
        classes = torch.arange(5).repeat_interleave(8) if stratified else torch.randint(5, (40,), generator=g)
        return Features(centres[classes] + torch.randn(40, 4, generator=g), "s", classes, (), stratified)

    def average(estimates):
        values = torch.tensor([e.value for e in estimates])
        return float(values.mean()), 3 * float(values.std()) / math.sqrt(len(values))

    pairs = [(draw(s, False), draw(1000 + s, True)) for s in range(300)]
    value, error = average([metrics.kid(a, b) for a, b in pairs])
    assert abs(value) < error
    value, error = average([metrics.kid(a, b[:]) for a, b in pairs])  # a slice no longer claims fixed numbers
    assert value < -error
    with pytest.raises(ValueError, match=r"stratified features want labels \[N\]"):
        Features(gaussian(4), stratified=True)
    with pytest.raises(ValueError, match="one image of class 3; stratified features want two"):
        metrics.kid(gaussian(4), Features(gaussian(4), labels=torch.tensor([1, 1, 3, 1]), stratified=True))


def test_kid_is_torchmetrics_and_its_jackknife_exact(monkeypatch):
    x, y = gaussian(30, 5, seed=1).double(), gaussian(30, 5, 0.5, seed=2).double()
    e = metrics.kid(x, y)
    assert e.value == pytest.approx(float(poly_mmd(x, y)))

    def left_out(i, j):
        return metrics.kid(x[torch.arange(30) != i], y[torch.arange(30) != j]).value

    by_hand = sum(torch.tensor(p).double().var(correction=0) * 29
                  for p in ([left_out(i, -1) for i in range(30)], [left_out(-1, j) for j in range(30)]))
    assert e.high - e.value == pytest.approx(1.959964 * math.sqrt(by_hand), rel=1e-6)
    whole = metrics.precision_recall(x, y), metrics.nearest_distance(x, y)
    monkeypatch.setattr(metrics.features, "BLOCK", 100)  # parts of three rows
    assert metrics.kid(x, y).low == pytest.approx(e.low) and metrics.precision_recall(x, y) == whole[0]
    assert torch.allclose(metrics.nearest_distance(x, y), whole[1])


# ---- differences of pairs -----------------------------------------------------------------------------------------


def pairable(n, shift=0.0, seed=0, d=3):
    return Features(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double) + shift)


def test_the_difference_of_two_kids_and_its_interval():
    a, b, real = pairable(7, 0.4), pairable(7, 0.1, 1), pairable(9, 0, 2)
    found = metrics.kid_difference(a, b, real)

    def value(a, b, real):
        return metrics.kid(a, real).value - metrics.kid(b, real).value

    def without(f, i):
        return Features(torch.cat([f.values[:i], f.values[i + 1:]]))

    assert found.value == pytest.approx(value(a, b, real), abs=1e-12) and found.n == (7, 9)
    pairs = [value(without(a, i), without(b, i), real) for i in range(7)]
    reals = [value(a, b, without(real, j)) for j in range(9)]
    variance = sum((n - 1) / n * sum((p - sum(parts) / n) ** 2 for p in parts) for n, parts in ((7, pairs), (9, reals)))
    assert found.high - found.value == pytest.approx(1.959964 * variance**0.5, rel=1e-9)


def test_the_difference_of_two_fids():
    a, b, real = pairable(60, 0.5), pairable(60, 0.2, 1), pairable(80, 0, 2)
    found = metrics.fid_difference(a, b, real)
    assert found.value == pytest.approx(metrics.fid(a, real).value - metrics.fid(b, real).value, abs=1e-9)
    assert found.low < found.value < found.high and found.n == (60, 80)


@pytest.mark.parametrize(("difference", "distance"),
                         [(metrics.kid_difference, metrics.kid), (metrics.fid_difference, metrics.fid)])
def test_pairs_narrow_the_interval(difference, distance):
    a, real = pairable(100, 0.3), pairable(100, 0, 2)
    b = Features(a.values + 0.05 * pairable(100, 0, 3).values)
    paired, unpaired = difference(a, b, real), distance(a, real) - distance(b, real)
    assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)
    same = difference(a, a, real)
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize("difference", [metrics.kid_difference, metrics.fid_difference])
def test_pairs_must_be_pairs(difference):
    with pytest.raises(ValueError, match="30 samples against 29; want pairs"):
        difference(pairable(30), pairable(29), pairable(40))
    with pytest.raises(ValueError, match="want .* or more of each"):
        difference(pairable(2), pairable(2), pairable(40))


def stratified(n, shift=0.0, seed=0):
    values = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + shift
    return Features(values, "made up", torch.arange(n) % 10, stratified=True)


def test_where_classes_have_fixed_numbers_whole_groups_are_left_out():
    real, near, far = stratified(100), stratified(200, 0.1, seed=1), stratified(200, 0.6, seed=2)
    found = metrics.kid_difference(far, near, real)
    assert found.value == pytest.approx(metrics.kid(far, real).value - metrics.kid(near, real).value)
    assert found.excludes(0) and found.low < found.value < found.high
    same = metrics.kid_difference(near, near, real)
    assert same.value == same.low == same.high == 0
    # what both share doesn't widen the interval
    paired = Features(near.values + 0.01, "made up", near.labels, stratified=True)
    independent = metrics.kid(paired, real) - metrics.kid(near, real)
    narrow = metrics.kid_difference(paired, near, real)
    assert narrow.high - narrow.low < 0.3 * (independent.high - independent.low)


def test_the_interval_may_leave_the_real_images_as_they_are():
    a, b, real = pairable(30, 0.4), pairable(30, 0.1, 1), pairable(40, 0, 2)
    whole, given = metrics.kid_difference(a, b, real), metrics.kid_difference(a, b, real, real_varies=False)
    assert given.value == whole.value and given.high - given.value < whole.high - whole.value


def test_a_set_against_itself_is_a_set_against_its_copy():
    """What a figure is depends on the values, not on which object holds them."""
    f = pairable(40)
    copy = Features(f.values.clone())
    for figure in (metrics.kid, metrics.fid, metrics.nearest_distance, metrics.nearest_is_own, metrics.precision_recall,
                   metrics.feature_distance,
                   lambda a, b: metrics.memorisation(pairable(20, 0, 5), a, pairable(20, 0, 6))):
        own, other = figure(f, f), figure(f, copy)
        assert torch.equal(own, other) if torch.is_tensor(own) else own == other
    assert metrics.kid(f, f).value < 0  # unbiased from two sets of one distribution, these share every image


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(20, 60), st.integers(20, 60), st.integers(1, 6), st.floats(-3, 3), st.integers(0, 10**6))
def test_what_holds_of_every_distance(n, m, d, shift, seed):
    """Symmetric, blind to the order of images, and inside its own interval; a difference with itself is 0."""
    a, b = pairable(n, shift, seed, d), pairable(m, 0, seed + 1, d)
    mixed = Features(a.values[torch.randperm(n, generator=torch.Generator().manual_seed(seed))])
    for distance in (metrics.kid, metrics.fid):
        e, other = distance(a, b), distance(b, a)
        assert (e.low <= e.value <= e.high and e.n == (n, m)
                and other.value == pytest.approx(e.value, rel=1e-6, abs=1e-6))
        assert distance(mixed, b).value == pytest.approx(e.value, rel=1e-6, abs=1e-6)
    for difference in (metrics.kid_difference, metrics.fid_difference):
        assert difference(a, a, b).value == 0
    assert metrics.kid(mixed, b).high == pytest.approx(metrics.kid(a, b).high, rel=1e-6, abs=1e-6)


# ---- classes of samples -------------------------------------------------------------------------------------------


def test_class_score_of_clear_and_unclear_classes():
    clear = torch.eye(10).repeat(20, 1) * 50
    assert (metrics.class_score(clear).value == pytest.approx(10) and metrics.class_score(torch.zeros(20, 10)).value
            == pytest.approx(1))
    assert metrics.class_score(clear[:, :10] * 0 + clear[0]).value == pytest.approx(1)  # one class only
    draws = torch.randn(60, 150, 5, generator=torch.Generator().manual_seed(1)) * 3
    estimates = [metrics.class_score(x) for x in draws]
    assert 0.88 <= coverage(estimates, sum(e.value for e in estimates) / 60) <= 1
    with pytest.raises(ValueError, match=r"logits has shape \[20\]; want \[N, classes\]"):
        metrics.class_score(torch.zeros(20))


@pytest.mark.parametrize("call, message", [
    (lambda: metrics.kid(Features(gaussian(9), "a"), Features(gaussian(9), "b")),
     r"a \[N, 4\] against b \[N, 4\]; want the same feature space"),
    (lambda: metrics.kid(Features(gaussian(9), "a"), gaussian(9)), "a .* against unnamed features"),
    (lambda: metrics.fid(gaussian(30, 4), gaussian(30, 5)), r"\[N, 4\] against .*\[N, 5\]|\[4\] against .*\[5\]"),
    (lambda: metrics.fid(gaussian(19), gaussian(30)), "19 images; a Fréchet distance wants 20"),
    (lambda: metrics.kid(gaussian(2), gaussian(30)), "2 generated and 30 real images; want 3 or more"),
    (lambda: metrics.kid(images(4), images(4)), r"features are torch.float32 \[4, 3, 16, 16\]; want float \[N, D\]"),
    (lambda: metrics.kid(torch.ones(9, 4, dtype=torch.int64), gaussian(9)), "features are torch.int64"),
    (lambda: metrics.kid(gaussian(9) / 0, gaussian(9)), "features hold NaN or infinite values"),
    (lambda: metrics.precision_recall(gaussian(9), gaussian(3)), "k=3; want 1 … 2, less than either number of images"),
    (lambda: metrics.precision_recall(gaussian(9), gaussian(9), k=0), "k=0; want 1 … 8"),
    (lambda: metrics.statistics(gaussian(1)), "one image has no covariance"),
    (lambda: metrics.class_score(gaussian(9) / 0), "logits hold NaN or infinite values"),
    (lambda: metrics.LinearGaussian((images(9) * 100).to(torch.uint8), 2),
     "9 images of torch.uint8; want at least 2, float"),
    (lambda: metrics.LinearGaussian(images(9) / 0, 2), "x_0 holds NaN or infinite values"),
    (lambda: metrics.LinearGaussian(images(9, 2), 13), "z_dim=13; want 0 … 12"),
    (lambda: metrics.principal_components(gaussian(9), 5), r"x is torch.float32 \[9, 4\], k=5; want float \[M, D\] and "
                                                           r"1 ≤ k"),
])
def test_features_that_cant_be_compared(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_principal_components_leave_the_callers_random_state_alone():
    # so wide that it is done by random projection
    x = torch.randn(40, 2049, generator=torch.Generator().manual_seed(1))
    x[:, :3] *= 100  # three strong directions
    torch.manual_seed(5)
    before = torch.get_rng_state()
    basis = metrics.principal_components(x, 3)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(metrics.principal_components(x, 3), basis)
    exact = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:3].T
    assert torch.linalg.svdvals(basis.T @ exact).min() > 0.999  # the same space
