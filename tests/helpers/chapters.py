"""The chapters that have been rewritten: the tests of form hold for these."""
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ALL = {p.stem: nbformat.read(p, as_version=4) for p in NOTEBOOKS}
REWRITTEN = {name: n for name, n in ALL.items() if not any("NBVAL_CHECK_OUTPUT" in c.source for c in n.cells)}
