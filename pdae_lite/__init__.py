"""pdae_lite: pre-trained diffusion models as autoencoders (PDAE, NeurIPS 2022).

    import pdae_lite
    pdae = pdae_lite.load("digits")
    images = pdae_lite.data.digits("test").floats(slice(8))
    z = pdae.encode(images)
    rebuilt = pdae.decode(z, x_T=pdae.invert(images, z))
"""
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors; at run time, what is asked for is loaded then: `import pdae_lite` costs nothing
    from .checkpoint import best_device, load, shipped
    from .interop.paths import as_epsilon
    from .networks.encoder import EncoderConfig, SemanticEncoder
    from .networks.unet import GradientEstimator, UNet, UNetConfig
    from .pdae import PDAE
    from .schedule import NoiseSchedule

__version__ = "0.2.0"

_MODULES = {name: name for name in (
    "applications", "autoencoder", "belm", "checkpoint", "commands", "counter_rng", "data", "diffae", "evaluation",
    "guidance", "interop", "losses", "metrics", "networks", "pdae", "presets", "reproduction", "sampling", "schedule",
    "speed", "training", "viz", "warning")}
_MODULES |= {name: f"applications.{name}" for name in ("attributes", "few_shot", "latent")}
_NAMES = {"best_device": "checkpoint", "load": "checkpoint", "shipped": "checkpoint", "PDAE": "pdae",
          "NoiseSchedule": "schedule", "as_epsilon": "interop.paths", "UNet": "networks.unet",
          "UNetConfig": "networks.unet", "GradientEstimator": "networks.unet", "SemanticEncoder": "networks.encoder",
          "EncoderConfig": "networks.encoder", "NoisyClassifier": "networks.classifier",
          "ClassifierConfig": "networks.classifier", "LatentDPM": "applications.latent",
          "LatentConfig": "applications.latent", "train": "training", "TrainConfig": "training"}

__all__ = ["as_epsilon", "best_device", "load", "shipped", "PDAE", "UNet", "UNetConfig", "GradientEstimator",
           "SemanticEncoder", "EncoderConfig", "NoiseSchedule", *sorted(_MODULES), *_NAMES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    if name in _NAMES:
        return getattr(import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'pdae_lite' has no attribute {name!r}")
