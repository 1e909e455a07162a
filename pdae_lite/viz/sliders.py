"""Static sliders: precomputed frames behind a native range input. Part of `viz`, which is the module to import."""
import base64
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.builtin import ASSETS, to_uint8

CARD = "#FBFAF7"  # the light card that every figure stands on


def pixels_of(images: Tensor, name: str = "images") -> Tensor:
    """uint8 [N, C, H, W] on the CPU, of floats in [−1, 1] (clamped) or of uint8.

    Raises:
        ValueError: another shape or type; `name` is what the message calls it.
    """
    if not torch.is_tensor(images) or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        shape = list(images.shape) if torch.is_tensor(images) else type(images).__name__
        raise ValueError(f"{name}: {shape}; want a tensor [N, C, H, W] with C 1 or 3 and N at least 1")
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise ValueError(f"{name}: dtype {images.dtype}; want floats in [-1, 1], or uint8")
    return images.cpu() if images.dtype == torch.uint8 else to_uint8(images.cpu())


def tile(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Images [N, C, H, W] side by side as one: uint8 [C, h, w], row by row, `gap` pixels of card colour between them.

    Floats are taken as [−1, 1] and clamped. `columns` None: all in one row."""
    pixels = pixels_of(images)
    n, c, h, w = pixels.shape
    columns = n if columns is None else min(columns, n)
    rows = math.ceil(n / columns)
    sheet = torch.full((c, rows * (h + gap) - gap, columns * (w + gap) - gap), 250, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        sheet[:, y : y + h, x : x + w] = image
    return sheet


def _png(frame) -> tuple[bytes, int, int, bool]:
    """PNG bytes, width and height in pixels, and whether pixels may be drawn as squares."""
    from PIL import Image

    out = io.BytesIO()
    if isinstance(frame, Figure):  # no tight bounding box: all frames must be of one size
        frame.savefig(out, format="png", dpi=120, facecolor=CARD, metadata={"Software": None})
        image = Image.open(out).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    else:
        pixels = frame.numpy()
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue(), *image.size, not isinstance(frame, Figure)


@dataclass(frozen=True)
class Slider:
    """What `slider` returns: displays itself as HTML."""

    id: str
    labels: tuple[str, ...]
    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def slider(frames: Tensor | Sequence[Tensor | Figure], labels: Sequence[object], *, id: str, label: str, alt: str,
           scale: float | None = None, start: int = 0, columns: int | None = None, caption: str = "") -> Slider:
    """Precomputed frames behind a native range input: works in the built page without kernel, network or library. With
    JavaScript off, the frames show as a strip. The same input gives the same HTML.

    Args:
        frames: images [F, C, H, W]; or F grids [n, C, H, W], each drawn as one picture, `columns` wide (None: one row);
            or F matplotlib figures of one size. Floats in [−1, 1] (clamped) or uint8.
        labels: F short texts or numbers, shown beside the slider as it moves, such as "t = 500".
        id: a fixed name, unique on its page: letters, digits, "-" and "_".
        label: what the slider changes, such as "timestep t".
        alt: what the pictures show, for those who can't see them; the frame's label is added to it.
        scale: screen pixels per image pixel; None: as large as fits in 680×256 (figures: as they are).
        start: the frame shown first.
        caption: words to show under it.

    Raises:
        ValueError: no frames, frames of different sizes, a wrong number of labels, or an id that can't be one.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", id, re.ASCII):
        raise ValueError(f"id {id!r}; want a letter, then letters, digits, '-' or '_'")
    if len(frames) != len(labels) or not len(frames):
        raise ValueError(f"{len(frames)} frames and {len(labels)} labels; want as many labels as frames, at least one")
    if not 0 <= start < len(frames):
        raise ValueError(f"start={start}; want 0 … {len(frames) - 1}")
    if not label.strip() or not alt.strip():
        raise ValueError("label or alt is empty; want texts: what the slider changes, what the pictures show")
    if torch.is_tensor(frames):
        frames = [image[None] for image in pixels_of(frames, "frames")]
    pictures = [_png(f if isinstance(f, Figure) else tile(pixels_of(f, "a frame"), columns)) for f in frames]
    if len({p[1:3] for p in pictures}) > 1:
        raise ValueError(f"frames of different sizes: {sorted({p[1:3] for p in pictures})}; want one size")
    _, width, height, pixels = pictures[0]
    shown = (max(1, min(256 // height, 680 // width)) if pixels else 100 / 120) if scale is None else scale
    texts = [html.escape(str(x)) for x in labels]
    sharp = ' class="pixels"' if pixels and shown >= 1 else ""
    size = f'width="{round(width * shown)}" height="{round(height * shown)}"{sharp}'
    figures = "\n".join(
        f'<figure{" class=on" if i == start else ""}><img {size} alt="{html.escape(alt)}; {text}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"><figcaption>{text}</figcaption></figure>'
        for i, ((png, *_), text) in enumerate(zip(pictures, texts)))
    under = f'<p class="pdae-caption">{html.escape(caption)}</p>' if caption else ""
    return Slider(id, tuple(map(str, labels)), f"""<div class="pdae-slider" id="{id}">
<style>
{(ASSETS / "slider.css").read_text()}</style>
<div class="frames">
{figures}
</div>
<div class="controls"><label for="{id}-range">{html.escape(label)}</label>
<input type="range" id="{id}-range" min="0" max="{len(texts) - 1}" step="1" value="{start}" autocomplete="off">
<output id="{id}-output" for="{id}-range">{texts[start]}</output></div>
<script>
{(ASSETS / "slider.js").read_text().replace("SLIDER-ID", id)}</script>{under}
</div>""")
