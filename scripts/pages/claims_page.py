"""Write book/claims.md: what each chapter asserts, read from the outputs of `viz.claim` in the notebooks. When a claim
fails, so do its cell, nbval and CI.

    python scripts/pages/claims_page.py            # a test tells when it has to be run again
"""
import re
from pathlib import Path

import nbformat

from pdae_lite.checkpoint import write_text
from pdae_lite.viz import TICK

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "claims.md"
HEAD = """# What this book claims

Every sentence below is shown by a cell that has just checked it. Each time the tests run (`make test`), the \
notebooks are executed
anew: a claim that doesn't hold stops its cell, and a sentence that changes is noticed.

| chapter | claims |
|---|---|
"""


def claims(path: Path) -> list[str]:
    """The claims of a notebook, in order; one in a cell that isn't compared with its stored output raises
    ValueError."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        lines = "\n".join(o.get("data", {}).get("text/plain", "") for o in cell.outputs).splitlines()
        said = [re.sub(r" \[[^\[\]]*\]$", "", line[len(TICK):]) for line in lines if line.startswith(TICK)]
        if said and "nbval-check-output" not in cell.metadata.get("tags", ()):
            raise ValueError(f"{path.name} claims {said[0]!r} in a cell without the tag nbval-check-output")
        found += said
    return found


def title(path: Path) -> str:
    """The first heading of a notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return next(line[2:] for c in cells if c.cell_type == "markdown" for line in c.source.splitlines()
                if line.startswith("# "))


def page() -> str:
    """The page as Markdown."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    all_claims = {p: claims(p) for p in paths}
    rows = [f"| {{doc}}`notebooks/{p.stem}` | {len(c)} |" for p, c in all_claims.items()]
    rows.append(f"| all | {sum(map(len, all_claims.values()))} |")
    parts = [f"## {int(p.stem[:2])}. {title(p)}\n\n" + "\n".join(f"- {line}" for line in c)
             for p, c in all_claims.items()]
    return HEAD + "\n".join(rows) + "\n\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text(TARGET, page())
