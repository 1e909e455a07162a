"""The rules of the house, each a function over a source tree: root -> what breaks it, one line each. Read by `ast`:
nothing is run.

    python tests/helpers/house.py        what is broken, and the sizes
"""
import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = "pdae_lite"
# Imports run downwards: a room may use those above it in this list, and those beside it.
LEVELS = [
    {"counter_rng", "warning", "progress", "storage", "checkpoint", "hub", "schedule"},
    {"networks", "losses", "sampling", "belm"},
    {"autoencoder", "pdae", "guidance", "diffae", "speed"},
    {"data"},
    {"training"},
    {"metrics"},
    {"applications"},
    {"interop"},  # whose files hold latent DPMs and probes, too
    {"presets"},
    {"evaluation"},
    {"reproduction"},
    {"viz"},
    {"commands"},
    {"__main__"},
]
LEVEL = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}
# modules that need an optional extra: these may be loaded when used
EXTRAS = ("interop.diffusers", "data.lmdb", "viz.sliders")
# where modules are loaded by their names: the front door, saved types, commands
BY_NAME = {"", "checkpoint", "commands.main"}
MOST_INSIDE, MOST_LINES, MOST_CHARACTERS, LONGEST_FILE, LONGEST_LINE, MOST_METHOD = 25, 8600, 420_000, 300, 120, 2600
METHOD = ("schedule", "losses", "sampling", "autoencoder", "pdae", "networks", "training")
NOT_METHOD = ("networks.classifier",)
SCRIPT_LINES = 3258  # before the house had rooms
MOST_MIB = 74
SHOWN = 20  # in a report, of each rule


@dataclass
class Module:
    """One file of the package."""

    name: str  # without the package: "networks.unet", "networks" for its __init__, "" for the front door
    path: Path
    text: str
    tree: ast.Module = field(repr=False)

    @property
    def room(self) -> str:
        """The file or folder at the top level that it is or lies in."""
        return self.name.split(".")[0]

    def where(self, node: ast.AST) -> str:
        """For a message."""
        return f"{PACKAGE}/{self.path.as_posix()}:{node.lineno}"


@dataclass
class Import:
    """One name that a file takes from another file of the package."""

    source: Module
    target: str  # the module that it is taken from
    name: str | None  # None: the module itself
    inside: bool  # inside a function
    node: ast.AST


@cache
def modules(root: Path) -> dict[str, Module]:
    """Every file of the package by its name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        relative = path.relative_to(root / PACKAGE)
        parts = relative.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, relative, text, ast.parse(text))
    return found


def walk(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, with whether it lies in a function."""
    yield node, inside
    inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
        yield from walk(child, inside)


@cache
def imports(root: Path) -> list[Import]:
    """All imports of our own."""
    known, found = modules(root), []
    for module in known.values():
        package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
        for node, inside in walk(module.tree):
            names = []
            if isinstance(node, ast.Import):
                names = [(a.name.partition(".")[2], None) for a in node.names if a.name.split(".")[0] == PACKAGE]
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".") if package else []
                if node.level:
                    base = base[: len(base) - node.level + 1]
                elif (node.module or "").split(".")[0] != PACKAGE:
                    continue
                path = (node.module or "").split(".") if node.module else []
                base = ".".join(base + path) if node.level else ".".join(path[1:])
                for alias in node.names:
                    child = f"{base}.{alias.name}".strip(".")
                    names.append((child, None) if child in known else (base, alias.name))
            found += [Import(module, target, name, inside, node) for target, name in names]
    return found


# ---- the order of the rooms ----------------------------------------------------------------------------------------


def every_room_is_planned(root: Path) -> list[str]:
    """Each file and folder of the package has a place in the order."""
    return sorted({f"{m.room}: not in the plan" for m in modules(root).values() if m.name and m.room not in LEVEL})


def imports_run_downwards(root: Path) -> list[str]:
    """No room uses one that comes later; pictures for notebooks use nothing of evaluation and reproduction."""
    broken = []
    for i in imports(root):
        source, target = i.source.room, i.target.split(".")[0]
        if source in ("", "__main__") or source == target:
            continue
        if target == "":
            if i.name != "__version__":
                broken.append(f"{i.source.where(i.node)} takes {i.name or PACKAGE} from the front door")
        elif LEVEL.get(target, 0) > LEVEL.get(source, 99):
            broken.append(f"{i.source.where(i.node)} ({source}) uses {target}, which comes later")
        elif source == "viz" and LEVEL.get(target, 0) >= LEVEL["evaluation"]:
            broken.append(f"{i.source.where(i.node)} (viz) uses {target}")
    return broken


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more that reach each other (Tarjan's strongly connected components)."""
    index, low, stack, found = {}, {}, [], []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in sorted(graph.get(v, ())):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            group = [stack.pop()]
            while group[-1] != v:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for v in sorted(graph):
        if v not in index:
            visit(v)
    return found


def file_graph(root: Path) -> dict[str, set[str]]:
    """Which file uses which, those inside functions among them; but for the front door."""
    graph = {name: set() for name in modules(root) if name}
    for i in imports(root):
        if i.source.name and i.target and i.target != i.source.name:
            graph[i.source.name].add(i.target)
    return graph


def no_circles(root: Path) -> list[str]:
    """No files, and no rooms, that use each other in a circle."""
    files = file_graph(root)
    rooms = {}
    for name, uses in files.items():
        rooms.setdefault(name.split(".")[0],
                         set()).update(t.split(".")[0] for t in uses if t.split(".")[0] != name.split(".")[0])
    return [f"circle of {kind}: {', '.join(group)}" for kind, graph in (("files", files), ("rooms", rooms))
            for group in _circles(graph)]


def _inside(root: Path) -> list[tuple[str, bool]]:
    """Each import of our own inside a function: where, and whether it may be there."""
    found = []
    for node, i in {(id(i.node), i.target.startswith(EXTRAS)): i for i in imports(root) if i.inside}.items():
        ours = i.source.name == "" or i.target.startswith(EXTRAS) or (
            i.source.name == "commands.main" and i.target.startswith("commands."))
        found.append((f"{i.source.where(i.node)} imports {i.target or i.name}", ours))
    for module in modules(root).values():
        for node, inside in walk(module.tree):
            if inside and isinstance(node,
                                     ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                found.append((f"{module.where(node)} loads a module by its name", module.name in BY_NAME))
    return found


def imports_stand_at_the_top(root: Path) -> list[str]:
    """No import of our own inside a function, but in the front door, of an optional extra's module, of a command that
    is run."""
    inside = _inside(root)
    broken = [where for where, allowed in inside if not allowed]
    allowed = len(inside) - len(broken)
    return broken + [f"{allowed} imports of our own inside functions; at most {MOST_INSIDE}"] * (allowed > MOST_INSIDE)


# ---- who may speak to the user -------------------------------------------------------------------------------------


SPEAKING = ("print", "exit", "quit", "input")
ERRORS = ("SystemExit", "KeyboardInterrupt", "UsageError", "ArgumentError", "ArgumentTypeError")


def only_commands_speak(root: Path) -> list[str]:
    """Outside commands/ nobody prints, parses arguments or ends the program."""
    broken = []
    for module in modules(root).values():
        if module.room in ("commands", "__main__"):
            continue
        for node, _ in walk(module.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                if "argparse" in names:
                    broken.append(f"{module.where(node)} parses arguments")
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in SPEAKING or name.endswith((".exit", "._exit", "tqdm.write", "stdout.write", "stderr.write")):
                    broken.append(f"{module.where(node)} calls {name}")
            if isinstance(node, ast.Raise) and node.exc is not None:
                name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
                if name.split(".")[-1] in ERRORS:
                    broken.append(f"{module.where(node)} raises the command line's {name}")
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv":
                broken.append(f"{module.where(node)} reads sys.argv")
    return broken


def _private(name: str | None) -> bool:
    return bool(name) and name.startswith("_") and not name.startswith("__") and name != "_"


def _defined(module: Module) -> set[str]:
    """Private names that a file makes: functions, classes, variables, attributes that it sets, class fields."""
    names = set()
    for node, _ in walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {n for n in names if _private(n)}


def private_names_stay_home(root: Path) -> list[str]:
    """No name with a leading underscore is taken from another file, or used on what another file made; inherited ones
    neither."""
    broken = [f"{i.source.where(i.node)} takes {i.name or i.target} from {i.target}" for i in imports(root)
              if _private(i.name) or any(map(_private, i.target.split(".")))]
    defined = {m.name: _defined(m) for m in modules(root).values()}
    for module in modules(root).values():
        elsewhere = {name: owner for owner, names in defined.items() if owner != module.name for name in names}
        for node, _ in walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr in elsewhere and node.attr not in defined[module.name]:
                broken.append(f"{module.where(node)} uses {ast.unparse(node)} of {elsewhere[node.attr]}")
    return broken


# ---- sizes ---------------------------------------------------------------------------------------------------------


def _lines(text: str) -> int:
    return len(text.splitlines())


def files_are_short(root: Path) -> list[str]:
    """No file of the package over 300 lines."""
    return [f"{PACKAGE}/{m.path.as_posix()}: {_lines(m.text)} lines; at most {LONGEST_FILE}"
            for m in modules(root).values()
            if _lines(m.text) > LONGEST_FILE]


def lines_are_short(root: Path) -> list[str]:
    """No line of the package over 120 characters."""
    return [f"{PACKAGE}/{m.path.as_posix()}:{n}: {len(line)} characters; at most {LONGEST_LINE}"
            for m in modules(root).values()
            for n, line in enumerate(m.text.splitlines(), 1) if len(line) > LONGEST_LINE]


def package_lines(root: Path) -> int:
    """Lines of the whole package."""
    return sum(_lines(m.text) for m in modules(root).values())


def package_is_small(root: Path) -> list[str]:
    """The whole package, in lines and characters."""
    lines, characters = package_lines(root), sum(len(m.text) for m in modules(root).values())
    return ([f"{lines} lines; at most {MOST_LINES}"] * (lines > MOST_LINES)
            + [f"{characters} characters; at most {MOST_CHARACTERS}"] * (characters > MOST_CHARACTERS))


def method_lines(root: Path) -> int:
    """Lines of the method: what a reader of the paper wants to see, top to bottom."""
    return sum(_lines(m.text) for m in modules(root).values() if m.room in METHOD and m.name not in NOT_METHOD)


def method_is_small(root: Path) -> list[str]:
    """Schedule, losses, sampling, autoencoder, pdae, networks without the classifier, and training."""
    lines = method_lines(root)
    return [f"the method has {lines} lines; at most {MOST_METHOD}"] * (lines > MOST_METHOD)


def scripts_do_not_grow(root: Path) -> list[str]:
    """scripts/ has no more lines than before the house had rooms."""
    lines = sum(_lines(p.read_text(encoding="utf-8")) for p in (root / "scripts").rglob("*.py"))
    return [f"scripts has {lines} lines; at most {SCRIPT_LINES}"] * (lines > SCRIPT_LINES)


def tracked_bytes(root: Path) -> int:
    """Size of all that git tracks, as it lies in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True,
                            check=True).stdout.decode().split("\0")
    return sum((root / name).lstat().st_size for name in listed if name and (root / name).is_file())


def repository_is_light(root: Path) -> list[str]:
    """What git tracks, so that the tree can travel."""
    mib = tracked_bytes(root) / 2**20
    return [f"git tracks {mib:.1f} MiB; at most {MOST_MIB}"] * (mib > MOST_MIB)


RULES: list[Callable[[Path], list[str]]] = [
    every_room_is_planned, imports_run_downwards, no_circles, imports_stand_at_the_top, only_commands_speak,
    private_names_stay_home, files_are_short, lines_are_short, package_is_small, method_is_small, scripts_do_not_grow,
    repository_is_light]


def longest_chain(root: Path) -> list[str]:
    """The longest way from file to file along imports; circles are cut where they close."""
    graph, best = file_graph(root), {}

    def down(name: str, path: tuple[str, ...]) -> list[str]:
        if name not in best:
            best[name] = [name] + max((down(t, (*path, name)) for t in sorted(graph.get(name, ()))
                                       if t not in (*path, name)),
                                      key=len, default=[])
        return best[name]

    return max((down(name, ()) for name in sorted(graph)), key=len)


def main(root: Path) -> None:
    """What is broken, and the sizes."""
    for rule in RULES:
        broken = rule(root)
        print(f"{'holds ' if not broken else 'BROKEN'} {rule.__name__}" + (f" ({len(broken)})" if broken else ""))
        for line in broken[:SHOWN]:
            print("    ", line)
        if len(broken) > SHOWN:
            print("     … and others in", ", ".join(sorted({line.split(":")[0] for line in broken[SHOWN:]})))
    rooms = {}
    for module in modules(root).values():
        rooms[module.room or "__init__"] = rooms.get(module.room or "__init__", 0) + _lines(module.text)
    print("\nlines by room:",
          ", ".join(f"{room} {lines}" for room, lines in sorted(rooms.items(), key=lambda r: -r[1])))
    chain = longest_chain(root)
    print(f"{len(modules(root))} files, {package_lines(root)} lines, "
          f"{sum(len(m.text) for m in modules(root).values())} characters; "
          f"method {method_lines(root)} lines; {len(_inside(root))} imports of our own inside functions; "
          f"longest chain {len(chain)}: {' > '.join(chain)}; {tracked_bytes(root) / 2**20:.1f} MiB tracked")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).resolve())
