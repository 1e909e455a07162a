"""Your own images, read one by one from a folder of files.

All are map-style data sets of uint8 [C, size, size]. What can't be read is named in a warning and skipped.
"""
import warnings
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..warning import PDAEWarning

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
CELEBA64_CROP = (57, 25, 128, 128)  # top, left, height, width in the aligned 218×178 images: the crop of D2C, used since


class ImageFiles(Dataset, ABC):
    """Images that are decoded when asked for. A subclass gives the number of images, `_open(i)` and `_name(i)`.

    An image that turns out to be unreadable is named in a warning, once; the next readable one stands in for it, so the
    length and every other index stay as they are.
    """

    def __init__(self, count: int, size: int, channels: int, crop: tuple[int, int, int, int] | None, background: int):
        if size < 1:
            raise ValueError(f"size={size}; want at least 1")
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}; want 1 or 3")
        if crop is not None and (len(crop) != 4 or min(crop) < 0 or min(crop[2:]) < 1):
            raise ValueError(f"crop={crop}; want (top, left, height, width) in pixels")
        self.count, self.size, self.channels, self.crop, self.background = count, size, channels, crop, background
        self.unreadable: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [C, size, size]."""
        index = int(index)
        if not -self.count <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        for i in ((index + k) % self.count for k in range(self.count)):
            if i in self.unreadable:
                continue
            try:
                return prepare(self._open(i), self.channels, self.size, self.crop, self.background)
            except image_errors() as e:
                self.unreadable.add(i)
                warnings.warn(f"{self._name(i)} can't be read ({e}); skipped", PDAEWarning, stacklevel=2)
        raise ValueError(f"none of the {self.count} images can be read")

    @abstractmethod
    def _open(self, i: int):
        """Image i as Pillow opens it."""

    @abstractmethod
    def _name(self, i: int) -> str:
        """What messages call image i."""


def prepare(image, channels: int, size: int, crop: tuple[int, int, int, int] | None = None, background: int = 255,
            value_range: tuple[float, float] | None = None) -> Tensor:
    """uint8 [channels, size, size] of any PIL image: its centre square (of the crop), resized at one go, antialiased."""
    from PIL import Image

    image = flatten(image, channels, background, value_range)
    width, height = image.size
    top, left, h, w = (0, 0, height, width) if crop is None else crop
    if top + h > height or left + w > width:
        raise ValueError(f"{height}×{width} pixels, too small for the crop {crop}")
    side = min(h, w)
    x, y = left + (w - side) // 2, top + (h - side) // 2
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))  # Pillow's filters are antialiased
    return torch.from_numpy(np.array(image).reshape(size, size, channels)).permute(2, 0, 1).contiguous()


def read_image(path: str | Path, channels: int, size: int, *, background: int = 255,
               value_range: tuple[float, float] | None = None) -> Tensor:
    """One image file as uint8 [channels, size, size], as training sees it: centre square, antialiased bilinear resize.

    Args:
        channels: 3, or 1 for greyscale.
        background: grey level laid under transparent pixels.
        value_range: the values in the file that become black and white; None: what the file's kind says.

    Raises:
        FileNotFoundError: no such file.  ValueError: not a readable image.
    """
    from PIL import Image

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with Image.open(path) as image:
            return prepare(image, channels, size, None, background, value_range)
    except image_errors() as e:
        raise ValueError(f"{path}: not a readable image ({e}); want PNG, JPEG or another format that Pillow reads") from None


def flatten(image, channels: int, background: int = 255, value_range: tuple[float, float] | None = None):
    """Any PIL image as "L" or "RGB": upright by its EXIF tag, 16 bits brought to 8, transparency laid over `background`."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if value_range is not None and image.mode[0] in "IF":
        low, high = value_range
        image = Image.fromarray(((np.asarray(image, np.float64) - low) * 255 / (high - low)).clip(0, 255).round().astype(np.uint8))
    elif image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, (background,) * 3 + (255,))
        image = Image.alpha_composite(below, image)
    return image.convert("L" if channels == 1 else "RGB")


# ---- a folder ---------------------------------------------------------------------------------------------------------


class FolderImages(ImageFiles):
    """What `folder` returns. `paths`: the files, in order."""

    def __init__(self, paths: list[Path], size: int, channels: int, background: int):
        super().__init__(len(paths), size, channels, None, background)
        self.paths = paths

    def _open(self, i: int):
        from PIL import Image

        with Image.open(self.paths[i]) as image:
            image.load()
            return image

    def _name(self, i: int) -> str:
        return str(self.paths[i])


def folder(path: str | Path, size: int, channels: int = 3, background: int = 255, verify: bool = False) -> FolderImages:
    """Every image below a folder, sorted by path, as uint8 [channels, size, size]: centre square, antialiased resize.

    Args:
        path: the folder; subfolders are searched too, hidden files are not. Other files than images are ignored.
        channels: 3, or 1 for greyscale; either is made from any kind of file.
        background: grey level laid under transparent pixels.
        verify: decode every file now. Otherwise now only their headers are read, and a file that is cut short shows
            when its turn comes.

    Unreadable files are named in a warning and left out.

    Raises:
        FileNotFoundError: no such folder.  ValueError: no readable image in it, or a bad size or channels.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give one that holds images")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file())
    good, bad = [], []
    for p in found:
        try:
            with Image.open(p) as image:
                if verify:
                    image.load()
            good.append(p)
        except image_errors() as e:
            bad.append(f"{p} ({e})")
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        warnings.warn(f"{len(bad)} of {len(found)} files can't be read and are skipped: {'; '.join(bad[:10])}{more}",
                      PDAEWarning, stacklevel=2)
    if not good:
        raise ValueError(f"{path} holds no readable image; want files like {', '.join(sorted(EXTENSIONS))}")
    return FolderImages(good, size, channels, background)


def image_errors() -> tuple[type[BaseException], ...]:
    from PIL import Image

    return OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError  # what Pillow raises on bad files
