"""PDAEs as ONNX graphs: what onnxruntime makes of them is what PyTorch does, for ours and for diffusers' networks."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_unets import Linear, scheduler, unet
from torch import nn

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, interop
from pdae_lite.commands import main
from pdae_lite.interop.onnx import PARTS, to_onnx
from pdae_lite.networks.dpm import as_epsilon
from pdae_lite.networks.encoder import EncoderConfig

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed: pip install 'pdae_lite[onnx]'")
pytest.importorskip("onnx")


def shaken(model: nn.Module) -> nn.Module:
    """Nothing at zero, so that z and every layer counts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def ours(form: str = "difference", prediction: str = "v", **options) -> PDAE:
    torch.manual_seed(0)
    schedule = NoiseSchedule.linear(100, 1e-3, 0.2)
    config = UNetConfig(16, 1, 16, (1, 2), 1, (2,), **options)
    encoder = SemanticEncoder(EncoderConfig(16, 1, (8, 16), 0, z_dim=6))
    precondition = "v" if form == "paper" else None
    return shaken(PDAE(as_epsilon(UNet(config), prediction, schedule), encoder, schedule, form=form,
                       precondition=precondition))


def foreign(name: str) -> PDAE:
    dpm, schedule = interop.from_diffusers(unet(name), scheduler(name))
    size = dpm.config.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return shaken(PDAE(dpm, Linear(dpm.config.in_channels * height * width, 6), schedule))


def evaluated(folder, x_t, t, z):
    """What the graphs say: z's code of x_t, ε_θ and what is known."""
    sessions = {part: runtime.InferenceSession(str(folder / f"{part}.onnx"), providers=["CPUExecutionProvider"])
                for part in PARTS}

    def run(part, told):
        return dict(zip([o.name for o in sessions[part].get_outputs()],
                        sessions[part].run(None, {i.name: told[i.name] for i in sessions[part].get_inputs()})))

    told = {"x_t": x_t.numpy(), "t": np.array([t]), "z": z.numpy(), "x_0": x_t.clamp(-1, 1).numpy()}
    told |= run("trunk", told)
    return [torch.from_numpy(run(part, told)[name])
            for part, name in (("encoder", "z"), ("head", "eps"), ("known", "known"))]


@pytest.mark.parametrize("make", [
    lambda: ours(), lambda: ours("paper", "epsilon", patch_size=2),
    lambda: ours("paper", learn_variance=True, num_heads=2),
    lambda: ours(prediction="x_0", resblock_updown=False, scale_shift_norm=False), lambda: foreign("adm"),
    lambda: foreign("wide")],
    ids=["v", "paper", "paper v", "x_0", "diffusers adm", "diffusers wide"])
def test_graphs_say_what_the_model_says(make, tmp_path):
    model = make().eval()
    facts = to_onnx(model, tmp_path, "fp32")
    assert set(facts) == set(PARTS) and all(f["difference"] < 1e-4 for f in facts.values()), facts
    settings = json.loads((tmp_path / "model.json").read_text())
    x = torch.randn(3, settings["channels"], *settings["size"], generator=torch.Generator().manual_seed(2))
    z = model.encoder(x.clamp(-1, 1)).detach()
    for t in (1, 70):  # the graphs were traced at t = 50 for one and two images
        code, eps, known = evaluated(tmp_path, x, t, z)
        shifted = known if settings["form"] == "difference" else eps - known
        assert (code - z).abs().max() < 1e-4
        assert (eps - model.dpm(x, torch.tensor(t))).abs().max() < 2e-4
        with torch.no_grad():
            assert (shifted - model.denoiser(z)(x, torch.tensor(t))).abs().max() < 2e-4 * shifted.abs().max()
        assert settings["sqrt_alpha_bar"][t] == model.schedule.level(t)[0]


def test_fewer_bits_cost_little_and_say_so(tmp_path, monkeypatch):
    model = ours()
    monkeypatch.setattr("pdae_lite.interop.onnx.SMALL", 256)
    sizes, errors = {}, {}
    for weights in ("fp32", "fp16", "int8"):
        facts = to_onnx(model, tmp_path / weights, weights)
        sizes[weights] = sum(f["bytes"] for f in facts.values())
        errors[weights] = facts["known"]["as_stored"]
    assert sizes["int8"] < sizes["fp16"] < sizes["fp32"] and errors["fp32"] < errors["fp16"] < errors["int8"] < 0.2, (
        sizes, errors)


def test_the_command(tmp_path, capsys):
    path, folder = tmp_path / "pdae.safetensors", tmp_path / "graphs"
    ours().save(path)
    assert main.main(["export", str(path), "--onnx", str(folder)]) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in PARTS) and "MB" in out
    assert main.main(["export", str(path), "--onnx", str(folder)]) == 0  # its own, again
    assert main.main(["export", str(path), "--onnx", str(tmp_path)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert main.main(["export", str(path), "--onnx", str(path)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_what_cannot_be_exported_says_why(tmp_path):
    schedule, encoder = NoiseSchedule.linear(100), SemanticEncoder(EncoderConfig(16, 1, (8, 16), 0, z_dim=6))
    with pytest.raises(ValueError, match="BlackBox can't be exported"):
        to_onnx(PDAE(lambda x, t: x, encoder, schedule), tmp_path)
    with pytest.raises(ValueError, match="SimpleNamespace can't be exported"):
        to_onnx(SimpleNamespace(), tmp_path)
    with pytest.raises(ValueError, match="want one of int8"):
        to_onnx(ours(), tmp_path, "int4")
