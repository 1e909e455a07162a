"""The files of Diff-AE's authors: parity with what their code gives, and clear refusals. Tolerances as in
test_interop."""
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import fixture
from refusals import refuses
from torch.utils.data import TensorDataset

from pdae_lite import PDAE, EncoderConfig, SemanticEncoder, interop, train
from pdae_lite.checkpoint import load_model

FOLDER = fixture("diffae_tiny")
AUTOENCODER, PLAIN = FOLDER / "last.ckpt", FOLDER / "ddpm_last.ckpt"


def arrays(name):
    with np.load(FOLDER / name, allow_pickle=False) as f:
        return {k: torch.from_numpy(f[k]) for k in f.files}


@pytest.fixture(scope="module")
def expected():
    return arrays("expected.npz")


@pytest.fixture(scope="module")
def model():
    return interop.load_released_diffae(AUTOENCODER).requires_grad_(False)


def error(a, b):
    return float((a - b).detach().abs().max())


def test_networks(model, expected):
    e = expected
    assert error(model.encode(e["x_0"]), e["z"]) < 1e-5
    assert error(model(e["x_t"], e["t"], e["z"]), e["eps"]) < 1e-5
    with torch.no_grad():
        assert error(model.latent(e["latent_z_t"], e["t"]), e["latent_eps"]) < 1e-5
    for stats in (model.stats, model.latent.stats):
        assert error(stats.mean, e["conds_mean"]) == error(stats.std, e["conds_std"]) == 0
    assert (model.z_dim, model.schedule.T, model.latent.schedule.beta[0]) == (16, 1000, pytest.approx(0.008))
    assert not model.training and not model.latent.training and model.data_range == (-1, 1)


def test_samplers(model, expected):
    e = expected
    for got, want in [(model.decode(e["z"], e["x_T"], grid=e["timestep_map"].tolist()), e["ddim10_sample"]),
                      (interop.stochastic_code(model, e["x_0"], e["z"], 10), e["ddim10_encode"]),
                      (interop.stochastic_code(model, e["x_0"], steps=10), e["ddim10_encode"])]:
        difference = (got - want).abs()
        assert float((difference <= 1e-4).float().mean()) >= 0.999 and float(difference.max()) <= 1e-3
    refuses("steps=7; want a divisor of 1000", interop.stochastic_code, model, e["x_0"], e["z"], 7)


def test_plain_dpm_is_the_dpm_of_a_pdae(tmp_path):
    dpm, schedule = interop.load_released_diffae_dpm(PLAIN)
    e = arrays("ddpm_expected.npz")
    with torch.no_grad():
        assert error(dpm(e["x_t"], e["t"]), e["eps"]) < 1e-5
    pdae = PDAE(dpm, SemanticEncoder(EncoderConfig(32, 3, (8, 8), None, z_dim=4)), schedule)
    before = {k: v.clone() for k, v in pdae.state_dict().items()}
    train(pdae, TensorDataset(e["x_t"].clamp(-1, 1)), steps=3, batch_size=2, lr=1e-2, ema=0.0, progress=False)
    assert {k.split(".")[0] for k, v in pdae.state_dict().items() if not torch.equal(v, before[k])} == {"encoder",
                                                                                                        "estimator"}
    pdae.save(tmp_path / "pdae.safetensors")
    assert all(torch.equal(v, pdae.state_dict()[k])
               for k, v in PDAE.load(tmp_path / "pdae.safetensors").state_dict().items())


def test_saved_as_files_of_ours(model, expected, tmp_path):
    model.save(tmp_path / "diffae.safetensors")
    loaded = load_model(tmp_path / "diffae.safetensors")
    assert (loaded.state_dict().keys() == model.state_dict().keys()
            and not any("latent" in k for k in model.state_dict()))
    assert torch.equal(loaded.encode(expected["x_0"]), model.encode(expected["x_0"]))
    model.latent.save(tmp_path / "latent.safetensors")
    z = load_model(tmp_path / "latent.safetensors").sample(3, steps=2, generator=torch.Generator().manual_seed(0))
    assert z.shape == (3, 16)


def test_without_latent_dpm_and_with_hyper_parameters_elsewhere(tmp_path, expected):
    content = torch.load(AUTOENCODER, weights_only=True)
    settings = content.pop("hyper_parameters")
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if ".latent_net." not in k
                             and not k.startswith("conds")}
    torch.save(content, tmp_path / "plain.ckpt")
    for config in (settings, FOLDER / "config.json"):
        got = interop.load_released_diffae(tmp_path / "plain.ckpt", config)
        assert got.latent is None and got.stats is None and error(got.encode(expected["x_0"]), expected["z"]) < 1e-5
    refuses("has no hyper_parameters; give config", interop.load_released_diffae, tmp_path / "plain.ckpt")
    for change, message in [({"net_ch": 64}, "weights don't fit its hyper-parameters"),
                            ({"net_enc_pool": "depthconv"}, "'depthconv'"),
                            ({"beta_scheduler": "sigmoid"}, "beta_scheduler is 'sigmoid'"),
                            ({"img_size": 31}, "image_size=31")]:
        refuses(message, interop.load_released_diffae, tmp_path / "plain.ckpt", settings | change)
    (tmp_path / "short.json").write_text(json.dumps({"img_size": 32}))
    refuses("have no net_", interop.load_released_diffae, tmp_path / "plain.ckpt", tmp_path / "short.json")


def named(folder, monkeypatch, name):
    """A class of that name, as a pickle names it, while `monkeypatch` lasts."""
    module, _, short = name.rpartition(".")
    path = folder / Path(*module.split("."))
    path.mkdir(parents=True, exist_ok=True)
    (path / "__init__.py").write_text(f"class {short}: pass")
    monkeypatch.syspath_prepend(str(folder))
    kind = getattr(importlib.import_module(module), short)
    for i in range(module.count(".") + 1):
        monkeypatch.setitem(sys.modules, part := module.rsplit(".", i)[0], sys.modules.pop(part))
    return kind


def test_names_of_callbacks_and_no_others(tmp_path, monkeypatch, expected):
    """Lightning 1.4 keys what it saves of callbacks by their class."""
    content = torch.load(AUTOENCODER, weights_only=True)
    with monkeypatch.context() as patch:
        content["callbacks"] = {named(tmp_path, patch, f"pytorch_lightning.callbacks.{name}"):
                                {"best_model_score": None}
                                for name in ("model_checkpoint.ModelCheckpoint", "lr_monitor.LearningRateMonitor")}
        torch.save(content, tmp_path / "real.ckpt")
        content["callbacks"][named(tmp_path, patch, "evil.Thing")] = {}
        torch.save(content, tmp_path / "evil.ckpt")
    got = interop.load_released_diffae(tmp_path / "real.ckpt")
    assert error(got.encode(expected["x_0"]), expected["z"]) < 1e-5 and got.latent is not None
    refuses("evil.ckpt: wants evil.Thing, which isn't loaded", interop.load_released_diffae, tmp_path / "evil.ckpt")


def test_refusals(tmp_path):
    refuses("no such file", interop.load_released_diffae, tmp_path / "nothing.ckpt")
    refuses("has no encoder: a plain DPM; load it with load_released_diffae_dpm", interop.load_released_diffae, PLAIN)
    refuses("holds an autoencoder.*load_released_diffae", interop.load_released_diffae_dpm, AUTOENCODER)
    (tmp_path / "half.ckpt").write_bytes(AUTOENCODER.read_bytes()[:5000])
    refuses("half.ckpt: not a complete PyTorch checkpoint", interop.load_released_diffae, tmp_path / "half.ckpt")
    torch.save({"state_dict": {"model.x": torch.zeros(1)}, "hyper_parameters": {"img_size": 32}},
               tmp_path / "other.ckpt")
    refuses(r"no ema_model\.\*", interop.load_released_diffae, tmp_path / "other.ckpt")
