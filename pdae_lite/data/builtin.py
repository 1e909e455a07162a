"""The data sets that ship: handwritten digits, drawn faces, and the faces drawn again with one thing changed."""
import io
import lzma

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..checkpoint import ASSETS


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
    """Float in [−1, 1] to uint8 0…255, rounded.

    Raises:
        ValueError: NaN or infinity, for which black or white would stand in.
    """
    if not bool(images.isfinite().all()):
        raise ValueError("the images hold NaN or infinity, which no pixel shows")
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def digits(split: str = "train") -> Images:
    """5,000 handwritten MNIST digits, 500 of each class, 28×28 padded to 1×32×32: "train" (4,500) or "test" (500).

    The card `assets/digits.md` says where they come from and how the split is made. MNIST is CC BY-SA 3.0."""
    arrays = load_arrays("digits.npz.xz")
    images, labels, is_test = arrays["images"], arrays["labels"], arrays["is_test"]
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r}; want 'train' or 'test'")
    chosen = is_test if split == "test" else ~is_test
    padded = np.pad(images[chosen], ((0, 0), (2, 2), (2, 2)))[:, None]
    return Images(torch.from_numpy(padded), torch.from_numpy(labels[chosen].astype(np.int64)))


EDITS = ("glasses", "sunglasses", "facial_hair", "mask", "smile", "hat")


class Faces(Images):
    """Images with binary labels int64 [N, A], a column for each name in `attributes`, and a `pose` float32 [N, 5]:
    rotation in degrees, shift right and down in % of the side, scale, 1 if mirrored."""

    def __init__(self, images: Tensor, labels: Tensor, attributes: tuple[str, ...], pose: Tensor):
        super().__init__(images, labels)
        self.attributes, self.pose = attributes, pose

    def column(self, attribute: str) -> Tensor:
        """The labels of one attribute: int64 [N], 0 or 1."""
        if attribute not in self.attributes:
            raise ValueError(f"attribute {attribute!r}; want one of {', '.join(self.attributes)}")
        return self.labels[:, self.attributes.index(attribute)]


def peeps(split: str = "train", size: int = 64) -> Faces:
    """12,000 drawn faces, 3×64×64, with exact attributes and pose: "train" (10,500), "valid" (500) or "test" (1,000).
    `size` 32, 16, … gives the means of 2×2, 4×4, … pixels.

    Open Peeps by Pablo Stanley, CC0 1.0; the card `assets/peeps.md` says how they are made."""
    if split not in ("train", "valid", "test"):
        raise ValueError(f"split {split!r}; want 'train', 'valid' or 'test'")
    arrays = load_arrays(f"peeps_{split}.npz.xz")
    return Faces(shrunk(_planes(arrays["images"]), size), torch.from_numpy(arrays["labels"].astype(np.int64)),
                 tuple(map(str, arrays["attributes"])), torch.from_numpy(arrays["pose"]))


def peeps_counterfactuals(edit: str, size: int = 64) -> tuple[Tensor, Tensor]:
    """Test faces before and after a true edit: two uint8 [200, 3, size, size]; all else is as it was.

    `edit` is one of `EDITS`. Before "smile" the mouth is sad, before "hat" the hair is short; before the others the
    face is the test image as it is, which lacks the attribute."""
    if edit not in EDITS:
        raise ValueError(f"edit {edit!r}; want one of {', '.join(EDITS)}")
    faces, pairs = load_arrays("peeps_test.npz.xz")["images"], load_arrays("peeps_edits.npz.xz")
    before = faces[pairs[f"{edit}_index"]] + pairs[f"{edit}_before"]  # differences modulo 256
    return shrunk(_planes(before), size), shrunk(_planes(before + pairs[f"{edit}_after"]), size)


def shipped_images(name: str, split: str = "train", size: int | None = None) -> Images:
    """The data set "digits" or "peeps" by its name. `size`: of peeps, which are shrunk to it if it divides 64."""
    if name == "digits":
        return digits(split)
    if name != "peeps":
        raise ValueError(f"name {name!r}; want 'digits' or 'peeps'")
    return peeps(split, size if size and 64 % size == 0 else 64)


def shrunk(images: Tensor, size: int) -> Tensor:
    """uint8 [N, C, 64, 64] to [N, C, size, size]: the mean of each square of pixels, rounded."""
    side = images.shape[-1]
    if size < 1 or side % size:
        raise ValueError(f"size {size} of peeps; want {side} or what divides it: 32, 16, …")
    k = side // size
    pool = torch.nn.functional.avg_pool2d
    return images if k == 1 else torch.cat([pool(x.float(), k).round().to(torch.uint8) for x in images.split(1000)])


def _planes(images: np.ndarray) -> Tensor:
    """[N, H, W, 4] as stored (xz does best on that; the last is 0) to [N, 3, H, W]."""
    return torch.from_numpy(images[..., :3]).permute(0, 3, 1, 2).contiguous()


def load_arrays(name: str) -> dict[str, np.ndarray]:
    path = ASSETS / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the installation is incomplete; install pdae_lite again")
    try:  # decoded at one go: a zip file is read from its end, and xz can't step back
        packed = io.BytesIO(lzma.decompress(path.read_bytes()))
    except (lzma.LZMAError, EOFError) as e:
        raise OSError(f"{path} is damaged ({e}); install pdae_lite again") from None
    with np.load(packed, allow_pickle=False) as arrays:
        return {k: arrays[k] for k in arrays.files}
