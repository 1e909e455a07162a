"""How good are images, and how close is one set of images to another: every figure with its interval."""
from .distributions import (
    Statistics,
    class_score,
    fid,
    fid_difference,
    frechet_distance,
    kid,
    kid_difference,
    statistics,
)
from .features import Features, extract, reference
from .gap import LinearGaussian, principal_components
from .images import lpips, mse, psnr, ssim
from .intervals import Estimate, mean, median, proportion
from .neighbours import (
    Memorisation,
    PrecisionRecall,
    feature_distance,
    memorisation,
    nearest_distance,
    nearest_is_own,
    precision_recall,
)

__all__ = ["Estimate", "Features", "LinearGaussian", "Memorisation", "PrecisionRecall", "Statistics", "class_score",
           "extract", "feature_distance", "fid", "fid_difference", "frechet_distance", "kid", "kid_difference", "lpips",
           "mean", "median", "memorisation", "mse", "nearest_distance", "nearest_is_own", "precision_recall",
           "principal_components", "proportion", "psnr", "reference", "ssim", "statistics"]
