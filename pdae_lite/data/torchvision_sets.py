"""Well-known data sets, by torchvision."""
from pathlib import Path

import torch
from torch.utils.data import Dataset

from .builtin import Images
from .files import CELEBA64_CROP, PictureSet
from .items import digest


def torchvision_set(name: str, split: str = "train", root: str | Path = "data", download: bool = False,
                    size: int = 64) -> Dataset:
    """A well-known data set that torchvision can fetch; it is fetched only with `download=True`.

    Args:
        name: "mnist", "fashion_mnist" (padded to 1×32×32 with black), "cifar10" (3×32×32): in memory, as `Images`.
            "celeba": the usual crop 57,25,128,128, resized to `size`; lazy, `labels` int64 [N, 40], `attributes`.
        split: "train" or "test"; CelebA also has "valid".
        root: the folder that holds it, or will hold it.

    Raises:
        ValueError: an unknown name or split.
        FileNotFoundError: the data set isn't in `root`, and `download` wasn't asked for.
    """
    classes = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "celeba": "CelebA"}
    if name not in classes:
        raise ValueError(f"name {name!r}; want one of {', '.join(classes)}")
    splits = ("train", "test") if name != "celeba" else ("train", "valid", "test")
    if split not in splits:
        raise ValueError(f"split {split!r} of {name}; want {' or '.join(map(repr, splits))}")
    from torchvision import datasets

    part = {"split": split} if name == "celeba" else {"train": split == "train"}
    try:
        source = getattr(datasets, classes[name])(str(root), download=download, **part)
    except RuntimeError as e:
        if download:
            raise
        raise FileNotFoundError(f"{name} isn't in {root}, or not whole; give its folder as root, or download=True "
                                f"({e})") from None
    if name == "celeba":
        return TorchvisionCelebA(source, size)
    pixels = torch.as_tensor(source.data)  # [N, 28, 28] or [N, 32, 32, 3]
    flat = pixels.ndim == 3
    pixels = torch.nn.functional.pad(pixels, (2, 2, 2, 2))[:, None] if flat else pixels.permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.as_tensor(source.targets).long())


class TorchvisionCelebA(PictureSet):
    """torchvision's CelebA, cropped as in the literature. `labels` int64 [N, 40], 0 or 1; `attributes` their names."""

    def __init__(self, source, size: int):
        super().__init__(len(source), size, 3, CELEBA64_CROP)
        self.source, self.labels = source, source.attr.long()
        self.attributes = tuple(name for name in source.attr_names if name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the files' names and the labels."""
        return digest(*self.facts(), *self.source.filename, self.labels.numpy().tobytes())

    def _open(self, i: int):
        return self.source[i][0]

    def _name(self, i: int) -> str:
        return f"CelebA image {self.source.filename[i]}"
