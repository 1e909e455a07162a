"""Data sets: what ships (`digits`, `peeps`), what torchvision knows by name, and your own (`folder`, `stack`, `lmdb`).

Images are uint8 [N, C, H, W] in memory, or map-style data sets of uint8 [C, H, W]; models see float in [−1, 1].
Mirroring is an option of training (`TrainConfig.flip`), not of a data set. What can't be read is left out, and told
(`readable`)."""
from .builtin import (
           ASSETS,
           EDITS,
           Faces,
           Images,
           digits,
           peeps,
           peeps_counterfactuals,
           shipped_images,
           shrunk,
           to_float,
           to_uint8,
)
from .files import CELEBA64_CROP, FolderClasses, folder, read_image
from .items import Unreadable, fingerprint, in_batches, readable
from .lmdb import lmdb
from .stack import stack
from .torchvision_sets import torchvision_set

__all__ = ["ASSETS", "CELEBA64_CROP", "EDITS", "Faces", "FolderClasses", "Images", "Unreadable", "digits",
           "fingerprint", "folder", "in_batches", "lmdb", "peeps", "peeps_counterfactuals", "read_image", "readable",
           "shipped_images", "shrunk", "stack", "to_float", "to_uint8", "torchvision_set"]
