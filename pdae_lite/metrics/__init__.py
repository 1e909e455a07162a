"""How good are images, and how close is one set of images to another: every figure with its interval."""
from .distributions import (
    Memorisation,
    PrecisionRecall,
    Statistics,
    class_score,
    feature_distance,
    fid,
    frechet_distance,
    kid,
    memorisation,
    nearest_distance,
    nearest_is_own,
    precision_recall,
    statistics,
)
from .features import Features, extract, reference
from .gap import LinearGaussian, principal_components
from .images import lpips, mse, psnr, ssim
from .intervals import Estimate, mean, median, proportion

__all__ = ["Estimate", "Features", "LinearGaussian", "Memorisation", "PrecisionRecall", "Statistics", "class_score", "extract",
           "feature_distance", "fid", "frechet_distance", "kid", "lpips", "mean", "median", "memorisation", "mse", "nearest_distance",
           "nearest_is_own", "precision_recall", "principal_components", "proportion", "psnr", "reference", "ssim", "statistics"]
