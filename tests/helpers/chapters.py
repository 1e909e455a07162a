"""The chapters of the book, by name."""
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = {p.stem: nbformat.read(p, as_version=4) for p in NOTEBOOKS}
