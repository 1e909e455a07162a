"""The book's frame: configuration, table of contents, links, pins, and, where it is built, the pages."""
import html
import importlib
import json
import os
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pdae_lite
from pdae_lite import NoiseSchedule

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import api_page  # noqa: E402
import pdae_book  # noqa: E402
import results_page  # noqa: E402
import setup_cells  # noqa: E402
import timings_page  # noqa: E402
import verdict_page  # noqa: E402

BOOK = ROOT / "book"
BUILT = BOOK / "_build" / "html"


def load_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def built_pages():
    if not (BUILT / "index.html").is_file():
        pytest.skip("the book isn't built (make book)")
    return [p for p in sorted(BUILT.rglob("*.html")) if "_static" not in p.parts]


def test_the_links_in_book():
    for name, target in {"_config.yml": "../_config.yml", "_toc.yml": "../_toc.yml",
                         "notebooks": "../notebooks"}.items():
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
        assert any((BOOK / "_assets" / f"{path}{packed}").is_file() for packed in ("", ".xz")), path


def test_every_chapter_exists_and_every_page_is_listed():
    toc = load_yaml("_toc.yml")
    listed = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    assert len(set(listed)) == len(listed)
    for name in listed:
        assert (BOOK / f"{name}.md").is_file() or (BOOK
                                                   / f"{name}.ipynb").is_file(), f"_toc.yml lists {name}: no such page"
    pages = {p.relative_to(BOOK).with_suffix("").as_posix() for p in BOOK.glob("*.md")}
    assert pages <= set(listed)


def test_citations_exist():
    keys = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.M))
    texts = [p.read_text(encoding="utf-8") for p in [*BOOK.glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]]
    cited = {k.strip() for text in texts for group in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
             for k in group.split(",")}
    assert cited and cited <= keys


def test_versions_agree():
    """constraints.txt pins every direct dependency, within pyproject's range; environment.yml takes its versions from
    it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin
            for name, pin in (line.split("==") for line in lines if line and line[0] != "#")}
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
    text = (BOOK / "equations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\|\s*`([\w.]+)`[^|]*\|$", text, re.M)
    assert len(rows) > 35
    numbers = set(re.findall(r"\((\d+)\)", " ".join(re.findall(r"^\| ([^|]*) \|", text, re.M))))
    assert numbers >= {*"456789", "10"}, "an equation of the paper has no row"
    for name in rows:
        first, *attributes = name.split(".")
        thing = getattr(pdae_lite, first, None) or importlib.import_module(f"pdae_lite.{first}")
        for attribute in attributes:  # the schedule's tables belong to an instance
            if hasattr(thing, "__path__") and not hasattr(thing, attribute):
                importlib.import_module(f"{thing.__name__}.{attribute}")
            thing = getattr(NoiseSchedule.linear(10) if thing is NoiseSchedule else thing, attribute)
        assert callable(thing) or thing.shape == (10,), name


@pytest.mark.parametrize("script", [results_page, timings_page, verdict_page], ids=["results", "timings", "verdict"])
def test_pages_made_from_records_are_current(script):
    assert script.TARGET.read_text(
        encoding="utf-8") == script.page(), f"run it again: python scripts/pages/{script.__name__}.py"


def test_the_page_of_results_holds_every_record():
    text = results_page.page()
    for path in pdae_lite.data.ASSETS.glob("*.json"):
        sha = json.loads(path.read_text(encoding="utf-8")).get("file", {}).get("sha256")
        assert path.name in text or (sha and sha[:12] in text), path.name


def test_results_are_found_at_any_depth():
    inner = {"torch": "2.0", "device": "cpu", "python": "3.11"}
    o = {"runs": [{"seed": 1}], "made_with": inner, "other": {"date": "2026-01-02", "torch": "1.0"}}
    assert results_page.made(o) == "torch 2.0, Python 3.11, CPU, 2026-01-02"
    assert results_page.find(o, "seed") is None and results_page.find(o, "no", "date") == "2026-01-02"
    assert results_page.short({"a": "0" * 64, "b": [1, 0.123456]}) == "a `000000000000…`, b 1, 0.1235"


def test_every_module_is_in_the_api_reference():
    text = (BOOK / "api.md").read_text(encoding="utf-8")
    assert text == api_page.page(), "run: python scripts/pages/api_page.py"
    files = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "pdae_lite").rglob("*.py") if p.stem[0] != "_"]
    assert set(re.findall(r"automodule:: ([\w.]+)", text)) == {".".join(f.parts) for f in files}


def test_readme_is_one_screen_whose_links_and_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text) < 9000 and len(text.splitlines()) < 120
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert next(link for link in links if link.endswith(".py")) == "examples/minimal.py" and len(links) > 8
    assert not [link for link in links if not (ROOT / link).exists()]
    calls = re.findall(r"\b(interop|data|sampling)\.(\w+)\(", text)
    assert ("interop", "from_diffusers") in calls
    for module, name in calls:
        assert callable(getattr(getattr(pdae_lite, module), name)), f"{module}.{name}"


def test_the_ten_lines_of_the_readme_run():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    told = {}
    exec(code.replace("slice(8)", "slice(1)"), told)
    x_0, rebuilt = told["x_0"], told["rebuilt"]
    assert told["z"].shape == (1, 32) and not told["z"].requires_grad
    assert (rebuilt - x_0).square().mean() < 1e-3 < (told["images"] - x_0).square().mean()


def test_docstrings_become_rest():
    text = "a `b c`s and *d*, e_ or x_T, `one\ntwo`\n\n    example(*args)\n\nmore |x|"
    lines = [text]
    pdae_book.as_rest(None, "module", "", SimpleNamespace(__doc__=text), None, lines)
    first, last = r"a ``b c``\ s and \*d\*, e\_ or x_T, ``one two``", r"more \|x\|"
    assert "\n".join(lines) == f"{first}\n\n::\n\n    example(*args)\n\n{last}\n"


def test_buttons_need_a_public_url():
    """_config.yml's `pdae_repository` is the one place: without a URL no page has a launch button and no notebook a
    cell for Colab."""
    config, options = SimpleNamespace(pdae_repository="", pdae_branch="main"), {}
    config.html_theme_options = options
    pdae_book.public_url(None, config)
    assert not options
    config.pdae_repository = "https://github.com/someone/pdae_lite/"
    pdae_book.public_url(None, config)
    assert options["repository_url"] == "https://github.com/someone/pdae_lite"
    assert {"binderhub_url", "colab_url"} <= set(options["launch_buttons"])
    url = load_yaml("_config.yml")["sphinx"]["config"]["pdae_repository"]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
        assert (first.get("id") == setup_cells.ID) == bool(url), f"{path.name}: run scripts/pages/setup_cells.py"
        assert not url or url in "".join(first["source"])


def test_the_cell_for_colab_does_nothing_elsewhere():
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    before = nbformat.read(ROOT / "notebooks" / "01_quickstart.ipynb", as_version=4)
    text = nbformat.writes(before)
    notebook = setup_cells.renewed(nbformat.reads(text, as_version=4), "https://github.com/someone/pdae_lite")
    cell, *others = notebook.cells
    assert "%pip install" in cell.source and cell.execution_count == 1 and cell.metadata.tags == ["remove-cell"]
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    assert counts == list(range(1, len(counts) + 1))
    shell = InteractiveShell.instance()
    called = []
    shell.register_magic_function(called.append, magic_name="pip")
    assert shell.run_cell(cell.source).success and not called
    sys.modules["google.colab"] = None
    try:
        assert shell.run_cell(cell.source).success and len(called) == 1
    finally:
        del sys.modules["google.colab"]
    again = setup_cells.renewed(setup_cells.renewed(notebook, "https://github.com/someone/pdae_lite"), "")
    assert nbformat.writes(again) == text


# ---- the built pages ------------------------------------------------------------------------------------------------


def test_pages_load_nothing_from_elsewhere():
    for path in built_pages():
        text = path.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|img|iframe|source|video|audio|embed|link)\b[^>]*>", text)
        loads = [tag for tag in tags if re.search(r"\b(?:src|href)=[\"']?(?:https?:)?//", tag)]
        assert not loads, f"{path.relative_to(BUILT)}: {loads[:3]}"


def test_links_between_pages_lead_somewhere():
    """The page exists, and so does the place on it."""
    texts = {path.resolve(): path.read_text(encoding="utf-8") for path in built_pages()}
    places = {path: set(re.findall(r"\b(?:id|name)=\"([^\"]+)\"", text)) for path, text in texts.items()}
    for path, text in texts.items():
        for target, place in set(re.findall(r"<a\b[^>]*?\bhref=\"([^\"#?:]*)(?:#([^\"]*))?\"", text)):
            to = (path.parent / target).resolve() if target else path
            assert to.exists(), f"{path.name}: {target}"
            assert not place or to not in places or html.unescape(place) in places[to] | {
                "top"}, f"{path.name}: {target}#{place}"


def test_terms_and_chapters_are_linked_both_ways():
    """Every chapter leads to the glossary, and the glossary's entries lead back to those very places; code leads to the
    reference."""
    glossary = next(p for p in built_pages() if p.name == "notation.html").read_text(encoding="utf-8")
    chapters = [p for p in built_pages() if p.parent.name == "notebooks"]
    for path in chapters:
        text = path.read_text(encoding="utf-8")
        terms = re.findall(r"notation\.html#(term-[\w-]+)\"", text)
        assert len(terms) >= 2, path.name
        assert all(f'notebooks/{path.name}#mention-{term}"' in glossary for term in terms), path.name
    assert sum("api.html#pdae_lite." in p.read_text(encoding="utf-8") for p in chapters) >= len(chapters) / 2
    assert "api.html#pdae_lite.losses.fill" in (BUILT / "equations.html").read_text(encoding="utf-8")


def test_at_least_ten_sliders():
    names = [name for p in built_pages()
             for name in re.findall(r'class="pdae-slider" id="([\w-]+)"', p.read_text(encoding="utf-8"))]
    assert len(names) >= 10 and len(set(names)) == len(names), names


def weights():
    """Page → (its own HTML, with what it loads) in bytes."""
    out = {}
    for path in built_pages():
        text = path.read_text(encoding="utf-8")
        loads = re.findall(
            r"<(?:script|img)\b[^>]*?\bsrc=\"([^\":?]+)|<link\b[^>]*?\bhref=\"([^\":?]+)[^>]*?rel=\"stylesheet\"", text)
        files = {(path.parent / (a or b)).resolve() for a, b in loads}
        own = path.stat().st_size
        out[path.relative_to(BUILT).as_posix()] = own, own + sum(f.stat().st_size for f in files if f.is_file())
    return out


def test_no_page_is_heavy():
    """A page's own HTML, sliders included, stays below 2 MB, and with MathJax, scripts, styles and figures below 7
    MB."""
    for name, (own, whole) in weights().items():
        assert own < 2e6 and whole < 7e6, f"{name}: {own / 1e6:.1f} MB, with all it loads {whole / 1e6:.1f} MB"
