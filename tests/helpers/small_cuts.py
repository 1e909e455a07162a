"""Small networks of diffusers of every kind that is cut, what they are conditional on, and their own ε."""
import torch
from small_unets import diffusers, unet

SD = dict(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
          cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
          down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
          up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
NETWORKS = {
    "sd": ("UNet2DConditionModel", SD),
    "sdxl": ("UNet2DConditionModel", SD | dict(transformer_layers_per_block=(1, 2), use_linear_projection=True,
                                              addition_embed_type="text_time", addition_time_embed_dim=4,
                                              projection_class_embeddings_input_dim=6 * 4 + 8)),
    "dit": ("DiTTransformer2DModel",
            dict(num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=3,
                 sample_size=8, num_embeds_ada_norm=5)),
    "sd3": ("SD3Transformer2DModel",
            dict(sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=4,
                 num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=8,
                 pooled_projection_dim=8, pos_embed_max_size=8,
                 dual_attention_layers=(0, 1), qk_norm="rms_norm")),
    "class": ("UNet2DModel", None),
    "dit, class": ("DiTTransformer2DModel", None),
}
KINDS = tuple(NETWORKS)


def network(name, **changes):
    """One with weights that matter everywhere: those that start at zero, too."""
    kind, config = NETWORKS[name]
    if name == "class":
        return unet("latent", num_class_embeds=5, sample_size=8, down_block_types=("DownBlock2D",) * 2,
                    up_block_types=("UpBlock2D",) * 2,
                    block_out_channels=(8, 8), **changes)
    torch.manual_seed(0)
    return getattr(diffusers, kind)(**(config or NETWORKS["dit"][1]) | changes).eval()


def given(name):
    """Arguments of `from_diffusers`."""
    g = torch.Generator().manual_seed(5)
    prompt, pooled = torch.randn(1, 6, 8, generator=g), torch.randn(1, 8, generator=g)
    return {"sd": dict(prompt_embeds=prompt), "dit": {}, "dit, class": dict(label=3), "class": dict(label=3),
            "sdxl": dict(prompt_embeds=prompt,
                         added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]])}),
            "sd3": dict(prompt_embeds=prompt, pooled_prompt_embeds=pooled)}[name]


def own_eps(model, name, x, t):
    """The network's own forward on a batch, as pipelines call it."""
    n, told = len(x), given(name)
    rows = {k: v.repeat(n, *[1] * (v.ndim - 1)).to(x.dtype) for k, v in told.items() if torch.is_tensor(v)}
    if name in ("sd", "sdxl"):
        added = {k: v.repeat(n, 1).to(x.dtype) for k, v in told.get("added_cond_kwargs", {}).items()}
        out = model(x, t, rows["prompt_embeds"], added_cond_kwargs=added or None).sample
    elif name == "sd3":
        out = model(x, rows["prompt_embeds"], rows["pooled_prompt_embeds"], t).sample
    else:
        labels = torch.full((n,), told.get("label", 5))
        out = model(x, t, class_labels=labels).sample
    return out[:, : x.shape[1]]


def noisy(n=3, seed=1, size=8):
    return torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(seed))
