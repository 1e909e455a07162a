"""Models as self-describing files: configuration and weights, so that a file says how to build what it holds."""
import os
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .schedule import NoiseSchedule
from .storage import PACKED, CheckpointError, atomic_path, read, tensors_digest, to_float32, to_int8, write, write_text

__all__ = ["CheckpointError", "Saved", "Source", "atomic_path", "best_device", "build", "check_references", "describe",
           "keep_by", "keep_shipped", "load", "load_model", "model_file", "read", "save_model", "shipped",
           "shipped_file", "tensors_digest", "write", "write_text"]
ASSETS = Path(__file__).parent / "assets"

# ---- models by name ---------------------------------------------------------------------------------------------

# Where each type is defined. Imported when one is built: everything stands above this file.
TYPES = {"UNet": "networks.unet", "AsEpsilon": "networks.dpm", "BlackBox": "networks.side",
         "NoisyClassifier": "networks.classifier", "SemanticEncoder": "networks.encoder",
         "UNetEncoder": "networks.encoder", "LabelEncoder": "networks.encoder", "PDAE": "pdae", "DiffAE": "diffae",
         "WithClass": "interop.adm", "OnPath": "interop.paths", "DiffusersDPM": "interop.diffusers_dpm",
         "Codec": "interop.codec", "FeatureNet": "metrics.features", "LatentDPM": "applications.latent",
         "LinearProbe": "applications.attributes"}
# What brings the weights that a file left out: name -> state dict.
PLACES = {"shipped": ("checkpoint", "shipped_dpm_weights"), "diffusers": ("interop.diffusers_files", "weights"),
          "codec": ("interop.codec", "weights")}


def _find(module: str, name: str):
    return getattr(import_module(f".{module}", __package__), name)


def describe(model: nn.Module) -> dict:
    """{"type": class name, "config": …}: enough to build the model anew."""
    name = type(model).__name__
    if name not in TYPES:
        raise ValueError(f"{name} can't be saved: it is not one of {', '.join(TYPES)}")
    return {"type": name, "config": model.to_config()}


def build(description: dict) -> nn.Module:
    """The inverse of `describe`; weights are random."""
    name, config = description.get("type"), description.get("config")
    if name == "shipped":  # how version 0.1 referred to the DPM of a shipped PDAE
        model = build(read(shipped_file(config["name"]))[1]["model"]["config"]["dpm"])
        model.source = Source("shipped", config["name"], config["sha256"], by_reference=True)
        return model
    if name not in TYPES:
        raise ValueError(f"model type {name!r}; this version knows {', '.join(TYPES)}")
    return _find(TYPES[name], name).from_config(config)


class Saved(nn.Module):
    """A model with a file of its own: weights and configuration, enough to build it anew.

    By default the configuration is the frozen dataclass `config`, of type `Config`, all that the constructor takes.
    Other models have a `to_config` of their own: the constructor's arguments, models and schedules described."""

    Config: type | None = None
    if TYPE_CHECKING:  # torch says that every attribute is a Tensor or a Module
        def __getattr__(self, name: str) -> Any: ...

    def to_config(self) -> dict:
        """The configuration as JSON-able values."""
        return asdict(self.config)

    @classmethod
    def from_config(cls, config: dict):
        """The inverse of `to_config`; weights are random."""
        if cls.Config is not None:
            return cls(cls.Config(**config))
        return cls(**{name: _made(name, value) for name, value in config.items()})

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def save(self, path: str | os.PathLike, metadata: dict | None = None) -> None:
        """Write one self-describing safetensors file; `metadata` is any JSON-able provenance. Never pickle."""
        save_model(path, self, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str = "cpu"):
        """Read a file written by `save`: float32, in eval mode; `metadata` is an attribute."""
        return load_model(path, expect=cls).to(device)


def _made(name: str, value):
    """An argument of a constructor, from its description."""
    if name == "schedule":
        return NoiseSchedule.from_config(value)
    return build(value) if isinstance(value, dict) and "type" in value else value


def lists_to_tuples(config) -> None:
    """For `__post_init__` of a frozen dataclass: JSON has no tuples."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list):
            object.__setattr__(config, name, tuple(value))


# ---- parts whose weights are elsewhere ----------------------------------------------------------------------------


@dataclass
class Source:
    """Where the weights of a part of a model were read from: its attribute `source`.

    `place`: one of `PLACES`; `name`: of the shipped model, or the folder or hub id; `sha256`: of the weights;
    `by_reference`: a file leaves them out, and they are brought from there when it is read.
    """

    place: str
    name: str
    sha256: str
    by_reference: bool = False

    def check(self, part: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights, if they are those that were read.

        Raises:
            CheckpointError: they aren't.
        """
        found = tensors_digest(weights)
        if found != self.sha256:
            raise CheckpointError(
                f"{part} is kept by reference to {self.place} {self.name!r}, and the weights differ now (SHA-256 "
                f"{found[:12]}…, want {self.sha256[:12]}…); put the old ones back, or keep it by value")
        return weights

    def bring(self, part: str) -> dict[str, Tensor]:
        """The weights, read from there and checked."""
        try:
            weights = _find(*PLACES[self.place])(self.name)
        except (ValueError, KeyError) as e:
            raise CheckpointError(f"{part} is kept by reference to {self.place} {self.name!r}, which can't be read: "
                                  f"{e}") from None
        return self.check(part, weights)


def keep_by(model: nn.Module, how: str) -> None:
    """From now on, files hold the weights of a model's parts by "value", or by "reference" to where they came from.

    Raises:
        ValueError: another word, or "reference" for a model that was read from nowhere.
    """
    sources = [source for _, source in _sources(model)]
    if how not in ("value", "reference"):
        raise ValueError(f"keep {how!r}; want 'value' or 'reference'")
    if how == "reference" and not sources:
        raise ValueError("keep 'reference' is for a DPM that from_diffusers read from a folder or the hub; this one "
                         "was in memory")
    for source in sources:
        source.by_reference = how == "reference"


def keep_shipped(dpm: nn.Module, name: str) -> None:
    """From now on, files of models on this DPM say that it is the shipped model `name`'s, and leave its weights out.

    Raises:
        ValueError: it isn't.
    """
    source = Source("shipped", name, tensors_digest(shipped_dpm_weights(name)), by_reference=True)
    source.check("this DPM", dpm.state_dict())
    dpm.source = source


def references(model: nn.Module) -> dict[str, Source]:
    """The parts that a file leaves out, by their names; "": all of it."""
    return {name: source for name, source in _sources(model) if source.by_reference}


def _sources(model: nn.Module) -> list[tuple[str, Source]]:
    parts = ((name, getattr(part, "source", None)) for name, part in model.named_modules())
    return [(name, source) for name, source in parts if isinstance(source, Source)]


def check_references(model: nn.Module) -> None:
    """Raise a CheckpointError unless the parts that a file leaves out have the weights that they were read with."""
    for name, source in references(model).items():
        source.check(name or "the model", model.get_submodule(name).state_dict())


# ---- what ships -----------------------------------------------------------------------------------------------------


def shipped() -> list[tuple[str, str]]:
    """(data set, kind) of every model file in the package; "dpm" comes with each "pdae"."""
    return sorted(tuple(p.name.removesuffix(PACKED).split("_", 1)) for p in ASSETS.glob(f"*_*{PACKED}"))


def shipped_file(name: str, kind: str = "pdae") -> Path:
    """The file of a model that ships.

    Raises:
        ValueError: nothing of that name and kind ships; the message lists what does.
    """
    path = ASSETS / f"{name}_{'pdae' if kind == 'dpm' else kind}{PACKED}"
    if not path.is_file():
        have = ", ".join(f"{n!r} kind {k!r}" for n, k in shipped()) or "no models"
        raise ValueError(f"no model {name!r} of kind {kind!r} ships with pdae_lite; it has {have}")
    return path


def model_file(name: str) -> Path:
    """The file of a shipped model by one word, such as digits or digits_latent; or a file of that name."""
    shipped = (ASSETS / f"{name}{kind}{PACKED}" for kind in ("_pdae", "") if Path(name).name == name)
    return next((path for path in shipped if path.is_file()), Path(name))


def best_device() -> torch.device:
    """The accelerator, if there is one, else the CPU; for `load(..., device=device)` and its like. MPS is left out: it
    has no float64, which the book's references need."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if device is None or device.type == "mps" else device


def load(name: str, kind: str = "pdae", device: torch.device | str = "cpu") -> nn.Module:
    """A model that ships with the package, in eval mode.

    Args:
        name: the data set, for example "digits".
        kind: "pdae", or "dpm" for the frozen DPM inside it; "features", the network to measure in; "probe", linear
            probes on the PDAE's codes, and "diffae_probe" on the Diff-AE's; `shipped` lists all.
        device: where to put it.

    Raises:
        ValueError: nothing of that name and kind ships; the message lists what does.
    """
    model = load_model(shipped_file(name, kind)).to(device)
    return model.dpm if kind == "dpm" else model


def shipped_dpm_weights(name: str) -> dict[str, Tensor]:
    """The state dict of the frozen DPM in a PDAE that ships."""
    return load(name, "dpm", "cpu").state_dict()


# ---- files --------------------------------------------------------------------------------------------------------


def save_model(path: str | os.PathLike, model: nn.Module, metadata: dict | None = None,
               dtype: torch.dtype | None = None) -> None:
    """One self-describing file. `metadata` is any JSON-able provenance. `dtype` torch.float16 halves the file;
    torch.int8 halves it again, with a scale for each row of each weight matrix, where an error of 1/254 of the row's
    largest weight does no harm."""
    check_references(model)
    elsewhere = references(model)
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith(tuple(map(_prefix, elsewhere)))}
    if dtype == torch.int8:
        tensors = to_int8(tensors)
    elif dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    header = {"model": describe(model), "metadata": metadata or {}}
    if elsewhere:
        header["elsewhere"] = {part: {"place": source.place, "name": source.name, "sha256": source.sha256}
                               for part, source in elsewhere.items()}
    write(path, tensors, header)


def load_model(path: str | os.PathLike, expect: type | None = None) -> nn.Module:
    """The model of a file by `save_model`, float32, in eval mode, on the CPU; `model.metadata` is its provenance.

    Raises:
        CheckpointError: unreadable file, or a model that is not an `expect`.
    """
    tensors, header = read(path)
    if "model" not in header:
        raise CheckpointError(f"{path}: holds a training state, not a model; the model is the *.safetensors beside the "
                              "checkpoints folder")
    try:
        model = build(header["model"])
        for part, source in header.get("elsewhere", {}).items():
            model.get_submodule(part).source = Source(**source, by_reference=True)
        brought = {}
        for part, source in references(model).items():
            brought |= {_prefix(part) + name: v for name, v in source.bring(part or "the model").items()}
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from None
    except (TypeError, KeyError, ValueError) as e:
        raise CheckpointError(f"{path}: made by another version of pdae_lite ({e}); use that version, or make the file "
                              "anew") from None
    if expect is not None and not isinstance(model, expect):
        raise CheckpointError(f"{path}: holds a {type(model).__name__}; want a {expect.__name__}")
    try:
        model.load_state_dict(brought | to_float32(tensors))
    except RuntimeError as e:
        reason = str(e).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: weights don't fit their own configuration ({reason})") from None
    model.metadata = header.get("metadata", {})
    return model.eval()


def _prefix(part: str) -> str:
    return f"{part}." if part else ""
