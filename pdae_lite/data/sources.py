"""Training data by one word, as the command line takes it."""
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from .builtin import shipped_images
from .files import FolderImages, folder
from .lmdb import lmdb as open_lmdb
from .torchvision_sets import torchvision_set

SYNTAX = "digits, peeps, FOLDER, classes:FOLDER, lmdb:PATH or torchvision:NAME[:ROOT]"


@dataclass(frozen=True)
class LMDBConfig:
    """What to take from an LMDB, and what to cut from its images: see `data.lmdb`."""

    resolution: int | None = None
    start: int = 0
    stop: int | None = None
    crop: tuple[int, int, int, int] | None = None


class FolderClasses(Dataset):
    """(image, label) of a folder with one subfolder for each class. `classes`: their names, sorted; label i is the i-th."""

    def __init__(self, images: FolderImages, root: Path):
        self.images = images
        loose = [p for p in images.paths if p.parent == root]
        if loose:
            raise ValueError(f"{loose[0]} is in no subfolder; classes:FOLDER wants one for each class")
        names = [p.relative_to(root).parts[0] for p in images.paths]
        self.classes = sorted(set(names))
        self.labels = [self.classes.index(name) for name in names]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.images[index], self.labels[index]


def open_source(name: str, size: int, channels: int, download: bool = False, lmdb: LMDBConfig = LMDBConfig(),
                split: str = "train") -> Dataset:
    """The images that `name` stands for, as uint8 [channels, size, size] each.

    Args:
        name: "digits" or "peeps", which ship; "torchvision:mnist" (or cifar10, fashion_mnist, celeba), with ":ROOT" for
            another folder than data/; "lmdb:PATH"; a folder of images; "classes:FOLDER", with a subfolder for each class.
        size, channels: what the model takes. Folders, LMDBs and CelebA are cropped and resized to it, peeps are shrunk to 32
            or 16; the others have one shape.
        download: let torchvision fetch what isn't there.
        split: "train", or "test" for the images held out, of data that come with such: `has_test`.

    Raises:
        ValueError: images of another shape.  FileNotFoundError: no such data.  Both: see `data.folder` and its like.
    """
    kind, colon, rest = name.partition(":")
    if download and kind != "torchvision":
        raise ValueError(f"download, but data {name} are nothing to fetch; it is for torchvision:NAME")
    if name in ("digits", "peeps"):
        images = shipped_images(name, split, size)
    elif kind == "torchvision" and colon:
        known, _, root = rest.partition(":")
        try:
            images = torchvision_set(known, split, root or "data", download, size)
        except RuntimeError as e:  # what torchvision raises when a download fails or a file is damaged
            raise ValueError(f"data {name}: {e}") from None
    elif kind == "lmdb" and colon:
        images = open_lmdb(rest, size, resolution=lmdb.resolution, start=lmdb.start, stop=lmdb.stop, channels=channels, crop=lmdb.crop)
    elif kind == "classes" and colon:
        images = FolderClasses(_folder(rest, size, channels), Path(rest))
    else:
        images = _folder(name, size, channels)
    first = images[0]
    shape = tuple((first[0] if isinstance(first, tuple) else first).shape)
    if shape != (channels, size, size):
        raise ValueError(f"data {name}: images of {'×'.join(map(str, shape))}, but the model takes {channels}×{size}×{size}")
    return images


def has_test(name: str) -> bool:
    """Whether data come with images held out."""
    return name in ("digits", "peeps") or name.startswith("torchvision:")


def names_of(images: Dataset) -> list[str] | tuple[str, ...] | None:
    """The names of a data set's attributes or classes, if it has any."""
    return getattr(images, "attributes", None) or getattr(images, "classes", None)


def count_classes(images: Dataset) -> int:
    """How many classes a data set's labels tell apart.

    Raises:
        ValueError: no labels, or several an image.
    """
    names = getattr(images, "classes", None)
    if names is not None:
        return len(names)
    labels = getattr(images, "labels", None)
    if labels is None or labels.ndim != 1:
        what = "no labels" if labels is None else f"{labels.shape[1]} labels an image"
        raise ValueError(f"the data have {what}; want one class an image, such as digits or classes:FOLDER")
    return int(labels.max()) + 1


def _folder(path: str, size: int, channels: int) -> FolderImages:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"data {path}: no such folder; want {SYNTAX}")
    return folder(path, size, channels)
