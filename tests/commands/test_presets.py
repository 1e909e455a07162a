"""Presets: the values they promise, their networks, and every setting by name."""
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from pdae_lite import data
from pdae_lite.checkpoint import load_model, shipped_file
from pdae_lite.commands.settings import UsageError, listing, override, show
from pdae_lite.presets import PRESETS, STAGES, LabelConfig
from pdae_lite.training import train

PAPER = {"celeba64": (72, 38), "ffhq128": (130, 64), "horse128": (130, 64), "bedroom128": (120, 70),
         "celebahq128": (52, 25),
         "imagenet64": (77, 38)}  # million images: DPM, PDAE
ANY = pytest.mark.parametrize("name", PRESETS)
# several presets share theirs
NETWORKS = {(p.unet, p.encoder, p.prediction): name for name, p in reversed(PRESETS.items())}
DISTINCT = pytest.mark.parametrize("name", list(NETWORKS.values())[::-1])


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def flops(run):
    with FlopCounterMode(display=False) as count:
        run()
    return count.get_total_flops()


def on_meta(name):
    """Networks of a preset without weights, and what goes in: dpm, pdae, x_0, t, y."""
    preset = PRESETS[name]
    return _on_meta(NETWORKS[preset.unet, preset.encoder, preset.prediction])


@cache
def _on_meta(name):
    preset = PRESETS[name]
    with torch.device("meta"):
        dpm = preset.dpm()
        side = preset.unet.image_size
        x_0, t, y = torch.empty(2, preset.unet.in_channels, side, side), *torch.zeros(2, 2, dtype=torch.int64)
        return dpm, preset.pdae(dpm), x_0, t, y


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_training(name):
    preset = PRESETS[name]
    for config, images in zip((preset.pretrain, preset.train), PAPER[name]):
        assert 0 <= config.steps * config.batch_size - images * 1e6 < 128
        assert (config.batch_size, config.lr, config.ema, config.weight_decay,
                config.flip) == (128, 1e-4, 0.9999, 0.0, True)
        assert config.warmup == config.decay == 0 and config.augment is None
    assert (preset.pretrain.weight, preset.train.weight) == ("simple", "pdae")
    assert (preset.prediction, preset.precondition) == ("epsilon", None)
    assert preset.schedule().to_config() == {"name": "linear", "T": 1000, "start": 1e-4, "end": 0.02}
    assert preset.train_diffae == preset.pretrain
    latent = preset.train_latent
    assert (latent.batch_size, latent.lr, latent.weight_decay, preset.mlp.layers,
            preset.mlp.width) == (512, 1e-3, 0.01, 10, 2048)
    assert latent.augment is None and latent.weight is None
    assert (preset.unet.dropout, preset.unet.num_heads, preset.encoder.z_dim) == (0.1, 1, 512)


def test_the_paper_s_networks():
    """Widths, and the sizes and costs that follow: 98.6 million parameters and 37 + 111 GFLOP a pass at 128×128."""
    for name, base, mult, size, total in (("ffhq128", 128, (1, 1, 2, 3, 4), 128, 98.6),
                                          ("celeba64", 64, (1, 2, 4, 8), 64, 64.0)):
        unet = PRESETS[name].unet
        assert (unet.base_channels, unet.channel_mult, unet.image_size, unet.num_res_blocks) == (base, mult, size, 2)
        assert [size // factor for factor in unet.attention_downsampling] == [16]
        dpm, pdae, x_0, t, _ = on_meta(name)
        assert millions(dpm) == pytest.approx(total, abs=0.05)
        attention = [i for i, layer in enumerate(pdae.encoder.encoder) if type(layer).__name__ == "AttentionBlock"]
        assert len(attention) == 1 and pdae.encoder.encoder[: attention[0]](x_0).shape[2:] == (16, 16)
        assert pdae.encoder.encoder[:-2](x_0).shape[2:] == (4, 4)
    dpm, _, x_0, t, _ = on_meta("ffhq128")
    assert flops(lambda: dpm(x_0, t)) / len(x_0) / 1e9 == pytest.approx(37 + 111, abs=1)
    assert PRESETS["imagenet64"].encoder == LabelConfig(1000, 512)
    assert PRESETS["celeba64"].lmdb.crop == data.CELEBA64_CROP


def test_the_shipped_model_was_trained_with_its_preset():
    """Its file says with what. A preset that changes needs a new file."""
    facts = load_model(shipped_file("digits")).metadata
    for now, then in ((PRESETS["digits"].train, facts), (PRESETS["digits"].pretrain, facts["dpm_training"])):
        assert {k: asdict(now)[k] for k in then["training"]} == then["training"]


def test_what_the_recipe_of_the_faces_is():
    peeps = PRESETS["peeps"]
    assert (peeps.pretrain.steps, peeps.train.steps, peeps.train_diffae.steps) == (7200, 5000, 5000)
    assert asdict(peeps.pretrain) | {"steps": 5000} == asdict(peeps.train)
    assert (peeps.train.batch_size, peeps.train.lr, peeps.train.warmup, peeps.train.decay,
            peeps.train.ema) == (64, 1e-3, 300, 0.6, 0.999)
    assert peeps.train.flip and not PRESETS["digits"].train.flip
    assert (peeps.prediction, peeps.form, peeps.precondition, peeps.train.weight) == ("v", "difference", None, "v")


@pytest.mark.parametrize("name, minutes", [("peeps_gpu", 10), ("digits_gpu", 2)])
def test_gpu_recipes_take_the_minutes_that_they_claim(name, minutes):
    """At 190 TFLOP/s; a training step costs 3 forward passes of what is trained, 1 of what is frozen."""
    preset, (dpm, pdae, x_0, t, _) = PRESETS[name], on_meta(name)
    forward = flops(lambda: dpm(x_0, t)) / len(x_0)
    features = dpm.trunk(x_0, t)
    trained = flops(lambda: pdae.estimator(features, pdae.encoder(x_0))) / len(x_0)
    for config, cost in ((preset.pretrain, 3 * forward), (preset.train, forward + 3 * trained)):
        assert config.steps * config.batch_size * cost / 190e12 / 60 == pytest.approx(minutes, rel=0.1)
        assert config.precision == "bf16" and config.channels_last and config.compile
    assert preset.unet.patch_size == 1
    assert 2e6 * (millions(pdae)) < 15 * 2**20  # bytes of its float16 file


# ---- networks --------------------------------------------------------------------------------------------------------


@DISTINCT
def test_shapes_end_to_end(name):
    dpm, pdae, x_0, t, y = on_meta(name)
    preset = PRESETS[name]
    z = pdae.encoder(y if getattr(pdae.encoder, "takes_labels", False) else x_0)
    assert z.shape == (2, preset.encoder.z_dim)
    features = dpm.trunk(x_0, t)
    side = preset.unet.image_size // preset.unet.size_multiple
    assert features.h.shape[2:] == (side, side)
    assert pdae.estimator(features, z).shape == x_0.shape
    assert dpm(x_0, t).shape == x_0.shape
    with torch.device("meta"):
        assert preset.diffae().network(x_0, t, z).shape == x_0.shape
        assert preset.classifier(7)(x_0, t).shape == (2, 7)
        assert preset.latent(preset.encoder.z_dim)(z, t).shape == z.shape
    assert preset.mlp.z_dim == preset.encoder.z_dim


def small(preset, stage):
    """A preset shrunk by settings, as one would on the command line."""
    settings = ["train.steps=1", "train.batch_size=2", "train.precision=no", "train.compile=false", "train.workers=0",
                "train.warmup=0"]
    if "unet" in STAGES[stage]:
        settings += ["unet.base_channels=8", "unet.image_size=32"]
    if "encoder" in STAGES[stage] and not isinstance(preset.encoder, LabelConfig):
        settings += ["encoder.channels=" + ",".join("8" for _ in preset.encoder.channels), "encoder.image_size=32"]
    if "encoder" in STAGES[stage]:
        settings += ["encoder.z_dim=8"]
    if "latent" in STAGES[stage]:
        settings += ["latent.layers=3", "latent.width=16", "latent.z_dim=8"]
    return override(preset, settings, STAGES[stage])


@DISTINCT
def test_one_step_of_each_training(name):
    torch.manual_seed(0)
    preset = PRESETS[name]
    images = data.Images(torch.randint(0, 256, (6, preset.unet.in_channels, 32, 32), dtype=torch.uint8),
                         torch.arange(6) % 3)
    first = small(preset, "pretrain")
    dpm = train(first.dpm(), images, first.pretrain, schedule=first.schedule(), progress=False)
    second = small(preset, "pdae")
    pdae = train(second.pdae(dpm.model), images, second.train, progress=False)
    third = small(preset, "diffae")
    diffae = train(third.diffae(), images, third.train_diffae, progress=False)
    fourth = small(preset, "classifier")
    classifier = train(fourth.classifier(3), images, fourth.train_classifier, progress=False)
    fifth = small(preset, "latent")
    latent = train(fifth.latent(8), TensorDataset(torch.randn(6, 8)), fifth.train_latent, flip=False, progress=False)
    for result in (dpm, pdae, diffae, classifier, latent):
        assert [h["step"] for h in result.history] == [1] and 0 < result.history[0]["loss"] < 100
    assert pdae.model.z_dim == diffae.model.z_dim == 8


def test_resized():
    preset = PRESETS["peeps64"].resized(32, 1)
    for config in (preset.unet, preset.encoder):
        assert (config.image_size, config.in_channels) == (32, 1)
    assert replace(preset.unet, image_size=64, in_channels=3) == PRESETS["peeps64"].unet
    with pytest.raises(ValueError, match="image_size=40"):
        PRESETS["peeps64"].resized(40, 3)


# ---- settings by name ------------------------------------------------------------------------------------------------


@ANY
@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_can_be_written_and_read(name, stage):
    preset, names = PRESETS[name], STAGES[stage]
    settings = listing(preset, names)
    assert {"train.lr", "train.steps", "lmdb.start"} <= set(settings)
    assert override(preset, [f"{k}={show(v)}" for k, v in settings.items()], names) == preset


def test_override_changes_what_it_names_and_nothing_else():
    peeps = PRESETS["peeps"]
    changed = override(peeps,
                       ["train.lr=3e-4", "train.flip=no", "train.steps=7", "train.steps=8", "train.augment=affine",
                        "unet.channel_mult=(1, 2)", "unet.attention_downsampling=", "unet.head_channels=16",
                        "unet.data_range=none", "prediction=epsilon", "lmdb.crop=1,2,3,4"], STAGES["pretrain"])
    assert changed == replace(
        peeps, prediction="epsilon", lmdb=replace(peeps.lmdb, crop=(1, 2, 3, 4)),
        pretrain=replace(peeps.pretrain, lr=3e-4, flip=False, steps=8, augment="affine"),
        unet=replace(peeps.unet, channel_mult=(1.0, 2.0), attention_downsampling=(), head_channels=16, data_range=None))
    assert override(peeps, ["encoder.attention_after=none", "train.steps=9"], STAGES["pdae"]).train.steps == 9
    assert override(peeps, [], STAGES["pdae"]) == peeps


@pytest.mark.parametrize("setting, says", [
    ("train.lr", "want NAME=VALUE"),
    ("trian.lr=1", "did you mean train.lr?"),
    ("train.batchsize=1", "did you mean train.batch_size?"),
    ("base_channels=1", "did you mean unet.base_channels?"),
    ("predictoin=v", "did you mean prediction?"),
    ("encoder.channels=8", "is unknown here"),
    ("nonsense=1", "want one of unet.…, train.…, prediction, "),
    ("train.steps=many", "setting train.steps=many; want an integer"),
    ("train.steps=1.5", "want an integer"),
    ("train.lr=nan", "want a number"),
    ("train.flip=perhaps", "want true or false"),
    ("unet.channel_mult=1,two", "want numbers separated by commas"),
    ("unet.attention_downsampling=1.5", "want integers separated by commas"),
    ("unet.data_range=0", "want 2 numbers separated by commas or none"),
    ("train.gamma=x", "want a number or none"),
    ("train.steps=0", "steps=0; want a whole number of at least 1"),
    ("unet.image_size=20", "image_size=20; want a multiple of 8"),
])
def test_settings_that_are_wrong_say_so_in_one_line(setting, says):
    with pytest.raises(ValueError) as e:
        override(PRESETS["peeps"], [setting], STAGES["pretrain"])
    assert says in str(e.value) and "\n" not in str(e.value)
    assert (isinstance(e.value, UsageError)
            or says in ("steps=0; want a whole number of at least 1", "image_size=20; want a multiple of 8"))
