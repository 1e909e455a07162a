"""Training data by one word, as the command line takes it."""
import re
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from .builtin import Images, shipped_images
from .files import FolderClasses, folder
from .lmdb import lmdb as open_lmdb
from .pixels import Range
from .stack import stack
from .torchvision_sets import torchvision_set

SYNTAX = "digits, peeps, FOLDER, classes:FOLDER, stack:FILE, lmdb:PATH or torchvision:NAME[:ROOT]"


@dataclass(frozen=True)
class LMDBConfig:
    """What to take from an LMDB, and what to cut from its images: see `data.lmdb`."""

    resolution: int | None = None
    start: int = 0
    stop: int | None = None
    crop: tuple[int, int, int, int] | None = None


def open_source(name: str, size: int, channels: int, download: bool = False, lmdb: LMDBConfig = LMDBConfig(),
                split: str = "train", value_range: Range | None = None) -> Dataset:
    """The images that `name` stands for, as uint8 [channels, size, size] each.

    Args:
        name: "digits" or "peeps", which ship; "torchvision:mnist" (or cifar10, fashion_mnist, celeba), with ":ROOT" for
            another folder than data/; "lmdb:PATH"; a folder of images; "classes:FOLDER", with a subfolder for each
            class; "stack:FILE", an .npy or .npz file (or its bare name), with ":KEY" for one array of an .npz.
        size, channels: what the model takes, to which files and CelebA are cropped and resized, and peeps shrunk.
        download: let torchvision fetch what isn't there.
        split: "train", or "test" for the images held out, of data that come with such: `has_test`.
        value_range: of folders, stacks and LMDBs, the values that become black and white: see `data.read_image`.

    Raises:
        ValueError: images of another shape.  FileNotFoundError: no such data.  Both: see `data.folder` and its like.
    """
    kind, colon, rest = name.partition(":")
    if download and kind != "torchvision":
        raise ValueError(f"download, but data {name} are nothing to fetch; it is for torchvision:NAME")
    if value_range is not None and has_test(name):
        raise ValueError(f"value_range={value_range}, but data {name} hold 8 bits; it is for folders, stacks and LMDBs")
    if name in ("digits", "peeps"):
        images = shipped_images(name, split, size)
    elif kind == "torchvision" and colon:
        known, _, root = rest.partition(":")
        try:
            images = torchvision_set(known, split, root or "data", download, size)
        except RuntimeError as e:  # what torchvision raises when a download fails or a file is damaged
            raise ValueError(f"data {name}: {e}") from None
    elif kind == "lmdb" and colon:
        return open_lmdb(rest, size, channels=channels, value_range=value_range, **vars(lmdb))
    elif kind == "stack" and colon or name.lower().endswith((".npy", ".npz")) and not Path(name).is_dir():
        file = rest if kind == "stack" and colon else name
        path, key = re.fullmatch(r"(.*?)(?:(?<=\.npz):([^:]+))?", file, re.DOTALL).groups()
        return stack(path, size, channels, value_range, key)
    else:
        path = rest if kind == "classes" and colon else name
        if not Path(path).is_dir():
            raise FileNotFoundError(f"data {path}: no such folder; want {SYNTAX}")
        images = folder(path, size, channels, value_range=value_range)
        return FolderClasses(images) if kind == "classes" and colon else images
    shape = images.images.shape[1:] if isinstance(images, Images) else (images.channels, images.size, images.size)
    if tuple(shape) != (channels, size, size):
        raise ValueError(f"data {name}: images of {'×'.join(map(str, shape))}, but the model takes "
                         f"{channels}×{size}×{size}")
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
