"""Diff-AE (Preechakul et al. 2022), the baseline: one network learns to denoise and to use z, from scratch.

The same samplers, encoder and AdaGN as PDAE, so that a comparison measures the method: PDAE freezes a DPM and trains a
second head on it, Diff-AE trains everything together."""
from torch import Tensor, nn

from .autoencoder import Autoencoder
from .checkpoint import describe
from .guidance import ConditionedDenoiser
from .losses import dpm_loss
from .schedule import NoiseSchedule


class DiffAE(Autoencoder):
    """A noise predictor conditioned on z in every residual block, trained together with the encoder.

    Args:
        network: (x_t, t, z) -> ε [N, C, H, W], for example a `UNet` with `UNetConfig.z_dim`.
        encoder: x_0 [N, C, H, W] -> z [N, z_dim].
        schedule: the noise schedule.
    """

    default_weight = "simple"

    def __init__(self, network: nn.Module, encoder: nn.Module, schedule: NoiseSchedule):
        super().__init__()
        if network.config.z_dim != encoder.z_dim:
            raise ValueError(f"the network takes z_dim={network.config.z_dim}, the encoder gives {encoder.z_dim}")
        self.denoise_net, self.encoder, self.schedule = network, encoder, schedule
        self.codec = None

    @property
    def network(self) -> nn.Module:
        """The noise predictor (x_t, t, z) -> ε."""
        return self.denoise_net

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """ε̂ [N, C, H, W] from x_t [N, C, H, W], t int64 [N] in 0 … T−1, z [N, z_dim]."""
        self.schedule.check_t(t)
        return self.network(x_t, t, z)

    def denoiser(self, z: Tensor) -> ConditionedDenoiser:
        """The noise predictor that knows z [N, z_dim]."""
        return ConditionedDenoiser(self.network, z)

    def training_loss(self, x_0: Tensor, t: Tensor, eps: Tensor, y, schedule, weight) -> Tensor:
        """What `train` minimises: `losses.dpm_loss` with z = encoder(x_0)."""
        return dpm_loss(self.network, x_0, t, eps, schedule, weight, self.training_codes(x_0, y))

    def to_config(self) -> dict:
        return {"network": describe(self.network), "encoder": describe(self.encoder),
                "schedule": self.schedule.to_config()}
