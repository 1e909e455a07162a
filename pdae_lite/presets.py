"""Presets: everything a training run needs, as frozen dataclasses. `pdae pretrain` and `pdae train` start from one, and
change any of it by `--set NAME=VALUE`."""
from dataclasses import asdict, dataclass, replace

from torch import nn

from .applications.latent import LatentConfig, LatentDPM, LatentStats
from .data.files import CELEBA64_CROP
from .data.sources import LMDBConfig
from .diffae import DiffAE
from .interop.paths import as_epsilon, flow_schedule
from .networks.classifier import ClassifierConfig, NoisyClassifier
from .networks.encoder import EncoderConfig, LabelEncoder, SemanticEncoder
from .networks.unet import UNet, UNetConfig
from .pdae import PDAE
from .schedule import NoiseSchedule
from .training.loop import TrainConfig


@dataclass(frozen=True)
class LabelConfig:
    """In place of an encoder of images: z is an embedding of the label, and G is class-conditional."""

    num_classes: int = 10
    z_dim: int = 512


# What each kind of run takes from a preset: the name on the command line -> the field.
STAGES = {
    "pretrain": {"unet": "unet", "train": "pretrain", "prediction": "prediction", "lmdb": "lmdb"},
    "pdae": {"encoder": "encoder", "train": "train", "form": "form", "precondition": "precondition", "lmdb": "lmdb"},
    "diffae": {"unet": "unet", "encoder": "encoder", "train": "train_diffae", "prediction": "prediction",
               "lmdb": "lmdb"},
    "classifier": {"unet": "unet", "train": "train_classifier", "lmdb": "lmdb"},
    "latent": {"latent": "mlp", "train": "train_latent", "lmdb": "lmdb"},
}


@dataclass(frozen=True)
class Preset:
    """A DPM, a PDAE on it, a Diff-AE and a classifier of noisy images beside them, a latent DPM behind, and how to
    train each. `prediction`, `form` and `precondition`: see `as_epsilon` and `PDAE`. `data`: the data set that takes
    this preset unless another is named; "": none. `train_latent.flip`: the codes of mirrored images too."""

    about: str
    unet: UNetConfig
    encoder: EncoderConfig | LabelConfig
    pretrain: TrainConfig
    train: TrainConfig
    train_diffae: TrainConfig
    train_classifier: TrainConfig
    train_latent: TrainConfig
    mlp: LatentConfig = LatentConfig()
    prediction: str = "epsilon"
    form: str = "difference"
    precondition: str | None = None
    data: str = ""
    lmdb: LMDBConfig = LMDBConfig()

    def resized(self, size: int, channels: int) -> "Preset":
        """The same preset for images of another side, and of other channels."""
        return replace(self.encoding(size, channels), unet=replace(self.unet, image_size=size, in_channels=channels))

    def encoding(self, size: int, channels: int) -> "Preset":
        """The same preset with an encoder for such images, as a given DPM wants it."""
        if isinstance(self.encoder, LabelConfig):
            return self
        return replace(self, encoder=replace(self.encoder, image_size=size, in_channels=channels))

    def with_labels(self, num_classes: int) -> "Preset":
        """The same preset, conditional on labels: a DPM that takes them, and an embedding of them in place of the
        encoder."""
        return replace(self, unet=replace(self.unet, num_classes=num_classes),
                       encoder=LabelConfig(num_classes, self.encoder.z_dim))

    def schedule(self) -> NoiseSchedule:
        """The paper's linear schedule; flow matching's for a DPM that predicts "flow"."""
        return flow_schedule() if self.prediction == "flow" else NoiseSchedule.linear()

    def new_encoder(self) -> nn.Module:
        """A random encoder."""
        return (LabelEncoder(**asdict(self.encoder))
                if isinstance(self.encoder, LabelConfig) else SemanticEncoder(self.encoder))

    def dpm(self):
        """A DPM with random weights."""
        return as_epsilon(UNet(self.unet), self.prediction, self.schedule())

    def pdae(self, dpm) -> PDAE:
        """A PDAE with a random encoder on a given DPM."""
        return PDAE(dpm, self.new_encoder(), self.schedule(), precondition=self.precondition, form=self.form)

    def diffae(self) -> DiffAE:
        """A Diff-AE with random weights: the DPM's network with z in every block, and the PDAE's encoder."""
        network = UNet(replace(self.unet, z_dim=self.encoder.z_dim, num_classes=None))
        return DiffAE(as_epsilon(network, self.prediction, self.schedule()), self.new_encoder(), self.schedule())

    def classifier(self, num_classes: int) -> NoisyClassifier:
        """A classifier of noisy images with random weights: half of the DPM's network."""
        return NoisyClassifier(ClassifierConfig(replace(self.unet, num_classes=None), num_classes), self.schedule())

    def latent(self, z_dim: int, stats: LatentStats | None = None) -> LatentDPM:
        """A latent DPM with random weights, for codes that were normalised with `stats`."""
        return LatentDPM(replace(self.mlp, z_dim=z_dim), stats=stats)


def _trainings(pretrain: TrainConfig, pdae_steps: int, latent: TrainConfig) -> dict[str, TrainConfig]:
    """PDAE: as the DPM. A Diff-AE sees as many images as the PDAE; a classifier half as many as the DPM, each t with
    the same weight."""
    return {"pretrain": pretrain, "train": replace(pretrain, steps=pdae_steps),
            "train_diffae": replace(pretrain, steps=pdae_steps),
            "train_classifier": replace(pretrain, steps=pretrain.steps // 2, weight="simple", weight_decay=0.05),
            "train_latent": latent}


# ---- for a CPU -------------------------------------------------------------------------------------------------------

# A small MLP for codes of 32 to 128 numbers.
_MLP = LatentConfig(layers=6, width=256)
_LATENT = TrainConfig(steps=3000, batch_size=256, lr=1e-3, weight_decay=0.01, warmup=200, decay=0.6, ema=0.999,
                      save_every=500)

# Digits: patches of 2×2 pixels and few channels; the encoder's attention at 8×8, because at 16×16 it alone costs
# several times the rest of the encoder. v-prediction, because at these sizes a network that predicts ε can't copy x_t
# finely enough where t is large.
_DIGITS = TrainConfig(steps=4000, batch_size=128, lr=1e-3, warmup=200, decay=0.6, ema=0.999, weight="v",
                      augment="affine", precision="bf16", save_every=250)
DIGITS = Preset(
    about="4,500 digits that ship, on a CPU",
    unet=UNetConfig(image_size=32, in_channels=1, base_channels=48, channel_mult=(1, 2, 2), num_res_blocks=1,
                    attention_downsampling=(2, 4), patch_size=2),
    encoder=EncoderConfig(image_size=32, in_channels=1, channels=(64, 128, 128), attention_after=1, z_dim=32),
    **_trainings(_DIGITS, 3000, _LATENT), mlp=replace(_MLP, z_dim=32), prediction="v", data="digits",
)
# The form that the paper has: G, which must first learn again what the frozen head predicts.
DIGITS_PAPER = replace(DIGITS, about="the digits, with the paper's form of the shift", form="paper", precondition="v",
                       data="")

# 60,000 digits need no distortion.
_MNIST = replace(_DIGITS, augment=None, steps=8000, save_every=500)
MNIST = replace(DIGITS, about="all 60,000 digits of MNIST, by torchvision, on a CPU", data="torchvision:mnist",
                **_trainings(_MNIST, 6000, replace(_LATENT, steps=10_000)))

# Faces: like the digits, in colour, at half of their size: a CPU sees four times as many of them in the same time. They
# are mirrored at random, as a half of them is drawn.
_PEEPS = TrainConfig(steps=7200, batch_size=64, lr=1e-3, warmup=300, decay=0.6, ema=0.999, weight="v", flip=True,
                     precision="bf16", save_every=250)
PEEPS = Preset(
    about="10,500 drawn faces that ship, at 32×32, on a CPU",
    unet=UNetConfig(image_size=32, in_channels=3, base_channels=40, channel_mult=(1, 2, 2), num_res_blocks=1,
                    attention_downsampling=(2, 4), patch_size=2),
    encoder=EncoderConfig(image_size=32, in_channels=3, channels=(64, 128, 128), attention_after=1, z_dim=128),
    **_trainings(_PEEPS, 5000, replace(_LATENT, steps=4000, flip=True)), mlp=replace(_MLP, z_dim=128),
    prediction="v", data="peeps",
)

# The same at full size, for those with patience.
PEEPS_64 = replace(
    PEEPS, about="10,500 drawn faces that ship, at 64×64, on a CPU", data="",
    unet=UNetConfig(image_size=64, in_channels=3, base_channels=32, channel_mult=(1, 2, 2, 2), num_res_blocks=1,
                    attention_downsampling=(4, 8), patch_size=2),
    encoder=EncoderConfig(image_size=64, in_channels=3, channels=(64, 128, 128, 128), attention_after=2, z_dim=128),
)

# ---- for one GPU -----------------------------------------------------------------------------------------------------

# Whole pixels (patch_size 1), 64 channels everywhere, which fills tensor cores, and files that still fit the package.
# Steps are an estimate, not a measurement: at 190 TFLOP/s of useful arithmetic in bf16 (an H100) and 13.5, 15.2 GFLOP
# an image, peeps take ten minutes for the DPM and ten for the PDAE; digits (5.3, 5.6 GFLOP) two minutes each, for more
# images than that would only fit 4,500 digits by heart.
_GPU = {"batch_size": 512, "ema": 0.9995, "warmup": 500, "compile": True, "save_every": 2000}
PEEPS_GPU = replace(
    PEEPS_64, about="10,500 drawn faces that ship, at 64×64, on one H100",
    unet=UNetConfig(image_size=64, in_channels=3, base_channels=64, channel_mult=(1, 1, 1, 1), num_res_blocks=1,
                    attention_downsampling=(4, 8)),
    **_trainings(replace(_PEEPS, steps=16_400, **_GPU), 14_600, PEEPS.train_latent),
)
DIGITS_GPU = replace(
    DIGITS, about="4,500 digits that ship, on one H100", data="",
    unet=UNetConfig(image_size=32, in_channels=1, base_channels=64, channel_mult=(1, 1, 1), num_res_blocks=2,
                    attention_downsampling=(2, 4)),
    **_trainings(replace(_DIGITS, steps=8000, **_GPU), 8000, DIGITS.train_latent),
)

# ---- the paper's -----------------------------------------------------------------------------------------------------

# Numbers of images, optimizer and batch: the paper, Section 4 and appendix. U-Nets: those of the Diff-AE baselines
# (Preechakul et al. 2022), on which PDAE builds; widths of the encoder: the paper's. They come from the literature:
# where a released YAML file is at hand, `interop.load_released_pdae` reads the networks from it, and it decides. Ours
# are bf16, channels_last, torch.compile and gradient clipping at norm 1. ImageNet's network isn't stated: the 64×64
# one.
_UNET_64 = UNetConfig(image_size=64, base_channels=64, channel_mult=(1, 2, 4, 8), attention_downsampling=(4,),
                      dropout=0.1)
_UNET_128 = UNetConfig(image_size=128, base_channels=128, channel_mult=(1, 1, 2, 3, 4), attention_downsampling=(8,),
                       dropout=0.1)
_ENCODER_64 = EncoderConfig(image_size=64, channels=(64, 128, 128, 128), attention_after=1, z_dim=512)
_ENCODER_128 = EncoderConfig(image_size=128, channels=(64, 128, 256, 256, 256), attention_after=2, z_dim=512)


def _paper(about: str, unet: UNetConfig, encoder: EncoderConfig | LabelConfig, dpm: int, pdae: int, codes: int,
           **options) -> Preset:
    """`dpm`, `pdae`: millions of images that each saw. `codes`: millions of codes that Diff-AE's latent DPM saw, or
    FFHQ's where it has none; the paper doesn't say it of its own. A Diff-AE sees as many images as the DPM, as in its
    own paper."""
    def steps(millions: int, batch_size: int) -> dict[str, int]:
        return {"steps": -(-millions * 1_000_000 // batch_size), "batch_size": batch_size}

    pretrain = TrainConfig(**steps(dpm, 128), lr=1e-4, ema=0.9999, weight="simple", flip=True, precision="bf16",
                           compile=True, workers=8, save_every=5000, log_every=500)
    latent = TrainConfig(**steps(codes, 512), lr=1e-3, weight_decay=0.01, ema=0.9999, save_every=20_000, log_every=500)
    trainings = (_trainings(pretrain, 1, latent) | {"train": replace(pretrain, weight="pdae", **steps(pdae, 128)),
                                                    "train_diffae": pretrain})
    return Preset(about, unet, encoder, **trainings, form="paper", **options)


PRESETS: dict[str, Preset] = {
    "digits": DIGITS,
    "digits_paper": DIGITS_PAPER,
    "peeps": PEEPS,
    "peeps64": PEEPS_64,
    "mnist": MNIST,
    "digits_gpu": DIGITS_GPU,
    "peeps_gpu": PEEPS_GPU,
    "celeba64": _paper("the paper's CelebA", _UNET_64, _ENCODER_64, 72, 38, 300, data="torchvision:celeba",
                       lmdb=LMDBConfig(crop=CELEBA64_CROP)),
    "ffhq128": _paper("the paper's FFHQ", _UNET_128, _ENCODER_128, 130, 64, 100),
    "horse128": _paper("the paper's LSUN Horse", _UNET_128, _ENCODER_128, 130, 64, 2000),
    "bedroom128": _paper("the paper's LSUN Bedroom", _UNET_128, _ENCODER_128, 120, 70, 2000),
    "celebahq128": _paper("the paper's CelebA-HQ", _UNET_128, _ENCODER_128, 52, 25, 100),
    "imagenet64": _paper("the paper's ImageNet, with G conditional on the class", _UNET_64, LabelConfig(1000), 77, 38,
                         100),
}
