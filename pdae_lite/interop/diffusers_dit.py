"""Where `DiTTransformer2DModel` (Peebles & Xie 2023) is cut: patch embedding and the first half of the blocks | the
second half, norm and projection. z enters the six vectors of each block's adaptive normalisation. Each block embeds
time and class by itself: the upper half is told both."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .diffusers_unet import wanted

OUTPUT = "proj_out_2"


def check(dit: nn.Module) -> None:
    """Raise a ValueError for a network that can't be a DPM."""
    channels, out = dit.config.in_channels, dit.out_channels
    if out not in (channels, 2 * channels):
        raise ValueError(f"DiTTransformer2DModel has in_channels={channels}, out_channels={out}; want as many, or "
                         "twice as many with a learned variance")


def size_multiple(dit: nn.Module) -> int:
    """Height and width are multiples of this."""
    return dit.config.patch_size


def constants(dit: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """label [1]: the class; by default the null class, which stands for none."""
    null = dit.config.num_embeds_ada_norm
    given = {"label": torch.tensor([null])} | {name: v for name, v in given.items() if v is not None}
    found = wanted(dit, ["label"], given)
    if not 0 <= int(found["label"]) <= null:
        raise ValueError(f"label={int(found['label'])}; want 0 … {null - 1}, or None for no class")
    return found


def lower(dit: nn.Module, x: Tensor, t: Tensor, constants: dict[str, Tensor]) -> dict:
    """Patch embedding and the first half of the blocks, as in the network's forward."""
    if x.shape[2] != x.shape[3]:
        raise ValueError(f"x_t is {x.shape[2]}×{x.shape[3]}; a DiTTransformer2DModel takes squares")
    h, label = dit.pos_embed(x), constants["label"]
    for block in dit.transformer_blocks[: len(dit.transformer_blocks) // 2]:
        h = block(h, timestep=t, class_labels=label)
    return {"h": h, "told": t, "context": label}


def upper(dit: nn.Module) -> dict[str, nn.Module]:
    """The upper half's modules."""
    blocks = dit.transformer_blocks
    return {"transformer_blocks": blocks[len(blocks) // 2 :], "emb": blocks[0].norm1.emb, "norm_out": dit.norm_out,
            "proj_out_1": dit.proj_out_1, "proj_out_2": dit.proj_out_2}


def head(parts: dict, features, emb_z: Tensor | None, run) -> Tensor:
    """The upper half's output."""
    h, t, label = features.h, features.told, features.context
    for block in parts["transformer_blocks"]:  # h, masks and prompt, time, options, class
        h = run(block, h, None, None, None, t if emb_z is None else (t, emb_z), None, label)
    shift, scale = parts["proj_out_1"](F.silu(parts["emb"](t, label, hidden_dtype=h.dtype))).chunk(2, 1)
    return unpatchify(parts["proj_out_2"](parts["norm_out"](h) * (1 + scale[:, None]) + shift[:, None]), features.x_t)


def unpatchify(h: Tensor, like: Tensor) -> Tensor:
    """Tokens [N, L, p·p·C] to an image of like's height and width."""
    n, length, width = h.shape
    p = round((like.shape[2] * like.shape[3] / length) ** 0.5)
    h = h.reshape(n, like.shape[2] // p, like.shape[3] // p, p, p, width // p**2)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(n, width // p**2, *like.shape[2:])


def z_width(dit: nn.Module) -> int:
    """Of z's embedding: the tokens'."""
    return dit.inner_dim


def add_z(parts: nn.Module, width: int) -> None:
    """z into every block of copies; and labels are never dropped, as a DiT does when it is trained."""
    for block in parts.transformer_blocks:
        block.norm1.emb = WithZ(block.norm1.emb)
        take_both(block.norm1, width)
    for part in parts.modules():
        if type(part).__name__ == "LabelEmbedding":
            part.dropout_prob = 0.0


def both(emb: Tensor, emb_z: Tensor) -> Tensor:
    """SiLU of time's and z's embeddings, each by itself: the bits of a SiLU depend on the size of its tensor."""
    return torch.cat([F.silu(emb), F.silu(emb_z.to(emb.dtype))], 1)


def take_both(norm: nn.Module, z_channels: int) -> None:
    """Make an adaptive normalisation take what `both` gives. `z_channels` 0: it goes by time alone."""
    norm.silu, norm.linear = nn.Identity(), ShiftedLinear(norm.linear, z_channels)


class WithZ(nn.Module):
    """A block's embedder of time and class, with z's embedding behind what it gives."""

    def __init__(self, emb: nn.Module):
        super().__init__()
        self.emb = emb

    def forward(self, timestep: tuple[Tensor, Tensor], class_labels: Tensor, hidden_dtype: torch.dtype) -> Tensor:
        t, emb_z = timestep
        return both(self.emb(t, class_labels, hidden_dtype=hidden_dtype), emb_z)


class ShiftedLinear(nn.Module):
    """W·SiLU(time) + W_z·SiLU(z)."""

    def __init__(self, linear: nn.Linear, z_channels: int):
        super().__init__()
        self.linear = linear
        if z_channels:
            self.emb_z_layers = nn.Linear(z_channels, linear.out_features)

    def forward(self, emb: Tensor) -> Tensor:
        time, z = emb.split((self.linear.in_features, emb.shape[1] - self.linear.in_features), 1)
        shift = self.linear(time.contiguous())  # the same bits as without z
        return shift + self.emb_z_layers(z) if hasattr(self, "emb_z_layers") else shift
