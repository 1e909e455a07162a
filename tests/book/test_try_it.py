"""The page that computes, from a folder: drawn in by mouse, its controls moved by hand and by keys."""
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, opened  # noqa: F401

PAGE = Path(__file__).resolve().parents[2] / "book" / "_build" / "html" / "try_it.html"
STATE = "document.querySelector('.pdae-live').dataset.state"
THREE = [(.3, .25), (.45, .17), (.62, .2), (.66, .33), (.55, .45), (.45, .48), (.58, .52), (.7, .62), (.66, .78),
         (.5, .85), (.32, .78)]
built = pytest.mark.skipif(not PAGE.is_file(), reason="the book isn't built (make book)")


def ready(page, state="done"):
    page.wait_for_function(f"{STATE} === '{state}'", timeout=120_000)


def start(page, steps=5):
    """Press Start; with few steps, so that a run takes seconds."""
    page.evaluate("steps => { document.querySelector('[data-control=steps]').value = steps; }", steps)
    page.click("[data-do=start]")
    ready(page)


def pixels(page, tile):
    """What a picture shows, [32, 32] in 0 … 255."""
    return np.array(page.evaluate("""tile => [...document.querySelector(`[data-tile=${tile}] canvas`).getContext("2d")
        .getImageData(0, 0, 32, 32).data].filter((_, i) => i % 4 === 0)""", tile)).reshape(32, 32).astype(float)


def move(page, control, value):
    """A control, as a hand moves it."""
    page.evaluate("""([name, value]) => { const input = document.querySelector(`[data-control=${name}]`);
        input.value = value; input.dispatchEvent(new Event("input", {bubbles: true})); }""", [control, value])


def draw(page, points):
    """A stroke on the pad."""
    page.locator(".live-pad").scroll_into_view_if_needed()
    box = page.locator(".live-pad").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def nearer(page):
    """Rebuilt from z is nearer to the drawing than what the DPM alone makes; from z and x_T it is nearer still."""
    drawing = pixels(page, "drawing")
    z, inferred, dpm = (np.square(pixels(page, tile) - drawing).mean() for tile in ("z", "inferred", "dpm"))
    assert drawing.max() > 200 and inferred < z < dpm, (inferred, z, dpm)


@built
def test_from_a_folder(chromium):  # noqa: F811
    """Draw by mouse, drag a bar, scale 0, stop in the middle; every picture follows, and axe finds nothing."""
    with opened(chromium, PAGE, viewport={"width": 1280, "height": 1000}) as page:
        # nothing heavy before Start
        assert not page.evaluate("[...document.scripts].some(s => /runtime|model\\\\.js/.test(s.src))")
        draw(page, THREE)
        start(page)
        ink = (pixels(page, "drawing") > 60).nonzero()
        assert all(18 <= i.max() - i.min() + 1 <= 21 for i in ink[:1])  # in a box of 20, as MNIST's
        nearer(page)
        before, seconds = pixels(page, "z"), page.text_content(".live-status")
        assert "Done" in seconds
        bar = page.locator(".live-bars input").nth(4)
        bar.focus()
        for _ in range(3):
            page.keyboard.press("PageUp")
        ready(page)
        assert np.abs(pixels(page, "z") - before).max() > 20, "z's bar changes nothing"
        page.click("[data-do=reset]")
        ready(page)
        assert np.abs(pixels(page, "z") - before).max() <= 1, "reset doesn't bring the picture back"
        move(page, "scale", 0)
        ready(page)
        assert (pixels(page, "z") == pixels(page, "dpm")).all(), "scale 0 isn't the DPM"
        move(page, "scale", 1)
        move(page, "steps", 30)
        page.wait_for_function("pdaeLive.pages[0].moments.length > 1 && pdaeLive.pages[0].moments.length < 25")
        move(page, "seed", 7)  # in the middle of a run
        run = page.evaluate("pdaeLive.pages[0].engine.id")
        move(page, "steps", 4)
        ready(page)
        assert page.evaluate("[pdaeLive.pages[0].engine.id, pdaeLive.pages[0].moments.length]") == [run + 1, 4]
        assert not (pixels(page, "gap") == pixels(page, "gap")[0, 0]).all()
        page.locator(".live-picks[data-second] button").nth(8).click()
        ready(page)
        mixed = pixels(page, "z")
        move(page, "mix", 0)
        ready(page)
        assert np.abs(pixels(page, "z") - mixed).max() > 20, "a second digit changes nothing"
        axe = pytest.importorskip("axe_playwright_python")
        page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        found = page.evaluate("""async () => (await axe.run("article", \
{resultTypes: ["violations"], preload: false})).violations
            .filter(v => ["serious", "critical"].includes(v.impact)).map(v => v.id + ": " + v.nodes[0].html.slice(0, \
150))""")
        assert not found, found
