"""The doctor passes a perfect model, and finds what is wrong with a broken one."""
import json
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pdae_lite
from pdae_lite import data
from pdae_lite.commands import main
from pdae_lite.evaluation.checks import log_grid, noise_statistics, noisy_invert, pick, z_sensitivity
from pdae_lite.evaluation.doctor import examine
from pdae_lite.metrics import LinearGaussian, nearest_distance
from pdae_lite.metrics.features import Features
from pdae_lite.networks.encoder import EncoderConfig, SemanticEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.schedule import NoiseSchedule

LINEAR = NoiseSchedule.linear()
Z_DIM = 6
SHAPE = (1, 6, 6)
TINY = UNetConfig(32, 1, 8, (1, 2), 1, (2,))


def gaussian_images(n, seed):
    """Images that are exactly Gaussian, well inside [−1, 1]: a few strong directions and a weak rest."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(36, 36, generator=torch.Generator().manual_seed(9)))[0]
    std = torch.tensor([0.5] * Z_DIM + [0.1] * (36 - Z_DIM))
    return (torch.randn(n, 36, generator=g) * std @ basis.T).reshape(n, *SHAPE).clamp(-1, 1)


TRAIN, HELD_OUT = gaussian_images(2000, 0), gaussian_images(120, 1)
WORLD = LinearGaussian(TRAIN, Z_DIM)
LABELS, TRAIN_LABELS = ((x.flatten(1) @ WORLD.basis[:, 0].float() > 0).long() for x in (HELD_OUT, TRAIN))
Noisy = namedtuple("Noisy", "x t")


class ExactDPM(nn.Module):
    """The ideal noise predictor of Gaussian data."""

    config = SimpleNamespace(image_size=6, in_channels=1)

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.weight = factor, nn.Parameter(torch.zeros(1))

    def trunk(self, x_t, t):
        return Noisy(x_t, t)

    def head(self, features):
        return self.factor * WORLD.denoiser(LINEAR)(features.x, features.t)

    def forward(self, x_t, t):
        return self.head(self.trunk(x_t, t))


class MemoryDPM(ExactDPM):
    """The ideal noise predictor of a data set that is its training images and nothing else."""

    def head(self, features):
        x, t = features
        a, s = (LINEAR.at(k, t, x).reshape(-1, 1) for k in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"))
        known = TRAIN[:100].flatten(1)
        weight = (-torch.cdist(x.flatten(1) / a, known).square() * (a / s) ** 2 / 2).softmax(1)
        return LINEAR.predict_eps(x, t, (weight @ known).reshape(x.shape))


class Components(nn.Module):
    """Encodes to principal components, or to something that is of no use."""

    z_dim = Z_DIM

    def __init__(self, change=lambda z: z):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change((x.flatten(1) - WORLD.mean.float()) @ WORLD.basis[:, :Z_DIM].float())


class Estimator(nn.Module):
    """G with which ε̂ is the ideal noise predictor that knows z."""

    def __init__(self, size=1.0):
        super().__init__()
        self.size = size

    def forward(self, features, z):
        x, t = features
        x_0 = (WORLD.mean.float() + z @ WORLD.basis[:, :Z_DIM].float().T).reshape(-1, *SHAPE)
        difference = WORLD.denoiser(LINEAR)(x, t) - WORLD.denoiser(LINEAR, x_0)(x, t)
        return self.size * difference / LINEAR.at("sqrt_one_minus_alpha_bar", t, x)


def exact(change=lambda z: z, size=1.0, dpm=None):
    return PDAE(dpm or ExactDPM(), Components(change), LINEAR, Estimator(size))


def look_at(model, *checks, **more):
    report = examine(model, HELD_OUT, TRAIN, LABELS, TRAIN_LABELS, checks=checks or None, **more)
    return report[checks[0]] if len(checks) == 1 else report


# ---- a perfect model -------------------------------------------------------------------------------------------------


def test_a_perfect_model_passes():
    report = look_at(exact())
    assert {f.check: f.verdict for f in report.findings} == dict.fromkeys(
        ["codes", "fill", "z", "overfitting", "x_T", "reconstruction", "memorisation", "probes"], "ok"), str(report)
    assert report.verdict == "ok" and not any(f.cure for f in report.findings)
    fill = report["fill"].numbers
    assert fill["mean"] == pytest.approx(fill["linear_mean"], abs=0.03)  # it is the linear code
    assert report["codes"].numbers["alive"] == Z_DIM
    assert report["reconstruction"].numbers["mse_inferred_x_T"] < 1e-4
    assert report["probes"].numbers["z"] > 0.95


def test_only_held_out_images_are_enough():
    report = examine(exact(), HELD_OUT)
    assert [f.check for f in report.findings] == ["codes", "fill", "z", "x_T", "reconstruction"]
    assert report.verdict == "ok"
    halves = examine(exact(), HELD_OUT, labels=LABELS, checks=["probes"])["probes"].numbers
    assert (halves["train"], halves["test"]) == (60, 60)


def test_the_report_as_text_and_as_json():
    report = look_at(exact(size=0.0), "fill", "z")
    lines = str(report).splitlines()
    assert lines[0].startswith("PDAE, z_dim 6, on 100 images of 1×6×6") and lines[1].startswith("bad   fill")
    assert str(report).count("Cure: ") == 2 and max(map(len, lines)) < 140
    again = json.loads(json.dumps(report.to_dict()))
    assert again["verdict"] == "bad" and again["findings"][0]["numbers"]["fill"] == [0.0] * 9


def test_images_are_picked_from_tensors_and_data_sets_alike():
    digits = data.digits("test")
    listed = [(image, int(label)) for image, label in zip(digits.images, digits.labels)]
    x, y = pick(digits, 5, 3, digits.labels)
    x_2, y_2 = pick(listed, 5, 3, [label for _, label in listed])
    assert torch.equal(x, x_2) and torch.equal(y, y_2) and torch.equal(x, pick(digits.floats(), 5, 3))
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() <= 1


# ---- broken ones -----------------------------------------------------------------------------------------------------


def test_an_untrained_pdae_ignores_z_and_fills_nothing():
    torch.manual_seed(0)
    model = PDAE(UNet(TINY), SemanticEncoder(EncoderConfig(32, 1, (8, 8, 8), 1, 2, 4)), LINEAR).eval()
    report = examine(model, data.digits("test"), images=10, checks=["fill", "z"])
    assert [f.verdict for f in report.findings] == ["bad", "bad"]
    assert report["fill"].numbers["fill"] == [0.0] * 9 and "starts at zero" in report["fill"].cure
    assert "z is ignored" in report["z"].says and report["z"].numbers["change"] == [0.0] * 5


@pytest.mark.parametrize("change", [lambda z: z.flip(1), lambda z: z.roll(1, 0), lambda z: -z],
                         ids=["dimensions", "images", "sign"])
def test_codes_that_are_mixed_up(change):
    report = look_at(exact(change), "fill", "z")
    assert [f.verdict for f in report.findings] == ["bad", "bad"]
    assert report["fill"].numbers["mean"] < 0 and "come from one run" in report["fill"].cure
    assert "its own z serves an image no better" in report["z"].says


def test_an_estimator_that_is_half_trained_or_wrong():
    half = look_at(exact(size=0.25), "fill")
    assert half.verdict == "look" and 0.2 < half.numbers["mean"] < 0.5
    assert look_at(exact(size=0.02), "fill").verdict == "bad"
    assert look_at(exact(size=-1.0), "fill").verdict == "bad"
    assert look_at(exact(size=-1.0), "z").verdict == "bad"


def test_codes_that_are_all_the_same_or_narrow():
    assert look_at(exact(lambda z: torch.full_like(z, 3.0)), "codes").verdict == "bad"
    one = torch.eye(Z_DIM)[:1]
    assert look_at(exact(lambda z: z * one), "codes").verdict == "look"
    assert look_at(exact(lambda z: z * one), "codes").numbers["effective"] == pytest.approx(1)


def test_a_shuffled_or_empty_code_rebuilds_nothing_and_tells_no_labels():
    report = look_at(exact(lambda z: z.roll(1, 0)), "reconstruction", "probes")
    assert [f.verdict for f in report.findings] == ["bad", "bad"]


def test_nan_weights():
    model = exact()
    model.dpm.weight.data[:] = torch.nan
    report = look_at(model)
    assert [(f.check, f.verdict) for f in report.findings] == [("weights", "bad")]
    assert look_at(exact(lambda z: z / 0), "codes", "z").verdict == "bad"


@pytest.mark.parametrize("factor, verdict", [(1.0, "ok"), (0.98, "look"), (0.9, "bad")])
def test_noise_that_is_predicted_too_small_gives_x_T_that_is(factor, verdict):
    class Scaled(Estimator):
        def forward(self, features, z):
            x, t = features
            s = LINEAR.at("sqrt_one_minus_alpha_bar", t, x)
            eps = WORLD.denoiser(LINEAR)(x, t)
            # factor · ε̂
            return (super().forward(features, z) + (1 - factor) * (eps - s * super().forward(features, z)) / s)

    model = PDAE(ExactDPM(), Components(), LINEAR, Scaled())
    found = look_at(model, "x_T")
    assert found.verdict == verdict, found.says
    if factor < 1:
        assert found.numbers["x_T"]["std"] < 0.95 and "Most off: the std" in found.says


def test_a_dpm_that_knows_its_training_images_by_heart():
    model = exact(dpm=MemoryDPM())
    copies = examine(model, HELD_OUT, TRAIN[:100], checks=["memorisation", "overfitting"])
    assert copies["memorisation"].verdict == "bad" and copies["memorisation"].numbers["high"] < 0.5
    assert look_at(exact(), "overfitting").numbers["ratio"] == pytest.approx(1, abs=0.1)
    memory = PDAE(MemoryDPM(), Components(), LINEAR, Estimator(0.0))
    assert examine(memory, HELD_OUT, TRAIN[:100], checks=["overfitting"]).verdict == "look"


def test_diffae_has_no_fill_but_all_else():
    torch.manual_seed(0)
    from pdae_lite.diffae import DiffAE

    schedule, images = NoiseSchedule.linear(20, 1e-3, 0.4), torch.rand(30, 1, 16, 16) * 2 - 1
    model = DiffAE(UNet(UNetConfig(16, 1, 8, (1, 2), 1, (2,), z_dim=4)),
                   SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 4)), schedule)
    report = examine(model.eval(), images[:10], images[10:])
    assert [f.check for f in report.findings] == ["codes", "z", "overfitting", "x_T", "reconstruction", "memorisation"]
    assert report["z"].verdict == "bad" and "images rebuilt from z" in report["memorisation"].says
    with pytest.raises(ValueError, match="checks is fill; for this model and these data want some of codes,z"):
        examine(model, images, checks=["fill"])


# ---- measurements by algebra -----------------------------------------------------------------------------------------


def test_statistics_of_noise():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, 16, 16, generator=g)
    s = noise_statistics(x)
    for key, value, slack in (("mean", 0, 0.02), ("std", 1, 0.02), ("pixel_means", 1, 0.15), ("neighbours", 0, 0.02),
                              ("kurtosis", 0, 0.1),
                              ("brightness", 1, 0.2)):
        assert s[key] == pytest.approx(value, abs=slack), key
    assert noise_statistics(x + torch.ones(1, 16, 16))["pixel_means"] == pytest.approx(200**0.5, rel=0.02)
    smooth = (x[..., :-1] + x[..., 1:]) / 2**0.5
    assert noise_statistics(smooth)["neighbours"] == pytest.approx(0.25, abs=0.03)  # half across, none down
    assert noise_statistics(x.sign())["kurtosis"] == pytest.approx(-2, abs=0.01)
    assert noise_statistics(x + torch.randn(200, 1, 1, 1, generator=g))["brightness"] == pytest.approx(16, rel=0.15)


def test_sensitivity_by_hand():
    model = exact()
    found = z_sensitivity(model, HELD_OUT, [100, 500])
    z = model.encode(HELD_OUT)
    s = LINEAR.alpha_bar[[100, 500]] / (1 - LINEAR.alpha_bar[[100, 500]])
    k = LINEAR.shift_coefficient[[100, 500]] / (1 - LINEAR.alpha_bar[[100, 500]]).sqrt()
    by_hand = s * k**2 * (z - z.roll(1, 0)).square().sum(1).mean() / 36  # ε̂ moves by √SNR times x̂_0
    assert torch.allclose(found["change"], by_hand, rtol=1e-3)
    assert (found["swapped"] > found["error"]).all()
    with pytest.raises(ValueError, match="want at least 2"):
        z_sensitivity(model, HELD_OUT[:1], [100])


def test_inversion_of_noised_images_is_noise_and_of_clean_ones_is_not(monkeypatch):
    """In a direction that doesn't vary a clean image holds no noise to find, and inverts to a constant there."""
    model, grid = exact(), log_grid(1000)
    assert grid[0] == 0 and grid[-1] == 999 and grid == sorted(set(grid))
    flat, mean = WORLD.basis[:, -10:].float(), WORLD.mean.float()
    monkeypatch.setattr(WORLD, "variance", torch.cat([WORLD.variance[:-10], torch.zeros(10)]))
    x = HELD_OUT.flatten(1) - mean
    images = (0.9 * (x - x @ flat @ flat.T) + mean).reshape(HELD_OUT.shape)
    z = model.encode(images)
    noisy, clean = noisy_invert(model, images, z, grid, torch.Generator().manual_seed(0)), model.invert(images, z,
                                                                                                        grid=grid)
    assert (clean.flatten(1) @ flat).std(0).max() < 1e-3
    assert (noisy.flatten(1) @ flat).std() == pytest.approx(1, abs=0.1)


def test_the_linear_reference_of_fewer_images_than_pixels():
    few = TRAIN[:20]
    linear, t = LinearGaussian(few, 3), torch.tensor([5, 100, 500])
    variance, basis = torch.linalg.eigh(torch.cov(few.flatten(1).T.double()))
    full = LinearGaussian(TRAIN, 3)
    full.mean, full.variance, full.basis = few.flatten(1).double().mean(0), variance.flip(0).clamp(min=0), basis.flip(1)
    assert torch.allclose(linear.fill(LINEAR, t), full.fill(LINEAR, t), atol=1e-6)
    x_t = LINEAR.add_noise(few[:3], t, torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(linear.denoiser(LINEAR, few[:3])(x_t, t), full.denoiser(LINEAR, few[:3])(x_t, t), atol=1e-4)


# ---- the shipped model, the command, mistakes ------------------------------------------------------------------------


def test_the_shipped_digits_model_is_well():
    digits = {split: data.digits(split) for split in ("train", "test")}
    report = examine(pdae_lite.load("digits"), digits["test"], digits["train"], digits["test"].labels,
                     digits["train"].labels, images=10,
                     checks=["codes", "fill", "z", "overfitting", "probes"])
    assert report.verdict == "ok", str(report)
    assert report["fill"].numbers["mean"] > report["fill"].numbers["linear_mean"]


def test_the_command(tmp_path, capsys):
    path = tmp_path / "doctor.json"
    assert main.main(["doctor", "digits", "--images", "10", "--checks", "codes,z", "--labels", "--json",
                      str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("PDAE, z_dim 32, on 10 images of 1×32×32\nok    codes") and "\nok    z  " in out
    report = json.loads(path.read_text())
    assert (report["data"], report["verdict"], [f["check"] for f in report["findings"]]) == ("digits", "ok",
                                                                                             ["codes", "z"])


@pytest.mark.parametrize("argv, says", [
    (["doctor", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
    (["doctor", "digits", "--data", "peeps"], "data peeps: images of 3×32×32, but the model takes 1×32×32"),
    (["doctor", "digits", "--data", "cats"], "cats: no such folder"),
    (["doctor", "digits", "--images", "3"], "3 held-out images; want at least 10"),
    (["doctor", "digits", "--checks", "hair"], "checks is hair; for this model"),
    (["doctor", "MODEL"], "doesn't say which data it was trained on; add --data"),
    (["doctor", "DPM"], "holds a UNet; want a PDAE or a DiffAE"),
])
def test_a_mistake_gives_one_line_and_code_2(argv, says, capsys, tmp_path):
    dpm = UNet(TINY)
    if "MODEL" in argv:
        PDAE(dpm, SemanticEncoder(EncoderConfig(32, 1, (8, 8, 8), 1, 2, 4)), LINEAR).save(tmp_path / "MODEL")
    if "DPM" in argv:
        from pdae_lite.checkpoint import save_model

        save_model(tmp_path / "DPM", dpm)
    assert main.main([str(tmp_path / a) if a in ("MODEL", "DPM") else a for a in argv]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_images_that_do_not_fit():
    for images, says in ((HELD_OUT * 100, "want values in"), (HELD_OUT[:5], "5 held-out images")):
        with pytest.raises(ValueError, match=says):
            examine(exact(), images)
    with pytest.raises(ValueError, match="119 labels for 120 images"):
        examine(exact(), HELD_OUT, labels=LABELS[:-1], checks=["probes"])
    # nothing is in both
    assert float(nearest_distance(Features(HELD_OUT.flatten(1)), Features(TRAIN.flatten(1))).min()) > 0
