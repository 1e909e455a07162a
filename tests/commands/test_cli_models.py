"""The command line with other people's DPMs, and the commands that make pictures."""
import json
import shutil

import pytest
import torch
from fixtures import fixture
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, data, interop, sampling
from pdae_lite.applications.attributes import LinearProbe, edit
from pdae_lite.applications.latent import LatentConfig, LatentDPM, LatentStats, sample_images
from pdae_lite.checkpoint import CheckpointError, load_model, save_model
from pdae_lite.commands import main
from pdae_lite.interop.references import image_shape, load_dpm

SHORT = ["--steps", 2, "--batch-size", 2, "--precision", "no", "--set", "encoder.z_dim=4"]
SIDE = 16


def run(*argv):
    return main.main([str(a) for a in argv])


def fails(capsys, *argv):
    """The one line that a command leaves."""
    capsys.readouterr()
    assert run(*argv) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def tiny(channels=1, schedule=None, prediction_seed=0):
    """A PDAE whose every layer has something to say."""
    torch.manual_seed(prediction_seed)
    unet = UNet(UNetConfig(image_size=SIDE, in_channels=channels, base_channels=8, channel_mult=(1, 2),
                           num_res_blocks=1, attention_downsampling=()))
    encoder = SemanticEncoder.for_images(SIDE, channels, z_dim=4)
    model = PDAE(unet, encoder, schedule or NoiseSchedule.linear(100, 1e-3, 0.2))
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(0, 0.05)
    return model.eval()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a PDAE, a latent DPM and a probe for it, its DPM alone, and four pictures."""
    folder = tmp_path_factory.mktemp("work")
    model = tiny()
    model.save(folder / "pdae.safetensors", {"data": "noise"})
    save_model(folder / "dpm.safetensors", model.dpm)
    stats = LatentStats(torch.zeros(4), torch.ones(4))
    LatentDPM(LatentConfig(z_dim=4, layers=2, width=8), stats=stats).save(folder / "latent.safetensors")
    z = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    LinearProbe.fit(z, (z[:, :2] > 0).long(), ["round", "dark"]).save(folder / "probe.safetensors")
    for i in range(4):
        size = (SIDE, SIDE) if i < 2 else (40, 30)
        Image.effect_noise(size, 40 + 20 * i).convert("RGB" if i > 2 else "L").save(folder / f"{i}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    for i in range(4):
        Image.effect_noise((40 + i, 30), 50).convert("RGB").save(tmp_path / f"photo{i}.png")
    return tmp_path


def columns(path, count, rows=1):
    """The images of a grid, [rows, count, H, W] uint8."""
    with Image.open(path) as image:
        pixels = pil_to_tensor(image.convert("L"))[0]
    assert pixels.shape == (rows * (SIDE + 2) + 2, count * (SIDE + 2) + 2)
    return pixels[2:, 2:].unfold(0, SIDE, SIDE + 2).unfold(1, SIDE, SIDE + 2)


def record(path):
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def floats(path):
    with Image.open(path) as image:
        return data.to_float(pil_to_tensor(image))[None]


def same_pixels(stored, images):
    """Equal but for the rounding of one grey level."""
    difference = stored.int() - data.to_uint8(images).squeeze().int()
    assert int(difference.abs().max()) <= 1


# ---- DPMs of other people --------------------------------------------------------------------------------------------


def save_pipeline(folder, name, **changes):
    from small_unets import diffusers, scheduler, unet

    model = unet(name, **changes)
    diffusers.DDPMPipeline(model, scheduler(name, "DDPMScheduler")).save_pretrained(folder)
    return model


def test_a_diffusers_pipeline_from_a_folder(photos, tmp_path, capsys):
    """Three lines of Python as one command: the DPM, its schedule and its prediction type come from the folder."""
    unet = save_pipeline(tmp_path / "pipe", "adm")  # 16×16, predicts v, T = 100, cosine
    want, schedule = interop.from_diffusers(tmp_path / "pipe")
    argv = ["train", "--dpm", f"hf:{tmp_path / 'pipe'}", "--data", photos, *SHORT]
    assert run(*argv, "--out", tmp_path / "value") == 0
    pdae = load_model(tmp_path / "value/model.safetensors", expect=PDAE)
    assert (pdae.dpm.prediction, pdae.schedule.T) == ("v", 100) and pdae.schedule.same_as(schedule)
    assert (pdae.encoder.config.image_size, pdae.encoder.config.in_channels, pdae.z_dim) == (16, 3, 4)
    assert pdae.metadata["dpm"] == f"hf:{tmp_path / 'pipe'}" and len(pdae.metadata["dpm_sha256"]) == 64
    assert all(torch.equal(v, pdae.dpm.model.unet.state_dict()[k]) for k, v in unet.state_dict().items())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 90])
    with torch.no_grad():
        torch.testing.assert_close(pdae.dpm(x, t), want(x, t))

    assert run(*argv, "--dpm-by", "reference", "--out", tmp_path / "reference") == 0
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("reference", "value")]
    frozen = sum(p.numel() for p in unet.parameters()) * 4
    assert abs(sizes[1] - sizes[0] - frozen) < 0.05 * frozen + 20_000
    again = load_model(tmp_path / "reference/model.safetensors")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in pdae.state_dict().items())
    assert run("sample", "--model", f"hf:{tmp_path / 'pipe'}", "--steps", 2, "-n", 1, "--out", tmp_path / "s.png") == 0
    assert record(tmp_path / "s.png")["models"]["model"]["sha256"] == pdae.metadata["dpm_sha256"]
    shutil.rmtree(tmp_path / "pipe")
    says = fails(capsys, "reconstruct", photos / "photo0.png", "--model", tmp_path / "reference/model.safetensors",
                 "--out", tmp_path / "x.png")
    assert "kept by reference" in says


def test_a_dpm_without_a_preset_gets_the_paper_s_encoder(photos, tmp_path):
    save_pipeline(tmp_path / "pipe", "celebahq")
    assert run("train", "--dpm", f"hf:{tmp_path / 'pipe'}", "--data", photos, *SHORT[:-2], "--out",
               tmp_path / "out") == 0
    encoder = load_model(tmp_path / "out/model.safetensors").encoder
    assert encoder.config == SemanticEncoder.for_images(16, 3, z_dim=512).config


def test_diffusers_models_that_do_not_fit(photos, tmp_path, capsys):
    argv = ["train", "--data", photos, *SHORT, "--out", tmp_path / "out", "--dpm"]
    save_pipeline(tmp_path / "wide", "wide")
    assert "takes images of 8×16" in fails(capsys, *argv, f"hf:{tmp_path / 'wide'}")
    save_pipeline(tmp_path / "any", "celebahq", sample_size=None)
    assert "doesn't say the size" in fails(capsys, *argv, f"hf:{tmp_path / 'any'}")
    save_pipeline(tmp_path / "pipe", "celebahq")
    assert "--size 64, but the given DiffusersDPM takes 16×16" in fails(capsys, *argv, f"hf:{tmp_path / 'pipe'}",
                                                                        "--size", 64)
    index = tmp_path / "pipe/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"vqvae": ["diffusers", "VQModel"]}))
    # its index says that it has one
    assert "has no codec (vae or vqvae" in fails(capsys, *argv, f"hf:{tmp_path / 'pipe'}")
    assert "has no model (no config.json" in fails(capsys, *argv, f"hf:{photos}")
    assert "nowhere/at/all is neither a folder" in fails(capsys, *argv, f"hf:{tmp_path}/nowhere/at/all")
    assert "keep='reference' is for hf:" in fails(capsys, *argv, "digits", "--dpm-by", "reference")


def test_only_a_hub_id_goes_to_the_hub(tmp_path, monkeypatch):
    asked = []

    def from_diffusers(source, keep, download=False):
        asked.append((source, download))
        if not download:
            raise CheckpointError(f"{source} isn't here")
        return "dpm", "schedule"

    monkeypatch.setattr("pdae_lite.interop.diffusers_files.from_diffusers", from_diffusers)
    assert load_dpm("hf:google/ddpm-celebahq-256") == ("dpm", "schedule")
    assert asked == [("google/ddpm-celebahq-256", False), ("google/ddpm-celebahq-256", True)]
    for path in (tmp_path, "/no/where", "./here", "../a/b", "a/b/c"):
        asked.clear()
        with pytest.raises(CheckpointError):
            load_dpm(f"hf:{path}")
        assert asked == [(str(path), False)]


def test_guided_diffusion(tmp_path, photos, capsys):
    for name in ("model.pt", "config.json"):
        shutil.copy(fixture("adm_tiny") / name, tmp_path)
    want = interop.load_adm(tmp_path / "model.pt", json.loads((tmp_path / "config.json").read_text()))
    dpm, schedule = load_dpm(f"adm:{tmp_path / 'model.pt'}")
    assert dpm.config == want.config and schedule.same_as(NoiseSchedule.linear())
    assert all(torch.equal(v, dpm.state_dict()[k]) for k, v in want.state_dict().items())
    settings = ["adm.noise_schedule=cosine", "adm.diffusion_steps=50"]
    _, schedule = load_dpm(f"adm:{tmp_path / 'model.pt'},{tmp_path / 'config.json'}", settings)
    assert schedule.same_as(NoiseSchedule.cosine(50))
    _, schedule = load_dpm(f"adm:{tmp_path / 'model.pt'}", ["adm.diffusion_steps=100"])
    assert schedule.same_as(NoiseSchedule.linear(100, 1e-3, 0.2))
    size, channels = image_shape(dpm)
    (tmp_path / "config.json").rename(tmp_path / "elsewhere")
    # from the weights
    guessed, _ = load_dpm(f"adm:{tmp_path / 'model.pt'}", [f"adm.num_heads={want.config.num_heads}"], size=size)
    assert (all(torch.equal(v, guessed.state_dict()[k]) for k, v in want.state_dict().items())
            and image_shape(guessed) == (size, channels))
    (tmp_path / "elsewhere").rename(tmp_path / "config.json")
    assert run("train", "--dpm", f"adm:{tmp_path / 'model.pt'}", "--data", photos, *SHORT, "--set",
               "adm.noise_schedule=cosine", "--out", tmp_path / "out") == 0
    pdae = load_model(tmp_path / "out/model.safetensors")
    assert pdae.schedule.same_as(NoiseSchedule.cosine())
    assert pdae.encoder.config.image_size == size and pdae.dpm.config.in_channels == channels
    argv = ["train", "--data", photos, *SHORT, "--out", tmp_path / "other", "--dpm", f"adm:{tmp_path / 'model.pt'}"]
    for setting, says in (("adm.channel_mult=a,b", "want whole numbers separated by commas"),
                          ("adm.noise_schedule=sine", "want linear or"),
                          ("adm.widht=3", "widht"), ("adm.model_channels=16", "weights don't fit")):
        assert says in fails(capsys, *argv, "--set", setting)
    assert "'adm.num_heads' is for adm:FILE" in fails(capsys, *argv[:-1], "digits", "--set", "adm.num_heads=2")
    assert "nowhere.json: no such file" in fails(capsys, *argv[:-1], f"adm:{tmp_path / 'model.pt'},nowhere.json")


def test_the_authors_release(tmp_path, photos, capsys):
    source = fixture("official_pdae_tiny")
    want = interop.load_released_dpm(source / "ddpm_checkpoint.pt", source / "ddpm_config.yml")
    named = f"released:{source / 'ddpm_checkpoint.pt'},{source / 'ddpm_config.yml'}"
    for name in ("ddpm_checkpoint.pt", "ddpm_config.yml"):
        shutil.copy(source / name, tmp_path)
    for reference in (named, f"released:{tmp_path / 'ddpm_checkpoint.pt'}"):  # the only YAML file beside it
        dpm, schedule = load_dpm(reference)
        assert schedule.same_as(NoiseSchedule.linear())
        assert all(torch.equal(v, dpm.state_dict()[k]) for k, v in want.state_dict().items())
    assert "needs the YAML file" in fails(capsys, "train", "--dpm", f"released:{source / 'ddpm_checkpoint.pt'}",
                                          "--data", photos, *SHORT, "--out", tmp_path / "out")


def test_files_of_ours_bring_their_schedule(work):
    dpm, schedule = load_dpm(str(work / "pdae.safetensors"))
    assert (schedule.same_as(NoiseSchedule.linear(100, 1e-3, 0.2)) and type(dpm) is UNet
            and dpm.metadata == {"data": "noise"})
    assert load_dpm(str(work / "dpm.safetensors"))[1].same_as(NoiseSchedule.linear())
    with pytest.raises(ValueError, match="holds a LatentDPM; want a DPM or a PDAE"):
        load_dpm(str(work / "latent.safetensors"))


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_reconstruct_records_what_it_did(work, tmp_path):
    argv = ["reconstruct", work / "0.png", work / "3.png", "--model", work / "pdae.safetensors", "--steps", 4, "--seed",
            5, "--out"]
    assert run(*argv, tmp_path / "a.png") == 0
    first = record(tmp_path / "a.png")
    assert (first["command"] == "reconstruct" and first["arguments"]["seed"] == 5
            and len(first["models"]["model"]["sha256"]) == 64)
    model = load_model(work / "pdae.safetensors")
    x = floats(work / "0.png")
    z = model.encode(x).detach()
    rebuilt = model.decode(z, model.invert(x, z, steps=4), steps=4)
    assert first["numbers"]["mse"][0]["z_and_x_T"] == pytest.approx(float(((rebuilt - x) / 2).square().mean()),
                                                                    rel=1e-3)
    same_pixels(columns(tmp_path / "a.png", 3, 2)[0, 2], rebuilt)
    before = (tmp_path / "a.png").read_bytes(), (tmp_path / "a.json").read_bytes()
    assert run(*argv, tmp_path / "a.png") == 0
    assert ((tmp_path / "a.png").read_bytes(), (tmp_path / "a.json").read_bytes()) == before


def test_interpolate(work, tmp_path):
    out, ends = tmp_path / "i.png", (work / "0.png", work / "1.png")
    assert run("interpolate", *ends, "--model", work / "pdae.safetensors", "--steps", 3, "-n", 4, "--out", out) == 0
    strip, model = columns(out, 4)[0], load_model(work / "pdae.safetensors")
    x = torch.cat([floats(work / "0.png"), floats(work / "1.png")])
    z = model.encode(x).detach()
    x_T = model.invert(x, z, steps=3)
    rebuilt = model.decode(z, x_T, steps=3)
    for place, image in ((0, rebuilt[0]), (3, rebuilt[1])):
        same_pixels(strip[place], image)
    third = model.decode(torch.lerp(z[:1], z[1:], 1 / 3), sampling.slerp(x_T[:1], x_T[1:], 1 / 3), steps=3)
    same_pixels(strip[1], third)
    numbers = record(out)["numbers"]
    assert numbers["weight"] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert numbers["mse_of_ends"] == [numbers["mse_to_first"][0], numbers["mse_to_second"][-1]]


def test_edit(work, tmp_path):
    out = tmp_path / "e.png"
    files = ["--model", work / "pdae.safetensors", "--probe", work / "probe.safetensors"]
    argv = ["edit", work / "0.png", work / "1.png", *files, "--steps", 3]
    assert run(*argv, "--attribute", "dark", "--scale", -0.5, 0, 0.5, "--out", out) == 0
    grid, model = columns(out, 4, 2), load_model(work / "pdae.safetensors")
    x = floats(work / "1.png")
    z = model.encode(x).detach()
    x_T, probe = model.invert(x, z, steps=3), LinearProbe.load(work / "probe.safetensors")
    assert torch.equal(grid[1, 0], data.to_uint8(x)[0, 0])
    same_pixels(grid[1, 2], model.decode(z, x_T, steps=3))  # scale 0
    same_pixels(grid[1, 3], model.decode(edit(z, probe, "dark", 0.5), x_T, steps=3))
    for image in record(out)["numbers"]["images"]:
        likely = [e["probability_of_code"] for e in image["edits"]]
        assert (likely[0] < image["probability"] < likely[2]
                and likely[1] == pytest.approx(image["probability"], abs=1e-5))
    assert run(*argv, "--attribute", "dark", "--keep", "round", "--out", out) == 0
    assert len(record(out)["numbers"]["images"][0]["edits"]) == 5 and record(out)["arguments"]["keep"] == ["round"]


def test_probe_and_edit_of_a_shipped_model(tmp_path, monkeypatch):
    """Every 20th digit; the probe that this gives tells ten classes apart, and edit uses it."""
    images = data.digits("train")
    monkeypatch.setattr("pdae_lite.data.sources.open_source",
                        lambda *_, **__: data.Images(images.images[::20], images.labels[::20]))
    file = tmp_path / "probe.safetensors"
    assert run("probe", "--model", "digits", "--data", "digits", "--l2", "10", "--out", file) == 0
    assert bool((LinearProbe.load(file).l2 == 10).all())
    assert run("probe", "--model", "digits", "--data", "digits", "--out", file) == 0
    facts = json.loads((tmp_path / "probe.json").read_text())
    assert (facts["images"], facts["tested_on"], facts["attributes"]) == (180, 45, [str(i) for i in range(10)])
    assert facts["accuracy"][0] > 0.6  # 0.1 by chance
    Image.fromarray(data.digits("test").images[0, 0].numpy()).save(tmp_path / "4.png")
    assert run("edit", tmp_path / "4.png", "--model", "digits", "--probe", file, "--attribute", "9", "--scale", 0, 0.6,
               "--steps", 5, "--out", tmp_path / "e.png") == 0
    still, moved = record(tmp_path / "e.png")["numbers"]["images"][0]["edits"]
    assert moved["probability_of_code"] > still["probability_of_code"] and moved["mse"] > still["mse"]


def test_sample(work, tmp_path):
    model, latent = load_model(work / "pdae.safetensors"), load_model(work / "latent.safetensors")
    argv = ["sample", "--steps", 3, "--seed", 2, "-n", 3, "--out", tmp_path / "s.png"]
    assert run(*argv, "--model", work / "pdae.safetensors", "--latent", work / "latent.safetensors", "--each",
               tmp_path / "each") == 0
    want = sample_images(model, latent, 3, 3, generator=torch.Generator().manual_seed(2))
    grid = columns(tmp_path / "s.png", 2, 2)
    same_pixels(torch.stack([grid[0, 0], grid[0, 1], grid[1, 0]]), want)
    assert bool((grid[1, 1] == 255).all()) and sorted(record(tmp_path / "s.png")["models"]) == ["latent", "model"]
    with Image.open(tmp_path / "each/000002.png") as image:
        same_pixels(pil_to_tensor(image)[0], want[2])

    x_T = torch.randn(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    for options, schedule in ((["--model", work / "pdae.safetensors", "--plain"], model.schedule),
                              (["--model", work / "dpm.safetensors"], NoiseSchedule.linear())):
        assert run(*argv, *options) == 0
        same_pixels(columns(tmp_path / "s.png", 2, 2)[1, 0], sampling.ddim(model.dpm, x_T, schedule, 3)[2])


@pytest.mark.parametrize("argv, says", [
    (["interpolate", "0.png", "1.png", "-n", "1"], "-n: 1; want a whole number, 2 to 1000000"),
    (["interpolate", "0.png", "1.png", "--out", "strip.gif"], "--out strip.gif; want a file name that ends in .png"),
    (["interpolate", "0.png", "1.png", "--steps", "0"], "--steps: 0; want a whole number, 1 or more"),
    (["edit", "0.png", "--attribute", "dark"], "--probe is missing: none ships with"),
    (["edit", "0.png", "--attribute", "tall", "--probe", "probe.safetensors"],
     "attribute 'tall'; want one of round, dark"),
    (["edit", "0.png", "--attribute", "dark", "--probe", "latent.safetensors"], "want a LinearProbe"),
    (["edit", "0.png", "--attribute", "dark", "--probe", "probe.safetensors", "--model", "digits"],
     "fit one by `pdae probe`"),
    (["sample"], "--latent is missing: none ships with"),
    (["sample", "-n", "0"], "-n: 0; want a whole number, 1 to 1000000"),
    (["sample", "--plain", "--latent", "latent.safetensors"], "--latent, but a DPM by itself has no codes"),
    (["sample", "--model", "latent.safetensors"], "holds a LatentDPM; want a DPM or a PDAE"),
    (["sample", "--model", "hf:nowhere/at/all"], "nowhere/at/all is neither a folder nor a model in the hub's cache; "
                                                 "correct the path"),
    (["probe", "--data", ".", "--out", "p.safetensors"], "--data . has no labels"),
    (["probe", "--data", ".", "--out", "p.png"], "want a file name that ends in .safetensors"),
])
def test_a_mistake_gives_one_line(argv, says, work, capsys, monkeypatch):
    monkeypatch.chdir(work)
    model = [] if "--model" in argv else ["--model", "pdae.safetensors"]
    before = sorted(work.iterdir())
    assert says in fails(capsys, *argv, *model)
    assert sorted(work.iterdir()) == before
