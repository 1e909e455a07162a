"""A plain autoencoder, without diffusion: what an encoder can start from."""
from torch import Tensor, nn

from .encoder import SemanticEncoder


class PlainAutoencoder(nn.Module):
    """A semantic encoder and a mirror image of it, trained to rebuild images in mean square. Call: x_0 -> its reconstruction."""

    default_weight = "simple"

    def __init__(self, encoder: SemanticEncoder):
        super().__init__()
        self.encoder, config = encoder, encoder.config
        widths, side = config.channels[::-1], config.image_size // 2 ** len(config.channels)
        layers = [nn.Linear(config.z_dim, widths[0] * side**2), nn.Unflatten(1, (widths[0], side, side))]
        for a, b in zip(widths, (*widths[1:], config.in_channels)):
            layers += [nn.GroupNorm(min(32, a), a), nn.SiLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, x_0: Tensor) -> Tensor:
        return self.decoder(self.encoder(x_0))

    def training_loss(self, x_0: Tensor, t, eps, y, schedule, weight) -> Tensor:
        """E[(x_0 − decoder(encoder(x_0)))²]; it knows no noise."""
        return (self(x_0).float() - x_0).square().mean()
