"""What z knows, by linear probes, and editing by their directions (Section 4.4, Fig. 8)."""
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autoencoder import Autoencoder
from ..checkpoint import Saved
from .latent import LatentStats, encode_labelled

L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # tried by cross-validation
FOLDS = 5
FEWEST = 5  # examples that a column needs of both kinds: one a fold, on average
KINDS = ("classes", "attributes")


class LinearProbe(Saved):
    """A linear classifier of normalised codes, logits(z) = z_norm Wᵀ + b with W [A, z_dim]. Made by `fit`.

    Args:
        names: of the A classes or attributes.
        z_dim: width of z.
        kind: "classes", which exclude each other (softmax); "attributes", columns of their own (sigmoid).
        stats: of the training codes; None: mean 0, std 1.
    """

    def __init__(self, names: Sequence[str], z_dim: int, kind: str = "attributes", stats: LatentStats | None = None):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}; want 'classes' or 'attributes'")
        names = tuple(map(str, names))
        if not names or len(set(names)) < len(names):
            raise ValueError(f"names is {names}; want at least one name, and each only once")
        self.names, self.kind, self.z_dim = names, kind, z_dim
        self.stats = LatentStats.none(z_dim) if stats is None else stats
        if self.stats.z_dim != z_dim:
            raise ValueError(f"stats are of codes with z_dim={self.stats.z_dim}, z_dim={z_dim}")
        self.register_buffer("weight", torch.zeros(len(names), z_dim))
        self.register_buffer("bias", torch.zeros(len(names)))
        self.register_buffer("l2", torch.zeros(len(names)))
        self.register_buffer("examples", torch.zeros(len(names), dtype=torch.int64))  # training codes of each name

    @classmethod
    def fit(cls, z: Tensor, labels: Tensor, names: Sequence[str], l2: float | None = None) -> "LinearProbe":
        """Logistic regression by L-BFGS, in float64, on the CPU. The penalty on a column w of weights is l2 · ‖w‖².

        Args:
            z: training codes [N, z_dim]; see `encode_all`.
            labels: int64 [N], class numbers: kind "classes"; or [N, A] of 0 and 1: kind "attributes". A column with
                fewer than 5 ones or 5 zeros isn't fitted: its logit is constant, and it has no direction.
            names: of the classes, or of the columns.
            l2: None: of 1e-5 … 0.1 the best in five-fold cross-validation; each attribute gets its own.

        Raises:
            ValueError: shapes or labels that don't fit; fewer than 10 codes; a class with fewer than 5.
        """
        labels = torch.as_tensor(labels).cpu()
        kind = "attributes" if labels.ndim == 2 else "classes"
        stats = LatentStats.of(z.detach().cpu())
        probe = cls(names, stats.z_dim, kind, stats)
        probe._check_labels(labels, len(z), 2 * FEWEST)
        x = probe.stats.normalise(z.detach().cpu().double())
        count = labels.sum(0) if kind == "attributes" else torch.bincount(labels, minlength=len(names))
        few = (count if kind == "classes" else torch.minimum(count, len(z) - count)) < FEWEST
        if kind == "classes" and bool(few.any()):
            i = int(few.nonzero()[0])
            raise ValueError(f"class {names[i]!r} has {int(count[i])} of {len(z)} codes; want at least {FEWEST} of "
                             "each class")
        if l2 is not None and l2 < 0:
            raise ValueError(f"l2={l2}; want 0 or more, or None")
        penalty = _cross_validated(x, labels, len(names)) if l2 is None else x.new_full((len(names),), l2)
        if not bool(few.all()):
            weight, bias = _minimise(x, labels[:, ~few] if kind == "attributes" else labels, penalty[~few])
            probe.weight[~few], probe.bias[~few] = weight.float(), bias.float()
        probe.bias[few] = ((count[few] + 0.5) / (len(z) - count[few] + 0.5)).log()
        probe.l2.copy_(penalty)
        probe.examples.copy_(count)
        return probe.eval()

    def column(self, name: str) -> int:
        """The place of a class or an attribute."""
        if name not in self.names:
            raise ValueError(f"attribute {name!r}; want one of {', '.join(self.names)}")
        return self.names.index(name)

    def logits(self, z: Tensor) -> Tensor:
        """Logits [N, A] of codes z [N, z_dim], as the encoder gives them."""
        return self.stats.normalise(z) @ self.weight.to(z).T + self.bias.to(z)

    forward = logits

    def probabilities(self, z: Tensor) -> Tensor:
        """Probabilities [N, A] of codes z [N, z_dim]: rows add up to 1 for classes."""
        return self.logits(z).softmax(1) if self.kind == "classes" else self.logits(z).sigmoid()

    def accuracy(self, z: Tensor, labels: Tensor) -> Tensor:
        """Share of codes that are told right: a scalar for classes, [A] for attributes. Labels as in `fit`."""
        logits, labels = self._scores(z, labels)
        if self.kind == "classes":
            return (logits.argmax(1) == labels).float().mean()
        return ((logits > 0) == (labels > 0)).float().mean(0)

    def auroc(self, z: Tensor, labels: Tensor) -> Tensor:
        """Area under the ROC curve of each column [A] (a class against the others); NaN where all labels are alike."""
        return self._per_column("binary_auroc", z, labels)

    def average_precision(self, z: Tensor, labels: Tensor) -> Tensor:
        """Average precision of each column [A]; NaN where all labels are alike. By chance: the share of positives."""
        return self._per_column("binary_average_precision", z, labels)

    def _per_column(self, name: str, z: Tensor, labels: Tensor) -> Tensor:
        from torchmetrics.functional import classification

        _, labels = self._scores(z, labels)
        scores, metric = self.probabilities(z.detach().cpu()), getattr(classification, name)
        if self.kind == "classes":
            labels = F.one_hot(labels, len(self.names))
        return torch.stack([metric(s, y.long()) if y.amin() < y.amax() else torch.tensor(torch.nan)
                            for s, y in zip(scores.T, labels.T)])

    def _scores(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.as_tensor(labels).cpu()
        self._check_labels(labels, len(z), 1)
        return self.logits(z.detach().cpu()), labels

    def _check_labels(self, labels: Tensor, n: int, fewest: int) -> None:
        shape, top = ([n, len(self.names)], 1) if self.kind == "attributes" else ([n], len(self.names) - 1)
        if list(labels.shape) != shape:
            raise ValueError(f"labels are {list(labels.shape)} for {n} codes and {len(self.names)} names; want {shape}")
        if n < fewest:
            raise ValueError(f"{n} codes; want at least {fewest}")
        if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) > top:
            came = f"{str(labels.dtype).removeprefix('torch.')} from {labels.min():g} to {labels.max():g}"
            raise ValueError(f"labels are {came}; want integers from 0 to {top}")

    def to_config(self) -> dict:
        return {"names": list(self.names), "z_dim": self.z_dim, "kind": self.kind}


def _log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples: a scalar for classes, [A] for attributes."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").mean(0)


def _minimise(x: Tensor, labels: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [A, D] and biases [A] of the least log-loss + Σ l2 ‖w‖²; of all attributes together."""
    w = torch.zeros(len(l2), x.shape[1], dtype=x.dtype, requires_grad=True)
    b = torch.zeros(len(l2), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = _log_loss(x @ w.T + b, labels).sum() + (l2 * w.square().sum(1)).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return w.detach(), b.detach()


def _cross_validated(x: Tensor, labels: Tensor, columns: int) -> Tensor:
    """The l2 [A] of the least log-loss on left-out folds: one for all classes, or one for each attribute."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(x)) % FOLDS
    losses = []
    for l2 in L2:
        penalty, total = torch.full((columns,), l2, dtype=x.dtype), torch.zeros((), dtype=x.dtype)
        for k in range(FOLDS):
            w, b = _minimise(x[fold != k], labels[fold != k], penalty)
            total = total + _log_loss(x[fold == k] @ w.T + b, labels[fold == k]) * int((fold == k).sum())
        losses.append(total.expand(columns))
    return torch.tensor(L2, dtype=x.dtype)[torch.stack(losses).argmin(0)]


# ---- editing --------------------------------------------------------------------------------------------------------


def direction(probe: LinearProbe, attribute: str, keep: Iterable[str] = ()) -> Tensor:
    """The unit vector [z_dim], in normalised codes, along which an attribute's logit rises fastest.

    What predicts best needn't edit best: one with a strong penalty (`l2=10`), whose weights point along the difference
    of the means of codes with and without the attribute, follows true edits more closely (Haufe et al. 2014).

    Args:
        keep: attributes whose logits the direction must not change: it is w made orthogonal to theirs.

    Raises:
        ValueError: an unknown attribute; one that wasn't fitted; or one that can't be told from those to keep.
    """
    keep, column = tuple(keep), probe.column(attribute)
    w, others = probe.weight[column].cpu().double(), probe.weight[[probe.column(name) for name in keep]].cpu().double()
    if not bool(w.any()):
        raise ValueError(f"attribute {attribute!r} has no direction: the probe saw {int(probe.examples[column])} codes "
                         "with it, which are too few, or nearly all")
    if attribute in keep:
        raise ValueError(f"keep holds {attribute!r}, the attribute to change")
    free = w
    if keep:
        _, size, basis = torch.linalg.svd(others, full_matrices=False)
        basis = basis[size > 1e-6 * size.max()]
        free = w - basis.T @ (basis @ w)
    if free.norm() < 1e-4 * w.norm():
        raise ValueError(f"attribute {attribute!r} has no direction that keeps {', '.join(keep)}; keep fewer")
    return (free / free.norm()).to(probe.weight)


def edit(z: Tensor, probe: LinearProbe, attribute: str, scale: float | Tensor, keep: Iterable[str] = ()) -> Tensor:
    """Codes moved along an attribute's direction (Fig. 8): z_norm + scale · √z_dim · w/‖w‖, denormalised.

    Args:
        z: [N, z_dim].
        scale: a number or [N], in lengths of a normalised code, √z_dim; the paper uses ±0.1 … ±0.3.
        keep: attributes to leave alone; see `direction`.
    """
    scale = torch.as_tensor(scale, dtype=z.dtype, device=z.device).reshape(-1, 1)
    if len(scale) not in (1, len(z)):
        raise ValueError(f"scale has {len(scale)} entries for {len(z)} codes; want one number, or one each")
    step = scale * probe.z_dim**0.5 * direction(probe, attribute, keep).to(z)
    return probe.stats.denormalise(probe.stats.normalise(z) + step)


def counterfactual_scores(edited: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """An edit against the true one, where that is known (`data.peeps_counterfactuals`); images [N, C, H, W] in [−1, 1].

    Returns inside [N]: 1 − ‖edited − after‖² / ‖before − after‖² over the pixels that the true edit changes: 1 for the
    true edit, 0 for none. And outside [N]: mean squared error on [0, 1] from before over all other pixels.

    Raises:
        ValueError: unequal shapes, or a pair before and after that are alike.
    """
    if not edited.shape == before.shape == after.shape or edited.ndim != 4:
        shapes = [list(x.shape) for x in (edited, before, after)]
        raise ValueError("edited is {}, before {}, after {}; want [N, C, H, W] for all".format(*shapes))
    changed = ((after - before).abs().amax(1, keepdim=True) > 8 / 127.5).expand_as(before)
    if not bool(changed.flatten(1).any(1).all()):
        raise ValueError("before and after are alike in some pair; there is no edit to score")

    def total(difference, where):
        return (difference.square() * where).flatten(1).sum(1)

    inside = 1 - total(edited - after, changed) / total(before - after, changed)
    return inside, total(edited - before, ~changed) / 4 / (~changed).flatten(1).sum(1).clamp(min=1)


def encode_all(autoencoder: Autoencoder, images, batch_size: int = 250, progress: bool = False) -> Tensor:
    """Codes [N, z_dim] of images [N, C, H, W], uint8 or float in the model's range, or of a data set; see
    `encode_labelled`."""
    return encode_labelled(autoencoder, images, batch_size, progress=progress)[0]
