"""Your own images, read one by one: a folder of files, or an LMDB in the layout of Diff-AE and of the PDAE release.

All are map-style data sets of uint8 [C, size, size]. What can't be read is named in a warning and skipped.
"""
import io
import os
import re
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
            except _image_errors() as e:
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
        except _image_errors() as e:
            bad.append(f"{p} ({e})")
    if bad:
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        warnings.warn(f"{len(bad)} of {len(found)} files can't be read and are skipped: {'; '.join(bad[:10])}{more}", stacklevel=2)
    if not good:
        raise ValueError(f"{path} holds no readable image; want files like {', '.join(sorted(EXTENSIONS))}")
    return FolderImages(good, size, channels, background)


# ---- LMDB -------------------------------------------------------------------------------------------------------------


class LMDBImages(ImageFiles):
    """What `lmdb` returns."""

    def __init__(self, path: Path, prefix: str, digits: int, start: int, stop: int, size: int, channels: int, crop):
        super().__init__(stop - start, size, channels, crop, 255)
        self.path, self.prefix, self.digits, self.start = path, prefix, digits, start

    def key(self, i: int) -> str:
        """The key of image i, such as 256-00042."""
        return f"{self.prefix}-{self.start + i:0{self.digits}d}"

    def _open(self, i: int):
        from PIL import Image

        with _environment(self.path).begin() as transaction:
            value = transaction.get(self.key(i).encode())
        if value is None:
            raise ValueError("no such key")
        with Image.open(io.BytesIO(value)) as image:
            image.load()
            return image

    def _name(self, i: int) -> str:
        return f"{self.path}: {self.key(i)}"


def lmdb(path: str | Path, size: int, *, resolution: int | None = None, start: int = 0, stop: int | None = None,
         channels: int = 3, crop: tuple[int, int, int, int] | None = None) -> LMDBImages:
    """An LMDB of encoded images in the layout of Diff-AE and of the PDAE release, as uint8 [channels, size, size].

    Its keys are `length` and, for each image, its stored resolution and number: 256-00000 (FFHQ, CelebA-HQ), 256-0000000
    (LSUN Horse, Bedroom), None-0000000 (CelebA). Prefix and number of digits are read from the file.

    Args:
        path: the LMDB: a folder with data.mdb, or a single file.
        resolution: which images to take where several resolutions are stored.
        start, stop: a range of the numbers; Diff-AE tests on the first 10,000 of FFHQ and trains on the rest.
        crop: (top, left, height, width) before the resize; CelebA 64×64 wants ``crop=CELEBA64_CROP``.

    Raises:
        FileNotFoundError: no such LMDB.  ImportError: the package lmdb is missing.
        ValueError: another layout, several resolutions and none chosen, or an empty range.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} doesn't exist; give an LMDB with images")
    try:
        transaction = _environment(path).begin()
    except ImportError:
        raise
    except Exception as e:  # lmdb.Error; the package may be missing, so it isn't named
        raise ValueError(f"{path} is not a readable LMDB ({e})") from None
    with transaction:
        length = transaction.get(b"length")
        found = {}
        cursor = transaction.cursor()
        more = cursor.first()
        while more and (match := re.fullmatch(rb"([^-]*)-(\d+)", cursor.key())):
            found[match[1].decode()] = len(match[2])
            more = cursor.set_range(match[1] + b".")  # "." follows "-": on to the next prefix
    if length is None or not found:
        raise ValueError(f"{path} has other keys than Diff-AE's ('length' and, say, '256-00000'); unpack it and use folder(...)")
    if resolution is None and len(found) > 1:
        raise ValueError(f"{path} holds several resolutions: {', '.join(sorted(found))}; choose one with resolution=")
    prefix = next(iter(found)) if resolution is None else str(resolution)
    if prefix not in found:
        raise ValueError(f"resolution={resolution}; {path} holds {', '.join(sorted(found))}")
    length = int(length)
    last = length if stop is None else min(stop, length)
    if not 0 <= start < last:
        raise ValueError(f"start={start}, stop={stop}; want a range within 0 to {length}, the number of images in {path}")
    return LMDBImages(path, prefix, found[prefix], start, last, size, channels, crop)


_OPEN: dict[Path, tuple[int, object]] = {}  # LMDB allows one handle of a file in a process, and none across a fork


def _environment(path: Path):
    """This process's handle of an LMDB, however many data sets read from it."""
    try:
        import lmdb as package
    except ImportError:
        raise ImportError("reading LMDB needs the package lmdb: pip install 'pdae_lite[lmdb]'") from None
    path = path.resolve()
    process, handle = _OPEN.get(path, (None, None))
    if process != os.getpid():
        if handle is not None:
            handle.close()  # a copy from before the fork
        handle = package.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, meminit=False)
        _OPEN[path] = os.getpid(), handle
    return handle


# ---- CelebA by torchvision --------------------------------------------------------------------------------------------


class TorchvisionCelebA(ImageFiles):
    """torchvision's CelebA, cropped as in the literature. `labels` int64 [N, 40], 0 or 1; `attributes` their names."""

    def __init__(self, source, size: int):
        super().__init__(len(source), size, 3, CELEBA64_CROP, 255)
        self.source, self.labels = source, source.attr.long()
        self.attributes = tuple(name for name in source.attr_names if name)

    def _open(self, i: int):
        return self.source[i][0]

    def _name(self, i: int) -> str:
        return f"CelebA image {self.source.filename[i]}"


def _image_errors() -> tuple[type[BaseException], ...]:
    from PIL import Image

    return OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError  # what Pillow raises on bad files
