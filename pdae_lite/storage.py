"""Tensors and a JSON header as one safetensors file, with a checksum, written atomically."""
import hashlib
import json
import lzma
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

FORMAT = "pdae_lite/1"
PACKED = ".safetensors.xz"  # how the name of a file ends that holds what `pack` gives


class CheckpointError(ValueError):
    """A file that can't be read as what it should be; the message names the file and the cure."""


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
    """A text file, written atomically. What UTF-8 lacks (in file names of other encodings) is escaped, as in JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write(path: str | os.PathLike, tensors: dict[str, Tensor], header: dict) -> None:
    """Tensors and a JSON header as one safetensors file, with a SHA-256 of both; packed if `path` ends in `PACKED`."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    # One metadata entry: safetensors orders several at random, and equal files should have equal bytes.
    meta = {FORMAT: json.dumps({"header": text, "sha256": tensors_digest(tensors, text)})}
    data = to_bytes(tensors, metadata=meta)
    with atomic_path(path) as temporary:
        temporary.write_bytes(pack(data) if is_packed(path) else data)


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """The inverse of `write`.

    Raises:
        CheckpointError: missing, truncated, foreign or damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        meta, tensors = _contents(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, lzma.LZMAError, EOFError) as e:
        reason = str(e).splitlines()[0]
        raise CheckpointError(f"{path}: not a complete safetensors file ({reason}); copy or train it again") from None
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


def _contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file."""
    try:
        str(path).encode()
        by_name = not is_packed(path)
    except UnicodeEncodeError:  # a name that isn't UTF-8, which safetensors can't open
        by_name = False
    if not by_name:
        data = contents(path)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return header.get("__metadata__", {}), from_bytes(data)
    with safe_open(path, framework="pt") as f:
        return f.metadata() or {}, {k: f.get_tensor(k) for k in f.keys()}


def is_packed(path: str | os.PathLike) -> bool:
    """Whether a file is one that `pack` made smaller, by its name."""
    return os.fspath(path).endswith(PACKED)


def pack(data: bytes) -> bytes:
    """xz of the even bytes, then the odd ones: the high bytes of float16 apart, as only they have something to save."""
    return lzma.compress(data[::2] + data[1::2])


def unpack(packed: bytes) -> bytes:
    """The inverse of `pack`."""
    apart = lzma.decompress(packed)
    half, data = (len(apart) + 1) // 2, bytearray(len(apart))
    data[::2], data[1::2] = apart[:half], apart[half:]
    return bytes(data)


def contents(path: str | os.PathLike) -> bytes:
    """The bytes of a file; of a packed one, those that were packed."""
    data = Path(path).read_bytes()
    return unpack(data) if is_packed(path) else data


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file; of a packed one, of what was packed."""
    if is_packed(path):
        return hashlib.sha256(contents(path)).hexdigest()
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def tensors_digest(tensors: dict[str, Tensor], header: str = "") -> str:
    """SHA-256 of tensors, with their names and shapes, and of a text."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")
    return digest.hexdigest()


_SCALE = ".int8_scale"


def to_int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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


def to_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whatever a file holds, `to_int8`'s too, as float32."""
    out = {}
    for name, v in tensors.items():
        scale = tensors.get(name + _SCALE)
        if scale is not None:
            v = v * scale.view(-1, *[1] * (v.ndim - 1))
        if not name.endswith(_SCALE):
            out[name] = v.float() if v.is_floating_point() else v
    return out
