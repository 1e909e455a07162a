"""Released files in: parity with what the authors' code gives, and clear refusals.

The fixtures were computed in float32 on another machine. One evaluation of the networks agrees to float32's last
digits (1e-5). In a whole sampling run the first step multiplies the networks' rounding by √(1/ᾱ_T − 1) = 157 where
x̂_0 isn't clamped, so a few values of a run move by 1e-4 to 3e-4 with any change of kernel, and exact (float64)
arithmetic is 1.5e-4 away from the fixture. Hence whole runs are to agree to 1e-4 in 99.9 % of the values, to 1e-5 in
the root mean square, and to 157 × 6e-6 = 1e-3 in every value.
"""
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fixtures import fixture
from refusals import refuses

from pdae_lite import interop, losses, sampling
from pdae_lite.applications import attributes
from pdae_lite.checkpoint import CheckpointError, load_model, save_model
from pdae_lite.interop import pdae_release

PDAE_DIR = fixture("official_pdae_tiny")


def load(checkpoint=PDAE_DIR / "checkpoint.pt", config=PDAE_DIR / "config.yml", ddpm=PDAE_DIR / "ddpm_config.yml"):
    return interop.load_released_pdae(checkpoint, config, ddpm)


@pytest.fixture(scope="module")
def pdae():
    return load().requires_grad_(False)


@pytest.fixture(scope="module")
def expected():
    with np.load(PDAE_DIR / "expected.npz", allow_pickle=False) as f:
        return {k: torch.from_numpy(f[k]) if f[k].ndim else float(f[k]) for k in f.files}


def error(a, b):
    return float((a - b).abs().max())


def assert_run_agrees(a, b):
    difference = (a - b).abs()
    assert a.shape == b.shape
    assert float((difference <= 1e-4).float().mean()) >= 0.999
    assert float(difference.max()) <= 1e-3
    assert float(difference.square().mean().sqrt()) <= 1e-5


# ---- parity -------------------------------------------------------------------------------------------------------


def test_networks(pdae, expected):
    assert error(pdae.encode(expected["x_0"]), expected["z"]) < 1e-5
    assert error(pdae.schedule.add_noise(expected["x_0"], expected["t"], expected["noise"]), expected["x_t"]) < 1e-6
    eps, gradient = pdae(expected["x_t"], expected["t"], expected["z"])
    assert error(eps, expected["eps"]) < 1e-5
    assert error(gradient, expected["gradient"]) < 1e-5


def test_the_checkpoint_is_described(pdae):
    encoder, dpm = pdae.encoder.config, pdae.dpm.config
    assert (encoder.image_size, encoder.channels, encoder.attention_after,
            encoder.z_dim) == (64, (64, 128, 128, 128), 1, 16)
    assert (dpm.image_size, dpm.base_channels, dpm.channel_mult, dpm.attention_downsampling) == (64, 32, (1, 2), (2,))
    assert not pdae.training and pdae.schedule.T == 1000 and next(pdae.parameters()).dtype == torch.float32


def test_tables(pdae, expected):
    torch.testing.assert_close(pdae.schedule.shift_coefficient, -expected["shift_coef"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(pdae.schedule.loss_weight(), expected["weight"], rtol=1e-6, atol=0)
    torch.testing.assert_close(pdae.schedule.alpha_bar, expected["alphas_cumprod"], rtol=1e-6, atol=0)


def test_loss(pdae, expected):
    loss = losses.pdae_loss(pdae, expected["x_0"], expected["t"], expected["noise"])
    assert float(loss) == pytest.approx(expected["loss"], abs=1e-5)


def test_means(pdae, expected):
    x_t, t = expected["x_t"], expected["t"]
    assert error(pdae.schedule.posterior_mean(expected["x_0"], x_t, t), expected["posterior_mean"]) < 1e-5
    shifted = pdae.denoiser(expected["z"], shift="ddpm")(x_t, t)
    assert error(pdae.schedule.model_mean(x_t, t, shifted), expected["ddpm_mean"]) < 1e-5
    wrong = pdae.denoiser(expected["z"], shift="ddim")(x_t, t)  # the other form of the shift is another mean
    assert error(pdae.schedule.model_mean(x_t, t, wrong), expected["ddpm_mean"]) > 1e-4


def test_sample(pdae, expected):
    assert_run_agrees(pdae.decode(expected["z"], expected["x_T"], 10, grid="paper"), expected["ddim10_sample"])


def test_sample_with_the_shift_off_in_the_last_30_percent(pdae, expected):
    sample = pdae.decode(expected["z"], expected["x_T"], 10, grid="paper", off_last=0.3)
    assert_run_agrees(sample, expected["ddim10_sample_shift_off_last_30_percent"])
    assert error(sample, expected["ddim10_sample"]) > 1e-2


def test_encode(pdae, expected):
    assert_run_agrees(pdae.invert(expected["x_0"], steps=10, grid="paper", clip=True), expected["ddim10_encode"])


def test_trajectory_interpolation(pdae, expected):
    """ε̂ with (1−α) G(z_a) + α G(z_b)."""
    z_a, z_b = expected["z"][:1], expected["z"][1:]

    def mixed(x_t, t):
        features = pdae.features(x_t, t)
        gradient = torch.lerp(pdae.gradient(features, z_a), pdae.gradient(features, z_b), 0.3)
        return pdae.eps(features) - pdae.schedule.at("sqrt_one_minus_alpha_bar", t, x_t) * gradient

    sample = sampling.ddim(mixed, expected["x_T"][:1], pdae.schedule, 10, grid="paper")
    assert_run_agrees(sample, expected["trajectory_interpolation_ddim10_alpha_0_3"])


def test_dpm_alone(expected):
    dpm = interop.load_released_dpm(PDAE_DIR / "ddpm_checkpoint.pt", PDAE_DIR / "ddpm_config.yml").requires_grad_(False)
    assert dpm.config.image_size == 64 and not dpm.training
    assert error(dpm(expected["x_t"], expected["t"]), expected["eps"]) < 1e-5


def test_save_and_load_again(pdae, expected, tmp_path):
    pdae.save(tmp_path / "pdae.safetensors")
    again = type(pdae).load(tmp_path / "pdae.safetensors")
    assert torch.equal(again.encode(expected["x_0"]), pdae.encode(expected["x_0"]))


# ---- the encoders of other releases ---------------------------------------------------------------------------------


def test_encoder_layout_comes_from_its_layers():
    """128×128 releases (FFHQ, Horse, Bedroom, CelebA-HQ): one convolution more, attention after the third."""
    from pdae_lite.networks.encoder import SemanticEncoder

    encoder = SemanticEncoder.for_images(128, 3, 32)
    state = encoder.state_dict()
    assert state["encoder.7.qkv.weight"].shape == (768, 256, 1) and "encoder.17.weight" in state
    again = pdae_release._released_encoder(state, "checkpoint.pt")
    assert again.config == encoder.config
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())


# ---- refusals --------------------------------------------------------------------------------------------------------


class Foreign:
    """Unpickling this must not happen."""

    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def test_missing_files(tmp_path):
    for i in range(3):
        files = [PDAE_DIR / "checkpoint.pt", PDAE_DIR / "config.yml", PDAE_DIR / "ddpm_config.yml"]
        files[i] = tmp_path / "absent"
        assert isinstance(refuses("absent: no such file", load, *files), CheckpointError)


def test_damaged_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = (PDAE_DIR / "checkpoint.pt").read_bytes()
    for name, content in {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"<html>404</html>"}.items():
        Path(name).write_bytes(content)
        refuses(f"{name}: not a complete PyTorch checkpoint.*download it again", load, name)
    torch.save({"ema_encoder": Foreign()}, "foreign")
    refuses("foreign: not a complete PyTorch checkpoint", load, "foreign")
    assert not Path("touched").exists()


def test_wrong_checkpoints(tmp_path):
    refuses("no state dict 'ema_encoder'.*ema_denoise_fn.*right file", load, PDAE_DIR / "ddpm_checkpoint.pt")
    refuses("no state dict 'ema_denoise_fn'", interop.load_released_dpm, PDAE_DIR / "checkpoint.pt",
            PDAE_DIR / "ddpm_config.yml")
    torch.save([1, 2], tmp_path / "list.pt")
    refuses("holds a list", load, tmp_path / "list.pt")


def test_wrong_yaml(tmp_path):
    bad = tmp_path / "bad.yml"
    for text, message in (("a: [1", "not a YAML file"), ("a: 1", "no section"), ("- 1", "no section"),
                          ("x: !!python/object/apply:os.getcwd []", "not a YAML file")):
        bad.write_text(text)
        refuses(f"bad.yml: .*{message}", load, PDAE_DIR / "checkpoint.pt", bad)
        refuses(f"bad.yml: .*{message}", load, PDAE_DIR / "checkpoint.pt", PDAE_DIR / "config.yml", bad)


def edited(tmp_path, name, section, **changes):
    content = yaml.safe_load((PDAE_DIR / name).read_text())
    content[section] = {k: v for k, v in (content[section] | changes).items() if v is not ...}
    (tmp_path / name).write_text(yaml.safe_dump(content))
    return tmp_path / name


def test_configs_that_do_not_fit(tmp_path):
    def ddpm(**changes):
        return PDAE_DIR / "checkpoint.pt", PDAE_DIR / "config.yml", edited(tmp_path, "ddpm_config.yml",
                                                                           "denoise_fn_config", **changes)

    refuses(r"time_embed.0.weight has shape \[128, 32\], want \[256, 64\].*ddpm_config.yml", load,
            *ddpm(base_channel=64))
    refuses("input_blocks.1.1.norm.weight is missing", load, *ddpm(attention_resolutions=[1, 2]))
    refuses("output_blocks.1.1.in_layers.0.weight is missing", load, *ddpm(attention_resolutions=[]))
    refuses("denoise_fn_config has no base_channel", load, *ddpm(base_channel=...))
    refuses("num_class=10", load, *ddpm(num_class=10))
    refuses("says no image size", interop.load_released_dpm, PDAE_DIR / "ddpm_checkpoint.pt",
            edited(tmp_path, "ddpm_config.yml", "denoise_fn_config", model="FFHQDenoiseFn"))
    refuses("betas_type is 'sigmoid'", load, PDAE_DIR / "checkpoint.pt",
            edited(tmp_path, "config.yml", "diffusion_config", betas_type="sigmoid"))


# ---- the linear classifier of attributes -----------------------------------------------------------------------------


@pytest.fixture
def classifier_file(tmp_path):
    """In the release's format: one linear layer on normalised codes, among other things that training left."""
    layer = torch.nn.Linear(16, 40)
    path = tmp_path / "classifier.pt"
    torch.save({"step": 3, "classifier": layer.state_dict(), "ema_classifier": layer.state_dict(), "scaler": {}}, path)
    return path, layer


def test_classifier(pdae, expected, classifier_file, tmp_path):
    path, layer = classifier_file
    probe = interop.load_released_classifier(path, PDAE_DIR / "latents.pt")
    moments = torch.load(PDAE_DIR / "latents.pt", weights_only=True)
    z_norm = (expected["z"] - moments["mean"]) / moments["std"]
    torch.testing.assert_close(probe.logits(expected["z"]), layer(z_norm).detach(), rtol=1e-5, atol=1e-5)
    assert (probe.kind == "attributes" and len(set(probe.names)) == 40 and probe.column("Male") == 20
            and probe.column("Young") == 39)
    # The paper's edit: z_norm + s √z_dim w/‖w‖, denormalised.
    w = layer.weight[31].detach()
    want = (z_norm + 0.3 * 4 * w / w.norm()) * moments["std"] + moments["mean"]
    torch.testing.assert_close(attributes.edit(expected["z"], probe, "Smiling", 0.3), want, rtol=1e-4, atol=1e-5)
    save_model(tmp_path / "probe.safetensors", probe)
    assert torch.equal(load_model(tmp_path / "probe.safetensors").logits(expected["z"]), probe.logits(expected["z"]))
    named = interop.load_released_classifier(path, PDAE_DIR / "latents.pt", [f"attribute {i}" for i in range(40)])
    assert named.names[3] == "attribute 3"


def test_classifiers_that_do_not_fit(classifier_file, tmp_path):
    path, layer = classifier_file
    load_classifier, latents = interop.load_released_classifier, PDAE_DIR / "latents.pt"
    refuses("no state dict 'ema_classifier'", load_classifier, PDAE_DIR / "checkpoint.pt", latents)
    refuses("has no tensor mean", load_classifier, path, fixture("adm_tiny") / "model.pt")
    refuses("40 outputs for 2 names", load_classifier, path, latents, ["a", "b"])
    torch.save({"mean": torch.zeros(8), "std": torch.ones(8)}, tmp_path / "latents.pt")
    refuses("takes codes of 16, .*latents.pt has statistics of 8", load_classifier, path, tmp_path / "latents.pt")
    torch.save({"mean": torch.zeros(8), "std": torch.ones(7)}, tmp_path / "latents.pt")
    refuses("latents.pt: holds no statistics", load_classifier, path, tmp_path / "latents.pt")
    torch.save({"ema_classifier": {"0.weight": layer.weight.data, "0.bias": layer.bias.data}}, tmp_path / "deep.pt")
    refuses(r"0.weight \[40, 16\], 0.bias \[40\]; want one linear layer", load_classifier, tmp_path / "deep.pt",
            latents)
