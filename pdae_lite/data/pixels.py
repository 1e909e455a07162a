"""What the numbers in a picture mean: any picture as 8 bits a channel, upright, opaque, a square.

Most files hold 8 bits, and 0 is black, 255 white. Others hold 16 or 32 bits or floats, and black and white are what the
user says; what the file says (its tags, its bits); or what `guess` makes of the values themselves."""
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..warning import PDAEWarning

Range = tuple[float, float]
Crop = tuple[int, int, int, int]
DEEP = re.compile(r"(LA|RGBX?|RGBA|CMYK);16[BLN]")  # raw modes of 16 bits a channel that Pillow cuts to their upper 8
BITS = (8, 10, 12, 14, 16)  # what instruments give
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Pillow's `Transpose`


@dataclass
class Picture:
    """A decoded picture: `image`, a PIL image of 8 bits a channel; or deeper `values` [H, W, C] of a PIL `mode`. `kind`
    says what the values are, "" for 8 bits; `own_range`, black and white, if the file says them; `alpha`, uint8 [H, W];
    `turn`, the EXIF orientation; `negative`: high values are dark."""

    image: object = None
    values: np.ndarray | None = None
    mode: str = "L"
    kind: str = ""
    own_range: Range | None = None
    alpha: np.ndarray | None = None
    turn: int = 1
    negative: bool = False

    def square(self, channels: int, size: int, crop: Crop | None = None, background: int = 255,
               value_range: Range | None = None) -> np.ndarray:
        """uint8 [channels, size, size]: the centre square (of the crop: top, left, height, width), resized."""
        from PIL import Image

        image = self.image if self.kind == "" else self._eight_bits(value_range)
        image = _flat(image, self.alpha, self.turn, channels, background, value_range if self.kind == "" else None)
        width, height = image.size
        top, left, h, w = (0, 0, height, width) if crop is None else crop
        if top + h > height or left + w > width:
            raise ValueError(f"{height}×{width} pixels, too small for the crop {crop}")
        side = min(h, w)
        x, y = left + (w - side) // 2, top + (h - side) // 2
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
        return np.ascontiguousarray(np.array(image).reshape(size, size, channels).transpose(2, 0, 1))

    def extent(self) -> Range:
        """The least and the greatest value, or a ValueError: NaN or an infinite one."""
        low, high = self.values.min(), self.values.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("holds NaN or infinite values")
        return float(low), float(high)

    def _eight_bits(self, value_range: Range):
        from PIL import Image

        self.extent()
        low, high = value_range
        exact = np.float32 if self.values.dtype.itemsize <= 2 else np.float64
        grey = ((self.values.astype(exact) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
        grey = 255 - grey if self.negative else grey
        return Image.frombytes(self.mode, (grey.shape[1], grey.shape[0]), grey.tobytes())


def kind_of(image) -> str:
    """What an opened PIL image holds, before it is loaded: "" for 8 bits, else a word for messages."""
    if image.mode.startswith("I;16") or DEEP.fullmatch(_raw_mode(image)):
        return "16-bit integers"
    return {"I": "integers", "F": "floats"}.get(image.mode, "")


def own_range(image) -> Range | None:
    """The values of black and white that an opened image of a deep kind states: by its tags, its bits, its format."""
    if image.format == "PPM" and image.mode == "I":  # Pillow spreads any of its ranges over 16 bits
        return 0.0, 65535.0
    tags = getattr(image, "tag_v2", {})
    low, high = (np.ravel(tags.get(tag, np.nan)).astype(float) for tag in (340, 341))  # SMin-, SMaxSampleValue
    if np.isfinite([*low, *high]).all() and low.min() < high.max():
        return float(low.min()), float(high.max())
    bits = _tag(tags, 258, 16)
    return (0.0, 2.0**bits - 1) if 8 < bits < 16 else None


def guess(kind: str, low: float, high: float) -> Range:
    """Black and white for values that run from `low` to `high`, where nothing else says it.

    Whole numbers from 0 on: of 8, 10, 12, 14 or 16 bits, the fewest that hold them. Floats: [0, 1], [−1, 1] or [0,
    255], if they fill at least a quarter of it. Everything else: the values' own extremes."""
    floats = kind == "floats"
    ranges = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)) if floats else [(0.0, 2.0**bits - 1) for bits in BITS]
    fits = (r for r in ranges if r[0] <= low and high <= r[1] and (not floats or max(high, -low) >= r[1] / 4))
    return next(fits, (low, high) if low < high else (low, low + 1))


class Scale:
    """Which values are black and white in the deep pictures of a data set: `value_range`; else what a picture says of
    itself; else one guess for all pictures of a kind, from those that `settle` saw, which a warning tells."""

    def __init__(self, value_range: Range | None = None):
        if value_range is not None:
            value_range = tuple(map(float, value_range))
            if len(value_range) != 2 or not np.isfinite(value_range).all() or value_range[0] >= value_range[1]:
                raise ValueError(f"value_range={value_range}; want (low, high), the values of black and white, low < "
                                 "high")
        self.value_range, self.guesses, self.cut = value_range, {}, False

    def settle(self, pictures: Iterable[tuple[str, Picture]], of: str) -> None:
        """Guess from some of the pictures, (name, picture) each; `of` names them all."""
        extents: dict[str, list] = {}
        for name, picture in pictures:
            if picture.kind and picture.own_range is None and self.value_range is None:
                extents.setdefault(picture.kind, []).append((*picture.extent(), name))
        for kind, seen in extents.items():
            low, high = min(e[0] for e in seen), max(e[1] for e in seen)
            black, white = self.guesses[kind] = guess(kind, low, high)
            if (kind, white) != ("16-bit integers", 65535.0):  # which their own bits say
                some = f" in {len(seen)} of them" if len(seen) > 1 else ""
                warnings.warn(f"{of}: {kind}, such as {seen[0][2]}, that don't say which values are black and white; "
                              f"taking {black:g} and {white:g}, as they run from {low:g} to {high:g}{some}. If that is "
                              "wrong, give value_range=(low, high)", PDAEWarning, stacklevel=4)

    def of(self, name: str, picture: Picture) -> Range | None:
        """Black and white of a picture; None: 0 and 255."""
        if self.value_range is not None or picture.kind == "":
            return self.value_range
        if picture.own_range is not None:
            return picture.own_range
        if picture.kind not in self.guesses:
            alone = Scale()
            alone.settle([(name, picture)], name)
            return alone.guesses[picture.kind]
        (black, white), (low, high) = self.guesses[picture.kind], picture.extent()
        if (low < black or high > white) and not self.cut:
            self.cut = True
            warnings.warn(f"{name}: values run from {low:g} to {high:g}, beyond the {black:g} and {white:g} that were "
                          "taken for black and white, and are cut; give value_range=(low, high)", PDAEWarning,
                          stacklevel=4)
        return black, white


def decode(source, deep_only: bool = False) -> Picture:
    """A picture from a path, a binary file or a PIL image, or whatever Pillow raises for one that it can't decode.
    `deep_only`: one of 8 bits stays undecoded, and empty."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return _decoded(source, None)
    with Image.open(source) as image:
        return Picture() if deep_only and kind_of(image) == "" else _decoded(image, source)


def _decoded(image, source) -> Picture:
    kind, raw = kind_of(image), _raw_mode(image)
    image.load()
    turn = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns TIFFs itself
    clear = image.info.get("transparency")
    if kind == "":
        if isinstance(clear, int):  # Pillow stretches the values to 8 bits, and leaves this one
            image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(raw, 1)
        return Picture(image, turn=turn)
    mode, values, alpha = "L", np.asarray(image)[..., None], None
    if DEEP.fullmatch(raw):
        mode, values, alpha = _sixteen_bits(image, source, raw)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and _tag(tags, 258, 0) == 32 and _tag(tags, 339, 1) == 1:
        values = values.view(np.uint32)  # Pillow reads them as if they had a sign
    if clear is not None:
        alpha = np.where((values == np.reshape(clear, -1)).all(-1), 0, 255).astype(np.uint8)
    return Picture(None, values, mode, kind, own_range(image), alpha, turn, mode == "L" and _tag(tags, 262, 1) == 0)


def _sixteen_bits(image, source, raw: str) -> tuple[str, np.ndarray, np.ndarray | None]:
    """(mode, values [H, W, C], alpha) of 16 bits a channel. Pillow gives upper bytes; in the other byte order, lower.
    """
    from PIL import Image

    def again(other: str) -> np.ndarray:
        if not isinstance(source, str) and hasattr(source, "seek"):
            source.seek(0)
        with Image.open(source) as im:
            im.tile = [t[:3] + (other if isinstance(t[3], str) else (other, *t[3][1:]),) for t in im.tile]
            return np.asarray(im).astype(np.uint16)

    if raw == "LA;16B":  # its four bytes as if they were colours
        a = again("RGBA")
        return "L", a[..., :1] << 8 | a[..., 1:2], a[..., 2].astype(np.uint8)
    upper, name = np.asarray(image), raw[:-1]
    little = raw[-1] == "L" or raw[-1] == "N" and sys.byteorder == "little"
    values = upper.astype(np.uint16) << 8 | again(name + ("B" if little else "L"))
    if image.mode == "RGBA":
        return "RGB", values[..., :3], upper[..., 3]
    return image.mode, values, None


def _flat(image, alpha: np.ndarray | None, turn: int, channels: int, background: int, value_range: Range | None):
    """8 bits as "L" or "RGB": spread over the range, laid over the background, upright."""
    from PIL import Image

    if alpha is not None:
        image = image.convert("RGBA")
        image.putalpha(Image.fromarray(alpha))
    clear = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    if clear or value_range is not None:
        image = image.convert("RGBA" if clear else "L" if image.mode in ("1", "L") else "RGB")
    if value_range is not None:
        low, high = value_range
        table = ((np.arange(256) - low) * (255 / (high - low))).round().clip(0, 255).astype(int).tolist()
        image = image.point(table * min(len(image.getbands()), 3) + (list(range(256)) if clear else []))
    if clear:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (background,) * 3 + (255,)), image)
    if turn in TURNS:
        image = image.transpose(TURNS[turn])
    return image.convert("L" if channels == 1 else "RGB")


def _tag(tags, number: int, default: int) -> int:
    return int(np.ravel(tags.get(number, default))[0])


def _orientation(image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF, which Pillow meets with errors of many kinds; the pixels may be whole
        return 1


def _raw_mode(image) -> str:
    """How the file stores the pixels of an opened image, in Pillow's words; "" if it doesn't say."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""
