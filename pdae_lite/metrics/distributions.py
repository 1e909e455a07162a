"""How close one set of images is to another: distances between distributions, neighbours, and their intervals.

All take `Features` (see `features`), never pixels, and name the space they were measured in; figures from two spaces, Inception's
among them, can't be compared.
"""
import math
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .features import Features
from .intervals import BLOCK, Estimate, Z, bootstrap, jackknife_variance, median, middle, named, proportion

GROUPS, T_19 = 20, 2.093024  # of the grouped jackknife, and the 97.5 % quantile of Student's t with 19 degrees of freedom


# ---- pairs and neighbours in a feature space ----------------------------------------------------------------------


def feature_distance(a: Features, b: Features) -> Tensor:
    """Euclidean distance between the features of each pair: [N]. Not LPIPS."""
    a, b, _ = _together(a, b)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} features against {len(b)}; want pairs")
    return (a - b).norm(dim=1)


def nearest_distance(x: Features, others: Features) -> Tensor:
    """Distance of each of x to its nearest among the others: [N]."""
    x, others, _ = _together(x, others)
    return torch.cat([torch.cdist(rows, others).amin(1) for rows in _rows(x, others)])


def nearest_is_own(rebuilt: Features, originals: Features) -> Estimate:
    """Share of rebuilt images whose nearest original is their own. Both [N, D] in the same order."""
    a, b, space = _together(rebuilt, originals)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} rebuilt images for {len(b)} originals; want one each")
    nearest = torch.cat([torch.cdist(rows, b).argmin(1) for rows in _rows(a, b)])
    return named(proportion(nearest == torch.arange(len(a))), (len(a),), space)


class PrecisionRecall(NamedTuple):
    """Share of generated images among the real ones, and of real images among the generated."""

    precision: Estimate
    recall: Estimate


def precision_recall(generated: Features, real: Features, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019): shares inside the other set's balls to the k-th neighbour.

    The balls shrink as a set grows: compare only figures of equal sizes, best with as many generated as real images. The
    intervals are of the shares, for the balls as they are.
    """
    g, r, space = _together(generated, real)
    if not isinstance(k, int) or not 1 <= k < min(len(g), len(r)):
        raise ValueError(f"k={k}; want 1 … {min(len(g), len(r)) - 1}, less than either number of images ({len(g)}, {len(r)})")
    out = []
    for inner, outer in ((g, r), (r, g)):
        # k + 1, because the nearest is the point itself
        radius = torch.cat([torch.cdist(rows, outer).kthvalue(k + 1, dim=1).values for rows in _rows(outer, outer)])
        hits = torch.cat([(torch.cdist(rows, outer) <= radius).any(1) for rows in _rows(inner, outer)])
        out.append(named(proportion(hits), (len(inner), len(outer)), space))
    return PrecisionRecall(*out)


class Memorisation(NamedTuple):
    """Median distances to the nearest training image, and their ratio: below 1, generated images copy."""

    generated: Estimate
    held_out: Estimate
    ratio: Estimate


def memorisation(generated: Features, train: Features, held_out: Features) -> Memorisation:
    """Are generated images closer to the training images than images are that no model has seen?"""
    near, space = [nearest_distance(x, train) for x in (generated, held_out)], _together(generated, held_out)[2]
    if not bool(near[1].median() > 0):
        raise ValueError("half of held_out or more are training images themselves")
    ratio = bootstrap(lambda a, b: middle(a) / middle(b), 2000, None, *near)
    return Memorisation(*(named(median(d), (len(d), len(train)), space) for d in near),
                        named(ratio, (*ratio.n, len(train)), space))


# ---- distances between distributions ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean [D] and covariance [D, D] of features, float64; `n` images."""

    mean: Tensor
    covariance: Tensor
    n: int
    space: str = "unnamed features"


def statistics(features: Features) -> Statistics:
    """Mean and unbiased covariance, in float64."""
    x, _, space = _together(features, features)
    if len(x) < 2:
        raise ValueError("one image has no covariance; want two or more")
    return _statistics(x, space)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½): the squared Wasserstein-2 distance of two Gaussians (Heusel et al. 2017)."""
    if a.space != b.space or a.mean.shape != b.mean.shape:
        raise ValueError(f"{a.space} [{len(a.mean)}] against {b.space} [{len(b.mean)}]; want the same feature space")
    values, vectors = torch.linalg.eigh(a.covariance.double())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # so that only symmetric matrices have roots drawn
    cross = torch.linalg.eigvalsh(root @ b.covariance.double() @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).double().square().sum() + a.covariance.double().trace() + b.covariance.double().trace() - 2 * cross
    return max(0.0, float(distance))


def fid(generated: Features, real: Features | Statistics) -> Estimate:
    """Fréchet distance between generated and real images in their feature space.

    It is biased upwards, for independent features of unit variance by D(D + 5)/4n for each set of n: compare equal sizes only,
    and use `kid` below some thousands of images. The interval, of the value at these sizes, is a jackknife's over 20 groups of
    each set; `Statistics` can't be resampled and count as exact.

    Raises:
        ValueError: two feature spaces, or fewer than 20 images.
    """
    g, g_parts = _leave_out(generated)
    r, r_parts = (real, []) if isinstance(real, Statistics) else _leave_out(real)
    value = frechet_distance(g, r)
    variance = jackknife_variance([frechet_distance(part, r) for part in g_parts])
    if r_parts:
        variance += jackknife_variance([frechet_distance(g, part) for part in r_parts])
    half = T_19 * math.sqrt(variance)
    return Estimate(value, max(0.0, value - half), value + half, (g.n, r.n), g.space)


def kid(generated: Features, real: Features) -> Estimate:
    """Kernel distance (Bińkowski et al. 2018): unbiased squared MMD with the kernel (x·y/D + 1)³. May be below 0.

    All pairs are used, which has less variance than subsets. The interval is the jackknife's over single images, exact by the
    kernel's row sums; where both sets have one distribution it is wider than it need be, never narrower.
    """
    x, y, space = _together(generated, real)
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise ValueError(f"{n} generated and {m} real images; want 3 or more of each")
    xx, yy, (xy, yx) = _within_sums(generated), _within_sums(real), _kernel_sums(x, y)
    inside_x, inside_y, across = xx.sum(), yy.sum(), xy.sum()

    def without_one(own, rest, other):  # MMD² when each one of a set is left out in turn, but for terms that stay
        k, j = len(own), len(other)
        return (own.sum() - 2 * own) / ((k - 1) * (k - 2)) - 2 * (rest.sum() - rest) / ((k - 1) * j)

    value = float(inside_x / (n * (n - 1)) + inside_y / (m * (m - 1)) - 2 * across / (n * m))
    half = Z * math.sqrt(jackknife_variance(without_one(xx, xy, y)) + jackknife_variance(without_one(yy, yx, x)))
    return Estimate(value, value - half, value + half, (n, m), space)


def class_score(logits: Tensor, space: str = "") -> Estimate:
    """exp E KL(p(y|x) ‖ p(y)), from logits [N, classes]: the Inception score's formula with a classifier of your own.

    From 1 to the number of classes: high when single images are clear and all classes occur. The interval is a jackknife's.
    """
    if logits.ndim != 2 or len(logits) < 3 or logits.shape[1] < 2:
        raise ValueError(f"logits has shape {list(logits.shape)}; want [N, classes], N ≥ 3")
    log_p = logits.detach().double().cpu().log_softmax(1)
    p, n = log_p.exp(), len(logits)

    def entropy(q):
        return -torch.special.xlogy(q, q).sum(-1)

    own = -(p * log_p).sum(1)
    value = float((entropy(p.mean(0)) - own.mean()).exp())
    parts = (entropy((p.sum(0) - p) / (n - 1)) - (own.sum() - own) / (n - 1)).exp()
    half = Z * math.sqrt(jackknife_variance(parts))
    return Estimate(value, max(1.0, value - half), min(float(p.shape[1]), value + half), (n,), space)


def _kept(function):
    """Keeps what it finds for `Features` as long as those live: real images serve many comparisons."""
    known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def kept(features):
        if not isinstance(features, Features):
            return function(features)
        if features not in known:
            known[features] = function(features)
        return known[features]

    return kept


@_kept
def _leave_out(features) -> tuple[Statistics, list[Statistics]]:
    """Statistics of features, and of them without each of 20 groups in turn."""
    x, _, space = _together(features, features)
    if len(x) < GROUPS:
        raise ValueError(f"{len(x)} images; a Fréchet distance wants {GROUPS} at the very least, and some thousands to mean much")
    group = torch.arange(len(x)) % GROUPS
    return _statistics(x, space), [_statistics(x[group != i], space) for i in range(GROUPS)]


def _statistics(x: Tensor, space: str) -> Statistics:
    return Statistics(x.mean(0), x.T.cov(), len(x), space)


@_kept
def _within_sums(features) -> Tensor:
    """Row sums of the kernel of features with themselves, [n], without the diagonal.

    Where the classes have fixed numbers, two different images are of one class more seldom than two that are drawn by
    themselves: in 49 of 499 cases, not in 50 of 500. That would make the distance too small, so such pairs weigh more.
    """
    x = _together(features, features)[0]
    sums = _kernel_sums(x, x)[0]
    if getattr(features, "stratified", False):
        for label in features.labels.unique():
            rows = (features.labels == label).nonzero()[:, 0].cpu()
            if len(rows) < 2:
                raise ValueError(f"one image of class {label}; stratified features want two or more of each")
            same = x[rows]
            sums[rows] += _kernel_sums(same, same)[0] / (len(rows) - 1)
        sums *= (len(x) - 1) / len(x)
    return sums


def _kernel_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Row sums [n] and column sums [m] of (x·y/D + 1)³; for x with itself the diagonal is left out."""
    rows, columns, start = [], torch.zeros(len(y), dtype=torch.double), 0
    for part in _rows(x, y):
        k = (part @ y.T / x.shape[1]).add_(1).pow_(3)
        if x is y:
            k[torch.arange(len(part)), start + torch.arange(len(part))] = 0
        rows.append(k.sum(1))
        columns += k.sum(0)
        start += len(part)
    return torch.cat(rows), columns


def _rows(x: Tensor, y: Tensor):
    """x in parts, so that a matrix of part against y stays small."""
    return x.split(max(1, BLOCK // len(y)))


def _together(a, b) -> tuple[Tensor, Tensor, str]:
    """Values of two sets in float64 on the CPU, and the name of their space."""
    a, b = (x if isinstance(x, Features) else Features(x) for x in (a, b))
    if a.space != b.space or a.values.shape[1] != b.values.shape[1]:
        raise ValueError(f"{a.space} [N, {a.values.shape[1]}] against {b.space} [N, {b.values.shape[1]}]; want the same feature space")
    x = a.values.detach().double().cpu()
    return x, x if b.values is a.values else b.values.detach().double().cpu(), a.space
