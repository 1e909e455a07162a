"""What a chapter says beside its figures: claims that are checked, sentences with measured numbers, tables, captions.
"""
import html
import inspect
from collections.abc import Mapping, Sequence

from matplotlib import pyplot as plt

TICK, OPEN_ROWS = "✓ ", 7


class Shown:
    """HTML with plain text as its fallback: shows itself at the end of a cell, or by `display`."""

    def __init__(self, text: str, markup: str):
        self.text, self.html = text, markup

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": self.text, "text/html": self.html}


def claim(sentence: str, condition, measured: object = None) -> None:
    """Show the sentence with a tick, and what was measured beside it, which may differ from machine to machine.

    Raises:
        AssertionError: the condition is false; the message has the sentence and what was measured.
    """
    shown = "" if measured is None else f"{measured:.3g}" if isinstance(measured, float) else str(measured)
    if not bool(condition):
        raise AssertionError(f"{sentence}: does not hold{f' ({shown})' if shown else ''}")
    beside = f' <span class="measured">({html.escape(shown)})</span>' if shown else ""
    tick = f'<span class="tick">{TICK.strip()}</span>'
    display(Shown(f"{TICK}{sentence}" + (f" [{shown}]" if shown else ""),
                  f'<p class="pdae-claim">{tick} {html.escape(sentence)}{beside}</p>'))


def say(markdown: str) -> None:
    """Show a paragraph of Markdown: prose whose numbers the cell has measured."""
    from IPython.display import Markdown

    display(Markdown(inspect.cleandoc(markdown)))


def source(thing) -> None:
    """Show the library's own code of a class, method or function, its docstring left out."""
    say(source_of(thing))


def source_of(thing) -> str:
    """The code that `source` shows, as Markdown."""
    code = inspect.cleandoc("\n" + inspect.getsource(thing))
    if thing.__doc__ and '"""' in code:
        before, _, after = code.partition('"""')
        code = before.rstrip() + "\n" + after.partition('"""')[2].lstrip("\n")
    return f"```python\n{code.strip()}\n```"


def table(rows: Sequence[Sequence], columns: Sequence[str], *, caption: str, units: Mapping[str, str] | None = None,
          best: Mapping[str, str] | None = None, digits: Mapping[str, int] | int = 3) -> Shown:
    """A small table, at most seven rows of it open; the rest unfolds.

    Args:
        rows: one sequence a row: its name, then texts, numbers, None (shown as –), or a `metrics.Estimate`, shown as
            value ± the larger half of its interval.
        columns: names, one for each entry of a row.
        caption: what the table shows, and of how many of what.
        units: column → unit, shown under the column's name, such as "↓, on [0, 1]".
        best: column → "low" or "high", which is better; bold where its interval lies beyond those of all others.
        digits: significant digits, for all columns or column by column.

    Raises:
        ValueError: a row with another number of entries, or `units`, `best` or `digits` for no column.
    """
    columns, units, best = list(columns), dict(units or {}), dict(best or {})
    per_column = dict.fromkeys(columns, digits) if isinstance(digits, int) else dict.fromkeys(columns, 3) | dict(digits)
    unknown = (set(units) | set(best) | set(per_column)) - set(columns)
    if unknown or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"table: no column {sorted(unknown)}" if unknown else
                         f"table: want {len(columns)} entries in every row")

    def leads(i: int, column: int) -> bool:
        side, mine = best.get(columns[column]), rows[i][column]
        others = [row[column] for j, row in enumerate(rows) if j != i and hasattr(row[column], "low")]
        if side is None or not hasattr(mine, "low") or not others:
            return False
        return all(mine.high < o.low if side == "low" else mine.low > o.high for o in others)

    def text(value, column: str) -> str:
        if not hasattr(value, "low"):
            return number(value, per_column[column])
        half = max(value.high - value.value, value.value - value.low)
        return f"{number(value.value, per_column[column])} ± {number(float(half), 2)}"

    cells = [[text(value, name) for value, name in zip(row, columns)] for row in rows]
    heads = [f"{name} ({units[name]})" if name in units else name for name in columns]
    widths = [max(map(len, column)) for column in zip(heads, *cells)]
    plain = "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in (heads, *cells))

    def line(i: int) -> str:
        bold = [("<strong>", "</strong>") if leads(i, j) else ("", "") for j in range(len(columns))]
        entries = "".join(f"<td>{bold[j][0]}{html.escape(c)}{bold[j][1]}</td>" for j, c in enumerate(cells[i]) if j)
        return f'<tr><th scope="row">{html.escape(cells[i][0])}</th>{entries}</tr>'

    def whole(which, words: str) -> str:
        small = {name: f"<br><small>{html.escape(unit)}</small>" for name, unit in units.items()}
        top = "".join(f'<th scope="col">{html.escape(name)}{small.get(name, "")}</th>' for name in columns)
        return (f'<table class="pdae-table"><caption>{words}</caption><thead><tr>{top}</tr></thead>'
                f"<tbody>{''.join(map(line, which))}</tbody></table>")

    shown = whole(range(len(rows))[:OPEN_ROWS], html.escape(caption))
    if len(rows) > OPEN_ROWS:
        rest = whole(range(OPEN_ROWS, len(rows)), "continued")
        shown += f"<details><summary>{len(rows) - OPEN_ROWS} more rows</summary>{rest}</details>"
    return Shown(f"{caption}\n{plain}", shown)


def number(value, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent from 0.0001 to 9,999,999; None as –; texts as they are.
    """
    if value is None or isinstance(value, (str, bool)):
        return "–" if value is None else str(value)
    value = value if isinstance(value, int) else float(value)
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def caption(text: str) -> None:
    """Show the figures made so far in this cell, and a caption under them."""
    for n in plt.get_fignums():
        figure = plt.figure(n)
        display(figure)
        plt.close(figure)
    display(Shown(text, f'<p class="pdae-caption">{html.escape(text)}</p>'))


def display(thing) -> None:
    """Show a thing in a notebook."""
    try:
        from IPython.display import display as show
    except ImportError:
        raise ImportError(
            "showing pictures needs a notebook; in a script use image_figure(...).savefig(path)") from None
    show(thing)
