"""Pictures for notebooks: figures in one style, sliders that work without a kernel, live explorers."""
from .figures import (
    COLORS,
    DASHES,
    FAINT,
    INK,
    NAMES,
    Explorer,
    curves,
    explorer,
    image_figure,
    show_images,
    style,
    styled,
)
from .notebook import TICK, Shown, caption, claim, number, say, source, source_of, table
from .sliders import CARD, Slider, slider, tile

__all__ = ["CARD", "COLORS", "DASHES", "FAINT", "INK", "NAMES", "TICK", "Explorer", "Shown", "Slider", "caption",
           "claim", "curves", "explorer", "image_figure", "number", "say", "show_images", "slider", "source",
           "source_of", "style", "styled", "table", "tile"]
