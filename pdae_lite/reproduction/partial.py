"""Going on after a stop: the record that a JSON file holds, and tensors beside it until it is complete."""
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from ..storage import CheckpointError, read, write, write_text


def record_before(path: str | Path | None, settings: dict) -> dict | None:
    """The record in a JSON file, if there is one.

    Raises:
        ValueError: it was made with other settings, which the message names.
    """
    if path is None or not Path(path).is_file():
        return None
    record, settings = json.loads(Path(path).read_text(encoding="utf-8")), _as_stored(settings)
    other = [k for k, v in settings.items() if not isinstance(record, dict) or record.get(k) != v]
    if other:
        raise ValueError(f"{path} holds figures of other settings or models ({', '.join(other)}); remove it, or give "
                         "another file")
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


class Kept:
    """A measurement that goes on after a stop.

    Args:
        file: its JSON record; None: nothing is kept.
        settings: what makes it this measurement; more may come before anything is measured.
        made: facts about this run, such as versions.
    """

    def __init__(self, file: str | Path | None, settings: dict, made: dict):
        self.file, self.settings, self.made, self.start = file, settings, made, time.process_time()

    def before(self) -> dict | None:
        """The record of an earlier run: see `record_before`."""
        return record_before(self.file, self.settings)

    def partial(self, but: str | None = None, **more) -> Partial:
        """What an earlier run left of its tensors: with the same settings, `but` for one, and `more` of them."""
        return Partial(self.file, {k: v for k, v in self.settings.items() if k != but} | more)

    def record(self, what: str, **facts) -> dict:
        """A record of what has been measured."""
        return self.made | {"what": what} | self.settings | facts | {
            "cpu_seconds_of_the_last_run": round(time.process_time() - self.start)}

    def write(self, record: dict) -> dict:
        """The record, which is in the file now."""
        if self.file is not None:
            write_text(self.file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return record


def _as_stored(settings: dict) -> dict:
    """As JSON gives them back: with lists for tuples."""
    return json.loads(json.dumps(settings))
