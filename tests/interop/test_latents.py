"""Latent diffusion: codecs, prompts that a pipeline's own text encoders encode, and whole pipelines in folders."""
import shutil
import sys

import pytest
import torch
from refusals import refuses
from small_cuts import noisy
from small_pipelines import diffusers, save, vae
from small_unets import T_BATCH, unet

from pdae_lite import interop
from pdae_lite.checkpoint import CheckpointError, load_model
from pdae_lite.interop.codec import Codec

pytestmark = pytest.mark.filterwarnings(  # of diffusers' own making
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning", "ignore:The `local_dir_use_symlinks` argument")


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


# ---- codecs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "changes"), [
    ("AutoencoderKL", {}), ("AutoencoderKL", {"shift_factor": 0.3, "scaling_factor": 1.5}), ("VQModel", {}),
    ("AutoencoderKL", {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0], "scaling_factor": 0.5})])
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
    assert 0 < (half.encode(x) - want).abs().max() < 0.1 and half.codec.dtype == torch.bfloat16 and half.encode(x).dtype == torch.float32


def test_codec_files(tmp_path, pipelines):
    x, (_, folder) = photos(), pipelines("sd")
    for path in (folder, folder / "vae"):
        codec = interop.codec_from_diffusers(path)
        assert torch.equal(codec.encode(x), interop.codec_from_diffusers(vae()).encode(x))
    for keep in ("value", "reference"):
        interop.codec_from_diffusers(folder, keep=keep).save(tmp_path / "codec.safetensors")
        assert torch.equal(Codec.load(tmp_path / "codec.safetensors").decode(codec.encode(x)), codec.decode(codec.encode(x)))
        assert ((tmp_path / "codec.safetensors").stat().st_size > 5000) == (keep == "value")
    refuses("codec UNet2DModel; want one of AutoencoderKL, VQModel", interop.codec_from_diffusers, unet("gray"))
    refuses("has no codec", interop.codec_from_diffusers, tmp_path)
    unet("gray").save_pretrained(tmp_path / "model")
    refuses("codec UNet2DModel; want one of", interop.codec_from_diffusers, tmp_path / "model")
    refuses("images runs from", codec.encode, 2 * x)
    refuses("multiples of 2", codec.encode, x[..., :15])


# ---- prompts ----------------------------------------------------------------------------------------------------------


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
        embeds, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, device="cpu", do_classifier_free_guidance=False)
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
