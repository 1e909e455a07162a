"""The benchmark of the training step: that it runs, what it writes, and that its arithmetic is that of the real step."""
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from pdae_lite.presets import PRESETS
from pdae_lite.settings import UsageError, override

_spec = importlib.util.spec_from_file_location("training_benchmark", Path(__file__).parent.parent / "benchmarks" / "training.py")
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

TINY = [f"{name}={value}" for name, value in {
    "unet.image_size": 16, "unet.base_channels": 8, "unet.channel_mult": "1,2", "unet.attention_downsampling": 2, "unet.patch_size": 1,
    "encoder.image_size": 16, "encoder.channels": "8,8", "encoder.attention_after": 0, "encoder.z_dim": 4}.items()]


def run(*args):
    sets = [part for setting in TINY for part in ("--set", setting)]
    return benchmark.main(["--preset", "digits", "--device", "cpu", "--batch-size", "4", "--steps", "1", "--rounds", "2", *sets, *args])


def test_all_take_turns(tmp_path, capsys, monkeypatch):
    turns, go = [], benchmark.Run._go
    monkeypatch.setattr(benchmark.Run, "_go", lambda self: turns.append(self.variant) or go(self))
    result = run("--json", str(tmp_path / "result.json"))
    everyone = list(benchmark.VARIANTS.values())
    assert turns == everyone + everyone[::-1] + everyone  # the first turn doesn't count; then there and back
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert list(result["variants"]) == list(benchmark.VARIANTS) and list(result["ratios"]) == list(benchmark.VARIANTS)[1:]
    for v in result["variants"].values():
        assert len(v["rates"]) == 2 and min(v["rates"]) <= v["images_per_second"] <= max(v["rates"])
        assert v["tflop_per_second"] == pytest.approx(v["images_per_second"] * v["gflop_per_image"] / 1e3)
        assert v["share_of_bf16_peak"] is None and v["peak_gib"] is None and v["micro_batch"] == 4
    for name, r in result["ratios"].items():
        each = [b / a for a, b in zip(result["variants"][name]["rates"], result["variants"]["pdae"]["rates"])]
        assert (r["low"], r["high"]) == pytest.approx((min(each), max(each)))
        assert r["predicted"] == pytest.approx(result["variants"][name]["gflop_per_image"] / result["variants"]["pdae"]["gflop_per_image"])
    assert result["settings"]["preset"] == "digits" and result["settings"]["set"] == TINY
    assert {"device", "torch", "date", "git", "threads"} <= set(result["provenance"])
    text = capsys.readouterr().out
    assert all(v.about in text for v in everyone) and "arithmetic predicts" in text


def test_the_plain_one_is_plain():
    preset = override(PRESETS["digits"], TINY, benchmark.SETTINGS)
    config = benchmark.replace(preset.train, steps=3, batch_size=4, log_every=1, precision="bf16", compile=False)
    plain = benchmark.Run(preset, "pdae_plain", config, torch.device("cpu"))
    assert (plain.config.precision, plain.config.channels_last, plain.config.compile) == ("no", False, False)
    model = plain.variant.build(preset)
    for p in model.parameters():
        p.data.add_(0.1)
    x, t = torch.rand(2, 1, 16, 16), torch.tensor([3, 500])
    model.training_loss(x, t, x, None, model.schedule, "simple").backward()
    assert all(p.grad is not None for p in model.dpm.parameters())
    with benchmark.tf32(False):
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"


@pytest.mark.parametrize("name", benchmark.VARIANTS)
def test_predicted_flops_are_those_of_the_real_step(name):
    """Forward and backward of the loss, counted on "meta". The prediction is a little high: no gradient goes to the pixels."""
    preset = PRESETS["digits"]
    with torch.device("meta"):
        model = benchmark.VARIANTS[name].build(preset).train()
        x, y = benchmark.batch(preset, 1, "meta")
        t, weight = torch.zeros(1, dtype=torch.int64), torch.ones(1000)
    x = x.float()
    real, _ = benchmark.flops(lambda: model.training_loss(x, t, x, y, model.schedule, weight).backward())
    predicted = benchmark.VARIANTS[name].cost(**benchmark.parts(preset, name))
    assert 1 <= predicted / real < 1.01, (predicted, real)


def test_flops_at_128():
    """In GFLOP, a multiply-add counted as two: the numbers that the book quotes."""
    parts = {name: {k: v / 1e9 for k, v in benchmark.parts(PRESETS["ffhq128"], name).items()} for name in ("pdae", "diffae_unet")}
    parts["diffae"] = parts["diffae_unet"] | {"encoder": parts["pdae"]["encoder"]}
    parts["pdae_plain"] = parts["pdae"]
    assert parts["pdae"] == pytest.approx({"trunk": 37.0, "head": 110.7, "shift": 110.7, "encoder": 0.62}, rel=0.01)
    assert parts["diffae_unet"]["encoder"] == pytest.approx(37.8, rel=0.01)
    cost = {name: benchmark.VARIANTS[name].cost(**p) for name, p in parts.items()}
    assert cost["pdae"] == pytest.approx(481.6, rel=0.01)
    assert [cost[n] / cost["pdae"] for n in ("diffae", "diffae_unet", "pdae_plain")] == pytest.approx([0.92, 1.16, 1.61], abs=0.01)


def test_a_label_has_one_encoder():
    assert benchmark.variants(PRESETS["imagenet64"]) == ["pdae", "diffae", "pdae_plain"]
    assert benchmark.parts(PRESETS["imagenet64"], "pdae")["encoder"] == 0


def test_out_of_memory_means_smaller_micro_batches(monkeypatch, capsys):
    go, seen = benchmark.Run._go, []

    def small_memory(self):
        seen.append(self.config.accumulate)
        if self.config.accumulate < 2 or len(seen) == 3:  # at once; and in the first turn that counts
            raise torch.OutOfMemoryError("CUDA out of memory")
        return go(self)

    monkeypatch.setattr(benchmark.Run, "_go", small_memory)
    result = run("--only", "pdae")
    assert seen == [1, 2, 2, 4, 4, 4] and len(result["variants"]["pdae"]["rates"]) == 2
    assert "in micro-batches of 1" in capsys.readouterr().out
    monkeypatch.setattr(benchmark.Run, "_go", lambda self: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(UsageError, match="PDAE: out of memory with 1 image"):
        run("--only", "pdae")


@pytest.mark.parametrize(("card", "tflops"), [
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("Tesla T4", None)])
def test_peaks(card, tflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    assert benchmark.peak(torch.device("cuda")) == tflops


@pytest.mark.parametrize(("args", "message"), [
    (["--steps", "0"], "--steps 0"), (["--preset", "cats"], "--preset 'cats'.*digits"), (["--only", "vae"], "--only vae.*pdae, diffae"),
    (["--set", "unet.chanels=3"], "unet.chanels"),
    pytest.param(["--device", "cuda"], "finds no GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"))])
def test_bad_arguments(args, message):
    with pytest.raises(UsageError, match=message) as e:
        run(*args)
    assert "\n" not in str(e.value)
