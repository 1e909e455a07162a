"""How far rebuilt images are from the originals: MSE, PSNR, SSIM, LPIPS of each pair.

All take two float tensors [N, C, H, W] in [−1, 1] and give a value per pair, [N]: `metrics.mean(ssim(a, b))` is an
`Estimate`, `metrics.mean(ssim(a, c) - ssim(b, c))` a paired difference. Values up to 0.1 outside [−1, 1] are clamped;
others, NaN, other dtypes and unequal shapes raise a ValueError."""
from pathlib import Path

import torch
from torch import Tensor

from ..networks.blocks import check_images


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean square error of each pair on [0, 1]: [N]."""
    a, b = _on_unit_range(a, b)
    return (a - b).square().mean((1, 2, 3))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio −10 log₁₀ MSE in dB, of each pair on [0, 1]: [N]; infinite for equal images."""
    return -10 * mse(a, b).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, Gaussian window 11×11 with σ = 1.5) of each pair on [0, 1]: [N]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = _on_unit_range(a, b)
    if min(a.shape[2:]) < 11:
        raise ValueError(f"images are {a.shape[2]}×{a.shape[3]}; the window of SSIM wants 11×11 or more")
    return structural_similarity_index_measure(a, b, data_range=1.0, reduction="none").reshape(-1)


def lpips(a: Tensor, b: Tensor, download: bool = False) -> Tensor:
    """LPIPS (Zhang et al. 2018) on AlexNet, of each pair: [N]. Grey images are taken as RGB.

    Raises:
        FileNotFoundError: AlexNet's weights (233 MB) aren't in torch's cache, and `download` wasn't asked for.
            `feature_distance` does without, and isn't comparable.
    """
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity
    from torchvision.models import AlexNet_Weights

    a, b = (2 * x - 1 for x in _on_unit_range(a, b))
    if a.shape[1] not in (1, 3):
        raise ValueError(f"images have {a.shape[1]} channels; LPIPS wants 1 or 3")
    path = Path(torch.hub.get_dir()) / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    if not download and not path.is_file():
        raise FileNotFoundError(f"LPIPS needs AlexNet's weights, {path}; fetch them with download=True, or use "
                                "feature_distance")
    a, b = (x.expand(-1, 3, -1, -1) for x in (a, b))
    with torch.no_grad():
        return learned_perceptual_image_patch_similarity(a, b, net_type="alex", reduction="none").reshape(-1)


def _on_unit_range(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    for name, x in (("a", a), ("b", b)):
        check_images(x, x.shape[1] if torch.is_tensor(x) and x.ndim == 4 else "C", 1, name, (-1.0, 1.0))
    if a.shape != b.shape:
        raise ValueError(f"a has shape {list(a.shape)}, b {list(b.shape)}; want pairs of images of one size")
    return tuple(((x.detach().float() + 1) / 2).clamp(0, 1) for x in (a, b))
