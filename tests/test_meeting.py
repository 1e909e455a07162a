"""Tensors on two devices meet on the accelerator. There is no GPU here: fake tensors stand in, which know their device, and
refuse to mix as real ones do, but hold no values."""
import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import pdae_lite
from pdae_lite import NoiseSchedule, SemanticEncoder, UNet, UNetConfig, meeting
from pdae_lite.meeting import Meeting
from pdae_lite.networks.encoder import EncoderConfig

GPU, SCHEDULE = torch.device("cuda"), NoiseSchedule.linear()  # made before anything is fake: it looks at its values


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def test_without_it_devices_do_not_mix(fake):
    with pytest.raises(RuntimeError, match="(?i)device"):
        torch.zeros(2) + torch.zeros(2, device=GPU)


@pytest.mark.parametrize("mix", [
    lambda here, there: here + there,
    lambda here, there: there * here,
    lambda here, there: torch.cat([here, there]),
    lambda here, there: torch.nn.functional.linear(here, there),
    lambda here, there: torch.where(here > 0, there, here),
    lambda here, there: torch.nn.functional.mse_loss(input=here, target=there),
])
def test_tensors_meet(fake, mix):
    here, there = torch.zeros(3, 3), torch.zeros(3, 3, device=GPU)
    with Meeting(GPU):
        assert mix(here, there).device.type == "cuda"
        assert (here + 1).device.type == "cpu"  # nothing to meet: it stays


def test_other_errors_are_told(fake):
    with Meeting(GPU):
        with pytest.raises(RuntimeError, match="(?i)size|shape|broadcast"):
            torch.zeros(2) + torch.zeros(3)
        with pytest.raises(RuntimeError, match="(?i)size|shape|broadcast"):
            torch.zeros(2) + torch.zeros(3, device=GPU)


def test_a_model_on_the_accelerator_takes_tensors_of_a_notebook(fake):
    """A code and the two halves of a step, from images and codes on the CPU. (Fake tensors can't pass checks of values.)"""
    with torch.device(GPU):
        unet, encoder = UNet(UNetConfig(32, 1, 8, (1, 2), 1, (2,))), SemanticEncoder(EncoderConfig(32, 1, (8, 8), None, z_dim=4))
        pdae = pdae_lite.PDAE(unet, encoder, SCHEDULE).eval()
    with Meeting(GPU):
        x_0 = torch.zeros(2, 1, 32, 32)
        z = pdae.encoder(x_0)
        assert z.device.type == "cuda"
        t = torch.full((2,), 500)
        features = pdae.features(x_0, t)
        assert pdae.eps(features).device.type == pdae.gradient(features, torch.zeros(2, 4)).device.type == "cuda"


def test_arrays_come_from_the_cpu(monkeypatch):
    seen = []

    def numpy(x, *args):
        seen.append(x)
        if len(seen) == 1:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return "array"

    class Elsewhere:
        device = GPU

        def detach(self):
            return self

        def cpu(self):
            return "on the CPU"

    monkeypatch.setattr(meeting, "TO_NUMPY", (numpy,))
    assert Meeting(GPU).__torch_function__(numpy, (), (Elsewhere(),)) == "array" and seen[1] == "on the CPU"


def test_where_there_is_no_accelerator_nothing_changes(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert meeting.use_accelerator() == meeting.default_device() == torch.device("cpu")
    assert next(pdae_lite.load("digits", "features").parameters()).device.type == "cpu"


def test_models_are_loaded_where_the_session_computes(monkeypatch):
    monkeypatch.setattr(meeting, "_meeting", Meeting(torch.device("meta")))
    assert next(pdae_lite.load("digits", "features").parameters()).device.type == "meta"
    assert next(pdae_lite.load("digits", "features", device="cpu").parameters()).device.type == "cpu"


def test_every_notebook_uses_a_gpu_where_there_is_one():
    for path in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert any("viz.style()\n" in c["source"] and any("use_accelerator()" in line for line in c["source"]) for c in cells), path.name
