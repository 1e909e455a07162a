"""Latent diffusion: codecs, prompts that a pipeline's own text encoders encode, and whole pipelines in folders."""
import json
import shutil
import sys

import pytest
import torch
from PIL import Image
from refusals import refuses
from small_cuts import noisy
from small_pipelines import diffusers, save, vae
from small_unets import T_BATCH, unet

from pdae_lite import PDAE, data, interop, sampling
from pdae_lite.checkpoint import CheckpointError, load_model, read
from pdae_lite.commands import main
from pdae_lite.data.latents import latents
from pdae_lite.interop.codec import Codec

pytestmark = pytest.mark.filterwarnings(  # of diffusers' own making
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:The `local_dir_use_symlinks` argument")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """(the pipeline in memory, its folder) by name; each is made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = save(name, folder), folder / "pipeline"
        return made[name]

    return get


def photos(n=2, size=16):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ---- codecs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "changes"), [
    ("AutoencoderKL", {}), ("AutoencoderKL", {"shift_factor": 0.3, "scaling_factor": 1.5}), ("VQModel", {}),
    ("AutoencoderKL", {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0],
                       "scaling_factor": 0.5})])
def test_codec_is_the_pipelines_arithmetic(kind, changes):
    model, x = vae(kind, **changes), photos()
    codec, c = interop.codec_from_diffusers(model), model.config
    with torch.no_grad():
        h = model.encode(x).latents if kind == "VQModel" else model.encode(x).latent_dist.mode()
        if "latents_std" in changes:  # as the pipeline of SDXL decodes
            mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in (c.latents_mean, c.latents_std))
            x_0 = (h - mean) * c.scaling_factor / std
            images = model.decode(x_0 * std / c.scaling_factor + mean).sample
        else:
            shift = changes.get("shift_factor", 0.0)
            x_0 = (h - shift) * c.scaling_factor
            images = model.decode(x_0 / c.scaling_factor + shift).sample
    torch.testing.assert_close(codec.encode(x), x_0)
    torch.testing.assert_close(codec.decode(x_0), images.clamp(-1, 1))
    assert x_0.shape == (2, codec.latent_channels, 8, 8) and not any(p.requires_grad for p in codec.parameters())


def test_codec_computes_in_float32_where_half_would_overflow():
    x = photos()
    want = interop.codec_from_diffusers(vae()).encode(x)
    codec = interop.codec_from_diffusers(vae()).to(torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        got = codec.encode(x)
    assert (got - want).abs().max() < 1e-3 and codec.codec.dtype == torch.float32  # its weights were rounded, once
    half = interop.codec_from_diffusers(vae(force_upcast=False)).to(torch.bfloat16)
    assert (0 < (half.encode(x) - want).abs().max() < 0.1 and half.codec.dtype == torch.bfloat16
            and half.encode(x).dtype == torch.float32)


def test_codec_files(tmp_path, pipelines):
    x, (_, folder) = photos(), pipelines("sd")
    for path in (folder, folder / "vae"):
        codec = interop.codec_from_diffusers(path)
        assert torch.equal(codec.encode(x), interop.codec_from_diffusers(vae()).encode(x))
    for keep in ("value", "reference"):
        interop.codec_from_diffusers(folder, keep=keep).save(tmp_path / "codec.safetensors")
        assert torch.equal(Codec.load(tmp_path / "codec.safetensors").decode(codec.encode(x)),
                           codec.decode(codec.encode(x)))
        assert ((tmp_path / "codec.safetensors").stat().st_size > 5000) == (keep == "value")
    refuses("codec UNet2DModel; want one of AutoencoderKL, VQModel", interop.codec_from_diffusers, unet("gray"))
    refuses("has no codec", interop.codec_from_diffusers, tmp_path)
    unet("gray").save_pretrained(tmp_path / "model")
    refuses("codec UNet2DModel; want one of", interop.codec_from_diffusers, tmp_path / "model")
    refuses("images runs from", codec.encode, 2 * x)
    refuses("multiples of 2", codec.encode, x[..., :15])


# ---- prompts ---------------------------------------------------------------------------------------------------------


def told_by_pipeline(pipeline, name, prompt):
    """What the pipeline's own call tells its network."""
    with torch.no_grad():
        if name == "sd":
            return {"prompt_embeds": pipeline.encode_prompt(prompt, "cpu", 1, False)[0]}
        if name == "sdxl":
            embeds, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
            side = pipeline.default_sample_size * pipeline.vae_scale_factor
            width = pipeline.text_encoder_2.config.projection_dim
            ids = pipeline._get_add_time_ids((side, side), (0, 0), (side, side), embeds.dtype, width)
            return {"prompt_embeds": embeds, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
        embeds, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, device="cpu",
                                                      do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_prompts_are_what_the_pipeline_makes_of_them(name, pipelines):
    pipeline, folder = pipelines(name)
    network = pipeline.transformer if name == "sd3" else pipeline.unet
    for prompt in ("", "a cat"):
        dpm, schedule = interop.from_diffusers(folder, prompt=prompt)
        want, _ = interop.from_diffusers(network, pipeline.scheduler, **told_by_pipeline(pipeline, name, prompt))
        with torch.no_grad():
            assert torch.equal(dpm(noisy(), T_BATCH), want(noisy(), T_BATCH))
    assert not torch.equal(interop.from_diffusers(folder)[0](noisy(), T_BATCH), dpm(noisy(), T_BATCH))
    assert dpm.data_range is None and getattr(dpm, "prediction", "epsilon") == ("flow" if name == "sd3" else "epsilon")


def test_dit_from_its_pipeline(pipelines):
    pipeline, folder = pipelines("dit")
    dpm, _ = interop.from_diffusers(folder, label=2)
    with torch.no_grad():
        want = pipeline.transformer(noisy(), T_BATCH, class_labels=torch.tensor([2, 2, 2])).sample[:, :4]
        assert torch.equal(dpm(noisy(), T_BATCH), want)


def test_file_keeps_the_prompt_and_not_the_text_encoder(tmp_path, pipelines, monkeypatch):
    _, folder = pipelines("sdxl")
    dpm, _ = interop.from_diffusers(folder, prompt="a cat", keep="reference")
    dpm.save(tmp_path / "dpm.safetensors")
    monkeypatch.setitem(sys.modules, "transformers", None)
    loaded = load_model(tmp_path / "dpm.safetensors")
    assert torch.equal(loaded(noisy(), T_BATCH), dpm(noisy(), T_BATCH)) and loaded.constants == dpm.constants


def test_missing_text_encoder_or_transformers(tmp_path, pipelines, monkeypatch):
    pipeline, folder = pipelines("sd")
    bare = diffusers.StableDiffusionPipeline(pipeline.vae, None, None, pipeline.unet, pipeline.scheduler, None, None,
                                             requires_safety_checker=False)
    bare.save_pretrained(tmp_path / "bare")
    refuses("has no text encoder; give prompt_embeds=", interop.from_diffusers, tmp_path / "bare")
    told = told_by_pipeline(pipeline, "sd", "a cat")
    dpm, _ = interop.from_diffusers(tmp_path / "bare", **told)
    assert torch.equal(dpm(noisy(), T_BATCH), interop.from_diffusers(folder, prompt="a cat")[0](noisy(), T_BATCH))
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "text_encoder" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="its text encoders can't be read") as e:
        interop.from_diffusers(tmp_path / "damaged")
    assert "\n" not in str(e.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'pdae_lite\[text\]', or give prompt_embeds="):
        interop.from_diffusers(folder)


# ---- the command line ------------------------------------------------------------------------------------------------


def run(*argv):
    assert main.main([str(a) for a in argv]) == 0


def test_commands_take_and_give_images(pipelines, tmp_path, capsys, monkeypatch):
    """`pdae train` on a pipeline of latents encodes the data once; what it makes takes photos and gives photos."""
    folder = tmp_path / "sd"
    save("sd", folder, sample_size=16)
    word, photos_, out = f"hf:{folder / 'pipeline'}", tmp_path / "photos", tmp_path / "run"
    photos_.mkdir()
    for i in range(4):
        Image.effect_noise((50, 44), 40 + 10 * i).convert("RGB").save(photos_ / f"{i}.png")
    options = ["--steps", 2, "--batch-size", 2, "--precision", "no", "--set", "encoder.z_dim=4", "--set",
               "train.flip=true"]
    run("train", "--dpm", word, "--data", photos_, "--out", out, *options)
    cached = list(out.glob("latents-*.safetensors"))
    assert len(cached) == 1
    x_0 = read(cached[0])[0]["x_0"]
    codec = interop.codec_from_diffusers(folder / "pipeline")
    images = torch.stack([data.to_float(image) for image in data.folder(photos_, 32)])
    torch.testing.assert_close(x_0[:4], codec.encode(images))
    torch.testing.assert_close(x_0[4:], codec.encode(images.flip(-1)))

    def encode(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr("pdae_lite.interop.codec.Codec.encode", encode)
    # goes on, with the latents that are there
    run("train", "--dpm", word, "--data", photos_, "--out", out, *options, "--steps", 3)
    monkeypatch.undo()
    Image.effect_noise((50, 44), 90).convert("RGB").save(photos_ / "more.png")
    run("train", "--dpm", word, "--data", photos_, "--out", tmp_path / "other", *options)
    assert not list((tmp_path / "other").glob(cached[0].name))  # other data, other latents

    model = out / "model.safetensors"
    capsys.readouterr()
    run("reconstruct", photos_ / "0.png", "--model", model, "--steps", 2, "--out", tmp_path / "r.png")
    assert "of the codec alone" in capsys.readouterr().out
    run("interpolate", photos_ / "0.png", photos_ / "1.png", "--model", model, "--steps", 2, "-n", 3, "--out",
        tmp_path / "i.png")
    run("sample", "--model", word, "--plain", "-n", 4, "--steps", 2, "--out", tmp_path / "s.png")
    run("evaluate", "--model", model, "--data", photos_, "--steps", "2", "--json", tmp_path / "e.json")
    report = json.loads((tmp_path / "e.json").read_text())["reconstruction"]["2"]
    assert set(report) == {"random x_T", "inferred x_T", "codec alone"}
    for name, size in (("r", (104, 36)), ("i", (104, 36)), ("s", (70, 70))):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == size, name


def test_edits_samples_and_doctor_on_latents(tmp_path, capsys):
    """Probe, edit, latent DPM of z, samples and doctor, with a prompt that is told once, when the PDAE is trained."""
    save("sd", tmp_path / "sd", sample_size=16)
    folder = tmp_path / "sd" / "pipeline"
    places = [f"{kind}/{i}.png" for kind in ("dark", "light") for i in range(8)]
    for i, place in enumerate(places):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        level = 20 + 160 * place.startswith("light") + i
        photo = Image.effect_noise((32, 32), 30).point([level + v // 4 for v in range(256)])
        photo.convert("RGB").save(tmp_path / "photos" / place)
    photo, photos_ = tmp_path / "photos" / places[0], f"classes:{tmp_path / 'photos'}"
    model, probe = tmp_path / "run" / "model.safetensors", tmp_path / "probe.safetensors"
    few = ["--steps", 3, "--batch-size", 4, "--precision", "no"]
    run("train", "--dpm", f"hf:{folder}", "--prompt", "a cat", "--data", tmp_path / "photos",
        "--out", tmp_path / "run", *few, "--set", "encoder.z_dim=4")
    pdae = PDAE.load(model)
    want = interop.from_diffusers(folder, prompt="a cat")[0]
    with torch.no_grad():
        assert torch.equal(pdae.dpm(noisy(), T_BATCH), want(noisy(), T_BATCH))
    run("probe", "--model", model, "--data", photos_, "--out", probe)
    run("edit", photo, "--model", model, "--probe", probe, "--attribute", "light", "--scale", 0, 0.3,
        "--steps", 2, "--out", tmp_path / "e.png")
    run("latent", "--model", model, "--data", photos_, "--out", tmp_path / "latent", *few, "--set", "latent.width=8",
        "--set", "latent.layers=2")
    run("sample", "--model", model, "--latent", tmp_path / "latent" / "model.safetensors", "-n", 4, "--steps", 2,
        "--out", tmp_path / "s.png")
    for name, size in (("e", (104, 36)), ("s", (70, 70))):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == size, name
    capsys.readouterr()
    run("doctor", model, "--data", photos_, "--train", photos_, "--labels", "--images", 16,
        "--json", tmp_path / "d.json")
    assert "by the codec alone" in capsys.readouterr().out.replace("\n" + " " * 22, " ")
    found = {f["check"]: f["numbers"] for f in json.loads((tmp_path / "d.json").read_text())["findings"]}
    assert set(found) == {"codes", "fill", "z", "overfitting", "x_T", "reconstruction", "memorisation", "probes"}
    images = data.to_float(torch.stack([data.read_image(tmp_path / "photos" / place, 3, 32) for place in places]))
    codec = pdae.codec
    lost = float(((codec.decode(codec.encode(images)) - images) / 2).square().mean())
    assert found["reconstruction"]["mse_codec"] == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize(("name", "told", "says"), [
    ("dit", ["--label", 2], None),
    ("sd", ["--label", 2], "label given, but this UNet2DConditionModel is conditional on prompt_embeds"),
    ("dit", ["--prompt", "a cat"], "prompt given, but this DiTTransformer2DModel is conditional on label"),
    ("digits", ["--prompt", "a cat"], "prompt is for hf:, not for digits"),
    ("digits", ["--label", 2], "label is for hf: and adm:, not for digits")])
def test_what_a_dpm_is_told_on_the_command_line(name, told, says, pipelines, tmp_path, capsys):
    word = "digits" if name == "digits" else f"hf:{pipelines(name)[1]}"
    argv = ["sample", "--model", word, "--plain", "-n", 1, "--steps", 1, *told, "--out", tmp_path / "s.png"]
    if says is None:
        run(*argv)
        dpm, schedule = interop.from_diffusers(pipelines(name)[1], label=2)
        x_T = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        image = interop.codec_from_diffusers(pipelines(name)[1]).decode(sampling.ddim(dpm, x_T, schedule, 1))
        with Image.open(tmp_path / "s.png") as picture:
            assert abs(torch.tensor(picture.getpixel((7, 7))) - data.to_uint8(image)[0, :, 7, 7].int()).max() <= 1
    else:
        assert main.main([str(a) for a in argv]) == 2
        assert says in capsys.readouterr().err


def test_latents_of_what_is_in_memory(tmp_path):
    codec = interop.codec_from_diffusers(vae())
    images = data.Images(torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8), torch.arange(5))
    got = latents(codec, images, flip=True, cache=tmp_path, batch_size=2)
    assert torch.equal(got.tensors[1], torch.arange(5).repeat(2))
    torch.testing.assert_close(got.tensors[0][:5], codec.encode(images.floats()))
    again = latents(codec, images, flip=True, cache=tmp_path)
    assert torch.equal(again.tensors[0], got.tensors[0]) and len(list(tmp_path.iterdir())) == 1
    other = interop.codec_from_diffusers(vae(scaling_factor=1.0))
    latents(other, images, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    refuses("data is empty", latents, codec, [])


def test_a_codec_of_another_model():
    dpm, schedule = interop.from_diffusers(unet("gray"))
    refuses("the codec's latents have 4 channels, the DPM takes 1; want those of one pipeline", PDAE, dpm, None,
            schedule, codec=interop.codec_from_diffusers(vae()))
