"""Reading any data set, item by item. What can't be read is left out, label and all, and told once."""
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Subset

from ..warning import PDAEWarning

NAMED = 10  # files that a warning names


class Unreadable(ValueError):
    """An item of a data set that can't be read; the message names it and says why. `readable` skips such items."""


class LeftOut:
    """What is left out of `total` images: gathered by `add`, told by `tell`, each once."""

    def __init__(self, total: int):
        self.total, self.reasons, self.told = total, {}, 0

    def add(self, *reasons: str) -> None:
        """Messages of `Unreadable`; one that has been added before counts once."""
        self.reasons |= dict.fromkeys(reasons)

    def tell(self) -> None:
        """A `PDAEWarning` with the count of all and the names of those that are new, if there are any."""
        new = list(self.reasons)[self.told:]
        if new:
            self.told = len(self.reasons)
            more = f"; and {len(new) - NAMED} more" if len(new) > NAMED else ""
            warnings.warn(f"{self.told} of {self.total} images can't be read and are left out: "
                          f"{'; '.join(new[:NAMED])}{more}", PDAEWarning, stacklevel=3)


def item(data, i: int) -> tuple[Tensor, object]:
    """(image, label) of item i. An image without a label of its own takes that of the data set's `labels`, if any."""
    found = data[i]
    image, label = (*found, None)[:2] if isinstance(found, (tuple, list)) else (found, None)
    labels = getattr(data, "labels", None)
    return image, labels[i] if label is None and labels is not None else label


def readable(data, indices: Iterable[int] | None = None) -> Iterator[tuple[int, Tensor, object]]:
    """(index, image, label) of each item that can be read, in order; what can't is told once, at the end.

    Args:
        data: a data set of images or of (image, label), or a tensor [N, C, H, W]; see `item` for the label.
        indices: which items, in which order; None: all.

    Raises:
        ValueError: not one of them can be read.
    """
    left_out, count = LeftOut(len(data)), 0
    try:
        for i in range(len(data)) if indices is None else map(int, indices):
            try:
                image, label = item(data, i)
            except Unreadable as e:
                left_out.add(str(e))
                continue
            count += 1
            yield i, image, label
    finally:
        if count or not left_out.reasons:
            left_out.tell()
    if not count and left_out.reasons:
        raise ValueError(f"none of {len(left_out.reasons)} images can be read: {next(iter(left_out.reasons))}")


def in_batches(data, size: int, indices: Iterable[int] | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """(indices int64 [n], images [n, C, H, W], labels or None) of what can be read: `readable`, `size` at a time."""
    found = readable(data, indices)
    while chunk := list(islice(found, size)):
        index, images, labels = zip(*chunk)
        yield torch.tensor(index), *stacked(images, labels)


def stacked(images: Sequence, labels: Sequence) -> tuple[Tensor, Tensor | None]:
    """Images [n, C, H, W] of items, and their labels, if they have any."""
    y = None if labels[0] is None else torch.stack([torch.as_tensor(label) for label in labels])
    return torch.stack([torch.as_tensor(x) for x in images]), y


def fingerprint(data) -> str | None:
    """SHA-256 of what a data set of files is made of: names and sizes, and which values are black and white. None: the
    images are in memory, or another's class reads them."""
    own = getattr(data, "fingerprint", None)
    if own is None and isinstance(data, Subset) and (whole := fingerprint(data.dataset)) is not None:
        return digest(whole, *map(int, data.indices))
    return own


def digest(*parts) -> str:
    """SHA-256 of strings, numbers and bytes, in order."""
    out = hashlib.sha256()
    for part in parts:
        out.update(part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape"))
        out.update(b"\0")
    return out.hexdigest()
