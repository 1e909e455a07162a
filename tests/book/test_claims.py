"""Every chapter asserts what it says, and the page that lists the claims is the one that the notebooks give."""
from pathlib import Path

import claims_page
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_asserts_its_claims(path):
    assert len(claims_page.claims(path)) >= 3


def test_the_page_is_current():
    assert claims_page.TARGET.read_text(
        encoding="utf-8") == claims_page.page(), "run: python scripts/pages/claims_page.py"


def test_a_claim_in_a_cell_that_is_not_compared_is_refused(tmp_path):
    out = nbformat.v4.new_output("display_data", data={"text/plain": "✓ it holds [0.5]"})
    cell = nbformat.v4.new_code_cell("viz.claim('it holds', True, 0.5)", outputs=[out])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    with pytest.raises(ValueError, match="nbval-check-output"):
        claims_page.claims(tmp_path / "n.ipynb")
    cell.metadata.tags = ["nbval-check-output"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    assert claims_page.claims(tmp_path / "n.ipynb") == ["it holds"]
