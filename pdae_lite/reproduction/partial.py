"""What was measured before a stop."""
from pathlib import Path

import torch
from torch import Tensor


class Partial:
    """Tensors measured so far, in a file beside the JSON until that is complete, so that a run that was stopped goes on."""

    def __init__(self, json_file: str | Path | None, settings: str):
        self.path = None if json_file is None else Path(f"{json_file}.part")
        self.settings, self.tensors = settings, {}
        if self.path is not None and self.path.is_file():
            from safetensors import safe_open

            with safe_open(self.path, "pt") as f:
                if (f.metadata() or {}).get("settings") == settings:  # of another measurement: begin anew
                    self.tensors = {key: f.get_tensor(key) for key in f.keys()}

    def count(self, keys=None) -> int:
        """How many samples all tensors have, or those of some keys."""
        return min((len(self.tensors.get(key, ())) for key in (self.tensors if keys is None else keys)), default=0)

    def extend(self, more: dict[str, Tensor]) -> None:
        """Add the next samples of some tensors, and write all."""
        for key, values in more.items():
            values = values.cpu()
            self.tensors[key] = torch.cat([self.tensors[key], values]) if key in self.tensors else values
        if self.path is not None:
            from safetensors.torch import save_file

            waiting = self.path.with_name(self.path.name + ".new")
            save_file({k: v.contiguous() for k, v in self.tensors.items()}, waiting, {"settings": self.settings})
            waiting.replace(self.path)

    def done(self) -> None:
        """Nothing is left to do: take the file away."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
