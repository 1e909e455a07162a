"""What a reader of each chapter sees: lines of code and what they are for, printed decimals, words.

    python scripts/pages/visible_code.py
"""
import ast
import html
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
UNSEEN = {"remove-cell", "remove-output", "hide-output", "hide-cell"}
SHOWING = {"print", "display", "plt", "viz", "matplotlib", "mpl", "claim", "say", "table", "caption", "show_images",
           "curves", "slider", "explorer", "Markdown", "HTML"}
DEFINITION = """A line of code is neither empty nor only a comment. It is visible unless a tag of its cell folds or \
removes code.
It plots, prints or asserts if it belongs to an assert, to a call of print, display, plt.*, viz.* or of what was made \
by one of these (axes,
figures), to a loop, with block or if that does nothing else, or to a function that makes such a call. A printed \
decimal is a
number with a point in an output that shows without a click, pictures and code left out; words are those of texts and \
sentences."""


def names_in(node) -> set[str]:
    """The names on which a piece of code calls something: `ax` in ax.plot(…), `print` in print(…)."""
    found = set()
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
        f = call.func
        while isinstance(f, (ast.Attribute, ast.Subscript, ast.Call)):
            f = f.func if isinstance(f, ast.Call) else f.value
        if isinstance(f, ast.Name):
            found.add(f.id)
    return found


def showing_lines(source: str, shown: set[str]) -> set[int]:
    """Numbers of the lines that plot, print or assert. `shown` collects the names of axes, figures and functions that
    do."""
    lines = set()

    def visit(body) -> bool:
        """Whether all of the body shows something."""
        return all([one(s) for s in body])

    def one(s) -> bool:
        if isinstance(s, (ast.For, ast.While, ast.With, ast.If, ast.Try)):
            if isinstance(s, ast.For) and any(isinstance(n, ast.Name) and n.id in shown for n in ast.walk(s.iter)):
                shown.update(n.id for n in ast.walk(s.target) if isinstance(n, ast.Name))
            inner = [*s.body, *getattr(s, "orelse", []), *(h for x in getattr(s, "handlers", []) for h in x.body)]
            if not visit([*inner, *getattr(s, "finalbody", [])]):
                return False
            lines.update(range(s.lineno, s.end_lineno + 1))
            return True
        called = names_in(s) & (shown | SHOWING)
        if not (called or isinstance(s, ast.Assert) or isinstance(s, ast.Import)
                and any("matplotlib" in a.name for a in s.names)):
            return False
        if isinstance(s, (ast.FunctionDef, ast.ClassDef)):
            shown.add(s.name)
        elif isinstance(s, ast.Assign) and called - {"print", "display"}:
            shown.update(n.id for t in s.targets for n in ast.walk(t) if isinstance(n, ast.Name))
        lines.update(range(s.lineno, s.end_lineno + 1))
        return True

    visit(ast.parse(source).body)
    return lines


def code_lines(source: str) -> list[int]:
    return [i for i, line in enumerate(source.splitlines(), 1) if line.strip() and not line.strip().startswith("#")]


def plain(source: str) -> str:
    """The cell as Python: magics and shell lines become comments."""
    return re.sub(r"^(\s*)[%!]", r"\1pass  # ", source, flags=re.M)


def decimals(output) -> int:
    """Numbers with a point in what an output shows at once."""
    if output.output_type == "stream":
        text = output.text
    else:
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            return 0
        text = data.get("text/html") or data.get("text/markdown") or data.get("text/plain", "")
        if "text/html" in data:
            unseen = "<details>.*?</details>|<div class=.frames.>.*?</div>|<style>.*?</style>|<script>.*?</script>"
            text = re.sub(unseen, " ", text, flags=re.S)
            text = html.unescape(re.sub(r"<[^>]*>", " ", text))
        text = re.sub(r"```.*?```", " ", text, flags=re.S)
    return len(re.findall(r"(?<![\w.])\d*\.\d+(?![\w.]*\.\d)", text))


def measure(notebook) -> dict:
    """Counts of one chapter."""
    total = visible = showing = printed = 0
    shown: set[str] = set()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        tags = set(cell.metadata.get("tags", ()))
        source = plain(cell.source)
        lines, busy = code_lines(source), showing_lines(source, shown)
        total += len(lines)
        if not tags & FOLDED:
            visible += len(lines)
            showing += len(busy.intersection(lines))
        if not tags & UNSEEN:
            printed += sum(decimals(o) for o in cell.outputs)
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    said = [o.data["text/markdown"] for c in notebook.cells if c.cell_type == "code" for o in c.outputs
            if "text/markdown" in o.get("data", {})]
    words += sum(len(re.sub(r"```.*?```", " ", text, flags=re.S).split()) for text in said)
    return {"lines": total, "visible": visible, "showing": showing, "decimals": printed, "words": words}


def report(notebooks: dict) -> str:
    rows = [f"{'chapter':24s}{'code':>6s}{'visible':>9s}{'':>6s}{'of these plot/print/assert':>28s}"
            f"{'decimals':>10s}{'words':>7s}"]
    sums = dict.fromkeys(("lines", "visible", "showing", "decimals", "words"), 0)
    for name, notebook in [*notebooks.items(), ("all", None)]:
        m = sums if notebook is None else measure(notebook)
        if notebook is not None:
            sums = {k: v + m[k] for k, v in sums.items()}
        rows.append(f"{name:24s}{m['lines']:6d}{m['visible']:9d}{m['visible'] / m['lines']:6.0%}{m['showing']:21d}"
                    f"{m['showing'] / max(m['visible'], 1):7.0%}{m['decimals']:10d}{m['words']:7d}")
    return f"{DEFINITION}\n\n" + "\n".join(rows)


if __name__ == "__main__":
    print(report({p.stem: nbformat.read(p, as_version=4) for p in sorted((ROOT / "notebooks").glob("*.ipynb"))}))
