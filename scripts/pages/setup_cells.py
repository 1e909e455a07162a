"""Give every notebook the cell that installs the library on Colab, from the public address in _config.yml; take it out
where there is none.

    python scripts/pages/setup_cells.py            # a test tells when it has to be run again

Anywhere but on Colab the cell does nothing, and the book doesn't show it. The numbers of the other cells move on by
one."""
import os
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
ID = "setup-on-colab"
SOURCE = '''# On Colab this installs the library; anywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    %pip install -q "pdae_lite[diffusers] @ git+{url}@{branch}"'''


def renewed(notebook, url: str, branch: str = "main"):
    """The notebook with the cell as it should be: first of all for a URL, absent for ""."""
    had = any(c.id == ID for c in notebook.cells)
    notebook.cells = [c for c in notebook.cells if c.id != ID]
    if url:
        source = SOURCE.format(url=url, branch=branch)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(source, id=ID, metadata={"tags": ["remove-cell"]},
                                                           execution_count=1))
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.id != ID and cell.execution_count is not None:
            cell.execution_count += bool(url) - had
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = cell.execution_count
    return notebook


def main() -> int:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]
    url, branch = config["pdae_repository"].strip().rstrip("/"), config.get("pdae_branch", "main")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        after = nbformat.writes(renewed(nbformat.reads(before, as_version=4), url, branch)).rstrip("\n") + "\n"
        if after != before:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(after, encoding="utf-8")
            os.replace(temporary, path)
            print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
