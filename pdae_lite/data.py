"""Data sets: what ships. Images are uint8 [N, C, H, W] in memory; models see float in [−1, 1]."""
import lzma
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

ASSETS = Path(__file__).parent / "assets"


class Images(TensorDataset):
    """A TensorDataset of (uint8 images [N, C, H, W], int64 labels [N]) that also gives floats."""

    def __init__(self, images: Tensor, labels: Tensor):
        super().__init__(images, labels)
        self.images, self.labels = images, labels

    def floats(self, index=slice(None), device="cpu") -> Tensor:
        """Images as float32 in [−1, 1]: [n, C, H, W]."""
        return to_float(self.images[index].to(device))


def to_float(images: Tensor) -> Tensor:
    """uint8 0…255 to float32 in [−1, 1]; floats pass through."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def to_uint8(images: Tensor) -> Tensor:
    """Float in [−1, 1] to uint8 0…255, rounded."""
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def digits(split: str = "train") -> Images:
    """5,000 handwritten MNIST digits, 500 of each class, 28×28 padded to 1×32×32: "train" (4,500) or "test" (500).

    The card `assets/digits.md` says where they come from and how the split is made. MNIST is CC BY-SA 3.0.
    """
    arrays = _load("digits.npz.xz")
    images, labels, is_test = arrays["images"], arrays["labels"], arrays["is_test"]
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r}; want 'train' or 'test'")
    chosen = is_test if split == "test" else ~is_test
    padded = np.pad(images[chosen], ((0, 0), (2, 2), (2, 2)))[:, None]
    return Images(torch.from_numpy(padded), torch.from_numpy(labels[chosen].astype(np.int64)))


def _load(name: str) -> dict[str, np.ndarray]:
    path = ASSETS / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the installation is incomplete; install pdae_lite again")
    with lzma.open(path) as f:
        arrays = np.load(f, allow_pickle=False)
        return {k: arrays[k] for k in arrays.files}
