"""Table 1 in small: how well images are rebuilt. `protocol` has the paper's own, for its authors' files."""
import torch
from torch import Tensor

from .. import data, metrics, sampling
from ..metrics.features import FeatureNet
from ..metrics.intervals import Estimate
from .partial import Partial
from .protocol import Distance, both_x_T, compare
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
    """Each row of Table 1: images [N, C, H, W] rebuilt from x_0, by this library's defaults; x_T is the random noise.
    The plain DPM has no row with random x_T: it knows nothing of the image then."""
    out = {}
    if s.pdae is not None:
        schedule = s.pdae.schedule
        inferred = sampling.invert(s.pdae.dpm, x_0, schedule, steps)
        out["DDIM, inferred x_T"] = sampling.ddim(s.pdae.dpm, inferred, schedule, steps)
    for name, model in (("Diff-AE, ", s.diffae), ("PDAE, ", s.pdae)):
        out |= both_x_T(model, x_0, x_T, steps, name) if model is not None else {}
    return out


def table_1(s: Subject, count: int, steps: int = 100, seed: int = 0, batch_size: int = 50,
            distance: Distance | None = None, partial: Partial | None = None,
            progress: bool = False) -> dict[str, dict[str, Estimate]]:
    """{row: {"SSIM": …, distance.name: …, "MSE": …}} of the first `count` held-out images; means with 95 % intervals.

    The random x_T of image i depends on `seed` and i alone. """
    distance = shape_distance(s.net) if distance is None else distance
    columns = {"SSIM": metrics.ssim, distance.name: distance.function, "MSE": metrics.mse}
    table = compare(data.shipped_images(s.data, "test", s.shape[1]), count, s.some.device,
                    lambda x_0, x_T: rebuilt(s, x_0, x_T, steps), columns, seed, batch_size, partial, progress,
                    f"Table 1, T = {steps}")
    order = [f"{name}, {how} x_T" for name in ("DDIM", "Diff-AE", "PDAE") for how in ("random", "inferred")]
    return {row: table[row] for row in order if row in table}  # files of tensors keep no order
