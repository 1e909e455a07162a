"""The committed notebooks: executed in order, with outputs, without errors, readable by everyone. (`make test` also
runs them anew, by nbval.)"""
import re
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CURE = "run it anew: python scripts/pages/run_notebooks.py "
WIDGET = "application/vnd.jupyter.widget-view+json"

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code_cells(path):
    """(number, cell) of every code cell that has code in it."""
    notebook = nbformat.read(path, as_version=4)
    return [(i, c) for i, c in enumerate(notebook.cells) if c.cell_type == "code" and c.source.strip()]


def text_of(output):
    if output.output_type == "stream":
        return output.text
    return "\n".join(str(v) for k, v in output.get("data", {}).items() if k.startswith("text/"))


def test_the_book_has_notebooks():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = {c["file"] for part in toc["parts"] for c in part["chapters"] if c["file"].startswith("notebooks/")}
    assert listed == {f"notebooks/{p.stem}" for p in NOTEBOOKS}


@notebooks
def test_is_valid(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [c.id for c in notebook.cells]
    assert len(set(ids)) == len(ids)


@notebooks
def test_was_executed_in_order(path):
    counts = [c.execution_count for _, c in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1)), CURE + path.stem
    assert any(c.outputs for _, c in code_cells(path)), f"no outputs; {CURE}{path.stem}"


@notebooks
def test_checked_cells_have_outputs(path):
    """nbval never compares a cell that was stored without an output."""
    for number, cell in code_cells(path):
        if "nbval-check-output" in cell.metadata.get("tags", ()):
            assert cell.outputs, f"cell {number} is to be compared, but has no output; {CURE}{path.stem}"


@notebooks
def test_has_no_errors_or_warnings(path):
    for number, cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", f"cell {number}: {output.get('ename')}"
            assert not (output.output_type == "stream"
                        and output.name == "stderr"), f"cell {number}: {output.text[:300]}"


@notebooks
def test_pictures_have_alt_text(path):
    for number, cell in code_cells(path):
        if any(kind.startswith("image/") for o in cell.outputs for kind in o.get("data", {})):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip()
            wanted = '{"mystnb": {"image": {"alt": "what the picture shows"}}}'
            assert len(alt) >= 20, f"cell {number}: metadata needs {wanted}"
            is_path = " " not in alt or re.search(r"\.(png|svg|jpe?g|gif|webp)$|^[\w.-]*[/\\]", alt)
            assert not is_path, f"cell {number}: alt text is a path: {alt}"


@notebooks
def test_needs_no_kernel_to_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata, CURE + path.stem
    for number, cell in code_cells(path):
        for output in cell.outputs:
            data = output.get("data", {})
            assert WIDGET not in data, f"cell {number}: a live widget with nothing static beside it"
            elsewhere = re.search(r"""<[^a][^>]*(src|href)=["'](https?:)?//""", data.get("text/html", ""))
            assert not elsewhere, f"cell {number} asks another host"


@notebooks
def test_stores_nothing_that_changes_by_itself(path):
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata.get("language_info", {})) <= {"name"}, CURE + path.stem
    for number, cell in enumerate(notebook.cells):
        assert not {"execution", "ExecuteTime", "collapsed",
                    "scrolled"} & set(cell.metadata), f"cell {number}; {CURE}{path.stem}"
        for output in cell.get("outputs", []):
            machine = re.search(r"\bat 0x[0-9a-f]{6,}|/home/|/Users/|/root/|/tmp/|site-packages", text_of(output))
            assert not machine, f"cell {number}: an address or a path of one machine"


PARTS = {"goals": r"What you will (learn|do)", "prerequisites": r"\*\*Before you start:\*\*",
         "minutes": r"\*\*Time:\*\*",
         "question": r"## The question", "paper beside ours": r"## What the papers? reports?, and what we measure",
         "quiz": r"## Quiz",
         "summary": r"## What you learned", "read next": r"(## |\*\*)Read next", "citations": r"\{cite\}"}


@notebooks
def test_has_every_part(path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    assert not [part for part, pattern in PARTS.items() if not re.search(pattern, text)]
    exercises = re.findall(r"\{exercise\}.*\n:label: ([\w-]+)", text)
    solutions = re.findall(r"\{solution-start\} ([\w-]+)", text)
    assert 2 <= len(exercises) <= 4 and sorted(exercises) == sorted(solutions)
    after_quiz = text[text.index("## Quiz"):]
    assert len(re.findall(r"\{dropdown\}|:class: dropdown", after_quiz)) >= 2  # explained answers
