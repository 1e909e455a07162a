"""The benchmarks: that they run, what they write, and that their arithmetic is that of the real thing."""
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from pdae_lite import metrics
from pdae_lite.commands.settings import UsageError, override
from pdae_lite.data import ASSETS
from pdae_lite.metrics.features import Features
from pdae_lite.networks.encoder import EncoderConfig, SemanticEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.presets import PRESETS
from pdae_lite.schedule import NoiseSchedule

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name):
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark, report = load("training"), load("sampling_report")

TINY = [f"{name}={value}" for name, value in {
    "unet.image_size": 16, "unet.base_channels": 8, "unet.channel_mult": "1,2", "unet.attention_downsampling": 2,
    "unet.patch_size": 1, "encoder.image_size": 16, "encoder.channels": "8,8", "encoder.attention_after": 0,
    "encoder.z_dim": 4}.items()]


def run(*args):
    sets = [part for setting in TINY for part in ("--set", setting)]
    return benchmark.main(["--preset", "digits", "--device", "cpu", "--batch-size", "4", "--steps", "1", "--rounds",
                           "2", *sets, *args])


def test_all_take_turns(tmp_path, capsys, monkeypatch):
    turns, go = [], benchmark.Run._go
    monkeypatch.setattr(benchmark.Run, "_go", lambda self: turns.append(self.variant) or go(self))
    result = run("--json", str(tmp_path / "result.json"))
    everyone = list(benchmark.VARIANTS.values())
    assert turns == everyone + everyone[::-1] + everyone  # the first turn doesn't count; then there and back
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (list(result["variants"]) == list(benchmark.VARIANTS)
            and list(result["ratios"]) == list(benchmark.VARIANTS)[1:])
    for v in result["variants"].values():
        assert len(v["rates"]) == 2 and min(v["rates"]) <= v["images_per_second"] <= max(v["rates"])
        assert v["tflop_per_second"] == pytest.approx(v["images_per_second"] * v["gflop_per_image"] / 1e3)
        assert v["share_of_bf16_peak"] is None and v["peak_gib"] is None and v["micro_batch"] == 4
    for name, r in result["ratios"].items():
        each = [b / a for a, b in zip(result["variants"][name]["rates"], result["variants"]["pdae"]["rates"])]
        assert (r["low"], r["high"]) == pytest.approx((min(each), max(each)))
        assert r["predicted"] == pytest.approx(result["variants"][name]["gflop_per_image"]
                                               / result["variants"]["pdae"]["gflop_per_image"])
    assert result["settings"]["preset"] == "digits" and result["settings"]["set"] == TINY
    assert {"device", "torch", "date", "git", "threads"} <= set(result["provenance"])
    text = capsys.readouterr().out
    assert all(v.about in text for v in everyone) and "arithmetic predicts" in text


def test_the_plain_one_is_plain():
    preset = override(PRESETS["digits_paper"], TINY, benchmark.SETTINGS)
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


@pytest.mark.parametrize("chosen", ["digits", "digits_paper"])
@pytest.mark.parametrize("name", benchmark.VARIANTS)
def test_predicted_flops_are_those_of_the_real_step(name, chosen):
    """Forward and backward of the loss, counted on "meta". The prediction is a little high: no gradient goes to the
    pixels."""
    preset = PRESETS[chosen]
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
    parts = {name: {k: v / 1e9 for k, v in benchmark.parts(PRESETS["ffhq128"], name).items()}
             for name in ("pdae", "diffae_unet")}
    parts["diffae"] = parts["diffae_unet"] | {"encoder": parts["pdae"]["encoder"]}
    parts["pdae_plain"] = parts["pdae"]
    assert parts["pdae"] == pytest.approx({"trunk": 37.0, "head": 110.7, "shift": 110.7, "encoder": 0.62}, rel=0.01)
    assert parts["diffae_unet"]["encoder"] == pytest.approx(37.8, rel=0.01)
    cost = {name: benchmark.VARIANTS[name].cost(**p) for name, p in parts.items()}
    assert cost["pdae"] == pytest.approx(481.6, rel=0.01)
    assert [cost[n] / cost["pdae"]
            for n in ("diffae", "diffae_unet", "pdae_plain")] == pytest.approx([0.92, 1.16, 1.61], abs=0.01)


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
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989),
    ("Tesla T4", None)])
def test_peaks(card, tflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    assert benchmark.peak(torch.device("cuda")) == tflops


@pytest.mark.parametrize(("args", "message"), [
    (["--steps", "0"], "--steps 0"), (["--preset", "cats"], "--preset 'cats'.*digits"),
    (["--only", "vae"], "--only vae.*pdae, diffae"),
    (["--set", "unet.chanels=3"], "unet.chanels"),
    pytest.param(["--device", "cuda"], "finds no GPU",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"))])
def test_bad_arguments(args, message):
    with pytest.raises(UsageError, match=message) as e:
        run(*args)
    assert "\n" not in str(e.value)


# ---- benchmarks/sampling.py ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampling_benchmark():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return load("sampling")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tiny_pdae(tmp_path_factory):
    torch.manual_seed(0)
    dpm = UNet(UNetConfig(32, 1, 8, (1, 2), 1, (), patch_size=4))
    pdae = PDAE(dpm, SemanticEncoder(EncoderConfig(32, 1, (8, 8, 8), None, 1, 4)), NoiseSchedule.linear(), form="paper")
    for p in [*pdae.dpm.out.parameters(), *pdae.estimator.parameters()]:
        p.data = 0.1 * torch.randn(p.shape)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pdae.save(path)
    return path


@pytest.fixture(scope="module")
def measured(sampling_benchmark, tiny_pdae, tmp_path_factory):
    path = tmp_path_factory.mktemp("result") / "sampling.json"
    return sampling_benchmark.main(["--quick", "--device", "cpu", "--model", str(tiny_pdae), "--json", str(path)]), path


def test_sampling_is_measured_and_written(measured, sampling_benchmark):
    result, path = measured
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert (set(sampling_benchmark.SECTIONS) <= set(result)
            and result["command"].startswith("python benchmarks/sampling.py --quick"))
    for text in (sampling_benchmark.table(result), report.markdown(result)):
        for section in sampling_benchmark.SECTIONS:
            for row in result[section].get("rows", []):
                assert row["name"] in text
        assert "mixing two z" in text and "nan" not in text


def test_sampling_costs_are_counted(measured, sampling_benchmark):
    """Evaluations are those of the sampler; a shifted one costs trunk, head and estimator, a plain one no estimator."""
    result, _ = measured
    gflop = result["gflop"]
    one = sum(gflop.values())
    rows = {r["name"]: r for r in result["random_x_T"]["rows"]}
    assert rows["DDIM 1000, uniform grid"]["evaluations"] == 50  # a 20th of all steps
    for row in rows.values():
        assert row["evaluations"] == row["shifted"] and row["gflop"] == pytest.approx(row["evaluations"] * one)
    inferred = {r["name"]: r for r in result["inferred_x_T"]["rows"]}
    assert inferred["fixed point, 15 times 3 + 15, quadratic grid"]["evaluations"] == 3 * 3 + 3
    exact, without_z = (inferred[f"BELM 30 + 30, quadratic grid{end}"] for end in ("", ", without z"))
    assert exact["evaluations"] == without_z["evaluations"] == 3 + 2  # the pair saves one
    assert without_z["shifted"] == 0 and without_z["gflop"] == pytest.approx(5 * (one - gflop["shift"]))
    assert exact["mse"]["value"] < 1e-6 and without_z["mse"]["value"] < 1e-6  # rebuilds anything, z or not
    assert result["intervals"]["rows"][0]["shifted"] > result["intervals"]["rows"][2]["shifted"]
    for row in (result["intervals"]["rows"][0], result["drawn"]["rows"][0]):
        assert row["kid_change"]["value"] == row["kid_change"]["low"] == 0.0  # against itself
    mixing = result["mixing"]
    assert mixing["allowed"] == pytest.approx(2 * one / (one + gflop["shift"]))
    assert mixing["share"] == pytest.approx(mixing["speed_up"] / mixing["allowed"])


def test_sections_are_measured_anew(measured, sampling_benchmark, tiny_pdae):
    before, path = measured
    args = ["--device", "cpu", "--model", str(tiny_pdae), "--json", str(path), "--only", "mixing"]
    with pytest.raises(ValueError, match=r"holds figures of other settings or models \(counts\)"):
        sampling_benchmark.main([*args, "--quick", "--images", "4"])
    again = sampling_benchmark.main([*args, "--quick"])
    assert again["drawn"] == before["drawn"] and again["command"] == before["command"]
    assert (again["mixing"]["command"].endswith("--only mixing --quick")
            and json.loads(path.read_text())["mixing"] == again["mixing"])
    with pytest.raises(UsageError, match="--images 2; want 3 or more"):
        sampling_benchmark.main([*args, "--images", "2"])


def test_a_stopped_run_goes_on(measured, sampling_benchmark, tiny_pdae, tmp_path):
    result, path = json.loads(json.dumps(measured[0])), tmp_path / "stopped.json"
    missing = result["intervals"]["rows"].pop(2)
    del result["intervals"]["date"], result["mixing"]
    path.write_text(json.dumps(result))
    again = sampling_benchmark.main(["--quick", "--device", "cpu", "--model", str(tiny_pdae), "--json", str(path),
                                     "--more"])
    assert again["random_x_T"] == result["random_x_T"] and "date" in again["intervals"] and "share" in again["mixing"]
    rows = again["intervals"]["rows"]
    assert rows[:2] + rows[3:] == result["intervals"]["rows"]
    assert (rows[2]["name"] == missing["name"]
            and rows[2]["mse"]["value"] == pytest.approx(missing["mse"]["value"], rel=1e-3))


def test_a_change_of_kid_is_the_difference_of_two(sampling_benchmark):
    g = torch.Generator().manual_seed(0)
    base, real = (Features(torch.randn(n, 6, generator=g)) for n in (60, 80))
    moved = Features(base.values + 0.05 + 0.05 * torch.randn(60, 6, generator=g))
    got = sampling_benchmark.kid_change(moved, base, real)
    before, after = metrics.kid(base, real), metrics.kid(moved, real)
    assert got["value"] == pytest.approx(after.value - before.value, abs=1e-9)
    assert got["low"] < got["value"] < got["high"]
    assert got["high"] - got["low"] < 0.5 * (after.high - after.low)  # chance that both share cancels


# ---- what is stored --------------------------------------------------------------------------------------------------


def stored(name):
    return json.loads((ASSETS / f"sampling_{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["digits", "peeps"])
def test_what_is_stored_is_whole(name, sampling_benchmark):
    result = stored(name)
    assert result["data"] == name and result["counts"] == sampling_benchmark.asdict(sampling_benchmark.Counts())
    schemes = ["DDIM 1000, uniform grid", *map(str, sampling_benchmark.PAPER + sampling_benchmark.OURS)]
    assert [r["name"] for r in result["random_x_T"]["rows"]] == schemes
    assert [r["name"] for r in result["drawn"]["rows"]] == list(map(str, sampling_benchmark.DRAWN))
    assert [r["name"] for r in result["intervals"]["rows"]] == list(sampling_benchmark.INTERVALS)
    assert all("date" in result[section] for section in sampling_benchmark.SECTIONS)
    for row in result["inferred_x_T"]["rows"]:
        runs = {"trunk": row["evaluations"], "head": row["evaluations"], "shift": row["shifted"]}
        assert row["gflop"] == pytest.approx(sum(n * result["gflop"][part] for part, n in runs.items()))


def test_a_slice_of_what_is_stored_comes_out_again(sampling_benchmark):
    """Two rows of digits, within 2 % (rounding differs from one CPU to the next); seconds are not compared."""
    result = stored("digits")
    b = sampling_benchmark.Bench("digits", None, sampling_benchmark.Counts(), torch.device("cpu"), None, False)
    assert b.sha256 == result["sha256_of_weights"] and b.gflop == result["gflop"]
    scheme = sampling_benchmark.Scheme("dpm_solver", 6, "quadratic")
    was = {r["name"]: r for r in result["random_x_T"]["rows"]}[str(scheme)]
    again = sampling_benchmark.likeness(b, b.sample(scheme, b.model.denoiser(b.z), b.x_T), b.x, "_to_x_0")
    assert again["mse_to_x_0"]["value"] == pytest.approx(was["mse_to_x_0"]["value"], rel=0.02)
    name, rows = "fixed point, 10 times 5 + 10, cubic grid", result["inferred_x_T"]["rows"]
    section = sampling_benchmark.measure(b, "inferred_x_T", [r for r in rows if r["name"] != name], lambda _: None)
    (now,), (was,) = ([r for r in found if r["name"] == name] for found in (section["rows"], rows))
    assert [r["name"] for r in section["rows"]] == [r["name"] for r in rows]
    assert now["evaluations"] == was["evaluations"] == 60 and now["gflop"] == was["gflop"]
    assert now["mse"]["value"] == pytest.approx(was["mse"]["value"], rel=0.02)
    assert now["noise"]["std"] == pytest.approx(was["noise"]["std"], rel=0.02)


def test_the_readme_shows_what_is_stored():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for name in ("digits", "peeps"):
        assert report.markdown(stored(
            name)) in text, f"python benchmarks/sampling_report.py pdae_lite/assets/sampling_{name}.json"
