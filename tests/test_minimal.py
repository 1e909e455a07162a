"""examples/minimal.py is the method: the library computes the same from its parts, and it learns."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pdae_lite
from pdae_lite import PDAE, NoiseSchedule, losses, sampling
from pdae_lite.networks.dpm import per_sample

PATH = Path(__file__).parents[1] / "examples" / "minimal.py"
Z_DIM = 8


@pytest.fixture(scope="module")
def minimal():
    module = type(sys)("minimal")
    exec(compile(PATH.read_text(encoding="utf-8"), str(PATH), "exec"), module.__dict__)
    return module


class Cut(nn.Module):
    """Its DPM as one of the library's: a trunk, a head, and a gradient estimator."""

    data_range = (-1.0, 1.0)

    def __init__(self, minimal):
        super().__init__()
        self.dpm, self.make_head = minimal.DPM(1), minimal.Head
        self.config = type("Config", (), {"image_size": 28, "in_channels": 1})

    def trunk(self, x_t, t):
        return self.dpm.trunk(x_t, t)

    def head(self, features):
        return self.dpm.head(features)

    def gradient_estimator(self, z_dim):
        return self.make_head(1, z_dim)


@pytest.fixture(scope="module")
def both(minimal):
    torch.manual_seed(0)
    encoder = minimal.make_encoder(1, 28, Z_DIM)
    encoder.z_dim = Z_DIM
    pdae = PDAE(Cut(minimal), encoder, NoiseSchedule.linear(), form="paper")
    for head in (pdae.dpm.dpm.head, pdae.estimator):  # which begin at zero
        nn.init.normal_(head.out.weight, std=0.05)
    return pdae, pdae.dpm.dpm, encoder, pdae.estimator


def images(n=6):
    return pdae_lite.data.digits("test").images[:n, :, 2:30, 2:30].float() / 127.5 - 1


def close(ours, theirs, tolerance=1e-6):
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error <= tolerance, float(error)
    return True


def test_the_loss_is_the_librarys(minimal, both):
    pdae, dpm, encoder, estimator = both
    x_0, t = images(), torch.tensor([0, 1, 10, 300, 700, 999])
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    ours = losses.pdae_loss(pdae, x_0, t, eps)
    theirs = minimal.loss(dpm, x_0, t, eps, estimator, encoder)
    assert abs(ours - theirs) < 1e-6 * ours
    plain = losses.dpm_loss(lambda x, t: dpm.head(dpm.trunk(x, t)), x_0, t, eps, pdae.schedule)
    assert abs(plain - minimal.loss(dpm, x_0, t, eps)) < 1e-6 * plain


@torch.no_grad()
def test_the_shifted_prediction_ddim_and_inversion_are_the_librarys(minimal, both):
    pdae, dpm, encoder, estimator = both
    x_0, t = images(), torch.tensor([0, 1, 10, 300, 700, 999])
    z = encoder(x_0)
    theirs = minimal.shifted(dpm, estimator, z)
    assert close(pdae.denoiser(z)(x_0, t), theirs(x_0, t))
    assert (theirs(x_0, t) - dpm.head(dpm.trunk(x_0, t))).abs().max() > 0.01  # the shift isn't idle

    up = sampling.time_grid(pdae.schedule, 10)
    x_T = minimal.ddim(theirs, x_0, up)
    assert close(pdae.invert(x_0, z, steps=10), x_T)
    drawn = minimal.ddim(theirs, x_T, up[::-1])
    told = sampling.ddim(per_sample(pdae.denoiser(z)), x_T, pdae.schedule, 10, clip=False)
    assert close(told, drawn)  # t told to each image, as in the example; told once, its embedding rounds otherwise
    assert close(pdae.decode(z, x_T, steps=10, clip=False), drawn, 1e-5)


def test_it_learns_from_digits_in_seconds(minimal):
    torch.manual_seed(0)
    data, t = images(62), torch.arange(8, 1000, 16)
    dpm, encoder, estimator = minimal.DPM(1), minimal.make_encoder(1, 28, Z_DIM), minimal.Head(1, Z_DIM)
    eps = torch.randn((62, 1, 28, 28), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def loss(*parts):
        return minimal.loss(dpm, data, t, eps, *parts).item()

    at_first = loss()
    minimal.train(dpm.parameters(), lambda *batch: minimal.loss(dpm, *batch), data, steps=60)
    assert loss() < 0.5 * at_first
    dpm.requires_grad_(False)
    idle = loss(estimator, encoder)
    learned = [*estimator.parameters(), *encoder.parameters()]
    minimal.train(learned, lambda *batch: minimal.loss(dpm, *batch, estimator, encoder), data, steps=100)
    assert loss(estimator, encoder) < 0.99 * idle  # the same noise before and after


def test_it_runs_from_the_command_line():
    program = ("import sys; sys.argv = ['minimal.py']; "
               f"exec(open({str(PATH)!r}).read().replace('steps=1500', 'steps=2'))")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("mean squared error") == 3


def test_it_stands_alone_and_is_short():
    text = PATH.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    taken = {a.name.split(".")[0] for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)
             for a in node.names}
    taken |= {node.module.split(".")[0] for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert taken == {"lzma", "numpy", "sys", "torch"}
    assert all(f"({number})" in text for number in (4, 6, 7, 8, 9, 10))
