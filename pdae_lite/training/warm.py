"""A better start for the encoder of a PDAE or a Diff-AE."""
from dataclasses import replace
from pathlib import Path

from ..networks.encoder import SemanticEncoder
from ..networks.plain import PlainAutoencoder
from ..schedule import NoiseSchedule
from .config import TrainConfig
from .loop import train


def warm_encoder(encoder: SemanticEncoder, data, images: int, config: TrainConfig, out: str | Path | None = None,
                 progress: bool = True) -> SemanticEncoder:
    """The encoder, trained for so many images as part of a plain autoencoder: z is then worth listening to from the first step
    on, where a random encoder's must be learned along.

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
    config = replace(config, steps=steps, warmup=min(config.warmup, steps // 10), decay=0.5, weight="simple", gamma=None,
                     ema=min(config.ema, 0.99), tensorboard=False)
    train(PlainAutoencoder(encoder), data, config, schedule=NoiseSchedule.linear(), progress=progress)
    if out is not None:
        encoder.save(out, {"plain_autoencoder_images": steps * config.batch_size})
    return encoder.train()
