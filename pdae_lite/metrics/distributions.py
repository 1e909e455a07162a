"""How close one set of images is to another: Fréchet and kernel distances, and their differences, with intervals.

All take `Features` (see `features`), never pixels, and name the space they were measured in; figures from two spaces,
Inception's among them, can't be compared."""
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from .features import Features, as_features, in_parts, together
from .intervals import Estimate, Z, jackknife_variance

GROUPS, T_19 = 20, 2.093024  # of the grouped jackknife, and 97.5 % quantile of Student's t with 19 degrees of freedom
STRATA, T_9 = 10, 2.262157  # the same where groups have as many of each class
kept = lru_cache(16)  # by identity: real images serve many comparisons


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean [D] and covariance [D, D] of features, float64; `n` images."""

    mean: Tensor
    covariance: Tensor
    n: int
    space: str = "unnamed features"


def statistics(features: Features) -> Statistics:
    """Mean and unbiased covariance, in float64."""
    x, _, space = together(features, features)
    if len(x) < 2:
        raise ValueError("one image has no covariance; want two or more")
    return _statistics(x, space)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), squared Wasserstein-2 distance of Gaussians (Heusel 2017)."""
    if a.space != b.space or a.mean.shape != b.mean.shape:
        raise ValueError(f"{a.space} [{len(a.mean)}] against {b.space} [{len(b.mean)}]; want the same feature space")
    cov_a, cov_b = a.covariance.double(), b.covariance.double()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # so that only symmetric matrices have roots drawn
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return max(0.0, float((a.mean - b.mean).double().square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross))


def fid(generated: Features, real: Features | Statistics) -> Estimate:
    """Fréchet distance between generated and real images in their feature space.

    It is biased upwards, for independent features of unit variance by D(D + 5)/4n for each set of n: compare equal
    sizes only, and use `kid` below some thousands of images. The interval, of the value at these sizes, is a
    jackknife's over 20 groups of each set; `Statistics` can't be resampled and count as exact.

    Raises:
        ValueError: two feature spaces, or fewer than 20 images.
    """
    g, g_parts = _leave_out(as_features(generated))
    r, r_parts = (real, []) if isinstance(real, Statistics) else _leave_out(as_features(real))
    return _jackknifed(frechet_distance(g, r), [frechet_distance(part, r) for part in g_parts],
                       [frechet_distance(g, part) for part in r_parts], T_19, (g.n, r.n), g.space, least=0.0)


def kid(generated: Features, real: Features) -> Estimate:
    """Kernel distance (Bińkowski et al. 2018): unbiased squared MMD with the kernel (x·y/D + 1)³. May be below 0.

    All pairs are used, not subsets. The interval is the jackknife's over single images; where both sets have one
    distribution it is wider than it need be, never narrower."""
    x, y, space = together(generated, real)
    if min(len(x), len(y)) < 3:
        raise ValueError(f"{len(x)} generated and {len(y)} real images; want 3 or more of each")
    within = (_within_sums(as_features(f)) for f in (generated, real))
    return _squared_mmd(*within, *_kernel_sums(x, y), space)


def kid_difference(a: Features, b: Features, real: Features, real_varies: bool = True) -> Estimate:
    """`kid(a, real)` − `kid(b, real)`, where sample i of a and sample i of b are a pair: drawn from one noise, say.

    `-` of two `Estimate`s would be too wide. Here each pair is left out of both sets at once, and each real image of
    both distances; where a and b are stratified, 10 groups of as many of each class are.

    Args:
        real_varies: whether the interval is to hold for other real images, too; False: for these alone.
    """
    a, b, real = map(as_features, (a, b, real))
    x, w, y, space = _three(a, b, real, 3)
    if not (a.stratified and b.stratified):
        (xy, yx), (wy, yw) = _kernel_sums(x, y), _kernel_sums(w, y)
        inside = _within_sums(a) - _within_sums(b)  # that of the real images is in both distances, and cancels
        return _squared_mmd(inside, torch.zeros(len(y)), xy - wy, yx - yw if real_varies else None, space)

    def difference(left_out: int | None = None, real_left_out: int | None = None) -> float:
        c, d, r = _without(a, left_out), _without(b, left_out), _without(real, real_left_out)
        return kid(c, r).value - kid(d, r).value

    reals = [difference(None, g) for g in range(STRATA)] if real_varies else []
    return _jackknifed(difference(), [difference(g) for g in range(STRATA)], reals, T_9, (len(x), len(y)), space)


def fid_difference(a: Features, b: Features, real: Features) -> Estimate:
    """`fid(a, real)` − `fid(b, real)`, likewise, over 20 groups. The sets are of one size: most of the bias cancels."""
    space = _three(a, b, real, GROUPS)[3]
    (f, f_parts), (g, g_parts), (r, r_parts) = (_leave_out(as_features(x)) for x in (a, b, real))
    parts = [frechet_distance(p, r) - frechet_distance(q, r) for p, q in zip(f_parts, g_parts)]
    reals = [frechet_distance(f, part) - frechet_distance(g, part) for part in r_parts]
    return _jackknifed(frechet_distance(f, r) - frechet_distance(g, r), parts, reals, T_19, (f.n, r.n), space)


def class_score(logits: Tensor, space: str = "") -> Estimate:
    """exp E KL(p(y|x) ‖ p(y)), from logits [N, classes]: the Inception score's formula with a classifier of your own.

    From 1 to the number of classes: high when single images are clear and all classes occur; a jackknife's interval."""
    if logits.ndim != 2 or len(logits) < 3 or logits.shape[1] < 2:
        raise ValueError(f"logits has shape {list(logits.shape)}; want [N, classes], N ≥ 3")
    if not bool(logits.isfinite().all()):
        raise ValueError("logits hold NaN or infinite values")
    log_p = logits.detach().double().cpu().log_softmax(1)
    p, n = log_p.exp(), len(logits)

    def entropy(q):
        return -torch.special.xlogy(q, q).sum(-1)

    own = -(p * log_p).sum(1)
    value = float((entropy(p.mean(0)) - own.mean()).exp())
    parts = (entropy((p.sum(0) - p) / (n - 1)) - (own.sum() - own) / (n - 1)).exp()
    half = Z * math.sqrt(jackknife_variance(parts))
    return Estimate(value, max(1.0, value - half), min(float(p.shape[1]), value + half), (n,), space)


@kept
def _leave_out(features: Features) -> tuple[Statistics, list[Statistics]]:
    """Statistics of features, and of them without each of 20 groups in turn."""
    x, _, space = together(features, features)
    if len(x) < GROUPS:
        raise ValueError(f"{len(x)} images; a Fréchet distance wants {GROUPS}, and thousands to mean much")
    group = torch.arange(len(x)) % GROUPS
    return _statistics(x, space), [_statistics(x[group != i], space) for i in range(GROUPS)]


def _statistics(x: Tensor, space: str) -> Statistics:
    return Statistics(x.mean(0), x.T.cov().reshape(2 * [x.shape[1]]), len(x), space)


def _jackknifed(value: float, parts, real_parts, quantile: float, n: tuple[int, ...], space: str,
                least: float = -math.inf) -> Estimate:
    """A value with a jackknife's interval, from its values with one part of either set left out in turn."""
    half = quantile * math.sqrt(sum(jackknife_variance(p) for p in (parts, real_parts) if len(p)))
    return Estimate(value, max(least, value - half), value + half, n, space)


def _squared_mmd(xx: Tensor, yy: Tensor, xy: Tensor, yx: Tensor | None, space: str) -> Estimate:
    """MMD² from row sums of the kernel: in x [n], in y [m], of x with y [n], of y with x [m] (None: y doesn't vary)."""

    def without_one(own, rest, other):  # MMD² when each one of a set is left out in turn, but for terms that stay
        k, j = len(own), len(other)
        return (own.sum() - 2 * own) / ((k - 1) * (k - 2)) - 2 * (rest.sum() - rest) / ((k - 1) * j)

    n, m = len(xx), len(yy)
    value = float(xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * xy.sum() / (n * m))
    return _jackknifed(value, without_one(xx, xy, yy), [] if yx is None else without_one(yy, yx, xx), Z, (n, m), space)


@kept
def _within_sums(features: Features) -> Tensor:
    """Row sums of the kernel of features with themselves, [n], without the diagonal.

    Where the classes have fixed numbers, two different images are of one class more seldom than two that are drawn by
    themselves: in 49 of 499 cases, not in 50 of 500. That would make the distance too small, so such pairs weigh more.
    """
    x = together(features, features)[0]
    sums = _kernel_sums(x)[0]
    if features.stratified:
        for label in features.labels.unique():
            rows = (features.labels == label).nonzero()[:, 0].cpu()
            if len(rows) < 2:
                raise ValueError(f"one image of class {label}; stratified features want two or more of each")
            sums[rows] += _kernel_sums(x[rows])[0] / (len(rows) - 1)
        sums *= (len(x) - 1) / len(x)
    return sums


def _kernel_sums(x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Row sums [n] and column sums [m] of (x·y/D + 1)³; of x with itself, without the diagonal, if there is no y."""
    other = x if y is None else y
    rows, columns, start = [], torch.zeros(len(other), dtype=torch.double), 0
    for part in in_parts(x, other):
        k = (part @ other.T / x.shape[1]).add_(1).pow_(3)
        if y is None:
            k[torch.arange(len(part)), start + torch.arange(len(part))] = 0
        rows.append(k.sum(1))
        columns += k.sum(0)
        start += len(part)
    return torch.cat(rows), columns


def _without(features: Features, group: int | None) -> Features:
    """All but one of STRATA groups, with as many of each class."""
    if group is None:
        return features
    rank = torch.arange(len(features))  # of an image within its class
    for label in features.labels.unique() if features.stratified else ():  # real images may not be
        rows = (features.labels == label).nonzero()[:, 0].cpu()
        rank[rows] = torch.arange(len(rows))
    return replace(features[rank % STRATA != group], stratified=features.stratified)


def _three(a: Features, b: Features, real: Features, least: int) -> tuple[Tensor, Tensor, Tensor, str]:
    """The values of pairs and real images in float64, and the name of their space."""
    (x, y, space), w = together(a, real), together(b, real)[0]
    if len(x) != len(w):
        raise ValueError(f"{len(x)} samples against {len(w)}; want pairs")
    if min(len(x), len(y)) < least:
        raise ValueError(f"{len(x)} samples and {len(y)} real images; want {least} or more of each")
    return x, w, y, space
