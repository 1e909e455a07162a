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
                            lpips,
                            memorisation,
                            mse,
                            nearest_distance,
                            nearest_is_own,
                            precision_recall,
                            psnr,
                            ssim,
                            statistics,
)
from .features import Features, extract, reference
from .intervals import Estimate, mean, median, proportion

__all__ = ["Estimate", "Features", "Memorisation", "PrecisionRecall", "Statistics", "class_score", "extract", "feature_distance", "fid",
           "frechet_distance", "kid", "lpips", "mean", "median", "memorisation", "mse", "nearest_distance", "nearest_is_own",
           "precision_recall", "proportion", "psnr", "reference", "ssim", "statistics"]
