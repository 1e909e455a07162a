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
    assert claims_page.TARGET.read_text(encoding="utf-8") == claims_page.page(), "run: python scripts/pages/claims_page.py"


def test_a_claim_without_an_assert_is_refused(tmp_path):
    cell = nbformat.v4.new_code_cell("# NBVAL_CHECK_OUTPUT\nprint('it holds: True')",
                                     outputs=[nbformat.v4.new_output("stream", text="it holds: True\n")])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    with pytest.raises(ValueError, match="without an assert"):
        claims_page.claims(tmp_path / "n.ipynb")
