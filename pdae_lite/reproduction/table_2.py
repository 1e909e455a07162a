"""Table 2 in small: new images by a DPM alone, and by the same DPM shifted by codes z that a latent DPM drew.

All methods begin with the same x_T, and the latent DPMs with the same z_T, so samples come in pairs and differences of
distances have narrow intervals (`metrics.kid_difference`). Costs are counted in FLOP: an evaluation with the estimator
costs more than one without."""
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .. import counter_rng, metrics, sampling
from ..metrics.distributions import GROUPS
from ..metrics.features import Features
from ..metrics.intervals import Estimate, mean
from ..speed import accelerate
from .partial import Partial
from .published import OFF_LAST, STEPS
from .subject import Subject

LATENT_STEPS = 100
SWEEP, SWEEP_STEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 20
NEAR = 0.1  # costs that differ by less count as equal; one step of 10 is as much
FIRST = 16  # samples whose mean features are stored, to be computed again
COMPARED = (("PDAE", "DDIM"), ("Diff-AE", "DDIM"), ("PDAE", "Diff-AE"))


@dataclass(frozen=True)
class Cell:
    """One set of samples. `off_last`: the last share of the steps that a PDAE leaves to the plain DPM. `cost`: GFLOP of
    an image."""

    method: str
    steps: int
    off_last: float | None = None
    cost: float = 0.0

    @property
    def name(self) -> str:
        """Such as "PDAE, T = 20", with the share of plain steps if it isn't the paper's."""
        other = self.off_last not in (None, OFF_LAST)
        return f"{self.method}, T = {self.steps}" + (f", plain in the last {self.off_last:.0%}" if other else "")


# ---- what things cost -----------------------------------------------------------------------------------------------


@torch.no_grad()
def gflop(s: Subject) -> dict[str, float]:
    """GFLOP of one evaluation for one image: of the plain DPM, of one shifted by z, of the Diff-AE, and of the latent
    DPMs."""
    device = s.some.device
    x, t = torch.zeros(1, *s.shape, device=device), torch.full((1,), 500, device=device)
    z = torch.zeros(1, s.some.z_dim, device=device)
    calls = {}
    if s.pdae is not None:
        calls |= {"plain": lambda: s.pdae.dpm(x, t), "shifted": lambda: s.pdae.denoiser(z)(x, t)}
    if s.diffae is not None:
        calls["diffae"] = lambda: s.diffae.denoiser(z)(x, t)
    for kind in ("latent", "diffae_latent"):
        if getattr(s, kind) is not None:
            calls[kind] = lambda m=getattr(s, kind): m(z, t)
    out = {}
    for name, call in calls.items():
        # Attention as two products, which are counted; a fused kernel isn't everywhere.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        out[name] = counter.get_total_flops() / 1e9
    return out


def cost(s: Subject, each: dict[str, float], method: str, steps: int, off_last: float | None) -> float:
    """GFLOP of one image: all evaluations of the networks, those of the latent DPM too."""
    if method == "DDIM":
        return steps * each["plain"]
    if method == "Diff-AE":
        return steps * each["diffae"] + LATENT_STEPS * each["diffae_latent"]
    ts = sampling.time_grid(s.pdae.schedule, steps)[1:]
    plain = sum(t < off_last * s.pdae.schedule.T for t in ts)
    return plain * each["plain"] + (steps - plain) * each["shifted"] + LATENT_STEPS * each["latent"]


def cells(s: Subject, steps=STEPS) -> tuple[list[Cell], dict[int, dict[str, str]]]:
    """All sets of samples; and, for each T, the names of those that cost as much as T evaluations of the plain DPM."""
    each, found, equal = gflop(s), {}, {}
    needs = {"DDIM": (s.pdae,), "Diff-AE": (s.diffae, s.diffae_latent), "PDAE": (s.pdae, s.latent)}
    methods = [method for method, parts in needs.items() if None not in parts]

    def add(method: str, n: int, off_last: float = OFF_LAST) -> str:
        off = off_last if method == "PDAE" else None
        cell = Cell(method, n, off, cost(s, each, method, n, off))
        found.setdefault(cell.name, cell)
        return cell.name

    for T in steps:
        for method in methods:
            add(method, T)
    if "PDAE" in methods:
        for T in steps:
            budget, equal[T] = T * each["plain"], {"DDIM": f"DDIM, T = {T}"}
            for method in methods[1:]:
                off = OFF_LAST if method == "PDAE" else None
                away = {n: abs(cost(s, each, method, n, off) / budget - 1) for n in range(1, T + 1)}
                equal[T][method] = add(method, T if away[T] < NEAR else min(away, key=away.get))
        if SWEEP_STEPS in steps:
            for off in SWEEP:
                add("PDAE", SWEEP_STEPS, off)
    return list(found.values()), equal


# ---- samples --------------------------------------------------------------------------------------------------------


def fast(s: Subject, dtype: torch.dtype | None) -> Subject:
    """The same, with autoencoders that compute in `dtype`."""
    if dtype is None:
        return s
    made = {k: accelerate(getattr(s, k), dtype) for k in ("pdae", "diffae") if getattr(s, k) is not None}
    return replace(s, **made)


@torch.no_grad()
def draw(s: Subject, wanted: list[Cell], index: Tensor, seed: int = 0):
    """Yields (name of a cell, images [N, C, H, W]) of samples `index` [N]; sample i depends on the seed and i alone."""
    device = s.some.device
    x_T = counter_rng.normal(seed, 0, index, s.shape).to(device)
    codes = {}
    for method, latent in (("PDAE", s.latent), ("Diff-AE", s.diffae_latent)):
        if latent is not None:
            z_T = counter_rng.normal(seed, 1, index, (latent.z_dim,)).to(device)
            codes[method] = latent.sample(z_T=z_T, steps=LATENT_STEPS)
    shifted = {}  # of one number of steps, the cells that differ in off_last alone
    for cell in wanted:
        if cell.method == "DDIM":
            yield cell.name, sampling.ddim(s.pdae.dpm, x_T, s.pdae.schedule, cell.steps)
        elif cell.method == "Diff-AE":
            yield cell.name, s.diffae.decode(codes["Diff-AE"], x_T, cell.steps)
        else:
            shifted.setdefault(cell.steps, []).append(cell)
    for steps, group in shifted.items():
        yield from every_off_last(s, codes["PDAE"], x_T, steps, group)


def every_off_last(s: Subject, z: Tensor, x_T: Tensor, steps: int, group: list[Cell]):
    """The same as s.pdae.decode(z, x_T, steps, off_last=…) for each cell, in fewer evaluations: the shifted way down is
    walked once, and left where a cell's plain steps begin."""
    pdae, points = s.pdae, sampling.time_grid(s.pdae.schedule, steps)
    plain = {cell.name: [t for t in points if 0 <= t < cell.off_last * pdae.schedule.T] for cell in group}
    states, least = {points[-1]: x_T}, min(cell.off_last for cell in group)
    end = sampling.ddim(pdae.denoiser(z, off_last=least), x_T, pdae.schedule, steps,
                        callback=lambda t, x: states.update({t: x}))
    for cell in group:
        grid = plain[cell.name]
        yield cell.name, end if cell.off_last == least or not grid else sampling.ddim(
            pdae.dpm, states[grid[-1]], pdae.schedule, grid=grid)


@torch.no_grad()
def features_of(s: Subject, wanted: list[Cell], index: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Class features [N, D] of the samples of each cell."""
    return {name: s.net.features(x.float().clamp(-1, 1)).cpu() for name, x in draw(s, wanted, index, seed)}


def collect(s: Subject, wanted: list[Cell], count: int, partial: Partial, seed: int = 0, batch_size: int = 50,
            report=None) -> None:
    """Features of samples 0 … count − 1 of all cells, into `partial`; `report(done)` is called after each batch."""
    names = [cell.name for cell in wanted]
    for end in [*range(batch_size, count, batch_size), count]:
        groups: dict[tuple, list[Cell]] = {}  # cells that share their way down
        for cell in wanted:
            done = partial.count([cell.name])
            if done < end:
                groups.setdefault((cell.method, cell.steps, done), []).append(cell)
        for (_, _, done), group in groups.items():
            partial.extend(features_of(s, group, torch.arange(done, end), seed))
        if groups and report is not None:
            report(partial.count(names))


# ---- the table ------------------------------------------------------------------------------------------------------


def pairs(wanted: list[Cell], equal: dict[int, dict[str, str]], steps=STEPS) -> list[tuple[str, str]]:
    """The differences that are worth an interval: at equal steps, at equal cost, and along the sweep."""
    out, centre = [], f"PDAE, T = {SWEEP_STEPS}"
    for T in steps:
        for of in ({m: f"{m}, T = {T}" for m in ("DDIM", "Diff-AE", "PDAE")}, equal.get(T, {})):
            out += [(of[a], of[b]) for a, b in COMPARED if a in of and b in of]
    out += [(c.name, centre) for c in wanted if c.name.startswith(centre + ",")]
    names = {c.name for c in wanted}
    return [(a, b) for a, b in dict.fromkeys(out) if a in names and b in names]


def summary(wanted: list[Cell], equal: dict[int, dict[str, str]], values: dict[str, Tensor], real: Features,
            steps=STEPS) -> dict:
    """KID of each cell, and FID where there are 5,000 real images or more; the differences; and how near each sample
    already is to the one that its method draws from the same noise in the most steps."""
    features = {name: Features(v, real.space) for name, v in values.items()}
    count = min(map(len, features.values()))
    known = {"kid": (metrics.kid, metrics.kid_difference)}
    if len(real) >= 5000 and count >= GROUPS:
        known["fid"] = (metrics.fid, metrics.fid_difference)
    rows, differences = [], []
    for cell in wanted:
        f, end = features[cell.name], f"{cell.method}, T = {max(steps)}"
        row = asdict(cell) | {"name": cell.name} | {k: numbers(distance(f, real)) for k, (distance, _) in known.items()}
        if end in features and cell.name != end:
            row["to_the_end"] = numbers(mean((f.values - features[end].values).norm(dim=1)))
        rows.append(row | {"first": [round(v, 4) for v in f.values[:FIRST].mean(0).tolist()]})
    for a, b in pairs(wanted, equal, steps):
        found = {k: numbers(difference(features[a], features[b], real)) for k, (_, difference) in known.items()}
        differences.append({"a": a, "b": b} | found)
    return {"samples": count, "real": len(real), "space": real.space, "latent_steps": LATENT_STEPS, "first": FIRST,
            "cells": rows, "equal_cost": {str(T): e for T, e in equal.items()}, "differences": differences}


def precision_check(exact: Subject, wanted: list[Cell], partial: Partial, real: Features, count: int = 100,
                    seed: int = 0, batch_size: int = 50) -> dict:
    """What lower precision does: KID of the first samples of one cell as they are in `partial`, of the same ones in
    float32, and the paired difference. The cell is the last with T = 20, if there is one."""
    cell = ([c for c in wanted if c.name.endswith(f", T = {SWEEP_STEPS}")] or wanted)[-1]
    key = f"{cell.name} in float32"
    for start in range(partial.count([key]), count, batch_size):
        index = torch.arange(start, min(start + batch_size, count))
        partial.extend({key: features_of(exact, [cell], index, seed)[cell.name]})
    low, full = (Features(partial.tensors[k][:count], real.space) for k in (cell.name, key))
    return {"cell": cell.name, "samples": count, "kid": numbers(metrics.kid(low, real)),
            "kid_in_float32": numbers(metrics.kid(full, real)),
            "difference": numbers(metrics.kid_difference(low, full, real))}


def numbers(e: Estimate) -> dict:
    """An estimate as JSON-able values, to six digits."""
    return {k: float(f"{getattr(e, k):.6g}") for k in ("value", "low", "high")}
