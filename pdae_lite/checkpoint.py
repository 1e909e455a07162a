"""Self-describing files: safetensors with the configuration and a checksum in the header, written atomically."""
import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

FORMAT = "pdae_lite/1"


class CheckpointError(ValueError):
    """A file that can't be read as what it should be; the message names the file and the cure."""


# ---- models by name ---------------------------------------------------------------------------------------------


def _model_types() -> dict[str, type]:
    from .applications.attributes import LinearProbe
    from .applications.latent import LatentDPM
    from .diffae import DiffAE
    from .interop.diffusers_unet import DiffusersDPM
    from .metrics.features import FeatureNet
    from .networks.classifier import NoisyClassifier
    from .networks.dpm import AsEpsilon
    from .networks.encoder import LabelEncoder, SemanticEncoder, UNetEncoder
    from .networks.unet import UNet
    from .pdae import PDAE

    return {cls.__name__: cls for cls in (UNet, AsEpsilon, SemanticEncoder, UNetEncoder, LabelEncoder, PDAE, DiffAE,
                                         NoisyClassifier, DiffusersDPM, FeatureNet, LatentDPM, LinearProbe)}


def describe(model: nn.Module) -> dict:
    """{"type": class name, "config": …}: enough to build the model anew."""
    if hasattr(model, "shipped_with"):
        return {"type": "shipped", "config": {"name": model.shipped_with, "sha256": tensors_digest(model.state_dict())}}
    name = type(model).__name__
    if name not in _model_types():
        raise ValueError(f"{name} can't be saved: it is not one of {', '.join(_model_types())}")
    return {"type": name, "config": model.to_config()}


def build(description: dict) -> nn.Module:
    """The inverse of `describe`; weights are random, but of a part that is kept elsewhere."""
    if description.get("type") == "shipped":
        return _shipped_dpm(**description["config"])
    types = _model_types()
    if description.get("type") not in types:
        raise ValueError(f"model type {description.get('type')!r}; this version knows {', '.join(types)}")
    return types[description["type"]].from_config(description["config"])


def keep_shipped(dpm: nn.Module, name: str) -> None:
    """From now on, a file of a model on this DPM says that it is the shipped model `name`'s, and leaves its weights out.

    Raises:
        ValueError: it isn't.
    """
    from . import load

    if tensors_digest(dpm.state_dict()) != tensors_digest(load(name, "dpm").state_dict()):
        raise ValueError(f"this DPM isn't that of the shipped model {name!r}")
    dpm.shipped_with, dpm.weights_elsewhere = name, True


def _shipped_dpm(name: str, sha256: str) -> nn.Module:
    from . import load

    dpm = load(name, "dpm")
    if tensors_digest(dpm.state_dict()) != sha256:
        raise CheckpointError(f"it was trained on the DPM of another {name!r} model than this version of pdae_lite ships; "
                              "use the version that it came with")
    dpm.shipped_with, dpm.weights_elsewhere = name, True
    return dpm


# ---- files --------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: str | os.PathLike):
    """A temporary path beside `path`, renamed to it on success: readers see the old file or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """A text file, written atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write(path: str | os.PathLike, tensors: dict[str, Tensor], header: dict) -> None:
    """Tensors and a JSON header as one safetensors file, with a SHA-256 of both."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    # One metadata entry: safetensors orders several at random, and equal files should have equal bytes.
    meta = {FORMAT: json.dumps({"header": text, "sha256": tensors_digest(tensors, text)})}
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata=meta))


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """The inverse of `write`.

    Raises:
        CheckpointError: missing, truncated, foreign or damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as f:
            meta = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, OSError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{path}: not a complete safetensors file ({str(e).splitlines()[0]}); copy or train it again") from None
    if FORMAT not in meta:
        raise CheckpointError(f"{path}: not a {FORMAT} file, but one with {', '.join(sorted(meta)) or 'no'} metadata; "
                              "files of other projects are read by pdae_lite.interop")
    try:
        meta = json.loads(meta[FORMAT])
        header, digest = meta["header"], meta["sha256"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: the header is damaged; copy or train it again") from None
    if digest != tensors_digest(tensors, header):
        raise CheckpointError(f"{path}: checksum mismatch, the file is damaged; copy or train it again")
    return tensors, json.loads(header)


def tensors_digest(tensors: dict[str, Tensor], header: str = "") -> str:
    """SHA-256 of tensors (on the CPU), with their names and shapes, and of a text."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")
    return digest.hexdigest()


def _elsewhere(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the tensors that a file leaves out, because `build` brings them: a DPM that is kept by reference."""
    return tuple(f"{name}." if name else "" for name, part in model.named_modules() if getattr(part, "weights_elsewhere", False))


def save_model(path: str | os.PathLike, model: nn.Module, metadata: dict | None = None, dtype: torch.dtype | None = None) -> None:
    """One self-describing file. `dtype` torch.float16 halves it; torch.int8 halves it again, with a scale for each row of each
    weight matrix, where a relative error of 1/254 of the row's largest weight does no harm. `metadata` is any JSON-able provenance."""
    outside = _elsewhere(model)
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith(outside)}
    if dtype == torch.int8:
        tensors = _to_int8(tensors)
    elif dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    write(path, tensors, {"model": describe(model), "metadata": metadata or {}})


def load_model(path: str | os.PathLike, expect: type | None = None) -> nn.Module:
    """The model of a file written by `save_model`, float32, in eval mode, on the CPU; `model.metadata` is its provenance.

    Raises:
        CheckpointError: unreadable file, or a model that is not an `expect`.
    """
    tensors, header = read(path)
    if "model" not in header:
        raise CheckpointError(f"{path}: holds a training state, not a model; the model is the *.safetensors beside the checkpoints folder")
    try:
        model = build(header["model"])
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from None
    except (TypeError, KeyError, ValueError) as e:
        raise CheckpointError(f"{path}: made by another version of pdae_lite ({e}); use that version, or make the file anew") from None
    if expect is not None and not isinstance(model, expect):
        raise CheckpointError(f"{path}: holds a {type(model).__name__}; want a {expect.__name__}")
    try:
        outside = _elsewhere(model)
        own = {k: v for k, v in model.state_dict().items() if k.startswith(outside)}
        model.load_state_dict(own | _to_float32(tensors))
    except RuntimeError as e:
        raise CheckpointError(f"{path}: weights don't fit their own configuration ({str(e).splitlines()[-1].strip()})") from None
    model.metadata = header.get("metadata", {})
    return model.eval()


_SCALE = ".int8_scale"


def _to_int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 and float32 scales, a row (an output channel) each; biases and the like as float16."""
    out = {}
    for name, v in tensors.items():
        if v.is_floating_point() and v.ndim > 1:
            scale = v.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            out[name] = (v / scale.view(-1, *[1] * (v.ndim - 1))).round().to(torch.int8)
            out[name + _SCALE] = scale
        else:
            out[name] = v.half() if v.is_floating_point() else v
    return out


def _to_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, v in tensors.items():
        scale = tensors.get(name + _SCALE)
        if scale is not None:
            v = v * scale.view(-1, *[1] * (v.ndim - 1))
        if not name.endswith(_SCALE):
            out[name] = v.float() if v.is_floating_point() else v
    return out
