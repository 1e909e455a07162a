"""What benchmarks/sampling.py measured, as a table: plain text, or Markdown for the README.

    python benchmarks/sampling_report.py pdae_lite/assets/sampling_digits.json pdae_lite/assets/sampling_peeps.json
"""
import argparse
import json
from collections.abc import Callable
from pathlib import Path

Column = tuple[str, Callable[[dict], str]]


def number(*path: str, form: str = ".2e", interval: bool = False) -> Callable[[dict], str]:
    """Reads a value of a row, with its interval; – if it isn't there."""
    def value(row: dict) -> str:
        for key in path:
            row = row.get(key) if isinstance(row, dict) else None
        if isinstance(row, dict):
            return f"{row['value']:{form}}" + (f" [{row['low']:{form}}, {row['high']:{form}}]" if interval else "")
        return "–" if row is None else f"{row:{form}}"
    return value


COST = [("evaluations", number("evaluations", form=".0f")), ("GFLOP", number("gflop", form=".1f")),
        ("s/image", number("seconds", form=".3f"))]
SECTIONS: dict[str, tuple[str, list[Column]]] = {
    "random_x_T": ("random x_T", [*COST, ("MSE to the 1000-step solution", number("mse", interval=True)),
                                  ("features", number("features", form=".2f")),
                                  ("MSE to x_0", number("mse_to_x_0", form=".4f")),
                                  ("SSIM", number("ssim_to_x_0", form=".3f"))]),
    "inferred_x_T": ("inferred x_T",
                     [*COST, ("MSE", number("mse", interval=True)), ("SSIM", number("ssim", form=".4f")),
                      ("std of x_T", number("noise", "std", form=".2f")),
                      ("neighbours", number("noise", "neighbours", form=".3f")),
                      ("brightness", number("noise", "brightness", form=".2f")),
                      ("edit to z", number("edit_to_z", form=".2f")), ("follows z", number("follows_z", form=".0%"))]),
    "drawn": ("codes of held-out images, random x_T", [*COST, ("KID", number("kid", form=".3f", interval=True)),
                                                       ("change", number("kid_change", form="+.4f", interval=True))]),
    "intervals": ("when the shift is on",
                  [("GFLOP", number("gflop", form=".1f")), ("MSE to x_0", number("mse", form=".4f")),
                   ("own", number("nearest_is_own", form=".0%")),
                   ("change of KID", number("kid_change", form="+.3f", interval=True)),
                   ("KID, new codes", number("kid_new", form=".3f")),
                   ("change", number("kid_new_change", form="+.3f", interval=True)),
                   ("edit to z", number("edit_to_z", form=".2f")), ("follows z", number("follows_z", form=".0%"))]),
    "shift": ("√(1−ᾱ_t) (ddim) or k_t (ddpm)", [("form", lambda r: r["form"]), ("MSE", number("mse", interval=True)),
                                                ("change", number("mse_change", form="+.1e", interval=True)),
                                                ("SSIM", number("ssim", form=".3f")),
                                                ("std of x_T", number("noise", "std", form=".2f")),
                                                ("brightness", number("noise", "brightness", form=".2f"))])}


def grids(result: dict):
    """Each section that was measured, as a name and rows of text; the first row is the head."""
    for key, (title, columns) in SECTIONS.items():
        rows = result.get(key, {}).get("rows", [])
        if rows:
            yield key, [[title, *(head for head, _ in columns)],
                        *([r["name"], *(read(r) for _, read in columns)] for r in rows)]


def facts(result: dict) -> list[str]:
    """Where the numbers come from, and what an evaluation costs."""
    p, counts, one = result["provenance"], result["counts"], sum(result["gflop"].values())
    plain = one - result["gflop"]["shift"]
    return [f"{result['data']}: {counts['images']} images ({counts['kid']} for a KID), on {p['device']}, "
            f"{p['threads']} thread(s), "
            f"torch {p['torch']}, {p['date'][:10]}",
            f"GFLOP for an image: {plain:.3g} for a plain evaluation, {one:.3g} for a shifted one ({one / plain:.2f}×)"]


def mixing(result: dict) -> list[str]:
    """The sentence on mixing two codes."""
    if "mixing" not in result:
        return []
    m = result["mixing"]
    return [f"mixing two z: {m['speed_up']:.2f}× ({m['range'][0]:.2f} … {m['range'][1]:.2f}) as fast as two "
            "evaluations; "
            f"arithmetic allows {m['allowed']:.2f}×: {m['share']:.0%} of it"]


def table(result: dict) -> str:
    """The result as text."""
    lines = facts(result)
    for _, rows in grids(result):
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines += ["", *("  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))])
                        for row in rows)]
    return "\n".join([*lines, "", *mixing(result)])


def markdown(result: dict, only: tuple[str, ...] = tuple(SECTIONS)) -> str:
    """The result as Markdown, or some sections of it."""
    lines = [f"**{result['data']}** (`{result['command']}`). " + ". ".join(facts(result)[:2]).split(": ", 1)[1] + "."]
    for key, rows in grids(result):
        if key in only:
            lines += ["", *("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))]
    return "\n".join([*lines, *(["", mixing(result)[0] + "."] if mixing(result) else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        print(markdown(json.loads(path.read_text(encoding="utf-8"))), end="\n\n")


if __name__ == "__main__":
    main()
