"""Where `SD3Transformer2DModel` (Stable Diffusion 3; Esser et al. 2024) is cut: as a DiT, over its joint blocks of
image and prompt. z enters the adaptive normalisation of the image's tokens; the prompt's are told time alone. Copies
agree to rounding: torch multiplies slices in another order if the weights are to be trained."""
from torch import Tensor, nn

from .diffusers_dit import both, size_multiple, take_both, unpatchify, z_width
from .diffusers_unet import wanted

__all__ = ["check", "size_multiple", "constants", "lower", "upper", "head", "z_width", "add_z"]
OUTPUT = "proj_out"


def check(sd3: nn.Module) -> None:
    """Raise a ValueError for a network that can't be a DPM."""
    if sd3.out_channels != sd3.config.in_channels:
        raise ValueError(f"SD3Transformer2DModel has in_channels={sd3.config.in_channels}, "
                         f"out_channels={sd3.out_channels}; want as many")


def constants(sd3: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """prompt_embeds [1, L, D] and pooled_prompt_embeds [1, D']."""
    return wanted(sd3, ["prompt_embeds", "pooled_prompt_embeds"], given)


def lower(sd3: nn.Module, x: Tensor, t: Tensor, constants: dict[str, Tensor]) -> dict:
    """Embeddings and the first half of the blocks, as in the network's forward."""
    h = sd3.pos_embed(x).contiguous()
    emb = sd3.time_text_embed(t, constants["pooled_prompt_embeds"])
    prompt = sd3.context_embedder(constants["prompt_embeds"])
    for block in sd3.transformer_blocks[: len(sd3.transformer_blocks) // 2]:
        prompt, h = block(h, prompt, emb)
    return {"h": h, "told": emb, "context": prompt}


def upper(sd3: nn.Module) -> dict[str, nn.Module]:
    """The upper half's modules."""
    blocks = sd3.transformer_blocks
    return {"transformer_blocks": blocks[len(blocks) // 2 :], "norm_out": sd3.norm_out, "proj_out": sd3.proj_out}


def head(parts: dict, features, emb_z: Tensor | None, run) -> Tensor:
    """The upper half's output."""
    h, prompt, emb = features.h, features.context, features.told
    told = emb if emb_z is None else both(emb, emb_z)
    for block in parts["transformer_blocks"]:
        prompt, h = run(block, h, prompt, told)
    return unpatchify(parts["proj_out"](parts["norm_out"](h, emb)), features.x_t)


def add_z(parts: nn.Module, width: int) -> None:
    """z into every block of copies; the prompt's normalisation takes time's part of what both are given."""
    for block in parts.transformer_blocks:
        take_both(block.norm1, width)
        take_both(block.norm1_context, 0)
