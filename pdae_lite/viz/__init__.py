"""Pictures for notebooks: figures in one style, sliders that work without a kernel, live explorers."""
from .figures import COLORS, DASHES, FAINT, INK, NAMES, Explorer, curves, explorer, image_figure, show_images, style, styled
from .sliders import CARD, Slider, slider, tile

__all__ = ["CARD", "COLORS", "DASHES", "FAINT", "INK", "NAMES", "Explorer", "Slider", "curves", "explorer", "image_figure", "show_images",
           "slider", "style", "styled", "tile"]
