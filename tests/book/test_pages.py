"""Every page of the built book in a browser: no error, no other host, sliders by keyboard, light, dark, phone,
accessibility."""
import re
from pathlib import Path

import pytest
from browser import chromium, drive, opened  # noqa: F401

BUILT = Path(__file__).resolve().parents[2] / "book" / "_build" / "html"
# the index only leads on
PAGES = [p for p in sorted(BUILT.rglob("*.html")) if "_static" not in p.parts and p != BUILT / "index.html"]
PHONE = {"width": 390, "height": 844}

# What makes axe slow and tells it nothing: the inside of formulas, which MathJax answers for, and the hundredth piece
# of code in the same colour on the same ground. One of each look stays. Of the API reference, which is one template,
# the first entries stay.
THIN = """() => {
  document.querySelectorAll("mjx-container").forEach(m => m.replaceChildren());
  [...document.querySelectorAll("dl.py")].slice(60).forEach(d => d.remove());
  const seen = new Set();
  for (const s of [...document.querySelectorAll("div.highlight span, dt.sig span, dt.sig em")].reverse()) {
    const box = s.closest(".cell_output, .cell_input, .highlight-python, dt, td, .admonition") || document.body;
    const look = [s.className, s.parentElement.tagName, ...box.className.split(" ").slice(0, 2)].join("|");
    seen.has(look) ? s.replaceWith(...s.childNodes) : seen.add(look);
  }
}"""
# One element of each look: colour, ground, size and weight of its text decide the contrast.
LOOKS = """() => {
  const seen = new Set();
  for (const e of document.querySelectorAll("body *")) {
    if (!e.getClientRects().length || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const own = getComputedStyle(e), look = [own.color, own.fontSize, own.fontWeight];
    for (let b = e; b; b = b.parentElement) look.push(getComputedStyle(b).backgroundColor, getComputedStyle(b).opacity);
    const key = look.filter(c => c !== "rgba(0, 0, 0, 0)" && c !== "1").join("|");
    if (!seen.has(key)) e.setAttribute("data-look", "");
    seen.add(key);
  }
}"""
# What scrolls sideways must be reachable by keyboard.
UNREACHABLE = """() => [...document.querySelectorAll("article *")].filter(e => e.scrollWidth > e.clientWidth + 2
  && ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && e.clientWidth > 0 && e.tabIndex < 0
  && !e.querySelector("a, button, input, [tabindex='0']")).map(e => e.outerHTML.slice(0, 120))"""


WIDE_FORMULAS = """() => [...document.querySelectorAll("div.math mjx-container")].filter(e => e.scrollWidth > \
e.clientWidth + 8)
  .map(e => e.closest("div.math").id)"""


def some(paths):
    """A test for each of these pages."""
    return pytest.mark.parametrize("path", paths or [None], ids=[p.stem for p in paths] or ["not built"])


@pytest.fixture(autouse=True)
def built(path):
    if path is None:
        pytest.skip("the book isn't built (make book)")


@pytest.fixture(scope="module")
def axe():
    """The source of axe-core, which axe-playwright-python brings."""
    package = pytest.importorskip("axe_playwright_python", reason="axe isn't installed: pip install 'pdae_lite[dev]'")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


def findings(page, where="html", **options):
    """axe's serious and critical findings, a line each."""
    found = page.evaluate("""async ([where, options]) =>
        (await axe.run(where, {resultTypes: ["violations"], preload: false, ...options})).violations
        .filter(v => ["serious", "critical"].includes(v.impact))
        .map(v => `${v.impact} ${v.id}: ${v.nodes.length} times, first ${v.nodes[0].html.slice(0, 150)}; \
${v.help}`)""", [where, options])
    return "\n".join(found)


def all_reachable(page):
    """The page's script has made everything that scrolls sideways reachable: soon after a change of size, on a busy
    machine later."""
    for _ in range(50):
        page.wait_for_timeout(100)
        if not (left := page.evaluate(UNREACHABLE)):
            return
    raise AssertionError(f"scrolls, but no key gets there: {left}")


def sliders(path):
    return re.findall(r'class="pdae-slider" id="([\w-]+)"', path.read_text(encoding="utf-8"))


@some(PAGES)
def test_page(chromium, axe, path):  # noqa: F811
    """One visit: formulas, alt texts, every slider by keyboard, then axe in light, phone, and axe's contrast in
    dark."""
    with opened(chromium, path, color_scheme="light", viewport={"width": 1280, "height": 900}) as page:
        if page.locator(".math").count():
            page.wait_for_selector("mjx-container svg", state="attached", timeout=20_000)
        page.wait_for_function("document.documentElement.dataset.theme === 'light'", timeout=20_000)
        pictures = page.evaluate("[...document.querySelectorAll('article img')].map(i => [i.alt.trim(), i.src.slice(0, "
                                 "80)])")
        assert all(alt for alt, _ in pictures), f"pictures without alt text: {pictures}"
        for name in sliders(path):
            drive(page, name)
        page.set_viewport_size(PHONE)
        all_reachable(page)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"] + 1, "scrolls sideways on a phone"
        page.set_viewport_size({"width": 1280, "height": 900})
        all_reachable(page)
        assert not (wide := page.evaluate(WIDE_FORMULAS)), f"formulas wider than their column at 1280 pixels: {wide}"
        # no colour half-way
        page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
        page.evaluate(axe)
        page.evaluate(THIN)
        assert not (found := findings(page)), found
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("document.documentElement.dataset.theme === 'dark'", timeout=20_000)
        page.evaluate(LOOKS)
        assert not (found := findings(page, "[data-look]", runOnly=["color-contrast"])), f"in dark: {found}"


@some(PAGES[:1])
def test_axe_sees_what_is_wrong(chromium, axe, path):  # noqa: F811
    """The same calls find faint text, in a theme's colours too, and a picture without a text."""
    with opened(chromium, path, viewport={"width": 1280, "height": 900}) as page:
        page.evaluate(axe)
        page.evaluate("""document.querySelector("article").insertAdjacentHTML("beforeend",
            "<p style='color:#999;background:#fff'>faint</p><img src='data:image/png;base64,' width=9 height=9>")""")
        page.evaluate(LOOKS)
        assert "color-contrast" in findings(page, "[data-look]", runOnly=["color-contrast"])
        assert {"color-contrast", "image-alt"} <= {line.split()[1].rstrip(":") for line in findings(page).splitlines()}


@some([p for p in PAGES if sliders(p)])
def test_strips_show_without_javascript(chromium, path):  # noqa: F811
    with opened(chromium, path, javascript=False) as page:
        for name in sliders(path):
            assert (page.locator(f"#{name} figure:visible").count() > 1
                    and page.locator(f"#{name}-range:visible").count() == 0)


@some([p for p in PAGES if p.stem in ("intro", "01_quickstart")])
def test_reading_by_keyboard(chromium, path):  # noqa: F811
    """The first Tab reaches a link past the navigation; each later one lands on something that shows it has the
    focus."""
    with opened(chromium, path, viewport={"width": 1280, "height": 900}) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
        # it slides into view
        page.wait_for_function("document.activeElement.getBoundingClientRect().top >= 0", timeout=5_000)
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        inside = "document.querySelector('#main-content').contains(document.activeElement)"
        assert page.evaluate(inside)
        for _ in range(12):
            page.keyboard.press("Tab")
            look = page.evaluate("""() => {
                const e = document.activeElement, looks = [getComputedStyle(e), getComputedStyle(e, "::after")];
                return [looks.some(c => c.outlineStyle !== "none" || c.boxShadow !== "none"), e.outerHTML.slice(0, \
100)]; }""")
            assert look[0], f"no sign of focus: {look[1]}"
