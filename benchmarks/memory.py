"""The memory of a training step on Stable Diffusion 1.5 at 512² and DiT-XL/2, predicted on the meta device: nothing is
computed, and no memory is taken. It counts what tensors are alive at once: weights, activations, gradients, Adam's two
moments.

    python benchmarks/memory.py
"""
import weakref
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, interop
from pdae_lite.losses import pdae_loss

GIB = 2**30


class Peak(TorchDispatchMode):
    """Bytes of tensors made in its context that are alive: `now`, and `peak`, the most at once. `also` counts those
    made before."""

    def __init__(self, *also):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()
        for tensor in also:
            self._count(tensor)

    def _count(self, tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self.seen:
            return
        self.seen.add(id(storage))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, id(storage), storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf):
                self._count(leaf)
        return out


def fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **_):
    """Attention as fused kernels do it; the meta device would take a table of all pairs of positions."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal,
                                                                      attn_mask=attn_mask)[0]


def step(pdae: PDAE, x_0: torch.Tensor) -> int:
    """Bytes at the peak of two training steps with Adam; the second has its moments."""
    optimizer = torch.optim.Adam(pdae.trainable().parameters(), foreach=False)
    pdae.train()
    eps, t = torch.randn_like(x_0), torch.full((len(x_0),), pdae.schedule.T // 2)
    attention = "torch.nn.functional.scaled_dot_product_attention"
    with patch(attention, fused), Peak(*pdae.parameters(), *pdae.buffers(), x_0, eps) as memory:
        for _ in range(2):
            optimizer.zero_grad()
            pdae_loss(pdae, x_0, t, eps).backward()
            optimizer.step()
    return memory.peak


def subject(network, size: int, checkpointing: bool, dtype=torch.float32, **told) -> PDAE:
    """A PDAE on a network of diffusers, as `from_diffusers` and `SemanticEncoder.for_images` make it."""
    device = next(network.parameters()).device
    dpm, _ = interop.from_diffusers(network.to(dtype), **told)
    with torch.device(device):
        encoder = SemanticEncoder.for_images(size, network.config.in_channels)
    pdae = PDAE(dpm, encoder, NoiseSchedule.linear())
    pdae.estimator.enable_gradient_checkpointing(checkpointing)
    return pdae


def main() -> None:
    import diffusers

    with torch.device("meta"):
        prompt = torch.empty(1, 77, 768)
        networks = {"Stable Diffusion 1.5, 512²":
                    (diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768), 64,
                     {"prompt_embeds": prompt}),
                    "DiT-XL/2, 256²": (diffusers.DiTTransformer2DModel(out_channels=8), 32, {})}
    print("| network | frozen weights | batch | checkpointing | GiB |\n|---|---|---|---|---|")
    for name, (network, size, told) in networks.items():
        for dtype in (torch.float32, torch.bfloat16):
            for batch in (1, 8):
                for checkpointing in (False, True):
                    pdae = subject(network, size, checkpointing, dtype, **told)
                    peak = step(pdae, torch.empty(batch, 4, size, size, device="meta")) / GIB
                    precision, on = str(dtype).removeprefix("torch."), "yes" if checkpointing else "no"
                    print(f"| {name} | {precision} | {batch} | {on} | {peak:.1f} |")


if __name__ == "__main__":
    main()
