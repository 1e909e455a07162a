"""Prose follows the models: no stored figure is typed by hand, and chapters are named by links."""
import json
import re
from functools import cache

import pytest
import timings_page
from chapters import CHAPTERS, ROOT

chapters = pytest.mark.parametrize("name", CHAPTERS)


@cache
def stored() -> frozenset[str]:
    """Every number of the records, as it reads with two to four decimals."""
    out = set()

    def walk(o):
        if isinstance(o, dict):
            for key, value in o.items():
                if key not in ("config", "versions", "command", "paper"):
                    walk(value)
        elif isinstance(o, list):
            for value in o:
                walk(value)
        elif isinstance(o, float):
            out.update(f"{abs(o) * scale:.{n}f}" for n in (1, 2, 3, 4) for scale in (1, 100))

    for path in (ROOT / "pdae_lite" / "assets").glob("*.json"):
        walk(json.loads(path.read_text(encoding="utf-8")))
    return frozenset(out)


def typed(text: str) -> list[str]:
    """Stored figures in Markdown: outside formulas, code, links, sentences about papers, and columns of tables that are
    a paper's."""
    text = re.sub(r"^\$\$.*?^\$\$|^(`{3,})(?!\{).*?^\1|\$[^$]*\$|`[^`\n]*`|\{[\w:]+\}`[^`]*`", " ", text,
                  flags=re.M | re.S)
    kept, papers = [], None
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [c.strip() for c in line.strip("|").split("|")]
            papers = ([i for i, c in enumerate(cells) if re.search("paper|reported", c.lower())]
                      if papers is None else papers)
            kept.append(" ".join(c for i, c in enumerate(cells) if i not in papers) + ". ")
        else:
            papers = None
            kept.append(line)
    sentences = re.split(r"(?<=[.?!:])\s+|\n\n", "\n".join(kept))
    numbers = [n for s in sentences if "paper" not in s.lower()
               for n in re.findall(r"(?<![\w.,−-])\d*\.\d+(?!\w|\.\d)", s)]
    numbers = [n if n[0] != "." else f"0{n}" for n in numbers]
    return [n for n in numbers if len(n.replace(".", "").lstrip("0")) >= 2 and n in stored()]


@chapters
def test_no_stored_figure_is_typed_by_hand(name):
    found = [n for c in CHAPTERS[name].cells if c.cell_type == "markdown" for n in typed(c.source)]
    assert not found, f"{found}: let a cell write the sentence (viz.say), or round it to words"


@chapters
def test_chapters_are_named_by_links(name):
    text = "\n".join(c.source for c in CHAPTERS[name].cells)
    assert not re.findall(r"\b[Cc]hapters? \d+|\b[Ee]xercises? \d+", text)


@chapters
def test_the_head_gives_the_measured_minutes(name):
    head = next(c.source for c in CHAPTERS[name].cells if c.cell_type == "markdown")
    assert head.count("**Time:**") == 1 and timings_page.minutes(name) in head, "run scripts/run_notebooks.py"


def test_typed_figures_are_found():
    number = next(n for n in sorted(stored()) if re.fullmatch(r"0\.[1-9]\d\d", n))
    assert typed(f"It is {number} for us.") == [number] == typed(f"| x | ours |\n|---|---|\n| a | {number} |")
    assert typed(f"The paper has {number}.") == [] == typed(f"| x | the paper |\n|---|---|\n| a | {number} |") == typed(
        f"${number}$")
