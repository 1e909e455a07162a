"""What a page shows of its code: the idea, with every equation's line, and little that plots, prints or asserts."""
import json
import re
from pathlib import Path

import nbformat
import pytest
import visible_code
from chapters import CHAPTERS

EQUATIONS = json.loads((Path(__file__).parent / "equations.json").read_text(encoding="utf-8"))
chapters = pytest.mark.parametrize("name", CHAPTERS)


@chapters
def test_a_page_shows_the_idea(name):
    m = visible_code.measure(CHAPTERS[name])
    assert m["showing"] <= 0.15 * m[
        "visible"], f"{m['showing']} of {m['visible']} visible lines plot, print or assert: fold them"
    assert m["decimals"] <= 60, f"{m['decimals']} printed decimals"
    if name[:2] in ("02", "03", "04", "05"):
        assert m["visible"] >= 0.4 * m["lines"], f"only {m['visible']} of {m['lines']} lines of code are visible"


@chapters
def test_a_folded_cell_says_what_is_inside(name):
    for cell in CHAPTERS[name].cells:
        if set(cell.metadata.get("tags", ())) & {"hide-input", "hide-cell"}:
            prompt = cell.metadata.get("mystnb", {}).get("code_prompt_show", "")
            assert len(prompt) >= 7, f'{cell.id}: metadata needs {{"mystnb": {{"code_prompt_show": "what is inside"}}}}'


@chapters
def test_every_numbered_equation_has_its_line_of_code(name):
    notebook, known = CHAPTERS[name], EQUATIONS.get(name, {})
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    labels = re.findall(r"^\$\$ \(([\w-]+)\)", text, re.M)
    changed = set(labels) ^ set(known)
    assert not changed, f"tests/book/equations.json, {name}: missing there, or gone here: {changed}"
    cells = {c.id: c for c in notebook.cells}
    for label, entry in known.items():
        if "not_computed" in entry:
            assert len(entry["not_computed"]) > 15, f"{label}: say why no line of code computes it"
            continue
        cell = cells[entry["cell"]]
        shown = "\n".join(o.data.get("text/markdown", "") for o in cell.outputs if "data" in o)
        if not set(cell.metadata.get("tags", ())) & visible_code.FOLDED:
            shown += cell.source
        assert entry["code"] in shown, f"{label}: {entry['code']!r} isn't visible in cell {entry['cell']}"


def test_the_count_knows_what_plots():
    source = '''
x = 1
ax = viz.curves(x, x)
ax.set(xlabel="t")
for a in axes:
    a.plot(x)
figure, axes = plt.subplots(1, 2)
for a in axes:
    a.plot(x)
    a.legend()
assert x == 1
for i in range(3):
    x += 1
    print(x)
'''
    assert visible_code.showing_lines(source, set()) == {3, 4, 7, 8, 9, 10, 11, 14}


def test_the_count_knows_what_is_printed():
    def output(**data):
        return nbformat.v4.new_output("display_data", data={k.replace("_", "/"): v for k, v in data.items()})

    assert visible_code.decimals(output(text_plain="0.5 and .25, version 1.2.3, 7")) == 2
    assert visible_code.decimals(output(text_html="<p>1.5</p><details>2.5</details><style>a{b:1.5em}</style>")) == 1
    assert visible_code.decimals(output(image_png="", text_plain="<Figure 1.5>")) == 0
