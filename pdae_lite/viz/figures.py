"""One visual language for the whole book: a colour per method, image grids, curves, live explorers. Figures sit on a
light card of their own, so that they read the same on a light and on a dark page."""
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .notebook import caption as show_caption
from .notebook import display
from .sliders import CARD, Slider, pixels_of

# One colour per method: told apart with any common colour vision, and at least 3:1 against a white and a near-black
# page alike. Methods also differ in dash pattern, for print and for eyes that see no colour.
COLORS = {
    "dpm": "#8C909A",         # the frozen, pre-trained DPM alone
    "pdae": "#1A8ED9",        # the DPM shifted by z
    "diffae": "#D91A0D",      # Diff-AE, trained from scratch
    "linear": "#2B7252",      # the linear-Gaussian reference
    "classifier": "#BC049B",  # classifier guidance
    "conditional": "#7651EA",  # a DPM that is told the class
    "data": "#A18C4F",        # the data, the truth
}
DASHES = {"dpm": (0, (5, 2)), "linear": (0, (1, 1.2)), "diffae": (0, (6, 1.5, 1.5, 1.5)), "classifier": (0, (3, 1.5)),
          "conditional": (0, (8, 2)), "data": (0, (1, 2.5))}
NAMES = {"dpm": "DPM alone", "pdae": "PDAE", "diffae": "Diff-AE", "linear": "linear-Gaussian reference",
         "classifier": "classifier guidance", "conditional": "conditional DPM", "data": "data"}
INK, FAINT = "#22262B", "#DAD7D0"

RC = {
    "figure.facecolor": CARD, "savefig.facecolor": CARD, "axes.facecolor": CARD, "figure.dpi": 120, "savefig.dpi": 120,
    "figure.figsize": (6.4, 3.6), "figure.constrained_layout.use": True, "image.cmap": "gray",
    "image.interpolation": "nearest",
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": INK, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.titlelocation": "left",
    "font.size": 10.5, "axes.titlesize": 11.5, "legend.frameon": False, "lines.linewidth": 2.0,
    "axes.prop_cycle": mpl.cycler(color=list(COLORS.values())),
}


def style() -> None:
    """Use the book's look for every figure from here on."""
    mpl.rcParams.update(RC)


@contextmanager
def styled(**more) -> Iterator[None]:
    """The book's look for the figures made inside."""
    before = {k: mpl.rcParams[k] for k in RC | more}  # `rc_context` would also undo the notebook's interactive mode
    mpl.rcParams.update(RC | more)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def image_figure(images: Tensor, rows: int | None = None, *, titles: Sequence[str] | None = None,
                 row_labels: Sequence[str] | None = None, scale: float | None = None,
                 title: str | None = None) -> Figure:
    """A grid of images as a matplotlib figure, filled row by row; the last row may be short.

    Args:
        images: [N, C, H, W], C 1 or 3; floats in [−1, 1] (clamped) or uint8.
        rows: number of rows; None: one per row label, else rows of at most 10.
        titles: one over each column, or one over each image (N of them).
        row_labels: one to the left of each row.
        scale: side of a drawn pixel in 1/100 inch; None: images about 0.85 inch high.

    Raises:
        ValueError: another shape, or a number of titles or labels that doesn't fit.
    """
    pixels = pixels_of(images)
    n, _, h, w = pixels.shape
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    if rows is None:
        rows = len(row_labels) if row_labels else math.ceil(n / 10)
    if not 1 <= rows <= n:
        raise ValueError(f"rows={rows}; want 1 to {n}, the number of images")
    columns = math.ceil(n / rows)
    if titles is not None and len(titles) not in (columns, n):
        raise ValueError(f"{len(titles)} titles; want {columns} (one a column) or {n} (one an image)")
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"{len(row_labels)} row_labels; want {rows}")
    per_image = titles is not None and len(titles) == n and rows > 1
    unit = (85 / h if scale is None else scale) / 100  # everything below in inches
    above = 0.0 if titles is None else 0.24  # room for titles: over the first row only, or over every row
    top, gap, dx = (0.36 if title else 0.06), 0.05, w * unit + 0.05
    dy = h * unit + gap + (above if per_image else 0)
    size = min(max(10.5, 1.6 * columns * dx), 14.0)  # points: a page shows a wide figure smaller, a phone much smaller
    left = 0.16 + 0.0081 * size * max(map(len, row_labels)) if row_labels else 0.06
    width = left + columns * dx + 0.02
    height = top + rows * dy + (above if not per_image else 0) + 0.02
    with styled(**{"figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=(width, height))
        for i in range(n):
            row, column = divmod(i, columns)
            bottom = height - top - above - row * dy - h * unit
            ax = figure.add_axes([(left + column * dx) / width, bottom / height, w * unit / width, h * unit / height])
            ax.set_axis_off()
            ax.imshow(pixels[i])
            if titles is not None and (per_image or row == 0):
                ax.set_title(titles[i], fontsize=min(size - 1.5, 92 * dx / max(1, *map(len, titles))), loc="center",
                             pad=3)
            if row_labels is not None and column == 0:
                at = (left - 0.08) / width, (bottom + h * unit / 2) / height
                figure.text(*at, row_labels[row], ha="right", va="center", fontsize=size)
        if title:
            figure.text(left / width, 1 - 0.1 / height, title, ha="left", va="top")
    plt.close(figure)  # the caller decides where it shows
    return figure


def show_images(images: Tensor, rows: int | None = None, *, caption: str | None = None, **options) -> None:
    """Show a grid of images here and now, with a caption; arguments as for `image_figure`."""
    display(image_figure(images, rows, **options))
    if caption:
        show_caption(caption)


def curves(x, series: Mapping[str, object], *, xlabel: str = "", ylabel: str = "", title: str | None = None,
           bands: Mapping[str, tuple] | None = None, log: bool = False, ax: Axes | None = None,
           caption: str | None = None) -> Axes:
    """Lines over a common x, each in its method's colour and dash pattern.

    Args:
        x: [n], numbers.
        series: name → [n]. A key of `COLORS` ("dpm", "pdae", …) gets that method's colour and full name; so does "pdae:
            some note", with the note in the legend.
        bands: name → (low [n], high [n]), shaded.
        log: logarithmic y axis.
        ax: draw here; None makes a figure, which a notebook shows at the end of the cell.
        caption: show the figure now, with these words under it; `viz.caption` does it later.
    """
    with styled():
        ax = plt.subplots()[1] if ax is None else ax
        x = np.asarray(x, dtype=float)
        for i, (name, y) in enumerate(series.items()):
            key, _, note = name.partition(":")
            color = COLORS.get(key, list(COLORS.values())[i % len(COLORS)])
            text = f"{NAMES[key]} ({note.strip()})" if key in NAMES and note else NAMES.get(key, name)
            ax.plot(x, np.asarray(y, dtype=float), color=color, ls=DASHES.get(key, "-"), label=text)
            if bands and name in bands:
                low, high = (np.asarray(b, dtype=float) for b in bands[name])
                ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
        ax.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
        if title:
            ax.set_title(title)
        if len(series) > 1:
            ax.legend()
    if caption:
        show_caption(caption)
    return ax


@dataclass(frozen=True)
class Explorer:
    """What `explorer` returns: ipywidgets where a kernel runs, the static slider elsewhere."""

    widget: object
    static: Slider | None

    def _repr_mimebundle_(self, include=None, exclude=None):
        text = "<p><em>Run this notebook to use this explorer: every control recomputes the picture.</em></p>"
        bundle = {"text/plain": "explorer", "text/html": self.static.html if self.static else text}
        live = self.widget._repr_mimebundle_() or {}
        view = "application/vnd.jupyter.widget-view+json"
        return bundle | ({view: live[view]} if view in live else {})


def explorer(function: Callable, static: Slider | None = None, /, **controls) -> Explorer:
    """A live explorer: `function(**values)` is called anew, and its result shown, whenever a control changes.

    Args:
        function: returns images [N, C, H, W] in [−1, 1], a figure, or anything a notebook can show.
        static: the slider to show where no kernel runs, as in the built book.
        controls: name → (low, high) or (low, high, step) for a number, a list or dict of choices, True/False, or any
            ipywidgets widget. The first value of each must be cheap: it is computed at once.
    """
    try:
        import ipywidgets as widgets
    except ImportError:
        raise ImportError("explorer needs ipywidgets: pip install 'pdae_lite[book]'") from None

    def draw(**values):
        result = function(**values)
        if result is not None:
            display(image_figure(result) if torch.is_tensor(result) else result)

    interactive = widgets.interactive(draw, **controls)
    for child in interactive.children[:-1]:
        if hasattr(child, "continuous_update"):
            child.continuous_update = False  # one computation per move, not one per pixel
    return Explorer(interactive, static)
