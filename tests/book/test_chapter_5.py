"""Filling the gap: the code that it prints is the library's, as it is now."""
import nbformat
import pytest
from chapters import ROOT

from pdae_lite.networks.blocks import ResBlock
from pdae_lite.networks.encoder import SemanticEncoder
from pdae_lite.networks.unet import GradientEstimator
from pdae_lite.viz import source_of

CHAPTER = ROOT / "notebooks" / "05_filling_the_gap.ipynb"


@pytest.mark.parametrize("thing", [ResBlock.forward, GradientEstimator.__init__, GradientEstimator.forward,
                                   SemanticEncoder.__init__],
                         ids=lambda f: f.__qualname__)
def test_the_code_shown_is_current(thing):
    outputs = [o.get("data", {}).get("text/markdown") for c in nbformat.read(CHAPTER, as_version=4).cells
               for o in c.get("outputs", [])]
    assert source_of(thing).strip() in [text.strip() for text in outputs
                                        if text], f"run it anew: run_notebooks.py {CHAPTER.stem}"
