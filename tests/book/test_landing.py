"""The sliders of the first page show what the shipped model makes."""
import base64
import io
import re
from pathlib import Path

import make_landing
import pytest
import torch
from PIL import Image

from pdae_lite import viz
from pdae_lite.viz.sliders import pixels_of

ROOT = Path(__file__).resolve().parents[2]
TEXT = make_landing.TARGET.read_text(encoding="utf-8")


def test_there_is_a_slider_for_each_edit():
    assert re.findall(r'class="pdae-slider" id="([\w-]+)"', TEXT) == [f"landing-{edit}" for edit in make_landing.EDITS]


@pytest.mark.parametrize("edit", make_landing.EDITS)
def test_frames_are_the_models(edit):
    """The two ends of a slider, computed anew: within 2 of 255 on average."""
    part = TEXT.split(f'id="landing-{edit}"')[1].split('class="pdae-slider"')[0]
    stored = [Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
              for png in re.findall(r"base64,([^\"]+)", part)]
    assert len(stored) == len(make_landing.SCALES)
    for i, frame in zip((0, -1), make_landing.frames(edit, make_landing.SCALES[:: len(make_landing.SCALES) - 1])):
        made = viz.tile(pixels_of(frame), columns=2)
        found = torch.frombuffer(bytearray(stored[i].tobytes()), dtype=torch.uint8).reshape(*made.shape[1:],
                                                                                            3).permute(2, 0, 1)
        assert (found.float() - made.float()).abs().mean() < 2
