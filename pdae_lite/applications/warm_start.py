"""A better start for the encoder of a PDAE or a Diff-AE: that of a plain autoencoder, without diffusion."""
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ..networks.encoder import SemanticEncoder
from ..schedule import NoiseSchedule
from ..training import TrainConfig, train


class PlainAutoencoder(nn.Module):
    """A semantic encoder and a mirror image of it, trained to rebuild images. Call: x_0 -> its reconstruction."""

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


def warm_encoder(encoder: SemanticEncoder, data, images: int, config: TrainConfig, out: str | Path | None = None,
                 progress: bool = True) -> SemanticEncoder:
    """The encoder, trained for so many images as part of a plain autoencoder: z is then worth listening to from the
    first step on, where a random encoder's must be learned along.

    Args:
        config: of the run that follows: its batch size, learning rate, flips and seed are taken.
        out: a file to keep the encoder in; if it is there, it is read instead.

    Raises:
        ValueError: `images` below 1, or an encoder that isn't a `SemanticEncoder`.
    """
    if images < 1 or not isinstance(encoder, SemanticEncoder):
        raise ValueError(f"images={images} for a {type(encoder).__name__}; want at least 1, and a SemanticEncoder")
    if out is not None and Path(out).is_file():
        return SemanticEncoder.load(out).train()
    steps = -(-images // config.batch_size)
    config = replace(config, steps=steps, warmup=min(config.warmup, steps // 10), decay=0.5, weight="simple",
                     gamma=None, ema=min(config.ema, 0.99), tensorboard=False)
    train(PlainAutoencoder(encoder), data, config, schedule=NoiseSchedule.linear(), progress=progress)
    if out is not None:
        encoder.save(out, {"plain_autoencoder_images": steps * config.batch_size})
    return encoder.train()
