"""Differences of two distances to the same real images, with their intervals, where samples come in pairs.

Where sample i of both sets began with the same noise, what chance does to one it does to the other, and `a - b` of two
`Estimate`s is too wide. Here each pair is left out of both sets at once, and each real image of both distances.
"""
import math

from .distributions import GROUPS, T_19, _kernel_sums, _leave_out, _together, _within_sums, frechet_distance
from .features import Features
from .intervals import Estimate, Z, jackknife_variance


def kid_difference(a: Features, b: Features, real: Features) -> Estimate:
    """`metrics.kid(a, real)` − `metrics.kid(b, real)`, sample i of a and sample i of b being a pair."""
    x, w, y, space = _three(a, b, real, 3)
    n, m = len(x), len(y)
    inside = _within_sums(a) - _within_sums(b)
    (xy, yx), (wy, yw) = _kernel_sums(x, y), _kernel_sums(w, y)
    across, real_sums = xy - wy, yx - yw
    total, cross = inside.sum(), across.sum()
    value = float(total / (n * (n - 1)) - 2 * cross / (n * m))
    pairs = (total - 2 * inside) / ((n - 1) * (n - 2)) - 2 * (cross - across) / ((n - 1) * m)
    reals = -2 * (cross - real_sums) / (n * (m - 1))
    half = Z * math.sqrt(jackknife_variance(pairs) + jackknife_variance(reals))
    return Estimate(value, value - half, value + half, (n, m), space)


def fid_difference(a: Features, b: Features, real: Features) -> Estimate:
    """`metrics.fid(a, real)` − `metrics.fid(b, real)`, likewise, by a jackknife over 20 groups. The sets are of one size, so most
    of the distances' bias is gone."""
    x, _, _, space = _three(a, b, real, GROUPS)
    (f, f_parts), (g, g_parts), (r, r_parts) = (_leave_out(features) for features in (a, b, real))
    value = frechet_distance(f, r) - frechet_distance(g, r)
    variance = jackknife_variance([frechet_distance(p, r) - frechet_distance(q, r) for p, q in zip(f_parts, g_parts)])
    variance += jackknife_variance([frechet_distance(f, part) - frechet_distance(g, part) for part in r_parts])
    half = T_19 * math.sqrt(variance)
    return Estimate(value, value - half, value + half, (len(x), r.n), space)


def _three(a: Features, b: Features, real: Features, least: int):
    """The values of all three in float64, and the name of their space."""
    (x, y, space), w = _together(a, real), _together(b, real)[0]
    if len(x) != len(w):
        raise ValueError(f"{len(x)} samples against {len(w)}; want pairs")
    if min(len(x), len(y)) < least:
        raise ValueError(f"{len(x)} samples and {len(y)} real images; want {least} or more of each")
    return x, w, y, space
