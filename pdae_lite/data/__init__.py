"""Data sets: what ships (`digits`, `peeps`), what torchvision knows by name, and your own (`folder`, `lmdb`).

Images are uint8 [N, C, H, W] in memory, or map-style data sets of uint8 [C, H, W]; models see float in [−1, 1]. Mirroring
is an option of training (`TrainConfig.flip`), not of a data set.
"""
from .builtin import ASSETS, EDITS, Faces, Images, digits, peeps, peeps_counterfactuals, shipped_images, shrunk, to_float, to_uint8
from .files import CELEBA64_CROP, folder, read_image
from .lmdb import lmdb
from .torchvision_sets import torchvision_set

__all__ = ["ASSETS", "CELEBA64_CROP", "EDITS", "Faces", "Images", "digits", "folder", "lmdb", "peeps", "peeps_counterfactuals",
           "read_image", "shipped_images", "shrunk", "to_float", "to_uint8", "torchvision_set"]
