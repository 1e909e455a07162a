"""Write book/api.md: the API reference, a section for each room of the package and an entry for each module in it.

    python scripts/pages/api_page.py            # a test tells when it has to be run again
"""
from pathlib import Path

from pdae_lite.checkpoint import write_text

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "book" / "api.md"
# The rooms in the order of the theory, with the modules that lie beside them; "": the front of the house.
ROOMS = {"The method": ("schedule", "losses", "sampling", "belm", "autoencoder", "pdae", "diffae", "guidance", "speed"),
         "networks": None, "training": None, "data": None, "interop": None, "applications": None, "metrics": None,
         "evaluation": None, "reproduction": None, "viz": None, "commands": None, "Files, settings, random numbers": ()}
HEAD = """# API reference

Made from the docstrings of `pdae_lite`, room by room. Shapes are in square brackets: `[N, C, H, W]` are N images \
with C channels.
Types of other libraries (tensors, arrays, paths) aren't linked; the chapters link here from the names in their text.

## The front door

Names that `import pdae_lite` gives: `PDAE`, `UNet`, `SemanticEncoder`, `NoiseSchedule`, `load`, `shipped`, `train`, \
and the rooms and
modules below, each loaded when it is first used: `pdae_lite.sampling.ddim`.
"""
ENTRY = """
### {name}

```{{eval-rst}}
.. automodule:: {name}
   :members:
   :ignore-module-all:
```
"""


def modules() -> dict[str, list[str]]:
    """Section -> the modules that it shows, by their dotted names."""
    package = ROOT / "pdae_lite"
    front = {p.stem for p in package.glob("*.py") if p.stem[0] != "_"}
    named = [name for given in ROOMS.values() for name in given or ()]
    found = {}
    for section, given in ROOMS.items():
        if given is None:
            found[section] = [f"pdae_lite.{section}.{p.stem}" for p in sorted((package / section).glob("*.py"))
                              if p.stem[0] != "_"]
        else:
            found[section] = [f"pdae_lite.{name}" for name in given or sorted(front - set(named))]
    return found


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for section, names in modules().items():
        title = section if section[0].isupper() else f"pdae_lite.{section}"
        parts.append(f"\n## {title}\n" + "".join(ENTRY.format(name=name) for name in names))
    return "".join(parts)


if __name__ == "__main__":
    write_text(TARGET, page())
