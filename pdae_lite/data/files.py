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
                return self._prepare(self._open(i))
            except image_errors() as e:
                self.unreadable.add(i)
                warnings.warn(f"{self._name(i)} can't be read ({e}); skipped", stacklevel=2)
        raise ValueError(f"none of the {self.count} images can be read")

    def _prepare(self, image) -> Tensor:
        from PIL import Image

        image = flatten(image, self.channels, self.background)
        width, height = image.size
        if self.crop is not None:
            top, left, h, w = self.crop
            if top + h > height or left + w > width:
                raise ValueError(f"{height}×{width} pixels, too small for the crop {self.crop}")
        else:
            top, left, h, w = 0, 0, height, width
        side = min(h, w)  # a centre square, resized at one go; Pillow's filters are antialiased
        x, y = left + (w - side) // 2, top + (h - side) // 2
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
        return torch.from_numpy(np.array(image).reshape(self.size, self.size, self.channels)).permute(2, 0, 1).contiguous()

    @abstractmethod
    def _open(self, i: int):
        """Image i as Pillow opens it."""

    @abstractmethod
    def _name(self, i: int) -> str:
        """What messages call image i."""


def flatten(image, channels: int, background: int = 255):
    """Any PIL image as "L" or "RGB": upright by its EXIF tag, 16 bits brought to 8, transparency laid over `background`."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit greyscale; Pillow's own conversion would clip it
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
        warnings.warn(f"{len(bad)} of {len(found)} files can't be read and are skipped: {'; '.join(bad[:10])}{more}", stacklevel=2)
    if not good:
        raise ValueError(f"{path} holds no readable image; want files like {', '.join(sorted(EXTENSIONS))}")
    return FolderImages(good, size, channels, background)


def image_errors() -> tuple[type[BaseException], ...]:
    from PIL import Image

    return OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError  # what Pillow raises on bad files
