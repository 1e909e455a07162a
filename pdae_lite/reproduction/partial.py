"""Going on after a stop: the record that a JSON file holds, and tensors beside it until it is complete."""
import json
from pathlib import Path

import torch
from torch import Tensor

from ..storage import CheckpointError, read, write


def record_before(path: str | Path | None, settings: dict) -> dict | None:
    """The record in a JSON file, if there is one.

    Raises:
        ValueError: it was made with other settings, which the message names.
    """
    if path is None or not Path(path).is_file():
        return None
    record, settings = json.loads(Path(path).read_text(encoding="utf-8")), _as_stored(settings)
    other = [k for k, v in settings.items() if record.get(k) != v]
    if other:
        raise ValueError(f"{path} holds figures of other settings or models ({', '.join(other)}); remove it, or give another file")
    return record


class Partial:
    """Tensors measured so far, in `path`.part until their record is complete, so that a run that was stopped goes on.

    Args:
        path: of the record; None: nothing is kept.
        settings: JSON-able; a file of others isn't gone on with, but written anew.
    """

    def __init__(self, path: str | Path | None, settings: dict):
        self.path = None if path is None else Path(f"{path}.part")
        self.settings, self.tensors = _as_stored(settings), {}
        if self.path is not None and self.path.is_file():
            try:
                tensors, header = read(self.path)
            except CheckpointError:  # of another version
                return
            self.tensors = tensors if header == self.settings else {}

    def count(self, keys=None) -> int:
        """How many samples all tensors have, or those of some keys."""
        return min((len(self.tensors.get(key, ())) for key in (self.tensors if keys is None else keys)), default=0)

    def extend(self, more: dict[str, Tensor]) -> None:
        """Add the next samples of some tensors, and write all."""
        for key, values in more.items():
            values = values.cpu()
            self.tensors[key] = torch.cat([self.tensors[key], values]) if key in self.tensors else values
        if self.path is not None:
            write(self.path, self.tensors, self.settings)

    def done(self) -> None:
        """Nothing is left to do: take the file away."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _as_stored(settings: dict) -> dict:
    """As JSON gives them back: with lists for tuples."""
    return json.loads(json.dumps(settings))
