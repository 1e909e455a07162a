"""The paper's tables in small: what they are measured on, what was measured before a stop, and Table 1, reconstruction.

`better_samples` has Table 2, `few_shot` Table 3; `evaluation` has the paper's own protocol, for its authors' files.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import counter_rng, data, metrics, sampling
from ..applications.latent import LatentDPM
from ..checkpoint import tensors_digest
from ..commands.settings import UsageError
from ..diffae import DiffAE
from ..metrics.features import FeatureNet
from ..metrics.intervals import Estimate, mean
from ..pdae import PDAE
from ..progress import progress_bar
from .protocol import Distance

DATA = ("digits", "peeps")


@dataclass(frozen=True)
class Subject:
    """The models of a table, those that there are, and the data set that they were trained on."""

    data: str
    net: FeatureNet
    pdae: PDAE | None = None
    diffae: DiffAE | None = None
    latent: LatentDPM | None = None
    diffae_latent: LatentDPM | None = None

    @classmethod
    def open(cls, model: str, latent: str | None = None, name: str | None = None, device=None) -> "Subject":
        """Of "digits" or "peeps" all models that ship; of a file its PDAE or Diff-AE, and the latent DPM of another file.

        Args:
            name: the data set, if the file of the model doesn't say it.
            device: None: as for `pdae_lite.load`.

        Raises:
            UsageError: a model of other data, or files that don't fit together.
        """
        from .. import load
        from ..commands.models import load_autoencoder
        from ..meeting import default_device

        device = default_device() if device is None else device
        if model in DATA:
            if latent is not None or name not in (None, model):
                raise UsageError(f"--model {model} has its own latent DPMs and data; leave --latent and --data out, or give a file")
            kinds = ("pdae", "diffae", "latent", "diffae_latent")
            found = {kind: load(model, kind, device).eval().requires_grad_(False) for kind in kinds}
            return cls(model, load(model, "features", device), **found)
        autoencoder = load_autoencoder(model).to(device).eval().requires_grad_(False)
        name = name or autoencoder.metadata.get("data")
        if name not in DATA:
            raise UsageError(f"{model} is a model of {name or 'data that it does not name'}; the small tables are of digits and peeps "
                             "(--data says which), which have feature networks")
        kind = "pdae" if isinstance(autoencoder, PDAE) else "diffae"
        found = {kind: autoencoder}
        if latent is not None:
            dpm = LatentDPM.load(latent, device).eval().requires_grad_(False)
            if dpm.z_dim != autoencoder.z_dim:
                raise UsageError(f"{latent} samples codes with z_dim={dpm.z_dim}, {model} decodes z_dim={autoencoder.z_dim}")
            found["latent" if kind == "pdae" else "diffae_latent"] = dpm
        return cls(name, load(name, "features", device), **found)

    @property
    def some(self):
        """One of the autoencoders."""
        return self.pdae if self.pdae is not None else self.diffae

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, [C, H, W]."""
        config = self.some.network.config
        return config.in_channels, config.image_size, config.image_size

    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights of each model that takes part."""
        models = {k: getattr(self, k) for k in ("pdae", "diffae", "latent", "diffae_latent", "net")}
        return {k: tensors_digest({n: w.cpu() for n, w in m.state_dict().items()}) for k, m in models.items() if m is not None}


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


# ---- Table 1: reconstruction ----------------------------------------------------------------------------------------------


def shape_distance(net: FeatureNet) -> Distance:
    """Distance of two images in the shape features of a small network. Not LPIPS."""
    return Distance(f"distance in {net.config.name} shape features",
                    lambda a, b: (net.features(a, "shape") - net.features(b, "shape")).norm(dim=1))


def latent_size(s: Subject, row: str) -> int:
    """Numbers that a row of Table 1 rebuilds an image from."""
    c, h, w = s.shape
    return ("inferred" in row) * c * h * w + (0 if row.startswith("DDIM") else s.some.z_dim)


@torch.no_grad()
def rebuilt(s: Subject, x_0: Tensor, x_T: Tensor, steps: int) -> dict[str, Tensor]:
    """Each row of Table 1: images [N, C, H, W] rebuilt from x_0, by this library's defaults; x_T is the random noise. The plain DPM has
    no row with random x_T: it knows nothing of the image then."""
    out = {}
    if s.pdae is not None:
        schedule = s.pdae.schedule
        out["DDIM, inferred x_T"] = sampling.ddim(s.pdae.dpm, sampling.invert(s.pdae.dpm, x_0, schedule, steps), schedule, steps)
    for name, model in (("Diff-AE", s.diffae), ("PDAE", s.pdae)):
        if model is not None:
            z = model.encode(x_0)
            out[f"{name}, random x_T"] = model.decode(z, x_T, steps)
            out[f"{name}, inferred x_T"] = model.decode(z, model.invert(x_0, z, steps), steps)
    return out


@torch.no_grad()
def table_1(s: Subject, count: int, steps: int = 100, seed: int = 0, batch_size: int = 50, distance: Distance | None = None,
            partial: Partial | None = None, progress: bool = False) -> dict[str, dict[str, Estimate]]:
    """{row: {"SSIM": …, distance.name: …, "MSE": …}} of the first `count` held-out images; means with 95 % intervals.

    The random x_T of image i depends on `seed` and i alone.
    """
    distance = shape_distance(s.net) if distance is None else distance
    partial = Partial(None, "") if partial is None else partial
    test = data.shipped_images(s.data, "test", s.shape[1])
    device = s.some.device
    for start in progress_bar(range(partial.count(), count, batch_size), show=progress, desc=f"Table 1, T = {steps}"):
        index = torch.arange(start, min(start + batch_size, count))
        x_0 = test.floats(index).to(device)
        x_T = counter_rng.normal(seed, 0, index, s.shape).to(device)
        more = {}
        for row, x in rebuilt(s, x_0, x_T, steps).items():
            more[f"{row}|SSIM"] = metrics.ssim(x_0, x)
            more[f"{row}|{distance.name}"] = distance.function(x_0, x)
            more[f"{row}|MSE"] = metrics.mse(x_0, x)
        partial.extend(more)
    table: dict[str, dict[str, Estimate]] = {}
    for key, values in partial.tensors.items():
        row, _, metric = key.partition("|")
        table.setdefault(row, {})[metric] = mean(values)
    order = [f"{name}, {how} x_T" for name in ("DDIM", "Diff-AE", "PDAE") for how in ("random", "inferred")]
    columns = ("SSIM", distance.name, "MSE")  # files of tensors keep no order
    return {row: {metric: table[row][metric] for metric in columns} for row in order if row in table}
