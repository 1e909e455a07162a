"""Few-shot conditional generation (Section 4.6, Tab. 3): a latent DPM draws codes of all kinds, and a linear probe that
a handful of labels taught says which to keep."""
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..metrics.intervals import Estimate, proportion
from .attributes import FEWEST, LinearProbe
from .latent import LatentDPM

RULES = ("threshold", "sample")
FOLDS = 5
BINARY_L2, PU_L2 = 1e-2, 1e-4  # penalties on weights; from so few labels cross-validation is costly, and hardly better


@dataclass(frozen=True, eq=False)
class FewShot:
    """A classifier of codes: p(y = 1 | z) = min(1, σ(logit) / c). `probe` tells labelled codes from the others; c is
    the share of the wanted kind that was labelled: 1, or estimated where only some positives are known (`fit_pu`)."""

    probe: LinearProbe
    c: float = 1.0

    def probability(self, z: Tensor, wanted: int = 1) -> Tensor:
        """p(y = wanted | z), [N], of codes z [N, z_dim]; `wanted` is 1 or 0."""
        if wanted not in (0, 1):
            raise ValueError(f"wanted={wanted}; want 1, the labelled kind, or 0, all others")
        p = (self.probe.probabilities(z)[:, 0] / self.c).clamp(max=1.0)
        return p if wanted else 1 - p


def fit_binary(positive: Tensor, negative: Tensor, l2: float | None = BINARY_L2) -> FewShot:
    """A classifier from codes of both kinds, [P, z_dim] and [M, z_dim], 5 or more of each; `l2` as in
    `LinearProbe.fit`. It learns the shares that it is shown, which `with_prior` corrects."""
    return FewShot(_probe(positive, negative, "negative", l2))


def fit_pu(positive: Tensor, unlabelled: Tensor, l2: float | None = PU_L2) -> FewShot:
    """A classifier from positive and unlabelled codes (Elkan & Noto 2008).

    Labelled or not, s, is what can be learned: g(z) = p(s = 1 | z). If positives were picked for labelling with
    probability c whatever their z, then g(z) = c · p(y = 1 | z). c is the mean of g over labelled codes that it wasn't
    fitted on (five folds), which is exact where the kinds don't overlap, and too small where they do.

    Args:
        positive: labelled codes [P, z_dim], at least 10.
        unlabelled: codes of both kinds, [U, z_dim].
    """
    if len(positive) < 2 * FEWEST:
        raise ValueError(f"{len(positive)} positive codes; want at least {2 * FEWEST}")
    g = torch.Generator().manual_seed(0)
    folds = [torch.randperm(len(x), generator=g) % FOLDS for x in (positive, unlabelled)]
    left_out = []
    for k in range(FOLDS):
        known = _probe(positive[folds[0] != k], unlabelled[folds[1] != k], "unlabelled", l2)
        left_out.append(known.probabilities(positive[folds[0] == k])[:, 0])
    return FewShot(_probe(positive, unlabelled, "unlabelled", l2), float(torch.cat(left_out).mean()))


def with_prior(p: Tensor, prior: float, trained_on: float = 0.5) -> Tensor:
    """Probabilities [N] of a classifier that saw a share `trained_on` of positives, where their true share is `prior`:
    the odds times prior/(1 − prior) · (1 − trained_on)/trained_on."""
    for name, value in (("prior", prior), ("trained_on", trained_on)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}; want a share between 0 and 1")
    yes, no = p * prior / trained_on, (1 - p) * (1 - prior) / (1 - trained_on)
    return yes / (yes + no)


def accept(p: Tensor, rule: str = "threshold", threshold: float = 0.5,
           generator: torch.Generator | None = None) -> Tensor:
    """Which of codes with probabilities p [N] to keep: bool [N]. "threshold": those with p > threshold, typical ones.
    "sample": each with probability p, so that what is kept is distributed like p(z | y) if p is right."""
    if rule not in RULES:
        raise ValueError(f"rule {rule!r}; want 'threshold' or 'sample'")
    if rule == "threshold":
        return p > threshold
    return torch.rand(len(p), generator=generator).to(p) < p


class Accepted(NamedTuple):
    """Codes z [n, z_dim], and the share of the drawn ones that were accepted, with its interval."""

    z: Tensor
    rate: Estimate


def sample_codes(latent: LatentDPM, classifier: FewShot, n: int, wanted: int = 1, rule: str = "threshold",
                 threshold: float = 0.5, most: int = 10_000, steps: int = 100, generator: torch.Generator | None = None,
                 batch_size: int = 500) -> Accepted:
    """n codes of the labelled kind, or the other (`wanted` 0): the latent DPM draws, the classifier `accept`s some.

    Raises:
        ValueError: fewer than n of `most` codes were accepted.
    """
    if n < 1 or most < 1:
        raise ValueError(f"n={n}, most={most}; want at least 1 of both")
    kept, hits, best = [], [], 0.0
    while sum(map(len, kept)) < n and len(hits) < most:
        z = latent.sample(min(batch_size, most - len(hits)), steps, generator=generator)
        p = classifier.probability(z, wanted)
        ok = accept(p, rule, threshold, generator)
        kept.append(z[ok])
        hits += ok.tolist()
        best = max(best, float(p.max()))
    z = torch.cat(kept)
    if len(z) < n:
        found = "none" if not len(z) else f"only {len(z)} of the {n} wanted"
        at = f", threshold {threshold:g}" if rule == "threshold" else ""
        raise ValueError(f"{found} of {len(hits):,} codes accepted (highest probability {best:.2g}{at}); lower the "
                         "threshold, draw more, or give more labels")
    return Accepted(z[:n], proportion(torch.tensor(hits)))


def _probe(positive: Tensor, other: Tensor, name: str, l2: float | None) -> LinearProbe:
    for what, z in (("positive", positive), (name, other)):
        if not torch.is_tensor(z) or z.ndim != 2 or len(z) < FEWEST:
            came = list(z.shape) if torch.is_tensor(z) else type(z).__name__
            raise ValueError(f"{what} codes are {came}; want [N, z_dim] with N of at least {FEWEST}")
    labels = torch.cat([torch.ones(len(positive), 1), torch.zeros(len(other), 1)]).long()
    return LinearProbe.fit(torch.cat([positive, other]).detach(), labels, ["positive"], l2)
