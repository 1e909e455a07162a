"""Your own images in an LMDB in the layout of Diff-AE and of the PDAE release."""
import io
import os
import re
from pathlib import Path

from .files import ImageFiles


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
