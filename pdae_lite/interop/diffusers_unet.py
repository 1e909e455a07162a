"""Where `UNet2DModel` and `UNet2DConditionModel` (Stable Diffusion 1, 2, XL) are cut: time, class, prompt and down
blocks | middle block and up blocks. z enters the second normalisation of each residual block; cross-attention stays."""
from torch import Tensor, nn

# Blocks whose forward is (h, emb) -> (h, skips), or (h, skips, emb) -> h, with residual blocks of one kind.
BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2D",
          "UNetMidBlock2DCrossAttn", "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "CrossAttnUpBlock2D")
UPPER = ("mid_block", "up_blocks", "conv_norm_out", "conv_act", "conv_out")
OUTPUT = "conv_out"
HOW_LABEL = "label=, the class that it is to know"
HOW_PROMPT = ("the folder of a pipeline with its text encoder and prompt=, or prompt_embeds= (SDXL: and "
              "added_cond_kwargs= with text_embeds, time_ids; SD3: and pooled_prompt_embeds=)")
REFINER = 2560  # 1280 + 5 · 256: the SDXL refiner is told a score where the base model is told a size


def check(unet: nn.Module) -> None:
    """Raise a ValueError, which names what it is, for a network that can't be a DPM, or can't be cut."""
    kind, config = type(unet).__name__, unet.config
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        if block is not None and type(block).__name__ not in BLOCKS:
            raise ValueError(f"{kind} has a block {type(block).__name__}; supported are {', '.join(BLOCKS)}")
    if config.time_embedding_type == "fourier":
        raise ValueError(f"{kind} has time_embedding_type='fourier' (NCSN++, a score-SDE model, which divides by σ "
                         "inside); supported are 'positional' and 'learned'")
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise ValueError(f"{kind} has in_channels={config.in_channels}, out_channels={config.out_channels}: "
                         "inpainting, upscaling, or conditional on an image; want as many, or twice as many with a "
                         "learned variance")
    for name, what in (("time_cond_proj_dim", "a latent consistency model, which is told a guidance scale"),
                       ("encoder_hid_dim_type", "conditional on images, or on embeddings that it projects")):
        if getattr(config, name, None) is not None:
            raise ValueError(f"{kind} has {name}={getattr(config, name)!r}: {what}; supported are models of a prompt")
    if getattr(config, "addition_embed_type", None) not in (None, "text_time"):
        raise ValueError(f"{kind} has addition_embed_type={config.addition_embed_type!r}; supported are None and "
                         "'text_time'")
    if getattr(config, "projection_class_embeddings_input_dim", None) == REFINER:
        raise ValueError(f"{kind} is the SDXL refiner, which only ends what the base model began; want the base model")
    if config.class_embed_type not in (None, "timestep") or getattr(config, "class_embeddings_concat", False):
        raise ValueError(f"{kind} has class_embed_type={config.class_embed_type!r}; supported are classes by number")


def size_multiple(unet: nn.Module) -> int:
    """Height and width are multiples of this."""
    return 2 ** (len(unet.down_blocks) - 1)


def constants(unet: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of those given, all that the network wants: prompt_embeds [1, L, D]; text_embeds [1, D'] and time_ids [1, 6];
    label [1]."""
    names = ["prompt_embeds"] if hasattr(unet, "encoder_hid_proj") else []  # a UNet2DConditionModel
    names += ["text_embeds", "time_ids"] if getattr(unet.config, "addition_embed_type", None) == "text_time" else []
    names += ["label"] if unet.class_embedding is not None else []
    found = wanted(unet, names, given)
    classes = unet.config.num_class_embeds
    if "label" in found and classes is not None and not 0 <= int(found["label"]) < classes:
        raise ValueError(f"label={int(found['label'])}; want 0 … {classes - 1}")
    return found


def wanted(network: nn.Module, names: list[str], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The constants of these names, or a ValueError that says which is missing, or that nothing was to be given."""
    kind = type(network).__name__
    for name in names:
        if given.get(name) is None:
            raise ValueError(f"{kind} is conditional on {', '.join(names)}, and {name} is missing; give "
                             + (HOW_LABEL if name == "label" else HOW_PROMPT))
    other = [name for name, value in given.items() if value is not None and name not in names]
    if other:
        raise ValueError(f"{other[0]} given, but this {kind} is conditional on {', '.join(names) or 'nothing'}")
    return {name: given[name] for name in names}


def lower(unet: nn.Module, x: Tensor, t: Tensor, constants: dict[str, Tensor]) -> dict:
    """Embeddings and down blocks, as in the network's forward."""
    prompt = constants.get("prompt_embeds")
    emb = unet.time_embedding(unet.time_proj(t).to(x.dtype))
    if "label" in constants:
        label = constants["label"]
        if unet.config.class_embed_type == "timestep":
            label = unet.time_proj(label).to(x.dtype)
        emb = emb + unet.class_embedding(label).to(x.dtype)
    if "time_ids" in constants:
        emb = emb + unet.get_aug_embed(emb, prompt, constants)
    if getattr(unet, "time_embed_act", None) is not None:
        emb = unet.time_embed_act(emb)
    h = unet.conv_in(2 * x - 1 if unet.config.center_input_sample else x)
    skips = (h,)
    for block in unet.down_blocks:
        h, outputs = block(h, emb, **_prompt(block, prompt))
        skips += outputs
    return {"h": h, "told": emb, "skips": skips, "context": prompt}


def upper(unet: nn.Module) -> dict[str, nn.Module]:
    """The upper half's modules."""
    return {name: getattr(unet, name) for name in UPPER}


def head(parts: dict, features, emb_z: Tensor | None, run) -> Tensor:
    """The upper half's output. diffusers' blocks hand time's embedding on untouched, so it can carry both."""
    emb = features.told if emb_z is None else (features.told, emb_z)
    h, skips, prompt = features.h, features.skips, features.context
    if parts["mid_block"] is not None:
        h = parts["mid_block"](h, emb, **_prompt(parts["mid_block"], prompt))
    for block in parts["up_blocks"]:
        n = len(block.resnets)
        h = block(h, skips[-n:], emb, **_prompt(block, prompt))
        skips = skips[:-n]
    if parts["conv_norm_out"] is not None:
        h = parts["conv_act"](parts["conv_norm_out"](h))
    return parts["conv_out"](h)


def z_width(unet: nn.Module) -> int:
    """Of z's embedding: time's."""
    return unet.time_embedding.linear_2.out_features


def add_z(parts: nn.Module, width: int) -> None:
    """z into every residual block of copies."""
    for parent in list(parts.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "ResnetBlock2D":
                setattr(parent, name, ShiftedResnet(child, width))


class ShiftedResnet(nn.Module):
    """diffusers' `ResnetBlock2D` with z in its second normalisation, eq. (9):

        AdaGN(h, t, z) = (1 + z_s) · AdaGN(h, t) + z_b

    where AdaGN(h, t) is the block's own: GroupNorm(h + t), or (1 + t_s) · GroupNorm(h) + t_b ("scale_shift")."""

    def __init__(self, block: nn.Module, z_channels: int):
        super().__init__()
        self.block = block
        self.emb_z_layers = nn.Sequential(nn.SiLU(), nn.Linear(z_channels, 2 * block.norm2.num_channels))

    def forward(self, x: Tensor, temb: tuple[Tensor, Tensor]) -> Tensor:
        b, (emb, emb_z) = self.block, temb
        h, resample = b.nonlinearity(b.norm1(x)), b.upsample or b.downsample
        if resample is not None:
            h, x = resample(h), resample(x)
        h = b.conv1(h)
        emb_out = b.time_emb_proj(emb if b.skip_time_act else b.nonlinearity(emb))[:, :, None, None]
        if b.time_embedding_norm == "scale_shift":
            t_s, t_b = emb_out.chunk(2, 1)
            h = b.norm2(h) * (1 + t_s) + t_b
        else:
            h = b.norm2(h + emb_out)
        z_s, z_b = self.emb_z_layers(emb_z)[:, :, None, None].chunk(2, 1)
        h = b.conv2(b.dropout(b.nonlinearity(h * (1 + z_s) + z_b)))
        if b.conv_shortcut is not None:
            x = b.conv_shortcut(x)
        return (x + h) / b.output_scale_factor


def _prompt(block: nn.Module, prompt: Tensor | None) -> dict:
    return {"encoder_hidden_states": prompt} if getattr(block, "has_cross_attention", False) else {}
