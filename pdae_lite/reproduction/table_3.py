"""Table 3 in small: few-shot conditional generation on faces, from one pool of codes and images that serves every
class.

For each attribute and its absence, over several draws of labels: a classifier of codes (`few_shot`; 50 + 50 labels, or
100 positives and 10,000 unlabelled codes), the codes of the pool that it accepts, and their images against fresh real
images of that class: KID, FID's formula, the share in which the feature network sees the class, and the share accepted.
Beside it: more and fewer labels, the same classifiers on codes of real held-out images, other thresholds, other rules;
the pool without selection; real images of the class, of all classes, and the labelled ones themselves. After the pool
is drawn, nothing is decoded any more."""
import functools

import torch
from torch import Tensor

from .. import data, metrics
from ..applications import few_shot
from ..applications.attributes import encode_all
from ..metrics.features import Features, extract, reference
from ..progress import progress_bar
from ..speed import accelerate
from .partial import Partial
from .subject import Subject

ATTRIBUTES = ("mask", "long_hair", "facial_hair", "glasses")
COUNTS = (10, 20, 50, 100, 200, 500, 1000)  # labels, half of them positive
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
RULES = ("threshold", "sample", "sample with prior")
LABELS, UNLABELLED, DRAWS = 100, 10_000, 5
MOST, REAL = 1000, 2000  # images of a set, and real ones, that a kernel distance takes
FOR_FID = 300  # images that each Fréchet distance takes: as many of every set, since it depends on their number
BLOCK, STEPS, SLOW, CHECKED = 250, 10, 25, 100  # codes drawn at a time; evaluations; those of the check, and its images


def generators(s: Subject) -> dict:
    """kind → (latent DPM, autoencoder), of those that there are.

    Raises:
        ValueError: models of images without attributes, or of another size than the real ones; no latent DPM.
    """
    if s.data != "peeps" or s.shape[1] != 32:
        raise ValueError("the small Table 3 is of peeps at 32×32, whose images have attributes; this model is of "
                         f"{s.data} at {s.shape[1]}")
    parts = {"pdae": (s.latent, s.pdae), "diffae": (s.diffae_latent, s.diffae)}
    found = {kind: both for kind, both in parts.items() if None not in both}
    if not found:
        raise ValueError("Table 3 wants a latent DPM; give its file, made by `pdae latent`")
    return found


# ---- the pool -------------------------------------------------------------------------------------------------------


def drawn(latent, model, block: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Block `block` of the pool, however many there are: codes z [250, z_dim], as float16 keeps them, and noises
    x_T."""
    generator = torch.Generator().manual_seed(1000 * seed + block)
    z = latent.sample(BLOCK, generator=generator)
    return z.half().float(), model.noise(BLOCK, generator)


@torch.no_grad()
def fill(s: Subject, count: int, partial: Partial, seed: int = 0, dtype: torch.dtype | None = None,
         progress: bool = False) -> None:
    """Draw what `partial` lacks of `count` codes of each kind: "KIND|z" and "KIND|features" of their images, float16.

    The first images are decoded a second time by 25 steps of DDIM in float32: "KIND|slow", features, and "KIND|mse" to
        the others.
    """
    kinds = generators(s)
    fast = {kind: accelerate(model, dtype) for kind, (_, model) in kinds.items()}
    bar = progress_bar(total=len(kinds) * count, desc="pool", show=progress)
    for block in range(-(-count // BLOCK)):
        for kind, (latent, model) in kinds.items():
            if partial.count([f"{kind}|z"]) <= block * BLOCK:
                z, x_T = drawn(latent, model, block, seed)
                images = fast[kind].decode(z.to(x_T), x_T, steps=STEPS, sampler="dpm_solver").float().clamp(-1, 1)
                more = {"z": z.half(), "features": extract(s.net, images).values.half()}
                if block == 0:
                    slow = model.decode(z[:CHECKED].to(x_T), x_T[:CHECKED], steps=SLOW).clamp(-1, 1)
                    more |= {"slow": extract(s.net, slow).values.half(), "mse": metrics.mse(slow, images[:CHECKED])}
                partial.extend({f"{kind}|{name}": values for name, values in more.items()})
            bar.update(BLOCK)
    bar.close()


# ---- figures --------------------------------------------------------------------------------------------------------


def labelled(column: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Places of images with and without an attribute, in the order in which labels are given; the first n of both are n
    + n labels."""
    generator = torch.Generator().manual_seed(seed)
    both = column.nonzero()[:, 0], (column == 0).nonzero()[:, 0]
    return tuple(where[torch.randperm(len(where), generator=generator)] for where in both)


def share(hits: Tensor) -> float:
    """The mean of 0 and 1, or of False and True, to four digits."""
    return round(float(hits.float().mean()), 4)


class Bench:
    """All that figures are made of: real images and their codes, and the first `count` of each pool in `partial`."""

    def __init__(self, s: Subject, partial: Partial, count: int):
        self.kinds, self.net = tuple(generators(s)), s.net
        self.train, self.test = data.peeps("train", 32), data.peeps("test", 32)
        self.reference = reference("peeps")
        self.space = self.reference.space

        def kept(name: str, make) -> Tensor:
            """Values [N, D] that a run before left in `partial`, or new ones, rounded alike."""
            if name not in partial.tensors:
                partial.extend({name: make().half()})
            return partial.tensors[name].float()

        def pooled(name: str, count: int | None = None) -> dict[str, Tensor]:
            return {kind: partial.tensors[f"{kind}|{name}"][:count].float() for kind in self.kinds}

        values = kept("real", lambda: extract(self.net, self.train).values)
        self.real = Features(values, self.space, self.train.labels, self.train.attributes)
        self.codes, self.held_out = ({kind: kept(f"{kind}|{name}", lambda m=model, x=images: encode_all(m, x))
                                      for kind, (_, model) in generators(s).items()}
                                     for name, images in (("codes", self.train), ("held_out", self.test)))
        self.z, self.features = pooled("z", count), pooled("features", count)
        self.slow, self.mse = pooled("slow"), pooled("mse")

    @functools.cache
    def of_class(self, attribute: str, value: int) -> tuple[Features, Features]:
        """Fresh real images of a class: all, and those that a kernel distance takes; kept, as they serve many times."""
        real = self.reference.where(attribute, value)
        return real, real[:REAL]

    @torch.no_grad()
    def seen(self, values: Tensor, attribute: str, value: int) -> Tensor:
        """In which of the images with these class features the network sees the class: bool [N]."""
        logits = self.net.logits(values.to(next(self.net.parameters()))).cpu()
        return (logits[:, self.net.config.labels.index(attribute)] > 0) == bool(value)

    def scored(self, values: Tensor, attribute: str, value: int, fid: bool = True) -> dict:
        """A set of images by their features, against real ones of the class."""
        real, some = self.of_class(attribute, value)
        found = {"n": len(values), "seen": share(self.seen(values, attribute, value))}
        if len(values) >= 20:
            kid = metrics.kid(Features(values[:MOST], self.space), some)
            found |= {"kid": round(kid.value, 4), "kid_half": round(kid.high - kid.value, 4)}
        if fid and len(values) >= FOR_FID:
            d = metrics.fid(Features(values[:FOR_FID], self.space), real)
            found |= {"fid": round(d.value, 3), "fid_half": round(d.high - d.value, 3)}
        return found

    def accepted(self, kind: str, p: Tensor, attribute: str, value: int = 1, rule: str = "threshold",
                 threshold: float = 0.5, fid: bool = False) -> dict:
        """The pool's images whose codes have a probability that is accepted."""
        keep = few_shot.accept(p, rule, threshold, torch.Generator().manual_seed(0))
        if not bool(keep.any()):
            return {"rate": 0.0, "n": 0}
        return {"rate": share(keep)} | self.scored(self.features[kind][keep], attribute, value, fid)

    def on_real(self, kind: str, known: few_shot.FewShot, attribute: str) -> dict:
        """The same classifier on codes of held-out images: the share accepted, and how many of these are right."""
        keep = known.probability(self.held_out[kind]) > 0.5
        return {"rate": share(keep), "right": share(self.test.column(attribute)[keep]) if bool(keep.any()) else 0.0}

    # ---- classifiers ------------------------------------------------------------------------------------------------

    def binary(self, kind: str, attribute: str, seed: int, count: int = LABELS) -> few_shot.FewShot:
        """From count/2 codes with the attribute and count/2 without it."""
        z = self.codes[kind]
        return few_shot.fit_binary(*(z[where[:count // 2]] for where in labelled(self.train.column(attribute), seed)))

    def pu(self, kind: str, attribute: str, value: int, seed: int) -> few_shot.FewShot:
        """From 100 codes of the class and 10,000 unlabelled ones."""
        z, own = self.codes[kind], labelled(self.train.column(attribute), seed)[1 - value][:LABELS]
        others = torch.ones(len(z), dtype=torch.bool)
        others[own] = False
        rest = others.nonzero()[:, 0]
        rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:UNLABELLED]]
        return few_shot.fit_pu(z[own], z[rest])


def measure(b: Bench, attribute: str, draws: int = DRAWS) -> dict:
    """All figures of one attribute; lists are over draws of labels."""
    column, seeds = b.train.column(attribute), range(draws)
    prior = float(column.float().mean())
    out = {"share_in_training": round(prior, 4), "classes": {}, "counts": {}, "thresholds": {}, "rules": {}}
    for value in (1, 0):
        own, real = [labelled(column, seed)[1 - value] for seed in seeds], b.real.values
        mixed = torch.randperm(len(column), generator=torch.Generator().manual_seed(1))
        rows = {"real, of the class": b.scored(real[own[0]], attribute, value),
                "real, of all classes": b.scored(real[mixed], attribute, value),
                "labelled, 50": [b.scored(real[places[:50]], attribute, value) for places in own],
                "labelled, 100": [b.scored(real[places[:100]], attribute, value) for places in own]}
        for kind in b.kinds:
            of = functools.partial(b.accepted, kind, attribute=attribute, value=value, fid=True)
            both, pu = ([fit(seed) for seed in seeds] for fit in (functools.partial(b.binary, kind, attribute),
                                                                  functools.partial(b.pu, kind, attribute, value)))
            rows |= {f"{kind}, unselected": b.scored(b.features[kind], attribute, value),
                     f"{kind}, binary": [of(x.probability(b.z[kind], value)) for x in both],
                     f"{kind}, PU": [{"c": round(x.c, 5)} | of(x.probability(b.z[kind])) for x in pu]}
        out["classes"][str(value)] = rows
    for kind in b.kinds:
        of = functools.partial(b.accepted, kind, attribute=attribute)
        known = {n: [b.binary(kind, attribute, seed, n).probability(b.z[kind]) for seed in seeds] for n in COUNTS}
        p = known[LABELS]
        true = [few_shot.with_prior(x, prior) for x in p]
        out["counts"][kind] = {str(n): [of(x) for x in known[n]] for n in COUNTS}
        out["thresholds"][kind] = {str(t): [of(x, threshold=t) for x in p] for t in THRESHOLDS}
        out["rules"][kind] = {rule: [of(x, rule=rule.split()[0]) for x in (true if "prior" in rule else p)]
                              for rule in RULES}
    return out


def on_real_codes(b: Bench, draws: int = DRAWS) -> dict:
    """attribute → kind → number of labels → what the classifiers of `measure` do on codes of real images."""
    return {a: {kind: {str(n): [b.on_real(kind, b.binary(kind, a, seed, n), a) for seed in range(draws)]
                       for n in COUNTS} for kind in b.kinds} for a in ATTRIBUTES}


def checks(b: Bench) -> dict:
    """The pool's quick decoding against 25 steps of DDIM in float32 from the same codes and noises, and what tests
    recompute."""
    out = {}
    for kind in b.kinds:
        made = {"fast": b.features[kind][:CHECKED], "slow": b.slow[kind]}
        kid = {name: metrics.kid(Features(x, b.space), b.reference[:REAL]) for name, x in made.items()}
        p = b.binary(kind, "mask", 0).probability(b.z[kind][:BLOCK])
        out[kind] = {"images": len(b.slow[kind]), "mse": round(float(b.mse[kind].mean()), 6),
                     **{f"kid_{k}": [round(v, 4) for v in (x.value, x.low, x.high)] for k, x in kid.items()},
                     "agree": {a: share(torch.eq(*(b.seen(x, a, 1) for x in made.values()))) for a in ATTRIBUTES},
                     "first_features": [[round(float(v), 2) for v in row[:8]] for row in b.features[kind][:4]],
                     "first_block_accepted": int((p > 0.5).sum())}
    return out
