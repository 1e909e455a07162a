"""Your own images as one NumPy array in a file, as medicine and microscopy keep them."""
from pathlib import Path

import numpy as np
import torch

from .files import PictureSet
from .items import digest
from .pixels import Picture, Range

PREFERRED = ("images", "train_images", "x_train", "arr_0")  # arrays of an .npz to take where several could be meant


class Stack(PictureSet):
    """What `stack` returns. `array`: [N, H, W, C]; `labels`: int64 [N] or [N, A], if the file holds some."""

    def __init__(self, path: Path, array: np.ndarray, labels: torch.Tensor | None, size: int, channels: int,
                 value_range: Range | None):
        super().__init__(len(array), size, channels, None, 255, value_range)
        self.path, self.array = path, array
        if labels is not None:
            self.labels = labels

    def __str__(self) -> str:
        return str(self.path)

    def __getstate__(self) -> dict:
        """For worker processes: a file that is read image by image is opened again there, not copied."""
        return self.__dict__ | ({"array": None} if isinstance(self.array, np.memmap) else {})

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.array is None:
            self.array = _channels_last(self.path, np.load(self.path, mmap_mode="r", allow_pickle=False))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of shape and type, and of nine of the images."""
        some = np.linspace(0, len(self.array) - 1, 9).astype(int)
        return digest(*self.facts(), self.array.shape, self.array.dtype.str, *(self.array[i].tobytes() for i in some))

    @property
    def guessed_range(self) -> Range | None:
        """The guess at the values of black and white, which holds for all images; None: none was needed."""
        return next(iter(self.scale.guesses.values()), None)

    def _open(self, i: int) -> Picture:
        from PIL import Image

        values = np.ascontiguousarray(self.array[i])
        mode = "L" if values.shape[-1] == 1 else "RGB"
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * 255
        if values.dtype == np.uint8:
            return Picture(Image.frombytes(mode, values.shape[1::-1], values.tobytes()))
        kind = {"u2": "16-bit integers"}.get(values.dtype.str[1:], "floats" if values.dtype.kind == "f" else "integers")
        return Picture(None, values, mode, kind)

    def _name(self, i: int) -> str:
        return f"{self.path}[{i}]"


def stack(path: str | Path, size: int, channels: int = 3, value_range: Range | None = None,
          key: str | None = None) -> Stack:
    """The images of an .npy or .npz file as uint8 [channels, size, size]: centre square, antialiased resize.

    An .npy file is read image by image when they are asked for, however large it is; an .npz at one go. An image with
    NaN or infinite values raises `Unreadable`.

    Args:
        path: an array [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3, of bool, integers or floats.
        channels: 3, or 1 for greyscale; either is made from either.
        value_range: the values that become black and white, such as (-160, 240) for soft tissue in CT. None: 0 and 255
            of uint8; otherwise a guess from some of the images, which a warning tells.
        key: which array of an .npz; None: the one that holds images, or the first of "images", "train_images",
            "x_train", "arr_0". Labels come from "labels", "train_labels" …, or "y…" for "x…".

    Raises:
        FileNotFoundError: no such file.  ValueError: no NumPy file, no such array, or not one of images.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        opened = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as e:  # a zip file or a header can be damaged in many ways
        raise ValueError(f"{path} is not a readable .npy or .npz file ({_line(e)})") from None
    single = isinstance(opened, np.ndarray)
    if single and key is not None:
        raise ValueError(f"key={key!r}, but {path} is an .npy file, which holds one array")
    array, labels = (opened, None) if single else _of_several(path, opened, key)
    images = Stack(path, _channels_last(path, array), labels, size, channels, value_range)
    images.settle(() if images.array.dtype in (np.uint8, np.bool_) else range(len(images)))
    return images


def _line(e: Exception) -> str:
    return " ".join(str(e).split()) or type(e).__name__


def _of_several(path: Path, opened, key: str | None) -> tuple[np.ndarray, torch.Tensor | None]:
    with opened:
        try:
            arrays = {name: opened[name] for name in ([key] if key in opened.files else opened.files)}
        except Exception as e:  # a zip file can be damaged in many ways, or hold objects
            raise ValueError(f"{path} can't be read ({_line(e)})") from None
        able = [name for name, a in arrays.items() if a.ndim in (3, 4)]
        if key is None:
            key = able[0] if len(able) == 1 else next((name for name in PREFERRED if name in able), None)
        if key not in able:
            raise ValueError(f"{path} holds {', '.join(opened.files) or 'nothing'}; choose an array of images by key=")
        name = "y" + key[1:] if key.startswith("x") else "labels"
        name = key.replace("images", "labels") if "images" in key else name
        labels = opened[name] if name in opened.files and name != key else None
    if labels is None or len(labels) != len(arrays[key]) or labels.dtype.kind not in "biu" or labels.ndim > 2:
        return arrays[key], None
    labels = torch.from_numpy(labels.astype(np.int64))
    return arrays[key], labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _channels_last(path: Path, array: np.ndarray) -> np.ndarray:
    """[N, H, W, C]."""
    shape, want = list(array.shape), "want [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3, N at least 1"
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {array.dtype}; want numbers")
    if array.ndim == 3 and shape[-1] not in (3, 4) and 0 not in shape:
        return array[..., None]
    if array.ndim == 4 and 0 not in shape:
        last, first = shape[3] in (1, 3), shape[1] in (1, 3)
        if last and first and shape[1:] != [1, 1, 1]:
            raise ValueError(f"{path} has shape {shape}, in which channels may come first or last; {want}")
        if last or first:
            return array if last else np.moveaxis(array, 1, -1)
    raise ValueError(f"{path} has shape {shape}; {want}")
