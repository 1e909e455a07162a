"""pdae_lite: pre-trained diffusion models as autoencoders (PDAE, NeurIPS 2022).

    import pdae_lite
    pdae = pdae_lite.load("digits")
    images = pdae_lite.data.digits("test").floats(slice(8))
    z = pdae.encode(images)
    rebuilt = pdae.decode(z, x_T=pdae.invert(images, z))
"""
from importlib import import_module

import torch

from .checkpoint import load, shipped
from .networks.dpm import as_epsilon
from .networks.encoder import EncoderConfig, SemanticEncoder
from .networks.unet import GradientEstimator, UNet, UNetConfig
from .pdae import PDAE
from .schedule import NoiseSchedule

__version__ = "0.2.0"

# Loaded where they are used, so that importing the library costs little more than importing torch.
_MODULES = {name: name for name in (
    "applications", "autoencoder", "belm", "checkpoint", "commands", "counter_rng", "data", "diffae", "evaluation", "guidance", "interop",
    "losses", "metrics", "networks", "presets", "reproduction", "sampling", "speed", "training", "viz")}
_MODULES |= {name: f"applications.{name}" for name in ("attributes", "few_shot", "latent")}
_NAMES = {"train": "training", "TrainConfig": "training", "LatentDPM": "applications.latent", "LatentConfig": "applications.latent",
          "NoisyClassifier": "networks.classifier", "ClassifierConfig": "networks.classifier", "use_accelerator": "meeting"}

__all__ = ["PDAE", "UNet", "UNetConfig", "GradientEstimator", "SemanticEncoder", "EncoderConfig", "NoiseSchedule",
           "as_epsilon", "best_device", "load", "shipped", *sorted(_MODULES), *_NAMES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    if name in _NAMES:
        return getattr(import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'pdae_lite' has no attribute {name!r}")


def best_device() -> torch.device:
    """The accelerator, if there is one, else the CPU; for `load(..., device=device)` and its like. MPS is left out: it has no float64,
    which the book's references need."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if device is None or device.type == "mps" else device
