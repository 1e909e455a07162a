"""What z knows, by linear probes, and editing by their directions (Section 4.4, Fig. 8)."""
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autoencoder import Autoencoder
from ..checkpoint import Saved
from .latent import LatentStats, latent_codes

L2 = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # tried by cross-validation
FOLDS = 5
FEWEST = 5  # examples that a column needs of both kinds: one a fold, on average
KINDS = ("classes", "attributes")


class LinearProbe(Saved):
    """A linear classifier of codes, on codes normalised by their mean and standard deviation. Made by `fit`.

    logits(z) = z_norm Wᵀ + b, with W [A, z_dim]. What they mean depends on the kind: "classes" exclude each other (softmax);
    "attributes" are columns of their own, present or not (sigmoid).

    Args:
        names: of the A classes or attributes.
        z_dim: width of z.
        kind: "classes" or "attributes".
        stats: of the training codes; None: mean 0, std 1.
    """

    def __init__(self, names: Sequence[str], z_dim: int, kind: str = "attributes", stats: LatentStats | None = None):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}; want 'classes' or 'attributes'")
        names = tuple(map(str, names))
        if not names or len(set(names)) < len(names):
            raise ValueError(f"names is {names}; want at least one name, and each only once")
        self.names, self.kind = names, kind
        self.stats = LatentStats(torch.zeros(z_dim), torch.ones(z_dim)) if stats is None else stats
        if self.stats.z_dim != z_dim:
            raise ValueError(f"stats are of codes with z_dim={self.stats.z_dim}, z_dim={z_dim}")
        self.register_buffer("weight", torch.zeros(len(names), z_dim))
        self.register_buffer("bias", torch.zeros(len(names)))
        self.register_buffer("l2", torch.zeros(len(names)))
        self.register_buffer("examples", torch.zeros(len(names), dtype=torch.int64))  # how many the training codes had of each

    @classmethod
    def fit(cls, z: Tensor, labels: Tensor, names: Sequence[str], l2: float | None = None) -> "LinearProbe":
        """Logistic regression by L-BFGS, in float64, on the CPU. The penalty on a column w of weights is l2 · ‖w‖².

        Args:
            z: training codes [N, z_dim]; see `encode_all`.
            labels: int64 [N], class numbers: kind "classes"; or [N, A] of 0 and 1: kind "attributes". A column with fewer
                than 5 ones or 5 zeros isn't fitted: its logit is constant, and it has no direction.
            names: of the classes, or of the columns.
            l2: None: of 1e-5 … 0.1 the one with the least log-loss in five-fold cross-validation on these codes; each
                attribute gets its own.

        Raises:
            ValueError: shapes or labels that don't fit; fewer than 10 codes; a class with fewer than 5.
        """
        labels = torch.as_tensor(labels).cpu()
        kind = "attributes" if labels.ndim == 2 else "classes"
        probe = cls(names, z.shape[1] if torch.is_tensor(z) and z.ndim == 2 else 1, kind, LatentStats.of(z.detach().cpu()))
        probe._check_labels(labels, len(z), 2 * FEWEST)
        x = probe.stats.normalise(z.detach().cpu().double())
        count = labels.sum(0) if kind == "attributes" else torch.bincount(labels, minlength=len(names))
        few = (count if kind == "classes" else torch.minimum(count, len(z) - count)) < FEWEST
        if kind == "classes" and bool(few.any()):
            first = int(few.nonzero()[0])
            raise ValueError(f"class {names[first]!r} has {int(count[first])} of {len(z)} codes; want at least {FEWEST} of each class")
        if l2 is None:
            penalty = _cross_validated(x, labels, len(names))
        elif l2 >= 0:
            penalty = torch.full((len(names),), float(l2), dtype=torch.float64)
        else:
            raise ValueError(f"l2={l2}; want 0 or more, or None")
        if not bool(few.all()):
            weight, bias = _minimise(x, labels[:, ~few] if kind == "attributes" else labels, penalty[~few])
            probe.weight[~few], probe.bias[~few] = weight.float(), bias.float()
        probe.bias[few] = ((count[few] + 0.5) / (len(z) - count[few] + 0.5)).log()
        probe.l2.copy_(penalty)
        probe.examples.copy_(count)
        return probe.eval()

    @property
    def z_dim(self) -> int:
        """Width of z."""
        return self.stats.z_dim

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

    # ---- how good it is -----------------------------------------------------------------------------------------------

    def accuracy(self, z: Tensor, labels: Tensor) -> Tensor:
        """Share of codes that are told right: a scalar for classes, [A] for attributes. Labels as in `fit`."""
        logits, labels = self._scores(z, labels)
        if self.kind == "classes":
            return (logits.argmax(1) == labels).float().mean()
        return ((logits > 0) == (labels > 0)).float().mean(0)

    def auroc(self, z: Tensor, labels: Tensor) -> Tensor:
        """Area under the ROC curve of each column [A] (a class against the others); NaN where the labels are all alike."""
        from torchmetrics.functional.classification import binary_auroc

        return self._per_column(binary_auroc, z, labels)

    def average_precision(self, z: Tensor, labels: Tensor) -> Tensor:
        """Average precision of each column [A]; NaN where the labels are all alike. By chance: the share of positives."""
        from torchmetrics.functional.classification import binary_average_precision

        return self._per_column(binary_average_precision, z, labels)

    def _per_column(self, metric, z: Tensor, labels: Tensor) -> Tensor:
        _, labels = self._scores(z, labels)
        scores = self.probabilities(z.detach().cpu())
        if self.kind == "classes":
            labels = F.one_hot(labels, len(self.names))
        mixed = (labels.amin(0) < labels.amax(0)).tolist()
        return torch.stack([metric(s, y.long()) if m else torch.tensor(torch.nan) for s, y, m in zip(scores.T, labels.T, mixed)])

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
            raise ValueError(f"labels are {str(labels.dtype).removeprefix('torch.')} from {labels.min():g} to {labels.max():g}; "
                             f"want integers from 0 to {top}")

    # ---- files --------------------------------------------------------------------------------------------------------

    def to_config(self) -> dict:
        return {"names": list(self.names), "z_dim": self.z_dim, "kind": self.kind}


def _log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples: a scalar for classes, [A] for attributes."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").mean(0)


def _minimise(x: Tensor, labels: Tensor, l2: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [A, D] and biases [A] of the least log-loss + Σ l2 ‖w‖² (the attributes' problems are separate, but convex, and
    quicker solved together)."""
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


# ---- editing ----------------------------------------------------------------------------------------------------------


def direction(probe: LinearProbe, attribute: str, keep: Iterable[str] = ()) -> Tensor:
    """The unit vector [z_dim], in normalised codes, along which an attribute's logit rises fastest.

    What predicts best needn't edit best: a probe fitted with a strong penalty (`l2=10`), whose weights point along the difference of
    the means of codes with and without the attribute, follows true edits more closely (Haufe et al. 2014; the chapter on attributes).

    Args:
        keep: attributes whose logits the direction must not change: it is w made orthogonal to theirs, which keeps more of the
            image as it was, and raises the attribute's own logit more slowly.

    Raises:
        ValueError: an unknown attribute; one that wasn't fitted; or one that can't be told from those to keep.
    """
    keep, column = tuple(keep), probe.column(attribute)
    w, others = probe.weight[column].cpu().double(), probe.weight[[probe.column(name) for name in keep]].cpu().double()
    if not bool(w.any()):
        count = int(probe.examples[column])
        raise ValueError(f"attribute {attribute!r} has no direction: the probe saw {count} codes with it, which are too few, or nearly all")
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
        scale: a number or [N]; the paper uses ±0.1 … ±0.3. A normalised code has length √z_dim or so: 0.3 is a third of that.
        keep: attributes to leave alone; see `direction`.
    """
    scale = torch.as_tensor(scale, dtype=z.dtype, device=z.device).reshape(-1, 1)
    if len(scale) not in (1, len(z)):
        raise ValueError(f"scale has {len(scale)} entries for {len(z)} codes; want one number, or one each")
    step = scale * probe.z_dim**0.5 * direction(probe, attribute, keep).to(z)
    return probe.stats.denormalise(probe.stats.normalise(z) + step)


def counterfactual_scores(edited: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """An edit against the true one, where that is known (`data.peeps_counterfactuals`): did it change what it should, and only that?

    Args:
        edited, before, after: [N, C, H, W] in [−1, 1]; `after` is the truth, and each pair differs somewhere.

    Returns inside [N]: 1 − ‖edited − after‖² / ‖before − after‖² over the pixels that the true edit changes: 1 for the true
    edit, 0 for none, negative for one that leads away. And outside [N]: mean squared error on [0, 1] between edited and before
    over all other pixels: 0 for an edit that touches nothing else.
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
    """Codes [N, z_dim] of any number of images, batch by batch, on the CPU; not normalised. `encode_labelled` gives their labels, too.

    Args:
        images: [N, C, H, W] uint8 or float in the model's range, or a data set of images or of (image, label). Images that can't be
            read are left out: then there are fewer codes than images.
    """
    return encode_labelled(autoencoder, images, batch_size, progress)[0]


def encode_labelled(autoencoder: Autoencoder, data, batch_size: int = 250, progress: bool = False) -> tuple[Tensor, Tensor | None]:
    """Codes as of `encode_all`, and the labels int64 [N] or [N, A] of the same images; None: the data set has none."""
    as_they_are = LatentStats(torch.zeros(autoencoder.z_dim), torch.ones(autoencoder.z_dim))
    tensors = latent_codes(autoencoder, data, batch_size, stats=as_they_are, progress=progress)[0].tensors
    return tensors[0], tensors[1].long() if len(tensors) > 1 else None
