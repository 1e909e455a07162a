"""Presets: everything a training run needs, as frozen dataclasses. `pdae pretrain` and `pdae train` start from one."""
from dataclasses import dataclass

from .encoder import EncoderConfig, SemanticEncoder
from .model import PDAE
from .prediction import as_epsilon
from .schedule import NoiseSchedule
from .training import TrainConfig
from .unet import UNet, UNetConfig


@dataclass(frozen=True)
class Preset:
    """A DPM, a PDAE on it, and how to train both. `prediction` and `precondition`: see `prediction` and `PDAE`."""

    unet: UNetConfig
    encoder: EncoderConfig
    pretrain: TrainConfig
    train: TrainConfig
    prediction: str = "epsilon"
    precondition: str | None = None

    def schedule(self) -> NoiseSchedule:
        """The paper's linear schedule."""
        return NoiseSchedule.linear()

    def dpm(self):
        """A DPM with random weights."""
        return as_epsilon(UNet(self.unet), self.prediction, self.schedule())

    def pdae(self, dpm) -> PDAE:
        """A PDAE with a random encoder on a given DPM."""
        return PDAE(dpm, SemanticEncoder(self.encoder), self.schedule(), precondition=self.precondition)


# Digits on a CPU: patches of 2×2 pixels and few channels; the encoder's attention at 8×8, because at 16×16 it alone costs
# several times the rest of the encoder. v-prediction, because at these sizes a network that predicts ε can't copy x_t
# finely enough where t is large.
DIGITS = Preset(
    unet=UNetConfig(image_size=32, in_channels=1, base_channels=48, channel_mult=(1, 2, 2), num_res_blocks=1,
                    attention_downsampling=(2, 4), patch_size=2),
    encoder=EncoderConfig(image_size=32, in_channels=1, channels=(64, 128, 128), attention_after=1, z_dim=32),
    pretrain=TrainConfig(steps=4000, batch_size=128, lr=1e-3, warmup=200, decay=0.6, ema=0.999, weight="v", augment="affine",
                         precision="bf16", save_every=250),
    train=TrainConfig(steps=3000, batch_size=128, lr=1e-3, warmup=200, decay=0.6, ema=0.999, weight="v", augment="affine",
                      precision="bf16", save_every=250),
    prediction="v",
    precondition="v",
)

# Faces on a CPU: 64×64 pixels in patches of 2×2, few channels. The faces are mirrored at random, as a half of them is drawn.
PEEPS = Preset(
    unet=UNetConfig(image_size=64, in_channels=3, base_channels=32, channel_mult=(1, 2, 2, 2), num_res_blocks=1,
                    attention_downsampling=(4, 8), patch_size=2),
    encoder=EncoderConfig(image_size=64, in_channels=3, channels=(64, 128, 128, 128), attention_after=2, z_dim=64),
    pretrain=TrainConfig(steps=6000, batch_size=64, lr=1e-3, warmup=300, decay=0.6, ema=0.999, weight="v", flip=True,
                         precision="bf16", save_every=500),
    train=TrainConfig(steps=5000, batch_size=64, lr=1e-3, warmup=300, decay=0.6, ema=0.999, weight="v", flip=True,
                      precision="bf16", save_every=500),
    prediction="v",
    precondition="v",
)

PRESETS: dict[str, Preset] = {"digits": DIGITS, "peeps": PEEPS}
