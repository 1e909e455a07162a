"""The library on a GPU that isn't there: every operation under FakeTensorMode on cuda:0, which raises where devices
mix.

Training steps, whose backward pass asks CUDA's driver for a context, run on another accelerator that isn't there.
"""
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, as_epsilon, sampling
from pdae_lite.belm import belm, belm_invert
from pdae_lite.diffae import DiffAE
from pdae_lite.guidance import mixed, staged
from pdae_lite.losses import noise_error
from pdae_lite.networks.classifier import ClassifierConfig, NoisyClassifier
from pdae_lite.networks.encoder import EncoderConfig

UNET = UNetConfig(16, 1, 8, (1, 2), 1, (2,))
PROGRAM = Path(__file__).parent / "helpers" / "fake_accelerator.py"


@pytest.fixture
def cuda():
    """Everything made inside is fake; a GPU that no driver knows is enough."""
    device = torch.device("cuda:0")
    with FakeTensorMode(), device:
        yield device


def pdae(device, form):
    schedule = NoiseSchedule.linear(100, 1e-3, 0.2)
    dpm = as_epsilon(UNet(UNET), "v", schedule)
    return PDAE(dpm, SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 4)), schedule.to(device), form=form)


def on(device, x):
    assert x.device == device, x.device
    return x


@pytest.mark.parametrize("form", ["difference", "paper"])
def test_train_encode_decode_invert(cuda, form):
    model = pdae(cuda, form)
    assert model.schedule.alpha_bar.device == cuda
    x = torch.rand(4, 1, 16, 16, device=cuda)
    t = torch.randint(0, 100, (4,), device=cuda)
    weight = model.schedule.loss_weight("pdae")
    on(cuda, model.train().training_loss(x, t, torch.randn_like(x), None, model.schedule, weight))
    model.eval()
    z = on(cuda, model.encoder(x))
    for sampler in ("ddim", "ddpm", "dpm_solver"):
        on(cuda, model.decode(z, steps=3, sampler=sampler, generator=torch.Generator()))
    on(cuda, model.decode(z, x, 3, scale=2.0, eta=1.0))
    on(cuda, model.decode(z, x, 3, scale=lambda t: 2.0 * (int(t) > 50)))
    denoiser = model.denoiser(z)
    for options in ({}, {"order": 2}, {"fixed_point": 1}):
        on(cuda, sampling.invert(denoiser, x, model.schedule, 3, **options))
    on(cuda, belm(denoiser, belm_invert(denoiser, x, model.schedule, 4), model.schedule, 4))
    on(cuda, sampling.ddim(mixed(model, z, z.roll(1, 0), 0.3, "gradient"), x, model.schedule, 3))
    on(cuda, sampling.dpm_solver(staged(denoiser, model.dpm, 30, 70), x, model.schedule, 3, correct=True))
    assert noise_error(lambda v: denoiser, x, model.schedule, [50]).shape == (1,)


def test_diffae_and_a_classifier(cuda):
    schedule = NoiseSchedule.linear(100, 1e-3, 0.2)
    x, y = torch.rand(4, 1, 16, 16, device=cuda), torch.arange(4, device=cuda)
    encoder = SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 4))
    model = DiffAE(UNet(UNetConfig(16, 1, 8, (1, 2), 1, (2,), z_dim=4)), encoder, schedule.to(cuda))
    on(cuda, model.decode(model.encoder(x), steps=3, generator=torch.Generator()))
    classifier = NoisyClassifier(ClassifierConfig(UNET, 10), schedule)
    on(cuda, classifier.training_loss(x, torch.randint(0, 100, (4,), device=cuda), torch.randn_like(x), y, schedule,
                                      "simple"))


def test_training_steps():
    program = [sys.executable, "-W", "ignore", PROGRAM]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
