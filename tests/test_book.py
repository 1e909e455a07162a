"""The book's frame: configuration, table of contents, links, pins, and, where it is built, the pages."""
import importlib
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from browser import chromium, opened  # noqa: F401
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pdae_lite
from pdae_lite import NoiseSchedule

ROOT = Path(__file__).parent.parent
BOOK = ROOT / "book"
BUILT = BOOK / "_build" / "html"


def load_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def built_pages():
    if not (BUILT / "index.html").is_file():
        pytest.skip("the book isn't built (make book)")
    return [p for p in sorted(BUILT.rglob("*.html")) if "_static" not in p.parts]


def test_the_links_in_book():
    for name, target in {"_config.yml": "../_config.yml", "_toc.yml": "../_toc.yml", "notebooks": "../notebooks"}.items():
        link = BOOK / name
        cure = "on Windows: git config core.symlinks true, then check out again"
        assert link.is_symlink() and os.readlink(link) == target, f"book/{name}; {cure}"


def test_config():
    config = load_yaml("_config.yml")
    assert config["execute"]["execute_notebooks"] == "off"
    sphinx = config["sphinx"]["config"]
    assert "sphinx_thebe" not in sphinx["extensions"]
    scripts = [sphinx["mathjax_path"], *sphinx["nb_ipywidgets_js"], *(name for name, _ in sphinx["html_js_files"])]
    for path in [*scripts, *sphinx["html_css_files"]]:
        assert (BOOK / "_assets" / path).is_file(), path


def test_every_chapter_exists_and_every_page_is_listed():
    toc = load_yaml("_toc.yml")
    listed = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert (BOOK / f"{name}.md").is_file() or (BOOK / f"{name}.ipynb").is_file(), f"_toc.yml lists {name}: no such page"
    pages = {p.relative_to(BOOK).with_suffix("").as_posix() for p in BOOK.glob("*.md")}
    assert pages <= set(listed)


def test_citations_exist():
    keys = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.M))
    texts = [p.read_text(encoding="utf-8") for p in [*BOOK.glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]]
    cited = {k.strip() for text in texts for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for k in group.split(",")}
    assert cited and cited <= keys


def test_versions_agree():
    """constraints.txt pins every direct dependency, within pyproject's range; environment.yml takes its versions from it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin for name, pin in (line.split("==") for line in lines if line and line[0] != "#")}
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *(r for group in extras.values() for r in group)]:
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin and requirement.specifier.contains(pin), f"{text}, but constraints.txt has {pin}"
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))]
    environment = load_yaml("environment.yml")
    assert environment["name"] == project["name"] and environment["channels"] == ["conda-forge"]
    python, pip, from_pip = environment["dependencies"]
    assert python == "python=3.11" and pip == "pip" and from_pip == {"pip": ["-c constraints.txt", "-e .[book,dev]"]}
    for line in from_pip["pip"]:
        extra = re.search(r"\[(.+)\]", line)
        assert set(extra.group(1).split(",") if extra else ()) <= set(extras)


def test_every_function_of_the_equation_map_exists():
    rows = re.findall(r"^\|.*\|\s*`([\w.]+)`[^|]*\|$", (BOOK / "equations.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 25
    for name in rows:
        first, *attributes = name.split(".")
        thing = getattr(pdae_lite, first, None) or importlib.import_module(f"pdae_lite.{first}")
        for attribute in attributes:  # the schedule's tables belong to an instance
            thing = getattr(NoiseSchedule.linear(10) if thing is NoiseSchedule else thing, attribute)
        assert callable(thing) or thing.shape == (10,), name


# ---- the built pages ------------------------------------------------------------------------------------------------


def test_pages_load_nothing_from_elsewhere():
    for path in built_pages():
        text = path.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|img|iframe|source|video|audio|embed|link)\b[^>]*>", text)
        loads = [tag for tag in tags if re.search(r"\b(?:src|href)=[\"']?(?:https?:)?//", tag)]
        assert not loads, f"{path.relative_to(BUILT)}: {loads[:3]}"


def test_links_between_pages_lead_somewhere():
    for path in built_pages():
        for target in set(re.findall(r"<a\b[^>]*?\bhref=\"([^\"#?:]+)[\"#?]", path.read_text(encoding="utf-8"))):
            assert (path.parent / target).exists(), f"{path.relative_to(BUILT)}: {target}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_in_a_browser(chromium, scheme):  # noqa: F811
    """Every page opens without an error and without asking any host; formulas are typeset; nothing is wider than a phone."""
    for path in built_pages():
        phone = {"width": 390, "height": 844}
        with opened(chromium, path, color_scheme=scheme, viewport=phone) as page:
            if page.locator(".math").count():
                page.wait_for_selector("mjx-container svg", state="attached", timeout=20_000)
            page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'", timeout=20_000)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= phone["width"] + 1, f"{path.name} scrolls sideways on a phone"
            pictures = page.evaluate("[...document.querySelectorAll('article img')].map(i => [i.alt.trim(), i.src.slice(0, 80)])")
            assert all(alt for alt, _ in pictures), f"{path.name}: pictures without alt text: {pictures}"
