"""Few-shot conditional generation on peeps (Tab. 3): pdae_lite/assets/few_shot.json, from the pools of `few_shot_pool.py`.

    python scripts/few_shot_pool.py      # first; minutes of a core for every thousand images
    python scripts/few_shot.py           # some minutes; goes on where it was stopped, attribute by attribute

For each of four attributes and its absence, over several draws of labels: a classifier of codes (50 + 50 labels; or 100 positives
and 10,000 unlabelled codes), codes of the pool that it accepts, and their images against fresh real images of that class: KID, FID,
the share in which the network of `peeps_features` sees the class, and the share accepted. Beside it: more and fewer labels, and the
same classifiers on codes of real held-out images; other thresholds, other rules; images of the pool without selection; real
training images of the class, of all classes, and the labelled ones themselves. All images come from the pools: none is decoded here.
"""
import argparse
import functools
import json
import platform
import time
from pathlib import Path

import torch
from few_shot_pool import BLOCK, KINDS, OUT, SLOW
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import pdae_lite
from pdae_lite import attributes, data, features, few_shot, metrics
from pdae_lite.checkpoint import tensors_digest, write_text

ATTRIBUTES = ("mask", "long_hair", "facial_hair", "glasses")
COUNTS = (10, 20, 50, 100, 200, 500, 1000)  # labels, half of them positive
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
RULES = ("threshold", "sample", "sample with prior")
LABELS, UNLABELLED = 100, 10_000
MOST, REAL = 1000, 2000  # images of a set, and real ones, that a kernel distance takes


def labelled(column: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Places of images with and without an attribute, in the order in which labels are given; the first n of both are n + n labels."""
    generator = torch.Generator().manual_seed(seed)
    both = column.nonzero()[:, 0], (column == 0).nonzero()[:, 0]
    return tuple(where[torch.randperm(len(where), generator=generator)] for where in both)


class Bench:
    """Everything that figures are made of: real images, codes of the training set, pools."""

    def __init__(self, folder: Path, count: int, images: int):
        self.train, self.net, self.images = data.peeps("train", 32), pdae_lite.load("peeps", "features"), images
        self.reference = features.reference("peeps")
        self.space = self.reference.space
        self.real = features.Features(self._kept(folder / "real.safetensors", lambda: features.extract(self.net, self.train).values),
                                      self.space, self.train.labels, self.train.attributes)
        self.codes = {kind: self._kept(folder / f"codes_{kind}.safetensors", lambda: attributes.encode_all(
            pdae_lite.load("peeps", kind), self.train)) for kind in KINDS}
        self.test = data.peeps("test", 32)
        self.held_out = {kind: self._kept(folder / f"held_out_{kind}.safetensors", lambda: attributes.encode_all(
            pdae_lite.load("peeps", kind), self.test)) for kind in KINDS}
        self.pools = {kind: load_file(folder / f"pool_{kind}.safetensors") for kind in KINDS}
        with safe_open(folder / "pool_pdae.safetensors", "pt") as file:
            self.made = file.metadata()
        self.count = min(count, *(len(pool["z"]) for pool in self.pools.values()))
        for pool in self.pools.values():
            pool |= {k: pool[k][:self.count].float() for k in ("z", "features")}

    @staticmethod
    def _kept(path: Path, make) -> Tensor:
        """A tensor [N, D] that a run before left, or a new one, rounded alike."""
        if not path.is_file():
            save_file({"values": make().half()}, path)
        return load_file(path)["values"].float()

    @functools.cache
    def of_class(self, attribute: str, value: int) -> tuple[features.Features, features.Features]:
        """Fresh real images of a class: all, and those that a kernel distance takes. Kept, as they serve many comparisons."""
        real = self.reference.where(attribute, value)
        return real, real[:REAL]

    @torch.no_grad()
    def seen(self, values: Tensor, attribute: str, value: int) -> Tensor:
        """In which of the images with these class features the network sees the class: bool [N]."""
        return (self.net.logits(values)[:, self.net.config.labels.index(attribute)] > 0) == bool(value)

    def scored(self, values: Tensor, attribute: str, value: int, fid: bool = True) -> dict:
        """A set of images by their features, against real ones of the class."""
        real, some = self.of_class(attribute, value)
        found = {"n": len(values), "seen": round(float(self.seen(values, attribute, value).float().mean()), 4)}
        if len(values) >= 20:
            kid = metrics.kid(features.Features(values[:MOST], self.space), some)
            found |= {"kid": round(kid.value, 4), "kid_half": round(kid.high - kid.value, 4)}
        if fid and len(values) >= self.images:
            d = metrics.fid(features.Features(values[:self.images], self.space), real)
            found |= {"fid": round(d.value, 3), "fid_half": round(d.high - d.value, 3)}
        return found

    def accepted(self, kind: str, p: Tensor, attribute: str, value: int, rule: str = "threshold", threshold: float = 0.5,
                 fid: bool = False) -> dict:
        """The pool's images whose codes have a probability that is accepted."""
        keep = few_shot.accept(p, rule, threshold, torch.Generator().manual_seed(0))
        if not bool(keep.any()):
            return {"rate": 0.0, "n": 0}
        return {"rate": round(float(keep.float().mean()), 4)} | self.scored(self.pools[kind]["features"][keep], attribute, value, fid)

    def on_real(self, kind: str, known: few_shot.FewShot, attribute: str) -> dict:
        """The same classifier on codes of 1,000 held-out images: the share accepted, and how many of these are right."""
        keep = known.probability(self.held_out[kind]) > 0.5
        right = self.test.column(attribute)[keep].float().mean() if bool(keep.any()) else torch.tensor(0.0)
        return {"rate": round(float(keep.float().mean()), 4), "right": round(float(right), 4)}

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


def measure(b: Bench, attribute: str, draws: int) -> dict:
    """All figures of one attribute."""
    column = b.train.column(attribute)
    prior = float(column.float().mean())
    out = {"share_in_training": round(prior, 4), "classes": {}, "counts": {}, "thresholds": {}, "rules": {}}
    for value in (1, 0):
        own = [labelled(column, seed)[1 - value] for seed in range(draws)]
        mixed = torch.randperm(len(column), generator=torch.Generator().manual_seed(1))
        rows = {"real, of the class": b.scored(b.real.values[own[0]], attribute, value),
                "real, of all classes": b.scored(b.real.values[mixed], attribute, value),
                "labelled, 50": [b.scored(b.real.values[places[:50]], attribute, value) for places in own],
                "labelled, 100": [b.scored(b.real.values[places[:100]], attribute, value) for places in own]}
        for kind in KINDS:
            z = b.pools[kind]["z"]
            rows[f"{kind}, unselected"] = b.scored(b.pools[kind]["features"], attribute, value)
            rows[f"{kind}, binary"] = [b.accepted(kind, b.binary(kind, attribute, seed).probability(z, value), attribute, value, fid=True)
                                       for seed in range(draws)]
            rows[f"{kind}, PU"] = []
            for seed in range(draws):
                known = b.pu(kind, attribute, value, seed)
                rows[f"{kind}, PU"].append({"c": round(known.c, 5)} | b.accepted(kind, known.probability(z), attribute, value, fid=True))
        out["classes"][str(value)] = rows
    for kind in KINDS:
        z = b.pools[kind]["z"]
        known = {n: [b.binary(kind, attribute, seed, n) for seed in range(draws)] for n in COUNTS}
        out["counts"][kind] = {str(n): [b.accepted(kind, x.probability(z), attribute, 1) for x in known[n]] for n in COUNTS}
        p = [x.probability(z) for x in known[LABELS]]
        out["thresholds"][kind] = {str(t): [b.accepted(kind, x, attribute, 1, threshold=t) for x in p] for t in THRESHOLDS}
        true = [few_shot.with_prior(x, prior) for x in p]
        out["rules"][kind] = {rule: [b.accepted(kind, x, attribute, 1, rule.split()[0]) for x in (true if "prior" in rule else p)]
                              for rule in RULES}
    return out


def on_real_codes(b: Bench, draws: int) -> dict:
    """attribute → kind → number of labels → what the classifiers of `measure` do on codes of real images."""
    return {a: {kind: {str(n): [b.on_real(kind, b.binary(kind, a, seed, n), a) for seed in range(draws)] for n in COUNTS} for kind in KINDS}
            for a in ATTRIBUTES}


def checks(b: Bench) -> dict:
    """Few steps in bf16 against 25 DDIM steps in float32, from the same codes and noises; and what tests recompute."""
    out = {}
    for kind, pool in b.pools.items():
        slow, fast = pool["slow"].float(), pool["features"][:len(pool["slow"])]
        kid = {name: metrics.kid(features.Features(x, b.space), b.reference[:REAL]) for name, x in (("fast", fast), ("slow", slow))}
        p = b.binary(kind, "mask", 0).probability(pool["z"][:BLOCK])
        out[kind] = {"images": len(slow), "mse": round(float(pool["mse"].mean()), 6),
                     **{f"kid_{k}": [round(v, 4) for v in (x.value, x.low, x.high)] for k, x in kid.items()},
                     "agree": {a: round(float((b.seen(fast, a, 1) == b.seen(slow, a, 1)).float().mean()), 4) for a in ATTRIBUTES},
                     "first_features": [[round(float(v), 2) for v in row[:8]] for row in pool["features"][:4]],
                     "first_block_accepted": int((p > 0.5).sum())}
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="images of each pool, at most (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="of labels (default: %(default)s)")
    parser.add_argument("--images", type=int, default=250, help="that each Fréchet distance takes (default: %(default)s)")
    parser.add_argument("--attributes", nargs="+", default=list(ATTRIBUTES))
    parser.add_argument("--pools", type=Path, default=OUT)
    parser.add_argument("--out", type=Path, default=data.ASSETS / "few_shot.json")
    args = parser.parse_args()
    b = Bench(args.pools, args.count, args.images)
    weights = {k: tensors_digest(dict(pdae_lite.load("peeps", k).state_dict())) for k in (*KINDS, *KINDS.values(), "features")}
    o = {"what": "peeps 32x32: few-shot conditional generation; lists are over draws of labels; 'half' is half of a 95 % interval",
         "command": f"python scripts/few_shot_pool.py --count {b.count}; "
                    f"python scripts/few_shot.py --count {b.count} --draws {args.draws} --images {args.images}",
         "pool": b.count, "draws": args.draws, "images": args.images, "space": b.space, "labels": LABELS, "unlabelled": UNLABELLED,
         "decoded": f"DPM-Solver++, {b.made['steps']} evaluations, {b.made['precision']}; slow: DDIM, {SLOW} evaluations, float32",
         "seeds": {"pool": int(b.made["seed"]), "labels": list(range(args.draws))}, "sha256_of_weights": weights,
         "torch": torch.__version__, "python": platform.python_version(), "device": "cpu", "date": time.strftime("%Y-%m-%d")}
    settings = ("pool", "draws", "images", "decoded", "sha256_of_weights")
    before = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    done = before["attributes"] if all(before.get(k) == o[k] for k in settings) else {}
    o |= {"check": checks(b), "held_out": on_real_codes(b, args.draws)}
    for attribute in args.attributes:
        start = time.process_time()
        if attribute not in done:
            done[attribute] = measure(b, attribute, args.draws)
            print(f"{attribute}, {time.process_time() - start:.0f} s", flush=True)
        write_text(args.out, json.dumps(o | {"attributes": done}, separators=(",", ":")) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
