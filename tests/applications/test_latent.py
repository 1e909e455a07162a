"""The latent DPM: released files, training on codes whose distribution is known, statistics, images."""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fixtures import fixture
from refusals import refuses
from torch.utils.data import TensorDataset

from pdae_lite import interop, losses, sampling
from pdae_lite.applications.latent import LatentConfig, LatentDPM, LatentStats, latent_codes, sample_images
from pdae_lite.checkpoint import CheckpointError, load_model, save_model
from pdae_lite.diffae import DiffAE
from pdae_lite.networks.encoder import EncoderConfig, LabelEncoder, SemanticEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.schedule import NoiseSchedule
from pdae_lite.training import train

RELEASED = fixture("official_pdae_tiny")
ROOT = Path(__file__).parents[2]
SCHEDULE = NoiseSchedule.linear(50, 1e-3, 0.3)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def error(a, b):
    return float((a - b).abs().max())


def make(z_dim=6, seed=0, **changes):
    torch.manual_seed(seed)
    return LatentDPM(LatentConfig(z_dim, **({"layers": 3, "width": 16, "time_channels": 8} | changes)),
                     stats=LatentStats.of(3 * normal(50, z_dim, seed=9) + 1)).eval()


# ---- the authors' release -----------------------------------------------------------------------------------------


def load(checkpoint=RELEASED / "latent_checkpoint.pt", config=RELEASED / "latent_config.yml",
         latents=RELEASED / "latents.pt"):
    return interop.load_released_latent(checkpoint, config, latents)


@pytest.fixture(scope="module")
def expected():
    with np.load(RELEASED / "expected.npz", allow_pickle=False) as f:
        return {k: torch.from_numpy(f[k]) for k in f.files if f[k].ndim}


def test_released_network(expected):
    latent = load().requires_grad_(False)
    assert error(latent(expected["latent_z_t"], expected["t"]), expected["latent_eps"]) < 2e-6
    assert (latent.config.z_dim, latent.config.layers, latent.config.width,
            latent.config.time_channels) == (16, 4, 64, 16)
    assert not latent.training and latent.schedule.same_as(NoiseSchedule.constant(0.008, 1000))
    moments = torch.load(RELEASED / "latents.pt", weights_only=True)
    assert (torch.equal(latent.stats.mean, moments["mean"].float())
            and torch.equal(latent.stats.std, moments["std"].float()))


def test_released_sampler_clamps(expected):
    """z_T and, in every step, ẑ_0 clamped to [−1, 1]: here by hand, and not by default."""
    latent = load().requires_grad_(False)

    def clamped(z_t, t):
        return latent(z_t, t)

    clamped.data_range = (-1.0, 1.0)
    z_T, want = expected["latent_z_t"], expected["latent_ddim10_clamped_as_released"]
    assert z_T.abs().max() > 1.5 and want.abs().max() > 1  # ᾱ_0 isn't 1 on the paper's grid: some noise stays
    assert error(sampling.ddim(clamped, z_T.clamp(-1, 1), latent.schedule, 10, grid="paper"), want) < 1e-5
    free = latent.stats.normalise(latent.sample(z_T=z_T, steps=10, grid="paper"))
    assert (torch.allclose(free, sampling.ddim(latent, z_T, latent.schedule, 10, grid="paper"), atol=1e-4)
            and error(free, want) > 0.5)


def test_released_files_that_do_not_fit(tmp_path):
    absent = tmp_path / "absent"
    for name in ("checkpoint", "config", "latents"):
        assert isinstance(refuses("absent: no such file", load, **{name: absent}), CheckpointError)
    refuses("no state dict 'ema_latent_denoise_fn'.*ema_encoder.*right file", load, RELEASED / "checkpoint.pt")
    refuses("no section latent_denoise_fn_config", load, config=RELEASED / "config.yml")
    refuses("has no tensor mean; want the file that came", load, latents=fixture("adm_tiny") / "model.pt")
    torch.save({"mean": torch.zeros(16)}, tmp_path / "half.pt")
    refuses("half.pt: has no tensor std", load, latents=tmp_path / "half.pt")
    torch.save({"mean": torch.zeros(8), "std": torch.ones(8)}, tmp_path / "eight.pt")
    refuses("eight.pt.*z_dim=8, config says z_dim=16", load, latents=tmp_path / "eight.pt")
    with open(shutil.copy(RELEASED / "latent_checkpoint.pt", tmp_path / "short.pt"), "rb+") as f:
        f.truncate(2000)
    refuses("short.pt: not a complete PyTorch checkpoint", load, tmp_path / "short.pt")

    def config(**changes):
        content = yaml.safe_load((RELEASED / "latent_config.yml").read_text())["latent_denoise_fn_config"] | changes
        (tmp_path / "c.yml").write_text(
            yaml.safe_dump({"latent_denoise_fn_config": {k: v for k, v in content.items() if v is not ...}}))
        return tmp_path / "c.yml"

    refuses(r"layers.0.linear.weight has shape \[64, 16\], want \[32, 16\].*c.yml", load,
            config=config(model_channel=32))
    refuses("layers.3.cond_layers.1.weight is missing", load, config=config(num_layers=5))
    refuses("c.yml: has no entry model_channel", load, config=config(model_channel=...))
    refuses("c.yml: use_norm is false", load, config=config(use_norm=False))
    refuses("c.yml.*describe no latent DPM: layers=1", load, config=config(num_layers=1))


# ---- the network ----------------------------------------------------------------------------------------------------


def test_the_paper_s_network_has_54_million_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in LatentDPM(LatentConfig()).parameters()) == 54_109_696


def test_every_layer_sees_z_t_and_all_but_the_last_see_t():
    latent = make(layers=4)
    assert [layer.linear.in_features for layer in latent.layers] == [6, 22, 22, 22]
    with torch.no_grad():
        z, t = normal(5, 6), torch.tensor([0, 3, 200, 600, 999])
        assert error(latent(z, t), latent(z, t.flip(0))) > 1e-4  # the third is the same
        for layer in latent.layers[1:]:  # with the path through the hidden layers cut, z_t still comes in
            layer.linear.weight[:, :16] = 0
        assert error(latent(z, t), latent(z + 1, t)) > 1e-4
        assert torch.equal(latent(z, t), latent(z, t.flip(0)))


def test_precision():
    latent, z, t = make().requires_grad_(False), normal(9, 6, dtype=torch.float64), torch.arange(9) * 100
    single = latent(z.float(), t)
    assert single.dtype == torch.float32 and latent(z, t).dtype == torch.float64  # given back as it came
    torch.testing.assert_close(latent(z, t), single.double())
    double = make().double().requires_grad_(False)
    torch.testing.assert_close(double(z, t), single.double(), rtol=1e-4, atol=1e-5)
    assert double.sample(4, 5, generator=generator()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert error(latent(z.float(), t), single) < 0.05
    half = make().bfloat16().requires_grad_(False)
    assert half(z.bfloat16(), t).dtype == torch.bfloat16 and error(half(z.float(), t), single) < 0.05
    # the steps themselves aren't taken in bf16
    drawn, want = (m.sample(4, 5, generator=generator()) for m in (half, latent))
    assert drawn.dtype == torch.float32 and error(drawn, want) < 0.01 * want.abs().max()


def test_dropout_only_while_training():
    latent, z, t = make(dropout=0.5), normal(9, 6), torch.arange(9)
    assert torch.equal(latent(z, t), latent(z, t))
    latent.train()
    assert not torch.equal(latent(z, t), latent(z, t))


def test_loss():
    """E[λ_t |ε − ε̂|], mean over dimensions."""
    latent, z, eps, t = make(), normal(4, 6), normal(4, 6, seed=1), torch.tensor([0, 10, 500, 999])
    z_t = NoiseSchedule.constant().add_noise(z, t, eps)
    per_code = (eps - latent(z_t, t)).abs().mean(1)
    for weight, table in (("simple", torch.ones(1000)), ("min_snr", latent.schedule.loss_weight("min_snr"))):
        want = (table[t] * per_code).mean()
        torch.testing.assert_close(losses.latent_loss(latent, z, t, eps, latent.schedule, weight), want)
        torch.testing.assert_close(latent.training_loss(z, t, eps, None, latent.schedule, table), want)
    squared = (eps - latent(z_t, t)).square().mean()
    torch.testing.assert_close(make(loss="l2").training_loss(z, t, eps, None, latent.schedule, torch.ones(1000)),
                               squared)
    refuses("loss 'huber'; want 'l1' or 'l2'", LatentConfig, loss="huber")


def test_bad_input():
    latent, z, t = make(), normal(3, 6), torch.tensor([0, 1, 2])
    for bad, came in ((normal(3, 5), r"float32 \[3, 5\]"), (z[0], r"float32 \[6\]"), (z.long(), r"int64 \[3, 6\]"),
                      (z[:0], r"float32 \[0, 6\]"), (z.tolist(), "list")):
        refuses(rf"z_t is {came}; want float \[N, 6\]", latent, bad, t)
    refuses("t is torch.float32", latent, z, t.float())
    refuses("t runs from 0 to 1000; want 0 … 999", latent, z, t * 500)
    refuses("n=0; want at least 1", latent.sample, 0)
    refuses("n=4, but z_T holds 3", latent.sample, 4, z_T=z)
    refuses("steps=0", latent.sample, 4, 0)
    refuses("sampler 'euler'", latent.sample, 4, sampler="euler")
    for changes in ({"z_dim": 0}, {"layers": 1}, {"width": 0}, {"time_channels": 1}, {"dropout": 1.0}):
        refuses(f"{next(iter(changes))}=", LatentConfig, **changes)
    refuses("stats are of codes with z_dim=3, config says z_dim=6", LatentDPM, LatentConfig(6, 3, 8),
            stats=LatentStats.of(normal(9, 3)))
    with pytest.raises(TypeError):
        LatentConfig(depth=3)


# ---- statistics -----------------------------------------------------------------------------------------------------


def test_stats_normalise_and_back():
    z = normal(500, 4) * torch.tensor([1.0, 20.0, 1e-3, 5.0]) + torch.tensor([0.0, -3.0, 7.0, 100.0])
    stats = LatentStats.of(z)
    inner = stats.normalise(z)
    torch.testing.assert_close(inner.mean(0), torch.zeros(4), rtol=0, atol=1e-3)  # 7 ± 1e-3 in float32
    torch.testing.assert_close(inner.std(0), torch.ones(4), rtol=1e-3, atol=0)
    torch.testing.assert_close(stats.denormalise(inner), z, rtol=1e-6, atol=1e-5)
    assert stats.normalise(z.double()).dtype == torch.float64 and stats.z_dim == 4


def test_a_dimension_that_does_not_vary():
    z = torch.cat([normal(500, 2), torch.full((500, 1), 0.1), 0.1 + 1e-9 * normal(500, 1), torch.zeros(500, 1)], 1)
    stats = LatentStats.of(z)
    assert stats.std[:2].min() > 0.9 and not stats.std[2:].any()
    inner = stats.normalise(z)
    assert inner[:, 2:].abs().max() < 1e-6
    # whatever a model makes of it, denormalised it is the mean
    torch.testing.assert_close(stats.denormalise(inner + normal(500, 5, seed=1))[:, 2:], z[:, 2:], rtol=0, atol=1e-7)


def test_bad_statistics():
    refuses("z holds 1 code; want at least 2", LatentStats.of, normal(1, 4))
    refuses("z holds NaN", LatentStats.of, torch.full((3, 4), torch.nan))
    refuses(r"z is float32 \[4\]; want float \[N, z_dim\]", LatentStats.of, normal(4))
    refuses(r"mean has shape \[3\], std \[2\]", LatentStats, [0, 0, 0], [1, 1])
    for std in ([1, -1], [1, float("nan")], [1, float("inf")]):
        refuses("negative std", LatentStats, [0, 0], std)
    refuses(r"z is float32 \[2, 3\]; want float \[N, 4\]", LatentStats.of(normal(9, 4)).normalise, normal(2, 3))


# ---- training -------------------------------------------------------------------------------------------------------

CENTRES = torch.tensor([[2.0, 0, 0], [-1, 3, 0], [-1, -3, 0], [0, 0, 2.5]])
SHARES = torch.tensor([0.4, 0.2, 0.2, 0.2])


def mixture(n, seed):
    """Codes [n, 3] from four small Gaussians of different weight, away from the origin."""
    chosen = torch.multinomial(SHARES, n, replacement=True, generator=generator(seed))
    return 10 + CENTRES[chosen] + 0.3 * normal(n, 3, seed=seed + 1)


def energy_distance(a, b):
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def test_training_learns_the_distribution_of_codes():
    """Mean, covariance, clusters; against one Gaussian with the same mean and covariance."""
    z, held_out = mixture(4000, 0), mixture(2000, 50)
    stats = LatentStats.of(z)
    codes = TensorDataset(stats.normalise(z))

    def trained(loss):
        torch.manual_seed(0)
        latent = LatentDPM(LatentConfig(3, 4, 128, 32, loss=loss), stats=stats)
        history = train(latent, codes, steps=400, batch_size=256, lr=3e-3, decay=0.7, ema=0.98, log_every=100,
                        progress=False).history
        assert history[-1]["loss"] < 0.85 * history[0]["loss"]
        drawn = latent.sample(2000, steps=50, generator=generator())
        distance, nearest = torch.cdist(drawn - 10, CENTRES).min(1)
        return drawn, energy_distance(drawn, held_out), torch.bincount(nearest,
                                                                       minlength=4) / 2000, float((distance
                                                                                                   < 1).float().mean())

    drawn, energy, shares, close = trained("l2")
    torch.testing.assert_close(drawn.mean(0), z.mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(z.T), rtol=0, atol=1.2)  # variances of up to 3.7
    torch.testing.assert_close(shares, SHARES, rtol=0, atol=0.06)
    gaussian = normal(2000, 3, seed=8) @ torch.linalg.cholesky(torch.cov(z.T)).T + z.mean(0)
    gaussian_close = float((torch.cdist(gaussian - 10, CENTRES).min(1).values < 1).float().mean())
    assert energy < 0.2 * energy_distance(gaussian, held_out) and gaussian_close < 0.3 and close > 0.65
    # L1 learns the median of ε, samplers want its mean
    _, energy_l1, _, close_l1 = trained("l1")
    assert close_l1 > 2 * gaussian_close and energy_l1 > 1.5 * energy


def run(out=None, steps=12, callback=None):
    latent = make()
    return train(latent, TensorDataset(latent.stats.normalise(normal(40, 6))), steps=steps, batch_size=8, lr=1e-3,
                 ema=0.9, save_every=4, log_every=1, out=out, progress=False, callback=callback)


PROGRAM = """
import os, signal, sys
sys.path[:0] = ["tests/applications", "tests/helpers"]
import test_latent
test_latent.run(sys.argv[1], callback=lambda step, model: os.kill(os.getpid(), signal.SIGKILL) if step == 7 else None)
"""


def test_a_killed_run_goes_on(tmp_path):
    process = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, env=os.environ,
                             capture_output=True, text=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert [p.name for p in (tmp_path / "checkpoints").glob("step_*")] == ["step_000000004.safetensors"]
    resumed, whole = run(tmp_path), run()
    assert [h["loss"] for h in resumed.history] == [h["loss"] for h in whole.history] and len(whole.history) == 12
    again = load_model(resumed.path)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_save_and_load(tmp_path):
    torch.manual_seed(3)
    latent = LatentDPM(LatentConfig(6, 3, 16, 8, 0.1), NoiseSchedule.linear(200),
                       LatentStats.of(5 * normal(50, 6) - 2)).eval()
    latent.save(tmp_path / "latent.safetensors", {"data": "none"})
    again = LatentDPM.load(tmp_path / "latent.safetensors")
    assert again.config == latent.config and again.schedule.same_as(latent.schedule)
    assert again.metadata == {"data": "none"} and not again.training
    assert torch.equal(again.sample(5, 4, generator=generator()), latent.sample(5, 4, generator=generator()))
    save_model(tmp_path / "half.safetensors", latent, dtype=torch.float16)
    half = load_model(tmp_path / "half.safetensors", expect=LatentDPM)
    assert 0 < error(half.sample(5, 4, generator=generator()), latent.sample(5, 4, generator=generator())) < 0.05
    with pytest.raises(CheckpointError, match="holds a LatentDPM; want a PDAE"):
        PDAE.load(tmp_path / "latent.safetensors")


# ---- sampling, with an autoencoder -----------------------------------------------------------------------------------


def fill(module):
    g = generator(1)
    for p in module.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=g)


def autoencoder(kind):
    torch.manual_seed(0)
    encoder = SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 6))
    shape = dict(channel_mult=(1, 2), num_res_blocks=1, attention_downsampling=(2,))
    if kind == "diffae":
        model = DiffAE(UNet(UNetConfig(16, 1, 8, z_dim=6, **shape)), encoder, SCHEDULE)
        fill(model.network)
    else:
        model = PDAE(UNet(UNetConfig(16, 1, 8, **shape)), encoder, SCHEDULE)
        fill(model.dpm)
        fill(model.estimator)
    return model.eval()


def images(n=7):
    return torch.randint(0, 256, (n, 1, 16, 16), generator=generator(), dtype=torch.uint8)


def test_sample_is_ddim_and_denormalises():
    latent, z_T = make(), normal(4, 6, seed=5)

    def by_hand(sampler, *args, **kwargs):
        return latent.stats.denormalise(sampler(latent, *args, latent.schedule, 8, grid="quadratic", **kwargs))

    want = by_hand(sampling.ddim, z_T)
    assert torch.equal(latent.sample(4, 8, z_T), want) and want.abs().max() > 3  # codes aren't clipped
    assert torch.equal(latent.sample(4, 8, generator=generator(5)), want)
    assert not torch.allclose(latent.sample(4, 8, z_T, grid="uniform"), want)
    g = generator(5)
    ancestral = by_hand(sampling.ddpm, torch.randn(4, 6, generator=g), generator=g)
    assert (torch.equal(latent.sample(4, 8, sampler="ddpm", generator=generator(5)), ancestral)
            and not torch.equal(ancestral, want))
    assert torch.equal(latent.sample(4, 8, z_T, sampler="dpm_solver"), by_hand(sampling.dpm_solver, z_T))


def test_the_quadratic_grid_keeps_narrow_directions():
    """A direction in which normalised codes vary by 0.2, and the exact noise predictor for it: 100 quadratic steps keep
    as much of its width as all 1000 steps do (0.89: the schedule's lowest noise is 0.09), 100 uniform ones little more
    than half."""
    latent, std = make(2), torch.tensor([1.0, 0.2])

    def exact(z_t, t):
        signal, noise = (latent.schedule.at(k, t, z_t) for k in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"))
        return z_t * noise / (signal**2 * std**2 + noise**2)

    latent.forward, latent.stats, z_T = exact, LatentStats([0, 0], [1, 1]), normal(500, 2)

    kept = {(steps, grid): (latent.sample(steps=steps, z_T=z_T, grid=grid).std(0) / z_T.std(0) / std).tolist()
            for steps, grid in ((100, "quadratic"), (100, "uniform"), (1000, "uniform"))}
    assert kept[100, "quadratic"] == pytest.approx(kept[1000, "uniform"], abs=0.02)
    assert (kept[1000, "uniform"] == pytest.approx([0.99, 0.89], abs=0.01)
            and kept[100, "uniform"] == pytest.approx([0.94, 0.56], abs=0.01))


@pytest.mark.parametrize("kind", ["pdae", "diffae"])
def test_latent_codes(kind):
    model, x = autoencoder(kind), images()
    z = model.encode(x / 127.5 - 1).detach()
    labels = torch.arange(7)
    codes, stats = latent_codes(model, TensorDataset(x, labels), batch_size=3)
    torch.testing.assert_close(codes.tensors[0], LatentStats.of(z).normalise(z), rtol=1e-4, atol=1e-4)
    assert torch.equal(codes.tensors[1], labels) and not codes.tensors[0].requires_grad
    torch.testing.assert_close(stats.denormalise(codes.tensors[0]), z)
    # without labels, held out, mirrored
    others, same = latent_codes(model, TensorDataset(x[:2]), stats=stats, flip=True)
    assert same is stats and len(others.tensors) == 1
    mirrored = model.encode(x[:2].flip(-1) / 127.5 - 1).detach()
    torch.testing.assert_close(stats.denormalise(others.tensors[0]), torch.cat([z[:2], mirrored]))
    train(LatentDPM(LatentConfig(6, 3, 16, 8), stats=stats), codes, steps=2, batch_size=4, progress=False)


def test_latent_codes_refuses():
    model = autoencoder("pdae")
    refuses("data is empty", latent_codes, model, TensorDataset(images(0)))
    refuses("runs from 0 to 255; want values in", latent_codes, model, TensorDataset(images().float()))
    labelled = PDAE(model.dpm, LabelEncoder(10, 6), SCHEDULE)
    refuses("embeds labels; want one that encodes images", latent_codes, labelled,
            TensorDataset(images(), torch.zeros(7)))


def test_images_of_a_pdae_by_hand():
    """z by its own number of steps; the plain DPM below t = 0.3 T."""
    model, latent = autoencoder("pdae"), make()
    g = generator(2)
    z = latent.sample(5, 4, generator=g)
    x_T = torch.randn(5, 1, 16, 16, generator=g)
    shifted = model.denoiser(z)

    def by_hand(x_t, t):
        return shifted(x_t, t) if int(t) >= 15 else model.dpm(x_t, t)

    by_hand.data_range = (-1.0, 1.0)
    want = sampling.ddim(by_hand, x_T, SCHEDULE, 10)
    got = sample_images(model, latent, 5, 10, 4, generator=generator(2))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert torch.equal(got, model.decode(z, x_T, 10, off_last=0.3))
    in_parts = sample_images(model, latent, 5, 10, 4, generator=generator(2), batch_size=2)
    torch.testing.assert_close(in_parts, want, rtol=0, atol=1e-4)
    for changes in ({"off_last": 0.0}, {"off_last": 0.6}, {"latent_steps": 9}, {"scale": 2.0}, {"sampler": "ddpm"}):
        assert error(sample_images(model, latent, 5, 10, **({"latent_steps": 4} | changes), generator=generator(2)),
                     want) > 1e-3, changes


def test_images_of_a_diffae():
    model, latent = autoencoder("diffae"), make()
    g = generator(2)
    z = latent.sample(5, 4, generator=g)
    want = model.decode(z, torch.randn(5, 1, 16, 16, generator=g), 10)
    assert torch.equal(sample_images(model, latent, 5, 10, 4, generator=generator(2)), want)
    refuses("off_last=0.3, but a DiffAE holds no plain DPM", sample_images, model, latent, 5, off_last=0.3)
    refuses("z_dim=4, the autoencoder decodes z_dim=6", sample_images, model, make(4), 5)


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"sampler": "ddpm"}, {}])
def test_the_batch_size_changes_no_image(options):
    torch.manual_seed(0)
    encoder = SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 6))
    pdae = PDAE(UNet(UNetConfig(16, 1, 8, (1, 2), 1, (2,))), encoder, SCHEDULE).eval()
    latent = LatentDPM(LatentConfig(z_dim=6, layers=3, width=8, time_channels=8)).eval()
    made = [sample_images(pdae, latent, 5, 4, 4, generator=torch.Generator().manual_seed(3), batch_size=b, **options)
            for b in (5, 2)]
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)
