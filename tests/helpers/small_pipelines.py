"""Tiny random pipelines of latent diffusion, with the classes of the real ones, saved in folders."""
import json

import pytest
import torch
from small_cuts import network
from small_unets import diffusers

transformers = pytest.importorskip("transformers", reason="transformers isn't installed")


def vae(kind="AutoencoderKL", **changes):
    torch.manual_seed(0)
    config = dict(block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                  up_block_types=("UpDecoderBlock2D",) * 2,
                  norm_num_groups=4, latent_channels=4, sample_size=16)
    return getattr(diffusers,
                   kind)(**config | ({"num_vq_embeddings": 16, "vq_embed_dim": 4} if kind == "VQModel" else {})
                         | changes).eval()


def tokenizer(folder):
    """CLIP's, with a vocabulary of letters."""
    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def text_encoder(kind="CLIPTextModel"):
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(vocab_size=54, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
                                         num_attention_heads=2, projection_dim=8, bos_token_id=52, eos_token_id=53,
                                         pad_token_id=53)
    return getattr(transformers, kind)(config).eval()


def save(name, folder, **changes):
    """"sd", "sdxl", "sd3" or "dit", as its pipeline saves it; the pipeline."""
    two = {"sdxl": dict(cross_attention_dim=16),  # of two encoders
           "sd3": dict(joint_attention_dim=16, pooled_projection_dim=16)}
    model, one = network(name, **two.get(name, {}) | changes), tokenizer(folder / "made")
    if name == "dit":
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        pipeline = diffusers.DiTPipeline(model, vae(), scheduler)
    elif name == "sd":
        scheduler = diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                            skip_prk_steps=True)
        pipeline = diffusers.StableDiffusionPipeline(vae(), text_encoder(), one, model, scheduler, None, None,
                                                     requires_safety_checker=False)
    else:
        two = (text_encoder("CLIPTextModelWithProjection"), tokenizer(folder / "made too"))
        if name == "sdxl":
            pipeline = diffusers.StableDiffusionXLPipeline(vae(), text_encoder(), two[0], one, two[1], model,
                                                           diffusers.EulerDiscreteScheduler(
                                                               beta_schedule="scaled_linear"))
        else:
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
            pipeline = diffusers.StableDiffusion3Pipeline(model, scheduler, vae(shift_factor=0.1),
                                                          text_encoder("CLIPTextModelWithProjection"), one, *two, None,
                                                          None)
    pipeline.save_pretrained(folder / "pipeline")
    return pipeline
