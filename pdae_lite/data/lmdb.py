"""Your own images in an LMDB in the layout of Diff-AE and of the PDAE release."""
import io
import os
import re
import warnings
from pathlib import Path

import numpy as np

from ..warning import PDAEWarning
from .files import PictureSet
from .items import digest
from .pixels import Range


class LMDBImages(PictureSet):
    """What `lmdb` returns. `numbers`: those of the images in their keys, in order."""

    def __init__(self, path: Path, prefix: str, digits: int, numbers: np.ndarray, size: int, channels: int, crop=None,
                 value_range: Range | None = None):
        super().__init__(len(numbers), size, channels, crop, 255, value_range)
        self.path, self.prefix, self.digits, self.numbers = path, prefix, digits, numbers

    def __str__(self) -> str:
        return str(self.path)

    def key(self, i: int) -> str:
        """The key of image i, such as 256-00042."""
        return f"{self.prefix}-{self.numbers[i]:0{self.digits}d}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the keys."""
        return digest(*self.facts(), self.prefix, self.digits, self.numbers.tobytes())

    def _open(self, i: int):
        with _environment(self.path).begin() as transaction:
            return io.BytesIO(transaction.get(self.key(i).encode()))

    def _name(self, i: int) -> str:
        return f"{self.path}: {self.key(i)}"


def lmdb(path: str | Path, size: int, *, resolution: int | None = None, start: int = 0, stop: int | None = None,
         channels: int = 3, crop: tuple[int, int, int, int] | None = None,
         value_range: Range | None = None) -> LMDBImages:
    """An LMDB of encoded images in the layout of Diff-AE and of the PDAE release, as uint8 [channels, size, size].

    Its keys are `length` and, for each image, its stored resolution and number: 256-00000 (FFHQ, CelebA-HQ),
    256-0000000 (LSUN Horse, Bedroom), None-0000000 (CelebA). If `length` says otherwise, a warning tells.

    Args:
        path: the LMDB: a folder with data.mdb, or a single file.
        resolution: which images to take where several resolutions are stored.
        start, stop: a range of the numbers; Diff-AE tests on the first 10,000 of FFHQ and trains on the rest.
        crop: (top, left, height, width) before the resize; CelebA 64×64 wants ``crop=CELEBA64_CROP``.
        value_range: the values that become black and white; see `data.read_image`.

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
        found: dict[str, list[bytes]] = {}
        for key in transaction.cursor().iternext(keys=True, values=False):
            if match := re.fullmatch(rb"([^-]*)-(\d+)", key):
                found.setdefault(match[1].decode(), []).append(match[2])
    if length is None or not length.isdigit() or not found:
        raise ValueError(f"{path} has other keys than Diff-AE's ('length' and, say, '256-00000'); unpack it and use "
                         "folder(...)")
    if resolution is None and len(found) > 1:
        raise ValueError(f"{path} holds several resolutions: {', '.join(sorted(found))}; choose one with resolution=")
    prefix = next(iter(found)) if resolution is None else str(resolution)
    if prefix not in found:
        raise ValueError(f"resolution={resolution}; {path} holds {', '.join(sorted(found))}")
    numbers, digits = np.sort(np.array(list(map(int, found[prefix])), np.int64)), len(found[prefix][0])
    _compare(path, prefix, numbers, int(length), digits)
    last = int(numbers[-1]) + 1
    chosen = numbers[(numbers >= start) & (numbers < (last if stop is None else stop))]
    if start < 0 or not len(chosen):
        raise ValueError(f"start={start}, stop={stop}; want a range within {numbers[0]} to {last}, the numbers of the "
                         f"images in {path}")
    images = LMDBImages(path, prefix, digits, chosen, size, channels, crop, value_range)
    images.settle(range(len(chosen)))
    return images


def _compare(path: Path, prefix: str, numbers: np.ndarray, length: int, digits: int) -> None:
    """Warn where the keys and `length` tell different stories."""
    first, last = int(numbers[0]), int(numbers[-1])
    gaps = np.setdiff1d(np.arange(first, last + 1), numbers)[:10] if last - first + 1 > len(numbers) else ()
    says = [f"numbered from {first}"] if first else []
    names = ", ".join(f"{prefix}-{i:0{digits}d}" for i in gaps) + (" and others" if len(gaps) == 10 else "")
    says += [f"without {names}"] if names else []
    if length != len(numbers) or says:
        warnings.warn(f"{path}: {len(numbers)} images{', '.join(['', *says])}; its 'length' says {length}", PDAEWarning,
                      stacklevel=3)


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
        handle = package.open(str(path), path.is_dir(), readonly=True, lock=False, readahead=False, meminit=False)
        _OPEN[path] = os.getpid(), handle
    return handle
