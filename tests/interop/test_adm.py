"""guided-diffusion and improved-diffusion: parity with the fixture, arguments told from the weights, clear refusals."""
import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures import fixture
from refusals import refuses
from torch.utils.data import TensorDataset

from pdae_lite import PDAE, EncoderConfig, NoiseSchedule, SemanticEncoder, interop, sampling, train
from pdae_lite.checkpoint import CheckpointError
from pdae_lite.interop.adm import arguments_of
from pdae_lite.networks.unet import UNet, UNetConfig, _run_head

ADM_DIR, PDAE_DIR = fixture("adm_tiny"), fixture("official_pdae_tiny")
MODEL = ADM_DIR / "model.pt"


def config(**changes):
    return {k: v for k, v in (json.loads((ADM_DIR / "config.json").read_text()) | changes).items() if v is not ...}


@pytest.fixture(scope="module")
def expected():
    with np.load(ADM_DIR / "expected.npz", allow_pickle=False) as f:
        return [torch.from_numpy(f[k]) for k in ("x_t", "t", "output")]


def error(a, b):
    return float((a - b).abs().max())


# ---- parity ----------------------------------------------------------------------------------------------------------


def test_parity(expected):
    x_t, t, output = expected
    model = interop.load_adm(MODEL, config()).requires_grad_(False)
    assert model.config.learn_variance and model.middle_block[1].num_heads == 2 and not model.training
    assert error(model(x_t, t), output[:, :3]) < 1e-4
    raw = _run_head(model.trunk(x_t, t), model.middle_block, model.output_blocks, model.out)
    assert error(raw, output) < 1e-4  # the variance range too
    other = interop.load_adm(MODEL, config(use_new_attention_order=True)).requires_grad_(False)
    assert error(other(x_t, t), output[:, :3]) > 1e-3  # the order of qkv matters


def test_parity_with_what_the_weights_show(expected):
    x_t, t, output = expected
    model = interop.load_adm(MODEL, {"num_head_channels": 32}).requires_grad_(False)  # all that they don't show
    assert error(model(x_t, t), output[:, :3]) < 1e-4
    assert replace(model.config, image_size=32, num_heads=4) == interop.load_adm(MODEL, config()).config


def test_without_arguments_it_warns_about_the_heads(expected):
    x_t, t, output = expected
    with pytest.warns(UserWarning, match="don't show how many attention heads there are; taking num_head_channels=64"):
        model = interop.load_adm(MODEL).requires_grad_(False)
    assert model.middle_block[1].num_heads == 1 and model.config.image_size is None
    assert error(model(x_t, t), output[:, :3]) > 1e-3  # as the warning says: this network has two
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interop.load_adm(MODEL, {"num_heads": 2}).middle_block[1].num_heads == 2
        # all that UNetModel demands is there, so its own defaults hold: one head
        assert interop.load_adm(MODEL, config(num_heads=..., num_head_channels=...)).middle_block[1].num_heads == 1


def test_without_an_image_size_noise_has_to_be_given(expected, tmp_path):
    dpm = interop.load_adm(MODEL, {"num_heads": 2})
    pdae = PDAE(dpm, SemanticEncoder.for_images(32, 3, 8), NoiseSchedule.linear()).requires_grad_(False)
    z = torch.zeros(2, 8)
    refuses("doesn't say the size of its images; give x_T", pdae.decode, z)
    pdae.save(tmp_path / "pdae.safetensors")
    again = PDAE.load(tmp_path / "pdae.safetensors")
    x_T = expected[0]
    assert torch.equal(pdae.decode(z, x_T, steps=2), again.decode(z, x_T, steps=2))


# ---- what weights show -----------------------------------------------------------------------------------------------

LAYOUTS = {
    # the released networks, by the flags in their repositories' READMEs
    "guided 64": UNetConfig(64, 3, 192, (1, 2, 3, 4), 3, (2, 4, 8), head_channels=64, learn_variance=True,
                            num_classes=1000),
    "guided 256": UNetConfig(256, 3, 256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), head_channels=64, learn_variance=True),
    "guided 512": UNetConfig(512, 3, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, (16, 32, 64), head_channels=64,
                             learn_variance=True, num_classes=1000),
    "improved cifar10": UNetConfig(32, 3, 128, (1, 2, 2, 2), 3, (2, 4), num_heads=4, learn_variance=True,
                                   resblock_updown=False),
    "improved 64": UNetConfig(64, 3, 128, (1, 2, 3, 4), 3, (4, 8), num_heads=4, learn_variance=True,
                              resblock_updown=False),
    # everything that may differ
    "one level": UNetConfig(16, 1, 32, (1,), 2, (), resblock_updown=False),
    "one block": UNetConfig(16, 1, 32, (1, 2), 1, (1, 2), resblock_updown=True, num_heads=4),
    "averages": UNetConfig(16, 4, 32, (1, 1, 1), 2, (1,), resblock_updown=False, conv_resample=False, num_heads=4),
    "added time": UNetConfig(16, 1, 32, (2, 4), 1, (), scale_shift_norm=False, resblock_updown=False, num_heads=4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name):
    with torch.device("meta"):  # shapes only
        state = UNet(LAYOUTS[name]).state_dict()
    want, got = LAYOUTS[name], arguments_of(state)
    assert got == {
        "in_channels": want.in_channels, "model_channels": want.base_channels, "out_channels": want.out_channels,
        "num_res_blocks": want.num_res_blocks, "attention_resolutions": want.attention_downsampling,
        "channel_mult": want.channel_mult, "conv_resample": want.conv_resample, "num_classes": want.num_classes,
        "use_scale_shift_norm": want.scale_shift_norm,
        "resblock_updown": want.resblock_updown,
    }


@pytest.mark.parametrize("name", ["one level", "one block", "averages", "added time"])
def test_layouts_load(name, tmp_path):
    want = UNet(LAYOUTS[name]).eval().requires_grad_(False)
    torch.nn.init.normal_(want.out[-1].weight)
    torch.save(want.state_dict(), tmp_path / "model.pt")
    got = interop.load_adm(tmp_path / "model.pt", {"num_heads": want.config.num_heads}).requires_grad_(False)
    x, t = torch.randn(2, want.config.in_channels, 16, 16), torch.tensor([3, 700])
    assert torch.equal(got(x, t), want(x, t))


def test_heads_that_are_assumed(tmp_path):
    # 32 channels hold no head of 64; improved-diffusion's layout
    for name, heads in (("one block", 4), ("added time", 4)):
        torch.save(UNet(LAYOUTS[name]).state_dict(), tmp_path / "model.pt")
        with pytest.warns(UserWarning, match="taking num_heads=4"):
            assert interop.load_adm(tmp_path / "model.pt").middle_block[1].num_heads == heads


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit():
    def adm(**changes):
        return MODEL, config(**changes)

    refuses("num_channels; want arguments of UNetModel", interop.load_adm, *adm(num_channels=64))
    refuses("out_channels=5", interop.load_adm, *adm(out_channels=5))
    refuses("dims=3", interop.load_adm, *adm(dims=3))
    refuses("num_heads_upsample=2", interop.load_adm, *adm(num_head_channels=-1, num_heads_upsample=2))
    refuses(r"out.2.weight has shape \[6, 32, 3, 3\], want \[3, 32, 3, 3\]", interop.load_adm, *adm(out_channels=3))
    refuses("label_emb.weight is missing, want shape", interop.load_adm, *adm(num_classes=10))
    # what is given wins over what the weights show, and the layer that differs is named
    refuses(r"time_embed.0.weight has shape \[128, 32\], want \[256, 64\].*config and what the weights show",
            interop.load_adm, MODEL, {"model_channels": 64, "num_heads": 2})
    refuses("input_blocks.1.1.norm.weight is missing", interop.load_adm, MODEL,
            {"attention_resolutions": [1, 2], "num_heads": 2})


def test_layers_too_many_or_missing(tmp_path):
    state, path = torch.load(MODEL, weights_only=True), tmp_path / "changed.pt"
    torch.save(state | {"label_emb.weight": torch.zeros(10, 128)}, path)
    refuses(r"label_emb.weight has shape \[10, 128\], want no such layer", interop.load_adm, path, config())
    assert interop.load_adm(path, {"num_heads": 2}).config.num_classes == 10
    torch.save(state | {"time_embed.4.weight": torch.zeros(1)}, path)
    refuses(r"time_embed.4.weight has shape \[1\], want no such layer", interop.load_adm, path, {"num_heads": 2})
    for missing, message in [("out.2.weight", "has no out.2.weight; want the state dict of a UNetModel"),
                             ("middle_block.2.in_layers.2.weight",
                              "middle_block.2.in_layers.2.weight is missing, want shape"),
                             ("input_blocks.3.0.in_layers.2.weight", "input_blocks.3.0.in_layers.2.weight is missing")]:
        torch.save({k: v for k, v in state.items() if k != missing}, path)
        assert isinstance(refuses(message, interop.load_adm, path, {"num_heads": 2}), CheckpointError)
    torch.save({k: v for k, v in state.items() if not k.startswith("output_blocks.3")}, path)
    refuses("has 3 output blocks in 2 levels", interop.load_adm, path, {"num_heads": 2})


def test_other_files(tmp_path):
    refuses("absent.pt: no such file", interop.load_adm, tmp_path / "absent.pt")
    refuses("no state dict", interop.load_adm, PDAE_DIR / "checkpoint.pt")
    refuses("has no time_embed.0.weight", interop.load_adm, PDAE_DIR / "latents.pt")
    shutil.copy(MODEL, tmp_path / "model.pt")
    with open(tmp_path / "model.pt", "rb+") as f:
        f.truncate(1000)
    refuses("model.pt: not a complete", interop.load_adm, tmp_path / "model.pt", config())


# ---- files as others save them, and networks that are no DPMs --------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrapped_networks(prefix, tmp_path, expected):
    state = torch.load(MODEL, weights_only=True)
    torch.save({prefix + k: v for k, v in state.items()}, tmp_path / "model.pt")
    assert error(interop.load_adm(tmp_path / "model.pt", config())(*expected[:2]), expected[2][:, :3]) < 1e-4


def test_upsamplers(tmp_path):
    refuses(r"in_channels=6, out_channels=6: an upsampler", interop.load_adm, MODEL,
            config(in_channels=6, out_channels=6))
    state = torch.load(MODEL, weights_only=True)
    state["input_blocks.0.0.weight"] = torch.cat([state["input_blocks.0.0.weight"]] * 2, 1)
    torch.save(state, tmp_path / "model.pt")
    refuses(r"in_channels=6, out_channels=6: an upsampler", interop.load_adm, tmp_path / "model.pt",
            {"num_head_channels": 32})


# ---- class-conditional networks --------------------------------------------------------------------------------------


@pytest.fixture
def conditional(tmp_path):
    """(network of 5 classes, its file, UNetModel's arguments)"""
    torch.manual_seed(0)
    net = UNet(UNetConfig(16, 3, 8, (1, 2), 1, (2,), num_classes=5)).eval()
    for p in net.parameters():
        if not bool(p.any()):
            torch.nn.init.normal_(p, std=0.1)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    return net, tmp_path / "model.pt", {"num_heads": 1, "image_size": 16}


def test_a_fixed_class(conditional, tmp_path):
    net, path, arguments = conditional
    dpm = interop.load_adm(path, arguments, label=3)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        assert (torch.equal(dpm(x, t), net(x, t, torch.tensor([3, 3])))
                and not torch.equal(dpm(x, t), net(x, t, torch.tensor([3, 2]))))
    pdae = PDAE(dpm, SemanticEncoder(EncoderConfig(16, 3, (8, 8), None, z_dim=4)), NoiseSchedule.linear())
    with torch.no_grad():
        assert torch.equal(pdae.decode(torch.ones(2, 4), x, steps=2), sampling.ddim(dpm, x, pdae.schedule, 2))
    before = {k: v.clone() for k, v in pdae.state_dict().items()}
    train(pdae, TensorDataset(x.clamp(-1, 1)), steps=3, batch_size=2, lr=1e-2, ema=0.0, progress=False)
    assert {k.split(".")[0] for k, v in pdae.state_dict().items() if not torch.equal(v, before[k])} == {"encoder",
                                                                                                        "estimator"}
    pdae.save(tmp_path / "pdae.safetensors")
    loaded = PDAE.load(tmp_path / "pdae.safetensors")
    assert loaded.dpm.label == 3 and all(torch.equal(v, pdae.state_dict()[k]) for k, v in loaded.state_dict().items())
    refuses("label=5; want 0 … 4", interop.load_adm, path, arguments, 5)
    refuses("label=0; want None: the network has no classes", interop.load_adm, MODEL, config(), 0)


def test_no_class_no_pdae(conditional):
    net, path, arguments = conditional
    refuses(r"the DPM is class-conditional \(num_classes=5\); fix a class", PDAE, interop.load_adm(path, arguments),
            SemanticEncoder(EncoderConfig(16, 3, (8, 8), None, z_dim=4)), NoiseSchedule.linear())
