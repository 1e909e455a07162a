"""Ways to make a denoiser from another one: every experiment is one of them, and samplers know no other."""
from torch import Tensor, nn


class ConditionedDenoiser:
    """ε(x_t, t) = network(x_t, t, condition), for a network that takes labels y [N] or codes z [N, z_dim]."""

    def __init__(self, network: nn.Module, condition: Tensor):
        self.network, self.condition = network, condition
        self.data_range = getattr(network, "data_range", (-1.0, 1.0))

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.network(x_t, t, self.condition)
