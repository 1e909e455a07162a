"""Table 1 in small: how well images are rebuilt. `protocol` has the paper's own, for its authors' files."""
import torch
from torch import Tensor

from .. import counter_rng, data, metrics, sampling
from ..metrics.features import FeatureNet
from ..metrics.intervals import Estimate, mean
from ..progress import progress_bar
from .partial import Partial
from .protocol import Distance
from .subject import Subject


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
    partial = Partial(None, {}) if partial is None else partial
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
