"""The static slider: its HTML, and how it behaves in a browser."""
import base64
import re

import numpy as np
import pytest
import torch
from browser import chromium, drive, opened, shown  # noqa: F401
from matplotlib import pyplot as plt

from pdae_lite import viz

LABELS = ["t = 0", "t = 250", "t = 500", "t = 750", "t = 999"]


def frames(n=5, channels=1):
    """n flat images, black to white."""
    return torch.linspace(-1, 1, n).reshape(n, 1, 1, 1).expand(n, channels, 8, 8).contiguous()


def make(**options):
    arguments = {"id": "fade", "label": "timestep t", "alt": "A square, from black to white"} | options
    return viz.slider(arguments.pop("frames", frames()), arguments.pop("labels", LABELS), **arguments)


def test_html_is_complete_and_deterministic():
    text = make()._repr_html_()
    assert text == make()._repr_html_()
    assert text.count("<figure") == text.count("data:image/png;base64,") == 5
    assert '<label for="fade-range">timestep t</label>' in text and '<output id="fade-output" for="fade-range">' in text
    assert re.search(r'<input type="range" id="fade-range" min="0" max="4" step="1" value="0"', text)
    assert all(f'alt="A square, from black to white; {label}"' in text for label in LABELS)
    assert not re.search(r"https?://|src=\"(?!data:)", text)
    assert len(text) < 6000


def test_frames_hold_the_images():
    """Frame i is image i, at its own size: [−1, 1] becomes 0…255."""
    import io

    from PIL import Image

    pngs = re.findall(r"base64,([^\"]+)", make().html)
    values = [Image.open(io.BytesIO(base64.b64decode(p))).getpixel((3, 3)) for p in pngs]
    assert values == [0, 64, 128, 191, 255]


def test_grids_figures_and_colour():
    grids = make(frames=[frames(6, 3) * k / 5 for k in range(1, 6)], columns=3).html
    assert 'width="392" height="252"' in grids  # 3×2 images of 8 with gaps of 2 are 28×18, shown 14 times as large
    figures = []
    for k in range(5):
        figure, ax = plt.subplots(figsize=(2, 1))
        ax.plot([0, k])
        plt.close(figure)
        figures.append(figure)
    assert make(frames=figures).html.count("<img") == 5


def test_text_is_escaped():
    text = make(labels=["<b>", "&", '"', "5", "6"], alt='a "quoted" <thing>').html
    assert "<b>" not in text and "&lt;b&gt;" in text and "a &quot;quoted&quot; &lt;thing&gt;" in text


@pytest.mark.parametrize("options, message", [
    ({"labels": LABELS[:4]}, "5 frames and 4 labels"),
    ({"id": "2 words"}, "id '2 words'"),
    ({"id": 'x"onclick'}, "want a letter"),
    ({"alt": " "}, "alt is empty"),
    ({"start": 5}, "start=5"),
    ({"frames": torch.zeros(5, 8, 8)}, r"want a tensor \[N, C, H, W\]"),
    ({"frames": torch.zeros(5, 1, 8, 8, dtype=torch.int64)}, "dtype"),
    ({"frames": [frames(2), frames(3), frames(2), frames(2), frames(2)]}, "different sizes"),
])
def test_bad_input_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**options)
    assert "\n" not in str(error.value)


def test_explorer_carries_its_static_slider():
    pytest.importorskip("ipywidgets")
    bundle = viz.explorer(lambda k: None, make(), k=(0, 4))._repr_mimebundle_()
    assert bundle["text/html"] == make().html and "application/vnd.jupyter.widget-view+json" in bundle


def linear_rgb(color):
    c = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def test_colours_have_contrast_on_light_and_dark():
    for name, color in viz.COLORS.items():
        for page in ("#FFFFFF", viz.CARD, "#14181E"):
            dark, light = sorted(linear_rgb(c) @ (0.2126, 0.7152, 0.0722) for c in (color, page))
            assert (light + 0.05) / (dark + 0.05) >= 3, f"{name} {color} on {page}"


@pytest.mark.parametrize("vision", [  # Machado, Oliveira & Fernandes 2009, severity 1
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
], ids=["usual", "protanopia", "deuteranopia", "tritanopia"])
def test_colours_are_told_apart(vision):
    """At least 15 apart in CIELAB, whatever cones the reader has."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    rgb = np.clip(np.array([linear_rgb(c) for c in viz.COLORS.values()]) @ np.array(vision).T, 0, 1)
    xyz = rgb @ to_xyz.T / (0.9505, 1, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1000 * np.eye(len(lab))
    assert distance.min() >= 15


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_page(tmp_path):
    path = tmp_path / "page.html"
    text = make().html + make(id="other", label="another").html
    path.write_text(f"<!doctype html><html lang=en><meta charset=utf-8><title>sliders</title><body>{text}",
                    encoding="utf-8")
    return path


def test_keyboard_moves_the_frame(chromium, small_page):  # noqa: F811
    with opened(chromium, small_page) as page:
        drive(page, "fade")
        assert shown(page, "other")[0] == 0  # two sliders on a page don't disturb each other
        drive(page, "other")


def test_without_javascript_the_strip_shows(chromium, small_page):  # noqa: F811
    with opened(chromium, small_page, javascript=False) as page:
        assert page.locator("#fade figure:visible").count() == 5
        assert page.locator("#fade figcaption:visible").all_text_contents() == LABELS
        assert page.locator("#fade-range:visible").count() == 0
