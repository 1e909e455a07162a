"""Checkpoints of a training run: what to save so that a killed run goes on as if nothing had happened."""
import contextlib
import hashlib
import json
import os
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from ..checkpoint import CheckpointError, build, describe, read, write
from ..warning import PDAEWarning


class TrainingError(RuntimeError):
    """Training can't go on; the message says at which step and what to do."""


def guard(function: Callable, *args, **kwargs):
    """Call a function that writes; an OSError becomes a one-line TrainingError with the path and the cure."""
    try:
        return function(*args, **kwargs)
    except OSError as e:
        raise TrainingError(f"can't write {e.filename or args[0]}: {e.strerror or e}; free some space or choose "
                            "another --out") from None


class Average:
    """Exponential moving average of a module's trained parameters, not of its buffers. After n steps the decay is
    min(`decay`, (1+n)/(10+n)); the first step sets the average to the parameters. `n` counts on the host, which torch's
    AveragedModel copies to the device in every step."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.n = decay, 0
        self.values = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """One step: e ← d e + (1−d) p."""
        current = [p.detach() for p in module.parameters() if p.requires_grad]
        decay = min(self.decay, (1 + self.n) / (10 + self.n)) if self.n else 0.0
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)
        self.n += 1

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Set the parameters to their averages."""
        for name, value in self.values.items():
            module.get_parameter(name).copy_(value)


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 of all parameters that are not trained, such as the DPM inside a PDAE."""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            digest.update(name.encode())
            digest.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_values(data) -> list | None:
    """Some values of a data set in memory, which tell it from another of the same length; None: it reads files."""
    if not isinstance(data, TensorDataset):
        return None
    some = data.tensors[0][:2].flatten()
    return some[torch.linspace(0, len(some) - 1, 9).long()].tolist()


@contextlib.contextmanager
def stop_after_step():
    """Ctrl-C and SIGTERM (where that is handled) wait for the end of a step: the list that this gives holds the signal
    then. A second one stops at once. Several processes stop as they always did: they would wait for each other."""
    asked, before = [], {}

    def note(number, frame):
        asked.append(number)
        if len(asked) > 1:
            before[number](number, frame)

    if threading.current_thread() is threading.main_thread() and "LOCAL_RANK" not in os.environ:
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))}
    try:
        for number in before:
            signal.signal(number, note)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        before[asked[0]](asked[0], None)


def _same(name: str, before, now) -> bool:
    if name == "first":  # another device encodes a little differently; older runs noted none
        return before is None or now is None or all(abs(a - b) < 0.01 * (1 + abs(a)) for a, b in zip(before, now))
    return before == now


def _renewed(description: dict | None) -> dict | None:
    """A model's description by an older version, as this one would write it: with the fields that have come since."""
    try:
        with torch.device("meta"):
            return json.loads(json.dumps(describe(build(description or {}))))
    except (TypeError, ValueError, KeyError, AttributeError):
        return description


class RunState:
    """Save and resume. A checkpoint is one atomic safetensors file with weights, EMA, Adam's moments and the history;
    the last two are kept, so that a damaged one costs `save_every` steps, not the run."""

    def __init__(self, trainable, ema, optimizer, out: Path | None, config, main: bool, run: dict):
        self.trainable, self.ema, self.optimizer, self.config, self.main = trainable, ema, optimizer, config, main
        self.run = json.loads(json.dumps(run))  # what must be the same for two calls to continue one run
        self.folder = out / "checkpoints" if out is not None else None
        if self.folder is not None and main:  # say now, not after hours, that nothing can be written
            guard(self.folder.mkdir, parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise TrainingError(f"can't write {self.folder}: no permission; choose another --out")
            for pattern in ("checkpoints/.step_*.tmp", ".model.safetensors.*.tmp", ".history.json.*.tmp"):
                for half_written in self.folder.parent.glob(pattern):  # by a run that was killed
                    half_written.unlink(missing_ok=True)

    # What may change between two calls that continue one run.
    FREE = ("steps", "save_every", "log_every", "precision", "compile", "channels_last", "workers", "tensorboard",
            "accumulate")

    def save(self, step: int, history: list[dict], window: dict) -> None:
        """`window`: what has been counted since the last log step, JSON-able."""
        if self.folder is None or not self.main:
            return
        tensors = {f"model.{k}": v for k, v in self.trainable.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.values.items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        header = {"step": step, "averaged": self.ema.n, "config": asdict(self.config), "run": self.run,
                  "history": history, "window": window}
        guard(write, self.folder / f"step_{step:09d}.safetensors", tensors, header)
        for old in sorted(self.folder.glob("step_*.safetensors"))[:-2]:
            old.unlink(missing_ok=True)

    def resume(self) -> tuple[int, list[dict], dict]:
        """Load the newest whole checkpoint, if there is one: its step, history and window."""
        paths = sorted(self.folder.glob("step_*.safetensors"), reverse=True) if self.folder is not None else []
        for i, path in enumerate(paths):
            try:
                tensors, header = read(path)
            except CheckpointError as e:
                cure = "trying the checkpoint before it" if paths[i + 1:] else "starting anew"
                warnings.warn(f"{e}; {cure}", PDAEWarning, stacklevel=2)
                continue
            self._check(path, header)
            groups: dict[str, dict] = {"model": {}, "ema": {}, "optimizer": {}}
            for key, value in tensors.items():
                group, name = key.split(".", 1)
                groups[group][name] = value
            self.trainable.load_state_dict(groups["model"])
            for name, value in self.ema.values.items():
                value.copy_(groups["ema"][name])
            self.ema.n = header["averaged"]
            optimizer = self.optimizer.state_dict()
            optimizer["state"] = {}
            for name, value in groups["optimizer"].items():
                i, key = name.split(".", 1)
                optimizer["state"].setdefault(int(i), {})[key] = value
            self.optimizer.load_state_dict(optimizer)
            # Fused Adam walks raw memory: moments must lie as their parameter does (channels_last), not as in the file.
            for p, moments in self.optimizer.state.items():
                moments |= {k: torch.empty_like(p).copy_(v) for k, v in moments.items() if v.shape == p.shape}
            return header["step"], header["history"], header.get("window", {})
        return 0, [], {}

    def _check(self, path: Path, header: dict) -> None:
        before = header.get("run", {})
        if before.get("model") != self.run.get("model"):
            before = before | {"model": _renewed(before.get("model"))}
        for name, value in self.run.items():
            if name == "data" and "data" not in before:  # a run of an older version
                continue
            if not _same(name, before.get(name), value):
                what = {"model": name, "schedule": name, "frozen": "frozen DPM"}.get(name, "data set")
                raise TrainingError(f"{path.parent.parent} holds a run with another {what}; choose another --out")
        before = header["config"]
        now = json.loads(json.dumps(asdict(self.config)))
        for name, value in now.items():
            if name not in self.FREE and before.get(name, value) != value:
                raise TrainingError(f"{path.parent.parent} holds a run with {name}={before[name]}, this one has "
                                    f"{name}={value}; use the same settings to resume, or choose another --out")
