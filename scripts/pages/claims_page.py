"""Write book/claims.md: what each chapter asserts, read from the notebooks. A claim is a sentence that a checked cell prints after an
`assert`: when it fails, so do the cell, nbval and CI.

    python scripts/pages/claims_page.py            # a test tells when it has to be run again
"""
from pathlib import Path

import nbformat

from pdae_lite.checkpoint import write_text

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "claims.md"
CHECKED, HOLDS = "# NBVAL_CHECK_OUTPUT", ": True"
HEAD = """# What this book claims

Every sentence below is printed by a cell that first asserts it, with a tolerance that the cell states. Each time the tests run
(`make test`), the notebooks are executed anew: a claim that doesn't hold stops its cell, and a sentence that changes is noticed.

| chapter | claims |
|---|---|
"""


def claims(path: Path) -> list[str]:
    """The asserted sentences of a notebook, in order; a checked cell that says one without an assert raises ValueError."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code" or not cell.source.startswith(CHECKED):
            continue
        lines = "".join(o.text for o in cell.outputs if o.output_type == "stream").splitlines()
        said = [line.removesuffix(HOLDS).strip() for line in lines if line.endswith(HOLDS)]
        if said and "assert" not in cell.source:
            raise ValueError(f"{path.name} claims {said[0]!r} in a cell without an assert")
        found += said
    return found


def title(path: Path) -> str:
    """The first heading of a notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return next(line[2:] for c in cells if c.cell_type == "markdown" for line in c.source.splitlines() if line.startswith("# "))


def page() -> str:
    """The page as Markdown."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    all_claims = {p: claims(p) for p in paths}
    rows = [f"| {{doc}}`notebooks/{p.stem}` | {len(c)} |" for p, c in all_claims.items()]
    rows.append(f"| all | {sum(map(len, all_claims.values()))} |")
    parts = [f"## {int(p.stem[:2])}. {title(p)}\n\n" + "\n".join(f"- {line}" for line in c) for p, c in all_claims.items()]
    return HEAD + "\n".join(rows) + "\n\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text(TARGET, page())
