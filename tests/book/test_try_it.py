"""The page that computes, from a folder and a server, by mouse, keys and touch; its sampler against the library's."""
import functools
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import chromium, opened  # noqa: F401

import pdae_lite
from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, data, sampling
from pdae_lite.applications.attributes import LinearProbe, edit
from pdae_lite.commands.main import main
from pdae_lite.networks.dpm import as_epsilon
from pdae_lite.networks.encoder import EncoderConfig
from pdae_lite.viz import live

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


def draw(page, points, pointer="mouse"):
    """A stroke on the pad."""
    page.locator(".live-pad").scroll_into_view_if_needed()
    box = page.locator(".live-pad").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    if pointer == "mouse":
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=3)
        page.mouse.up()
        return
    touch = page.context.new_cdp_session(page)
    for kind, place in [("touchStart", places[0]), *[("touchMove", p) for p in places[1:]], ("touchEnd", None)]:
        points = [] if place is None else [{"x": place[0], "y": place[1]}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


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


@built
def test_from_a_server_by_keyboard(chromium):  # noqa: F811
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Nothing."""

        def do_GET(self):
            """The browser asks every server for an icon, by itself."""
            if self.path == "/favicon.ico":
                self.send_response(204)
                self.end_headers()
            else:
                super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=PAGE.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/try_it.html"
        with opened(chromium, url, viewport={"width": 1280, "height": 1000}) as page:
            page.locator(".live-pad").focus()
            page.keyboard.press("Delete")
            for keys in ("ArrowUp " * 8 + "ArrowLeft " * 4, "Space", "ArrowRight " * 8, "ArrowDown " * 8,
                         "ArrowLeft " * 7, "Space", "ArrowRight " * 7,
                         "Space", "ArrowDown " * 9, "ArrowLeft " * 8, "Space"):
                for key in keys.split():
                    page.keyboard.press(key)
            start(page)
            nearer(page)
    finally:
        server.shutdown()


@built
def test_by_touch_on_a_phone(chromium):  # noqa: F811
    with opened(chromium, PAGE, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        draw(page, THREE, "touch")
        assert page.evaluate("pdaeLive.pages[0].strokes.length") == 1
        start(page, 4)
        nearer(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 391
        widths = page.evaluate("[...document.querySelectorAll('.live-bars label')].map(b => b.clientWidth)")
        assert min(widths) >= 16


@built
def test_without_webassembly_the_slider_stays_and_says_why(chromium):  # noqa: F811
    context = chromium.new_context()
    context.add_init_script("delete window.WebAssembly")
    page = context.new_page()
    page.goto(PAGE.as_uri())
    page.click("[data-do=start]")
    ready(page, "failed")
    assert "no WebAssembly" in page.text_content(".live-status") and page.locator("#try-it-before-range").is_visible()
    context.close()


# ---- the sampler against the library's ------------------------------------------------------------------------------


def small(form: str, channels: int = 1, z_dim: int = 6) -> PDAE:
    """A PDAE of small images with random weights, none of them zero."""
    torch.manual_seed(0)
    schedule = NoiseSchedule.linear(200, 1e-4, 0.1)
    dpm = as_epsilon(UNet(UNetConfig(32, channels, 8, (1, 2), 1, (2,), patch_size=2)), "v", schedule)
    model = PDAE(dpm, SemanticEncoder(EncoderConfig(32, channels, (8, 8, 8), 1, z_dim=z_dim)), schedule, form=form)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def page_of(model, folder, weights):
    """A folder with a page of this model."""
    live.live_files(model, folder / "live", weights)
    text = live.live_html(model, data.digits("test"), "live/")
    head = "<!doctype html><html lang='en'><meta charset='utf-8'><title>t</title>"
    (folder / "index.html").write_text(head + text, encoding="utf-8")
    return folder / "index.html"


def asked(page, what, x, z, **more):
    """An answer of the engine."""
    return np.array(page.evaluate("""async ([what, x, z, more]) => [...await pdaeLive.pages[0].engine.call(
        {what, x: Float32Array.from(x), z: Float32Array.from(z), ...more})]""",
        [what, x.flatten().tolist(), z.flatten().tolist(), more]))


def distances(page, model, scale=1.0, steps=6):
    """The largest difference between page and library for z and each sampler; "rms": of DPM-Solver++'s."""
    x_0 = data.digits("test").floats(slice(3, 4))
    x_T, z = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)), model.encode(x_0)
    denoiser, found = model.denoiser(z, scale=scale), {}
    found["z"] = np.abs(asked(page, "encode", x_0, z) - z.numpy().ravel()).max()
    samplers = {"ddim": sampling.ddim, "dpmSolver": sampling.dpm_solver, "invert": sampling.invert}
    quadratic, second = {"grid": "quadratic"}, {"order": 2}
    for name, options in [("ddim", {}), ("dpmSolver", {}), ("dpmSolver", quadratic), ("invert", {}),
                          ("invert", second)]:
        x = x_0 if name == "invert" else x_T
        wanted = samplers[name](denoiser, x, model.schedule, steps, **options).numpy().ravel()
        given = asked(page, name, x, z, scale=scale, options={"steps": steps, **options})
        found[f"{name} {options}"] = np.abs(given - wanted).max()
        if "grid" in options:
            found["rms"] = float(np.sqrt(np.square(given - wanted).mean()))
    return found


@pytest.mark.parametrize("form", ["paper", "difference"])
def test_the_sampler_is_the_librarys(chromium, tmp_path, form):  # noqa: F811
    pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed: pip install 'pdae_lite[onnx]'")
    model = small(form)
    with opened(chromium, page_of(model, tmp_path, "fp32")) as page:
        start(page, 4)
        for scale in (1.0, 2.5):
            found = distances(page, model, scale)
            assert max(found.values()) < 1e-3, found
        grids = page.evaluate("[['uniform', 7], ['quadratic', 12], ['cubic', 12], ['uniform', 8]].map(([g, n]) => "
                              "pdaeSampler.timeGrid(200, n, g))")
        assert grids == [sampling.time_grid(model.schedule, n, g) for g, n in
                         [("uniform", 7), ("quadratic", 12), ("cubic", 12), ("uniform", 8)]]


@built
def test_int8_stays_near_the_model(chromium):  # noqa: F811
    """Twelve steps of the page, with int8 weights, against the library's in float32."""
    with opened(chromium, PAGE) as page:
        start(page, 4)
        found = distances(page, pdae_lite.load("digits", device="cpu").eval(), steps=12)
        assert found["z"] < 0.03 and found["rms"] < 0.02, found


# ---- a page of anyone's model ---------------------------------------------------------------------------------------


def test_a_page_of_a_colour_model_with_a_probe(chromium, tmp_path):  # noqa: F811
    """`pdae export --page`: no pad, but a file; a slider of an attribute moves z as `edit` does, and the pictures."""
    pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed: pip install 'pdae_lite[onnx]'")
    model, held_out = small("difference", channels=3, z_dim=70), data.peeps("test", 32)
    z = model.encode(held_out.floats(slice(0, 60)))
    probe = LinearProbe.fit(z, (z[:, :2] > z[:, :2].median(0).values).long(), ["big_hair", "hat"], l2=0.1)
    model.save(tmp_path / "m.safetensors")
    probe.save(tmp_path / "p.safetensors", {})
    assert main(["export", str(tmp_path / "m.safetensors"), "--page", str(tmp_path / "page"), "--data", "peeps",
                 "--probe", str(tmp_path / "p.safetensors"), "--weights", "fp32"]) == 0
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    with opened(chromium, tmp_path / "page" / "index.html", **phone) as page:
        assert not page.locator(".live-pad").is_visible() and page.locator(".live-file input").is_visible()
        start(page, 4)
        before = pixels(page, "inferred")
        knob = page.get_by_role("slider", name="big hair")
        knob.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        ready(page)
        used = np.array(page.evaluate("[...pdaeLive.pages[0].used]"))
        own = model.encode(held_out.floats(slice(3, 4)))
        assert np.abs(used - edit(own, probe, "big_hair", 0.2).numpy()[0]).max() < 1e-3
        assert np.abs(pixels(page, "inferred") - before).max() > 0, "the attribute changes nothing"
        page.click("[data-do=reset]")
        ready(page)
        assert knob.input_value() == "0" and np.abs(pixels(page, "inferred") - before).max() <= 1
        photo = page.screenshot()
        page.set_input_files(".live-file input", {"name": "a.png", "mimeType": "image/png", "buffer": photo})
        page.wait_for_function("pdaeLive.pages[0].picked === null")
        ready(page)
        assert page.evaluate("pdaeLive.pages[0].x_0.length") == 3 * 32 * 32
        assert page.evaluate("document.documentElement.scrollWidth") <= 391
