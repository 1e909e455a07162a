"""The memory of a training step: what checkpointing saves, and what is predicted without computing anything."""
import importlib.util
from pathlib import Path

import pytest
import torch
from small_cuts import network
from small_unets import Linear, diffusers
from torch.profiler import ProfilerActivity, profile

from pdae_lite import PDAE, NoiseSchedule, interop

PATH = Path(__file__).parents[2] / "benchmarks" / "memory.py"
spec = importlib.util.spec_from_file_location("memory_benchmark", PATH)
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)

WIDE = {  # wide enough that tensors, not Python, are what it takes
    "UNet2DConditionModel": (dict(sample_size=32, block_out_channels=(32, 64), layers_per_block=1,
                                  cross_attention_dim=16, attention_head_dim=4,
                                  down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
                             {"prompt_embeds": (1, 8, 16)}),
    "DiTTransformer2DModel": (dict(num_attention_heads=4, attention_head_dim=16, out_channels=8, num_layers=8,
                                   sample_size=32, num_embeds_ada_norm=10), {}),
}


def subject(kind, device, checkpointing=False):
    config, told = WIDE[kind]
    with torch.device(device):
        torch.manual_seed(0)
        model = getattr(diffusers, kind)(**config)
        told = {name: torch.zeros(shape) for name, shape in told.items()}
    dpm, _ = interop.from_diffusers(model, **told)
    with torch.device(device):
        pdae = PDAE(dpm, Linear(4 * 32 * 32), NoiseSchedule.linear())
    pdae.estimator.enable_gradient_checkpointing(checkpointing)
    return pdae


def measured(pdae, x_0):
    """Bytes at the peak by the allocator's own record, counted from before the model's parameters."""
    standing = sum(t.untyped_storage().nbytes() for t in (*pdae.parameters(), *pdae.buffers(), x_0))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        memory.step(pdae, x_0)
    now = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return standing + peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", WIDE)
def test_prediction_is_what_is_measured(kind, checkpointing):
    x_0 = torch.zeros(4, 4, 32, 32)
    predicted = memory.step(subject(kind, "meta", checkpointing), x_0.to("meta"))
    found = measured(subject(kind, "cpu", checkpointing), x_0)
    assert abs(predicted / found - 1) < 0.15, (predicted / 2**20, found / 2**20)


@pytest.mark.parametrize("kind", WIDE)
def test_peak_falls_with_checkpointing(kind):
    x_0 = torch.zeros(16, 4, 32, 32, device="meta")
    without, with_it = (memory.step(subject(kind, "meta", on), x_0) for on in (False, True))
    assert with_it < 0.75 * without, (with_it / 2**20, without / 2**20)


def test_stable_diffusion_fits(capsys):
    """1.5 at 512², batch 1, with checkpointing: on a card of 24 GiB."""
    with torch.device("meta"):
        unet, prompt = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768), torch.empty(1, 77, 768)
    pdae = memory.subject(unet, 64, True, prompt_embeds=prompt)
    assert memory.step(pdae, torch.empty(1, 4, 64, 64, device="meta")) < 24 * memory.GIB
    assert network("sd").config.keys() == unet.config.keys()
