"""A headless Chromium for tests that must see a page as a reader does. They skip, with the reason, where there is
none."""
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()
LOCAL = ("file:", "data:", "blob:", "about:")


def executable() -> str | None:
    """Path of a system Chromium (environment variable CHROMIUM first), or None."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for path in (shutil.which(n) for n in names if n) if path), None)


@pytest.fixture(scope="module")
def chromium():
    """A running browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install "
                                                                 "'pdae_lite[dev]'")
    path = executable()
    if path is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium, or set CHROMIUM=/path/to/it)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser, path, javascript: bool = True, **options):
    """A page of a local file, or of a URL. On leaving, fails if it logged an error or asked another host for
    anything."""
    url = path if isinstance(path, str) else path.as_uri()
    here = LOCAL if isinstance(path, Path) else (*LOCAL, url.rsplit("/", 1)[0])
    context = browser.new_context(java_script_enabled=javascript, **options)
    page = context.new_page()
    problems = []
    page.on("console", lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(f"error: {e}"))
    page.on("request", lambda r: None if r.url.startswith(here) else problems.append(f"request to {r.url}"))
    if javascript:  # without it, the browser drops the scripts that it had begun to preload
        page.on("requestfailed", lambda r: problems.append(f"failed: {r.url}"))
    try:
        page.goto(url, wait_until="load")
        yield page
        page.wait_for_timeout(100)
    finally:
        context.close()
    assert not problems, f"{url}: {problems[:5]}"


def shown(page, name):
    """Index and source of the frame that is visible; exactly one must be."""
    figures = page.evaluate("""name => [...document.querySelectorAll(`#${name} figure`)]
        .map((f, i) => [i, f.querySelector("img").src, f.getClientRects().length > 0]).filter(f => f[2])""", name)
    ((index, source, _),) = figures
    return index, source


def drive(page, name):
    """Through a slider by keyboard: the frame, the output and the value for screen readers follow."""
    knob = page.locator(f"#{name}-range")
    last = int(knob.get_attribute("max"))
    page.keyboard.press("Tab")  # the page has focus; the knob gets it as a reader would give it
    knob.focus()
    assert page.evaluate("document.activeElement.id") == f"{name}-range"
    page.keyboard.press("Home")
    first = shown(page, name)
    assert first[0] == 0
    page.keyboard.press("ArrowRight")
    second = shown(page, name)
    assert second[0] == 1
    page.keyboard.press("End")
    final = shown(page, name)
    assert final[0] == last and final[1] != first[1]
    caption = page.locator(f"#{name} figure").nth(last).locator("figcaption").text_content()
    assert page.locator(f"#{name}-output").text_content() == caption == knob.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowLeft")
    assert shown(page, name)[0] == last - 1
