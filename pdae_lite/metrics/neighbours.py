"""Pairs and neighbours in a feature space: identity, precision and recall, copies of training images."""
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .features import Features, in_parts, together
from .intervals import Estimate, bootstrap, median, middle, proportion


def feature_distance(a: Features, b: Features) -> Tensor:
    """Euclidean distance between the features of each pair: [N]. Not LPIPS."""
    a, b, _ = together(a, b)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} features against {len(b)}; want pairs")
    return (a - b).norm(dim=1)


def nearest_distance(x: Features, others: Features) -> Tensor:
    """Distance of each of x to its nearest among the others: [N]."""
    x, others, _ = together(x, others)
    return torch.cat([torch.cdist(rows, others).amin(1) for rows in in_parts(x, others)])


def nearest_is_own(rebuilt: Features, originals: Features) -> Estimate:
    """Share of rebuilt images whose nearest original is their own. Both [N, D] in the same order."""
    a, b, space = together(rebuilt, originals)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} rebuilt images for {len(b)} originals; want one each")
    nearest = torch.cat([torch.cdist(rows, b).argmin(1) for rows in in_parts(a, b)])
    return replace(proportion(nearest == torch.arange(len(a))), space=space)


class PrecisionRecall(NamedTuple):
    """Share of generated images among the real ones, and of real images among the generated."""

    precision: Estimate
    recall: Estimate


def precision_recall(generated: Features, real: Features, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019): shares in the other set's balls to the k-th neighbour.

    The balls shrink as a set grows: compare only figures of equal sizes. The intervals are for the balls as they are.
    """
    g, r, space = together(generated, real)
    if not isinstance(k, int) or not 1 <= k < min(len(g), len(r)):
        most = min(len(g), len(r)) - 1
        raise ValueError(f"k={k}; want 1 … {most}, less than either number of images ({len(g)}, {len(r)})")
    out = []
    for inner, outer in ((g, r), (r, g)):
        radius = torch.cat([torch.cdist(rows, outer).kthvalue(k + 1, dim=1).values  # the nearest is the point itself
                            for rows in in_parts(outer, outer)])
        hits = torch.cat([(torch.cdist(rows, outer) <= radius).any(1) for rows in in_parts(inner, outer)])
        out.append(replace(proportion(hits), n=(len(inner), len(outer)), space=space))
    return PrecisionRecall(*out)


class Memorisation(NamedTuple):
    """Median distances to the nearest training image, and their ratio: below 1, generated images copy."""

    generated: Estimate
    held_out: Estimate
    ratio: Estimate


def memorisation(generated: Features, train: Features, held_out: Features) -> Memorisation:
    """Are generated images closer to the training images than images are that no model has seen?"""
    near = [nearest_distance(x, train) for x in (generated, held_out)]
    space = together(generated, held_out)[2]
    if not bool(near[1].median() > 0):
        raise ValueError("half of held_out or more are training images themselves")
    ratio = bootstrap(lambda a, b: middle(a) / middle(b), 2000, None, *near)
    return Memorisation(*(replace(e, n=(*e.n, len(train)), space=space) for e in (*map(median, near), ratio)))
