"""diffusers models in files: folders, pipelines, the hub's cache; a PDAE that keeps its DPM by value or by
reference."""
import json
import socket
import sys

import pytest
import torch
from small_unets import T_BATCH, UNETS, T, diffusers, fit, random, scheduler, unet
from torch.utils.data import TensorDataset

from pdae_lite import PDAE, EncoderConfig, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, data, interop, train
from pdae_lite.checkpoint import CheckpointError, load_model, read, save_model, write
from pdae_lite.warning import PDAEWarning

pytestmark = pytest.mark.filterwarnings(  # of diffusers' own making
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:The `local_dir_use_symlinks` argument")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def pipeline(tmp_path):
    """The folder of a pipeline."""
    diffusers.DDIMPipeline(unet("celebahq"), scheduler("celebahq")).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_folders(tmp_path, pipeline, no_network):
    x = random("celebahq")
    want = interop.from_diffusers(unet("celebahq"), scheduler("celebahq"))
    unet("celebahq").save_pretrained(tmp_path / "model")
    flat = tmp_path / "flat"  # the layout of google/ddpm-celebahq-256
    unet("celebahq").save_pretrained(flat)
    scheduler("celebahq", "DDPMScheduler").save_pretrained(flat)
    for path in (pipeline, str(pipeline), pipeline / "unet", flat, tmp_path / "model"):
        dpm, schedule = interop.from_diffusers(path)
        assert not dpm.training and torch.equal(dpm(x, T_BATCH), want[0](x, T_BATCH))
        assert schedule.same_as(NoiseSchedule.linear() if path == tmp_path / "model" else want[1])
    with pytest.warns(PDAEWarning, match="model has no scheduler; taking DDPM's linear schedule"):
        interop.from_diffusers(tmp_path / "model")
    assert interop.from_diffusers(tmp_path / "model", scheduler("celebahq"))[1].same_as(want[1])
    for name in ("adm", "gray", "latent"):
        diffusers.DDIMPipeline(unet(name), scheduler(name, "DDPMScheduler")).save_pretrained(tmp_path / name)
        found, want = interop.from_diffusers(tmp_path / name), interop.from_diffusers(unet(name), scheduler(name))
        assert torch.equal(found[0](random(name), T_BATCH), want[0](random(name), T_BATCH))
        assert found[0].data_range == want[0].data_range and found[1].same_as(want[1])


def test_what_their_training_script_leaves(tmp_path, pipeline, no_network):
    """output/{model_index.json, scheduler, checkpoint-N/{unet, unet_ema}}: the scheduler is two levels up."""
    from diffusers.training_utils import EMAModel

    last, average = unet("celebahq"), unet("celebahq")
    with torch.no_grad():
        average.conv_in.bias += 1
    folder = pipeline / "checkpoint-500"
    last.save_pretrained(folder / "unet")
    EMAModel(average.parameters(), model_cls=type(average),
             model_config=average.config).save_pretrained(folder / "unet_ema")
    x, schedule = random("celebahq"), interop.from_diffusers(pipeline)[1]
    for path, want in [(folder / "unet_ema", average), (folder / "unet", last)]:
        found = interop.from_diffusers(path)
        assert torch.equal(found[0](x, T_BATCH), want(x, T_BATCH).sample) and found[1].same_as(schedule)
    with pytest.warns(PDAEWarning, match="has unet and unet_ema; taking the average"):
        dpm, own = interop.from_diffusers(folder, keep="reference")
    assert torch.equal(dpm(x, T_BATCH), average(x, T_BATCH).sample) and own.same_as(schedule)
    save_model(tmp_path / "dpm.safetensors", dpm)
    assert same(weights(load_model(tmp_path / "dpm.safetensors")), weights(dpm))


def test_safetensors_in_any_precision_and_no_pickles(tmp_path, no_network):
    model, x = unet("celebahq").half(), random("celebahq")
    model.save_pretrained(tmp_path / "half", variant="fp16")
    assert [p.name for p in (tmp_path / "half").glob("*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    dpm, _ = interop.from_diffusers(tmp_path / "half", scheduler("celebahq"))
    assert dpm.dtype == torch.float32 and torch.equal(dpm(x, T_BATCH), model.float()(x, T_BATCH).sample)
    unet("celebahq").save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(CheckpointError, match="pickled: the weights are a pickle, which could run code; convert them"):
        interop.from_diffusers(tmp_path / "pickled", scheduler("celebahq"))


def test_models_and_pipelines_of_another_kind(tmp_path, pipeline):
    config = json.loads((pipeline / "unet" / "config.json").read_text())
    for name, message in [("UNet3DConditionModel", "model UNet3DConditionModel is video"),
                          ("FluxTransformer2DModel", "is Flux"),
                          ("ControlNetModel", "is a ControlNet"), (None, "model None isn't supported")]:
        (pipeline / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": name}))
        with pytest.raises(ValueError, match=message) as e:
            interop.from_diffusers(pipeline)
        assert "\n" not in str(e.value)
    (pipeline / "unet" / "config.json").write_text(json.dumps(config))
    index = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(json.dumps(index | {"controlnet": ["diffusers", "ControlNetModel"]}))
    with pytest.raises(ValueError, match="is the pipeline of a ControlNet"):
        interop.from_diffusers(pipeline)


def test_damaged_folders(tmp_path, pipeline):
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for damage, message in [(whole[:1000], "the weights can't be read"), (None, "the weights can't be read")]:
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=message) as e:
            interop.from_diffusers(pipeline)
        assert "\n" not in str(e.value) and str(pipeline) in str(e.value)
        path.write_bytes(whole)
    attention = ("AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    # too many, too few
    for changes, message in [(dict(add_attention=False), r"don't fit config.json \(mid_block.attentions"),
                             (dict(down_block_types=attention), r"don't fit config.json \(down_blocks.0.attentions"),
                             (dict(layers_per_block=1), "the weights can't be read .*up_blocks.0.resnets")]:
        unet("celebahq", **changes).save_config(pipeline / "unet")
        with pytest.raises(CheckpointError, match=message):
            interop.from_diffusers(pipeline)
    (pipeline / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a valid JSON"):
        interop.from_diffusers(pipeline)
    with pytest.raises(CheckpointError, match="has no model"):
        interop.from_diffusers(tmp_path)


def test_hub_ids_stay_off_the_network(pipeline, no_network, monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match="nobody/nothing is neither a folder nor a model in the hub's "
                                              "cache.*download=True") as e:
        interop.from_diffusers("nobody/nothing")
    assert "\n" not in str(e.value)
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    snapshot = cache / "models--somebody--faces" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    pipeline.rename(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    dpm, schedule = interop.from_diffusers("somebody/faces", keep="reference")
    assert (torch.equal(dpm(random("celebahq"), T_BATCH), unet("celebahq")(random("celebahq"), T_BATCH).sample)
            and schedule.T == T)
    pdae = PDAE(dpm, SemanticEncoder.for_images(16, 3, z_dim=4), schedule)
    pdae.save(tmp_path / "pdae.safetensors")
    assert same(weights(PDAE.load(tmp_path / "pdae.safetensors")), weights(pdae))

    asked = []

    def load_config(path, local_files_only, **_):
        asked.append((path, local_files_only))
        raise OSError("gone")

    monkeypatch.setattr(diffusers.UNet2DModel, "load_config", load_config)
    with pytest.raises(CheckpointError, match="somebody/other is neither a folder nor a model of the hub"):
        interop.from_diffusers("somebody/other", download=True)
    assert set(asked) == {("somebody/other", False)}


@pytest.mark.parametrize("name", ["celebahq", "adm", "gray", "latent"])
def test_by_value(name, tmp_path, no_network, monkeypatch):
    dpm, schedule = interop.from_diffusers(unet(name), scheduler(name))
    pdae = PDAE(dpm, SemanticEncoder.for_images(UNETS[name]["sample_size"], random(name).shape[1], z_dim=4), schedule)
    fit(pdae, random(name).clamp(-1, 1))
    path = tmp_path / "pdae.safetensors"
    pdae.save(path, {"note": "a note"})
    loaded = PDAE.load(path)
    assert (same(weights(loaded), weights(pdae)) and loaded.metadata == {"note": "a note"}
            and loaded.data_range == pdae.data_range)
    z = pdae.encode(random(name).clamp(-1, 1))
    assert torch.equal(loaded.decode(z, random(name), steps=3), pdae.decode(z, random(name), steps=3))
    assert torch.equal(loaded.noise(1, torch.Generator().manual_seed(0)),
                       pdae.noise(1, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="keep 'reference' is for a DPM that"):
        pdae.save(path, dpm="reference")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'pdae_lite\[diffusers\]'") as e:
        PDAE.load(path)
    assert "\n" not in str(e.value)


def test_a_dpm_alone_by_value(tmp_path):
    dpm, _ = interop.from_diffusers(unet("wide"))
    save_model(tmp_path / "dpm.safetensors", dpm)
    loaded = load_model(tmp_path / "dpm.safetensors")
    assert same(weights(loaded), weights(dpm)) and loaded.config == dpm.config and loaded.config.image_size == (8, 16)


def test_by_reference(tmp_path, pipeline, no_network):
    dpm, schedule = interop.from_diffusers(pipeline)
    pdae = PDAE(dpm, SemanticEncoder.for_images(16, 3, z_dim=4), schedule)
    fit(pdae, random("celebahq").clamp(-1, 1))
    path, by_value = tmp_path / "pdae.safetensors", tmp_path / "by_value.safetensors"
    pdae.save(by_value)
    pdae.save(path, dpm="reference")
    assert any(k.startswith("dpm.") for k in read(by_value)[0]) and not any(k.startswith("dpm.") for k in read(path)[0])
    loaded = PDAE.load(path)
    assert same(weights(loaded), weights(pdae)) and same(weights(PDAE.load(by_value)), weights(pdae))
    again = tmp_path / "again.safetensors"
    loaded.save(again)  # still by reference
    assert again.read_bytes() == path.read_bytes()

    with torch.no_grad():  # no longer what the folder holds
        loaded.dpm.unet.conv_in.bias += 1
    with pytest.raises(ValueError, match="dpm.unet is kept by reference to diffusers .* and the weights differ now"):
        loaded.save(again)
    loaded.save(again, dpm="value")
    assert same(weights(PDAE.load(again)), weights(loaded))

    other = unet("celebahq")
    with torch.no_grad():
        other.conv_in.bias += 1
    moved = pipeline.with_name("moved")
    for change, message in [
        (lambda: other.save_pretrained(pipeline / "unet"), r"the weights differ now \(SHA-256 [0-9a-f]{12}…, want "
                                                           r"[0-9a-f]{12}…"),
        (lambda: pipeline.rename(moved), "which can't be read: .*pipeline is neither a folder"),
    ]:
        change()
        with pytest.raises(CheckpointError, match=message) as e:
            PDAE.load(path)
        assert "\n" not in str(e.value) and str(e.value).startswith(str(path))
    with pytest.raises(ValueError, match="keep 'later'"):
        interop.from_diffusers(moved, keep="later")


def test_a_reference_as_version_0_1_wrote_it(tmp_path, pipeline):
    dpm, schedule = interop.from_diffusers(pipeline, keep="reference")
    pdae, path = PDAE(dpm, SemanticEncoder.for_images(16, 3, z_dim=4), schedule), tmp_path / "pdae.safetensors"
    pdae.save(path)
    tensors, header = read(path)
    where = header.pop("elsewhere")["dpm.unet"]
    header["model"]["config"]["dpm"]["config"]["reference"] = {"path": where["name"], "sha256": where["sha256"]}
    write(tmp_path / "old.safetensors", tensors, header)
    loaded = PDAE.load(tmp_path / "old.safetensors")
    assert same(weights(loaded), weights(pdae))
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_train_on_a_folder_of_images(tmp_path, pipeline):
    from PIL import Image

    (tmp_path / "images").mkdir()
    g = torch.Generator().manual_seed(0)
    for i in range(6):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{i}.png")
    dpm, schedule = interop.from_diffusers(pipeline, keep="reference")
    pdae = PDAE(dpm, SemanticEncoder.for_images(16, 3, z_dim=4), schedule)
    before = weights(pdae)
    settings = dict(batch_size=4, log_every=2, save_every=2, progress=False, ema=0.5, out=tmp_path / "run")
    images = data.folder(tmp_path / "images", 16)
    train(pdae, images, steps=4, **settings)
    result = train(pdae, images, steps=6, **settings)  # goes on
    assert [entry["step"] for entry in result.history] == [2, 4, 6]
    changed = {k.split(".")[0] for k, v in weights(pdae).items() if not torch.equal(v, before[k])}
    assert changed == {"encoder", "estimator"}
    loaded = PDAE.load(tmp_path / "run" / "model.safetensors")
    assert same(weights(loaded), weights(pdae)) and loaded.dpm.unet.source.by_reference
    x_0, x_T = data.to_float(images[0][None]), random("celebahq", 1)
    got, want = (model.decode(model.encode(x_0), x_T, steps=2) for model in (loaded, pdae))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # training left its weights in channels_last


@pytest.mark.parametrize("kind", ["diffusers", "UNet"])
def test_latents_from_end_to_end(kind, tmp_path):
    """Codes of a VAE, 4×32×32 and as large as they like: train, encode, decode, invert, save, load."""
    if kind == "diffusers":
        dpm, schedule = interop.from_diffusers(unet("latent"), scheduler("latent"))
    else:
        torch.manual_seed(0)
        dpm, schedule = UNet(UNetConfig(32, 4, 8, (1, 2), 1, (), data_range=None)), NoiseSchedule.linear(T)
        torch.nn.init.normal_(dpm.out[-1].weight, std=0.1)
    pdae = PDAE(dpm, SemanticEncoder(EncoderConfig(32, 4, (8, 8), None, z_dim=4)), schedule)
    before, x_0 = weights(pdae), 5 * random("latent", 4)
    assert pdae.data_range is None and x_0.abs().max() > 15
    train(pdae, TensorDataset(x_0), steps=3, batch_size=2, lr=1e-3, ema=0.0, progress=False)
    assert {k.split(".")[0] for k, v in weights(pdae).items() if not torch.equal(v, before[k])} == {"encoder",
                                                                                                    "estimator"}
    pdae.eval().to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        z = pdae.encode(x_0[:1])
    assert z.shape == (1, 4)
    x_T = pdae.invert(x_0[:1], z, steps=20, fixed_point=5)
    rebuilt = pdae.decode(z, x_T, steps=20)
    assert rebuilt.shape == (1, 4, 32, 32) and rebuilt.abs().max() > 5  # nothing is clamped
    assert (rebuilt - x_0[:1]).abs().mean() < 0.1 * x_0.abs().mean()
    drawn = pdae.decode(z, steps=2, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (1, 4, 32, 32) and (drawn - x_0[:1]).abs().mean() > 0.5 * x_0.abs().mean()
    pdae.save(tmp_path / "pdae.safetensors")
    loaded = PDAE.load(tmp_path / "pdae.safetensors")
    assert same(weights(loaded), weights(pdae)) and loaded.data_range is None
    torch.testing.assert_close(loaded.decode(z, x_T, steps=20), rebuilt, rtol=1e-3, atol=1e-3)


def test_a_dpm_can_be_trained_on():
    dpm, schedule = interop.from_diffusers(unet("gray"), scheduler("gray"))
    images = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = weights(dpm)
    train(dpm, data.Images(images, torch.zeros(8)), schedule=schedule, steps=2, batch_size=4, progress=False)
    assert not same(weights(dpm), before)
