"""A model for sampling only: lower precision, compiled, its launches recorded in CUDA graphs."""
import copy
import functools

import torch
from torch import nn

from .networks.blocks import GroupNorm
from .pdae import PDAE


def accelerate(model: nn.Module, dtype: torch.dtype | None = None, compile: bool = False,
               graphs: bool | None = None) -> nn.Module:
    """A copy that samples faster, for a PDAE, a Diff-AE or a plain DPM:
    `accelerate(pdae, torch.bfloat16, compile=True).decode(z)`.

    Networks compute in `dtype`; x_t, ε̂, the schedule and the encoder stay in float32, since a sampler adds many small
    steps up. The copy is for sampling: it can be neither trained nor saved.

    Args:
        dtype: of weights and activations; None: as they are. bfloat16 pays on CUDA since Ampere.
        compile: trunk and heads by `torch.compile`, anew for each batch size and shape.
        graphs: record them as CUDA graphs, for small networks or batches; None: on CUDA. It needs `compile`.

    Raises:
        ValueError: graphs without compile, or on another device.
    """
    device = next(model.parameters()).device
    if graphs and not (compile and device.type == "cuda"):
        raise ValueError(f"graphs=True with compile={compile} on {device.type}; CUDA graphs want compile=True on cuda")
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    network = getattr(fast, "network", fast)
    heads = [fast.estimator] if isinstance(fast, PDAE) else []
    for part in (network, *heads):
        part.to(dtype)
        for norm in part.modules():
            if isinstance(norm, GroupNorm):  # which computes in float32 whatever it is given
                norm.float()
    if not compile:
        return fast
    record = device.type == "cuda" if graphs is None else graphs
    made = functools.partial(torch.compile, dynamic=False, mode="reduce-overhead" if record else None)
    trunk, head = made(network.trunk), made(network.head)

    def first(x_t, t, *condition):
        if record:
            torch.compiler.cudagraph_mark_step_begin()  # what an earlier step left in the graphs' memory may go
        return trunk(x_t, torch.as_tensor(t).to(x_t.device), *condition)

    def kept(function):
        """Results that outlive the next replay."""
        return lambda *args: function(*args).clone() if record else function(*args)

    network.trunk, network.head = first, kept(head)
    for part in heads:
        part.forward = kept(made(part.forward))
    return fast
