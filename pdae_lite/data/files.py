"""Your own images, read one by one from a folder of files."""
import errno
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..warning import PDAEWarning
from .items import LeftOut, Unreadable, digest
from .pixels import Crop, Picture, Range, Scale, decode, kind_of, own_range

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
CELEBA64_CROP = (57, 25, 128, 128)  # top, left, height, width in the aligned 218×178 images, as in D2C
LOOK_AT = 64  # deep pictures to decode for a guess at their black and white


class PictureSet(Dataset, ABC):
    """Pictures that are decoded when asked for, each as uint8 [channels, size, size]. One that can't be raises
    `Unreadable`, then and ever after; what takes a data set reads past it. `unreadable`: {index: message}, as found."""

    def __init__(self, count: int, size: int, channels: int, crop: Crop | None = None, background: int = 255,
                 value_range: Range | None = None):
        if size < 1:
            raise ValueError(f"size={size}; want at least 1")
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}; want 1 or 3")
        if crop is not None and (len(crop) != 4 or min(crop) < 0 or min(crop[2:]) < 1):
            raise ValueError(f"crop={crop}; want (top, left, height, width) in pixels")
        self.count, self.size, self.channels, self.crop, self.background = count, size, channels, crop, background
        self.scale = Scale(value_range)
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [channels, size, size]; Unreadable: it can't be decoded."""
        if not -self.count <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        i = int(index) % self.count
        if i in self.unreadable:
            raise Unreadable(self.unreadable[i])
        name = self._name(i)
        try:
            picture = decoded(name, self._open, i)
            value_range = self.scale.of(name, picture)
            square = picture.square(self.channels, self.size, self.crop, self.background, value_range)
        except ValueError as e:
            self.unreadable[i] = str(e) if isinstance(e, Unreadable) else f"{name} ({e})"
            raise Unreadable(self.unreadable[i]) from None
        return torch.from_numpy(square)

    def settle(self, deep: Iterable[int]) -> None:
        """Look at some of the deep pictures, and guess what is black and white in those that don't say it."""
        deep = list(deep)

        def some() -> Iterator[tuple[str, Picture]]:
            for i in deep[:: -(-len(deep) // LOOK_AT)] if deep else ():
                try:
                    picture = decoded(self._name(i), self._open, i, deep_only=True)
                    if picture.kind:
                        picture.extent()
                except ValueError:
                    continue  # told when it is read
                yield self._name(i), picture

        self.scale.settle(some(), str(self))

    def facts(self) -> tuple:
        """What the fingerprints of all kinds hold."""
        return self.crop, self.background, self.scale.value_range, *sorted(self.scale.guesses.items())

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of what the set is made of; see `data.fingerprint`."""

    @abstractmethod
    def _open(self, i: int):
        """Picture i: a path, a binary file, a PIL image or a `Picture`."""

    @abstractmethod
    def _name(self, i: int) -> str:
        """What messages call picture i."""


def decoded(name: str, opener: Callable, *args, deep_only: bool = False) -> Picture:
    """The picture that an opener gives: as a path, a binary file, a PIL image or a `Picture`; see `decode`.

    Raises:
        Unreadable: it can't be opened or decoded.  OSError, MemoryError: the machine is at its limits.
    """
    try:
        source = opener(*args)
        return source if isinstance(source, Picture) else decode(source, deep_only)
    except Exception as e:  # decoders meet damage with errors of any kind
        raise _unreadable(name, e) from None


def _unreadable(name: str, e: Exception) -> Exception:
    """What to raise for an error met in reading a file."""
    of_the_machine = isinstance(e, OSError) and e.errno in (errno.EMFILE, errno.ENFILE)
    return e if of_the_machine or isinstance(e, (MemoryError, Unreadable)) else Unreadable(f"{name} ({_why(e)})")


def read_image(path: str | Path, channels: int, size: int, *, background: int = 255,
               value_range: Range | None = None) -> Tensor:
    """One image file as uint8 [channels, size, size], as training sees it: centre square, antialiased bilinear resize.

    Args:
        channels: 3, or 1 for greyscale.
        background: grey level laid under transparent pixels.
        value_range: the values in the file that become black and white. None: 0 and 255 of 8 bits; for deeper files
            what they say of themselves, or else a guess, which a warning tells.

    Of a TIFF with several pages the first is taken, which a warning tells.

    Raises:
        FileNotFoundError: no such file.  ValueError: not a readable image.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        square = FolderImages([path], path.parent, size, channels, background, value_range)[0]
        with Image.open(path) as image:
            if (pages := _pages(image)) > 1:
                warnings.warn(f"{path}: the first of {pages} pages is taken", PDAEWarning, stacklevel=2)
        return square
    except Unreadable as e:
        why = str(e).removeprefix(str(path))
        raise Unreadable(f"{path}: not a readable image{why}; want PNG, JPEG or another format that Pillow reads"
                         ) from None


def _why(e: BaseException) -> str:
    if "cannot identify image file" in str(e):
        return "not an image of a kind that Pillow reads"
    return getattr(e, "strerror", None) or " ".join(str(e).split()) or type(e).__name__


class FolderImages(PictureSet):
    """What `folder` returns. `paths`: the files, in order."""

    def __init__(self, paths: list[Path], root: Path, size: int, channels: int, background: int = 255,
                 value_range: Range | None = None):
        super().__init__(len(paths), size, channels, None, background, value_range)
        self.paths, self.root = paths, root

    def __str__(self) -> str:
        return str(self.root)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the files' names below the folder and their sizes."""
        names = (part for p in self.paths for part in (p.relative_to(self.root).as_posix(), p.stat().st_size))
        return digest(*self.facts(), *names)

    def _open(self, i: int) -> Path:
        return self.paths[i]

    def _name(self, i: int) -> str:
        return str(self.paths[i])


class FolderClasses(Dataset):
    """(image, label) of a folder with one subfolder for each class, or a ValueError: an image in none. `classes`: their
    names, sorted; label i is the i-th; `labels` of all."""

    def __init__(self, images: FolderImages):
        self.images = images
        parts = [p.relative_to(images.root).parts for p in images.paths]
        if loose := [path for path, names in zip(images.paths, parts) if len(names) == 1]:
            raise ValueError(f"{loose[0]} is in no subfolder; want one for each class")
        self.classes = sorted({names[0] for names in parts})
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([number[names[0]] for names in parts])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    @property
    def fingerprint(self) -> str:
        """That of the folder, whose names hold the labels."""
        return digest("classes", self.images.fingerprint)


def folder(path: str | Path, size: int, channels: int = 3, background: int = 255, verify: bool = False,
           value_range: Range | None = None) -> FolderImages:
    """Every image below a folder, sorted by path, as uint8 [channels, size, size]: centre square, antialiased resize.

    Args:
        path: the folder. Subfolders are searched too, and links followed (not round in circles); not hidden ones.
        channels: 3, or 1 for greyscale; either is made from any kind of file.
        background: grey level laid under transparent pixels.
        verify: decode every file now, not only its header, so that one that is cut short is left out now.
        value_range: the values in the files that become black and white; see `read_image`.

    Files that can't be read are named in a warning and left out.

    Raises:
        FileNotFoundError: no such folder.  ValueError: no readable image in it, or a bad size, channels or value_range.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give one that holds images")
    good, deep, closed = [], [], []
    found = sorted(p for p in _below(path, closed) if p.suffix.lower() in EXTENSIONS)
    left_out, stacks = LeftOut(len(found)), []
    left_out.add(*closed)
    for p in found:
        try:
            with Image.open(p) as image:
                kind, own, pages = kind_of(image), own_range(image), _pages(image)
            if verify:
                decoded(str(p), Path, p)
        except Exception as e:
            if not isinstance(e := _unreadable(str(p), e), Unreadable):
                raise
            left_out.add(str(e))
            continue
        stacks += [p.name] if pages > 1 else []
        deep += [len(good)] if kind and own is None else []
        good.append(p)
    if not good:
        raise ValueError(f"{path} holds no readable image; want files like {', '.join(sorted(EXTENSIONS))}")
    left_out.tell()
    if stacks:
        warnings.warn(f"{len(stacks)} of {len(found)} files hold several pages, of which only the first is taken, such "
                      f"as {stacks[0]}; save them as .npy for data.stack", PDAEWarning, stacklevel=2)
    images = FolderImages(good, path, size, channels, background, value_range)
    images.settle(deep)
    return images


def _pages(image) -> int:
    """Of a TIFF; other formats' further frames are animations and previews."""
    try:
        return image.n_frames if image.format == "TIFF" else 1
    except Exception:  # the table of pages is damaged; the first page may be whole
        return 1


def _below(root: Path, closed: list[str]) -> Iterator[Path]:
    """All files below a folder but hidden ones, by way of links too, if they lead to no folder that holds them. Folders
    that can't be listed go to `closed`."""
    def walk(place: Path, within: tuple) -> Iterator[Path]:
        try:
            stat, inside = place.stat(), sorted(place.iterdir())
        except OSError as e:
            closed.append(f"{place} ({_why(e)})")
            return
        if (here := (stat.st_dev, stat.st_ino)) in within:
            return
        for path in inside:
            if not path.name.startswith("."):
                yield from walk(path, (*within, here)) if os.path.isdir(path) else (path,)

    return walk(root, ())
