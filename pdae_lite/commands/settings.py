"""Settings by name: `unet.channel_mult=1,2,2` changes a field of a frozen dataclass, read by the field's type."""
import argparse
import difflib
import math
import types
import warnings
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..data import sources
from ..warning import PDAEWarning


class UsageError(ValueError):
    """Something on the command line is wrong; the message is the one line that the user sees."""


def number(kind: type = int, low: float = -math.inf, high: float = math.inf):
    """For argparse: a whole number (int) or a finite number (float) from `low` to `high`."""
    ends = f", {low} to {high}" if math.isfinite(high) else f", {low} or more" if math.isfinite(low) else ""
    want = f"want {'a whole number' if kind is int else 'a number'}{ends}"

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}; {want}") from None
        if not (low <= value <= high and value - value == 0):
            raise argparse.ArgumentTypeError(f"{text}; {want}")
        return value

    return read


SEED = number(int, 0, 2**63 - 1)


def add_told(parser) -> None:
    """--prompt and --label: what a conditional DPM is told, once and for all."""
    add = parser.add_argument
    add("--prompt", metavar="TEXT", help="what a text-conditional DPM of hf: is told (default: the empty prompt)")
    add("--label", type=number(int, 0), metavar="N", help="the class that a conditional DPM of hf: or adm: is told")


def whole_numbers(option: str, text: str) -> list[int]:
    """Numbers separated by commas, each 1 or more."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise UsageError(f"{option} {text}; want whole numbers separated by commas")
    return numbers


def add_value_range(parser) -> None:
    """The option `--value-range`."""
    parser.add_argument("--value-range", nargs=2, type=number(float), metavar=("LOW", "HIGH"), help="""the values \
that are
        black and white in the images, such as -160 240 for soft tissue in CT (default: those that the model was trained
        with; or else what the files say, or a guess, which a line tells)""")


def value_range(args, model=None, data: str | None = None) -> tuple[float, float] | None:
    """--value-range; without it, that of the images that a model was trained on, which a warning tells. For the
    record it is left in `args`."""
    own = getattr(model, "metadata", {}).get("value_range")
    if args.value_range is None and own is not None and not (data and sources.has_test(data)):
        args.value_range = own
        warnings.warn(f"black and white are taken to be {own[0]:g} and {own[1]:g}, as in the images that the model was "
                      "trained on; --value-range LOW HIGH says otherwise", PDAEWarning, stacklevel=2)
    return args.value_range


def listing(config, names: dict[str, str]) -> dict[str, Any]:
    """Every setting that `override` takes, with its value: {"unet.image_size": 64, …, "prediction": "v"}."""
    found = {}
    for name, field in names.items():
        value = getattr(config, field)
        inside = fields(value) if is_dataclass(value) else ()
        found |= {f"{name}.{f.name}": getattr(value, f.name) for f in inside} or {name: value}
    return found


def override(config, settings: Iterable[str], names: dict[str, str]):
    """A copy of a dataclass with some of its settings, and those of the dataclasses in it, changed.

    Args:
        config: a frozen dataclass, such as a `Preset`.
        settings: "NAME=VALUE" each; the last of several with one name counts.
        names: what may be set: the name in front of the dot (or all of the name) -> the field of `config`.

    Raises:
        UsageError: no such setting (with those of a similar name), or a value of another type; dataclasses check
            the rest.
    """
    known, changes = listing(config, names), {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals:
            raise UsageError(f"setting {setting!r}; want NAME=VALUE, for example train.lr=3e-4")
        if name not in known:
            raise UsageError(f"setting {name!r} is unknown here; {_similar(name, known)}")
        first, _, last = name.partition(".")
        changes.setdefault(names[first], {})[last] = (name, text)
    top = {}
    for field, given in changes.items():
        section = getattr(config, field)
        if is_dataclass(section):
            top[field] = replace(section, **{k: _parse(*v, get_type_hints(type(section))[k]) for k, v in given.items()})
        else:
            top[field] = _parse(*given[""], get_type_hints(type(config))[field])
    return replace(config, **top)


def show(value) -> str:
    """A value as `override` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(show, value)) if isinstance(value, tuple) else str(value)


def _similar(name: str, known: Iterable[str]) -> str:
    last = name.rpartition(".")[2]
    same = [k for k in known if k.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(name, known, 3, 0.7) or [
        k for k in known if difflib.get_close_matches(last, [k.rpartition(".")[2]], 1, 0.7)][:3]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"want one of {', '.join(dict.fromkeys(k.partition('.')[0] + ('.…' if '.' in k else '') for k in known))}"


def _parse(name: str, text: str, kind) -> Any:
    try:
        return _read(text.strip(), kind)
    except ValueError:
        raise UsageError(f"setting {name}={text}; want {_wanted(kind)}") from None


def _read(text: str, kind) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in inside:
            return None
        (kind,) = (k for k in inside if k is not type(None))
        return _read(text, kind)
    if origin is tuple:
        parts = [p for p in text.strip("()[] ").split(",") if p.strip()]
        if inside[-1] is not Ellipsis and len(parts) != len(inside):
            raise ValueError
        return tuple(_read(p.strip(), inside[0]) for p in parts)
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise ValueError
        return words[text.lower()]
    value = kind(text)
    if kind is not str and not abs(value) < 2**63:  # NaN is no less
        raise ValueError
    return value


def _wanted(kind) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_wanted(k) for k in inside)
    if origin is tuple:
        count = "" if inside[-1] is Ellipsis else f"{len(inside)} "
        return f"{count}{'integers' if inside[0] is int else 'numbers'} separated by commas"
    return {bool: "true or false", int: "an integer", float: "a number", str: "a word", type(None): "none"}[kind]
