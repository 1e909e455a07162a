"""examples/: that they run."""
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_pipelines import save

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.filterwarnings(  # of diffusers' own making
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:The `local_dir_use_symlinks` argument")


def test_stable_diffusion(tmp_path, monkeypatch):
    """On a pipeline of the same classes, tiny and random: a picture of photos above and their edits below."""
    save("sd", tmp_path / "sd", sample_size=16)
    g = torch.Generator().manual_seed(0)
    for i, name in enumerate(["with", "without"] * 3):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (40, 36, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / name / f"{i}.png")
    arguments = [str(tmp_path / name) for name in ("sd/pipeline", "photos", "out.png")]
    monkeypatch.setattr(sys, "argv", ["example", *arguments, "3"])
    runpy.run_path(str(EXAMPLES / "stable_diffusion.py"), run_name="__main__")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (3 * 32 + 4 * 2, 2 * 32 + 3 * 2)
        assert len(set(picture.getdata())) > 100
