"""Other people's checkpoints, read with `torch.load(weights_only=True)`, which runs no code; and their YAML files."""
import os
import re
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from ..checkpoint import CheckpointError

PathLike = str | os.PathLike


def read_state(path: PathLike, want: tuple[str, ...], named: str | None = None) -> dict:
    """The dict in a `.pt` file, with the state dicts named in `want`; with none named, itself a state dict. `named`: a
    pattern of classes that the file may name (Lightning's callbacks, say); an empty class stands in for each."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; download it again or correct the path")
    try:
        with torch.serialization.safe_globals([] if named is None else _stand_ins(path, named)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as e:  # a foreign file can fail in torch.load in any way
        raise CheckpointError(f"{path}: not a complete PyTorch checkpoint of plain tensors ({_line(e)}); download it "
                              "again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of tensors; is it the right file?")
    for state, name in [(content.get(k), f"no state dict {k!r}") for k in want] or [(content, "no state dict")]:
        if not isinstance(state, dict) or not state or not all(torch.is_tensor(v) for v in state.values()):
            has = ", ".join(map(str, [*content][:5])) + (", …" if len(content) > 5 else "")
            raise CheckpointError(f"{path}: holds {name} (it has {has or 'nothing'}); is it the right file?")
    return content


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _stand_ins(path: Path, named: str) -> list[tuple[type, str]]:
    """(an empty class, its name) for each class that a checkpoint names."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    other = [name for name in names if not re.fullmatch(named, name)]
    if other:
        raise CheckpointError(f"{path}: wants {other[0]}, which isn't loaded: a file could run code that way; is it "
                              "the right file?")
    return [(type(name.rpartition(".")[2], (), {}), name) for name in names]


def read_yaml(path: PathLike, want: tuple[str, ...]) -> dict:
    """The mapping in a YAML file, with the sections in `want`."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; want the YAML file that came with the checkpoint")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise CheckpointError(f"{path}: not a YAML file ({_line(e)}); want the one that came with the "
                              "checkpoint") from None
    for name in want:
        if not isinstance(content, dict) or not isinstance(content.get(name), dict):
            raise CheckpointError(f"{path}: has no section {name}; want the YAML file that came with the checkpoint")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; want NAME: VALUE, the network's settings")
    return content


@contextmanager
def described(path: PathLike, lacks: str, wrong: str, cure: str = "want the file that came with the checkpoint"):
    """What a foreign file lacks, or describes wrongly, in one line."""
    try:
        yield
    except KeyError as e:
        raise CheckpointError(f"{path}: {lacks} {e.args[0]}; {cure}") from None
    except (ValueError, TypeError) as e:
        raise CheckpointError(f"{path}: {wrong}: {e}") from None


def fill_latent(model: nn.Module, state: dict[str, Tensor], path: PathLike, source) -> nn.Module:
    """A latent DPM with `state`, in which releases have each projection of time under two names; its `stats` stay."""
    own = {k: v for k, v in state.items() if ".linear_emb." not in k}
    fill(model, own | {f"stats.{k}": v for k, v in model.stats.state_dict().items()}, path, source)
    return model.eval()


def fill(module: nn.Module, state: dict[str, Tensor], path: PathLike, source) -> None:
    """Load `state`, or say which layer doesn't fit what `source` describes."""
    own = module.state_dict()
    wrong = [f"{k} is missing, want shape {list(v.shape)}" for k, v in own.items() if k not in state]
    wrong += [f"{k} has shape {list(state[k].shape)}, want {list(v.shape)}"
              for k, v in own.items() if k in state and state[k].shape != v.shape]
    wrong += [f"{k} has shape {list(v.shape)}, want no such layer" for k, v in state.items() if k not in own]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{path}: {wrong[0]}{more}; the weights don't fit {source}")
    module.load_state_dict(state)


def _line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0][:120]
