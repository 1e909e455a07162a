"""Score attribute edits of faces against the true ones: the same face, drawn again with glasses, a mask, a beard, …

    python scripts/results/counterfactuals.py                   # pdae_lite/assets/counterfactuals.json: some five
    minutes of a core

For each of the six edits of `data.peeps_counterfactuals` and each scale: `attributes.counterfactual_scores` of the
first `count` pairs, and how often the network of `peeps_features` sees the attribute. Methods, with KIND pdae or
diffae:

* `KIND_weights`: z moved along the weights of the probe that ships, the best classifier, and decoded from the inferred
  x_T;
* `KIND_means`: z moved along the difference of the mean codes with and without the attribute, which is the direction of
  a probe under a strong penalty (L2);
* `KIND_keep`: the same, made orthogonal to the directions of all of KEEP;
* `KIND_truth`: z of the true image after the edit, decoded from the x_T of the one before: what a perfect code could
  do;
* `pixels`: the mean training image with the attribute less the mean one without, added with a factor;
* `pca`: a probe on as many principal components as z has numbers, moved along its weights.

Writes after every edit, and goes on where a run before was stopped. """
import argparse
import json
import platform
import re
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import pdae_lite
from pdae_lite import data, metrics
from pdae_lite.applications import attributes
from pdae_lite.checkpoint import tensors_digest, write_text
from pdae_lite.reproduction.partial import record_before

ATTRIBUTE = {name: {"smile": "smiling"}.get(name, name) for name in data.EDITS}
# who it is, and the pose
KEEP = ("dark_skin", "light_skin", "light_hair", "long_hair", "afro", "bun", "bald", "facing_left")
SCALES = (0.1, 0.2, 0.3, 0.5, 0.8)
FACTORS = (0.25, 0.5, 1.0, 1.5)  # of the mean difference of pixels
L2 = 10.0  # so much that the weights are in proportion to the difference of the means
TRAIN = 4000  # training faces that directions are found on
MODELS = ("pdae", "probe", "diffae", "diffae_probe", "features")


class Judge:
    """The scores of edited images."""

    def __init__(self, edit: str, size: int, count: int, net):
        self.before, self.after = (data.to_float(x[:count]) for x in data.peeps_counterfactuals(edit, size))
        self.net, self.column = net, net.config.labels.index(ATTRIBUTE[edit])

    @torch.no_grad()
    def seen(self, images: Tensor) -> float:
        """How often the network sees the attribute."""
        return round(float((self.net(images)[:, self.column] > 0).float().mean()), 3)

    def __call__(self, images: Tensor) -> dict:
        """inside: one number for each pair; outside: their mean."""
        images = images.clamp(-1, 1)
        inside, outside = attributes.counterfactual_scores(images, self.before, self.after)
        return {"inside": [round(v, 3) for v in inside.tolist()], "outside": round(float(outside.mean()), 6),
                "seen": self.seen(images)}


def means_probe(codes: Tensor, train: data.Faces) -> attributes.LinearProbe:
    """A probe of all attributes whose directions are the differences of the means of codes [N, z_dim] of the first N
    faces."""
    return attributes.LinearProbe.fit(codes, train.labels[: len(codes)], train.attributes, l2=L2)


@torch.no_grad()
def by_code(model, weights, means, edit: str, judge: Judge, o: dict,
            hows=("weights", "means", "keep", "truth")) -> dict:
    """Edits in z, in each way and at each scale: {"weights": [rows], …}."""
    z, out = model.encode(judge.before), {}
    x_T = model.invert(judge.before, z, steps=o["invert"])
    moves = {"weights": (weights, ()), "means": (means, ()), "keep": (means, KEEP)}

    def row(scale, code):
        with torch.autocast("cpu", torch.bfloat16, enabled=o["bf16"]):
            images = model.decode(code, x_T, steps=o["decode"], sampler="dpm_solver").float()
        return {"scale": scale} | judge(images)

    for how in hows:
        if how == "truth":
            out[how] = [row(None, model.encode(judge.after))]
        else:
            probe, keep = moves[how]
            out[how] = [row(s, attributes.edit(z, probe, ATTRIBUTE[edit], s, keep)) for s in o["scales"]]
    return out


def by_pixels(images: Tensor, has: Tensor, judge: Judge, o: dict) -> list[dict]:
    """The mean difference of training images, added."""
    difference = images[has].mean(0) - images[~has].mean(0)
    return [{"scale": f} | judge(judge.before + f * difference) for f in o["factors"]]


def by_pca(images: Tensor, has: Tensor, basis: Tensor, edit: str, judge: Judge, o: dict) -> list[dict]:
    """A probe on principal components, moved as z is; what they don't hold stays."""
    mean = images.flatten(1).mean(0)
    probe = attributes.LinearProbe.fit((images.flatten(1) - mean) @ basis, has.long()[:, None], [ATTRIBUTE[edit]],
                                       l2=1e-5)
    here, out = (judge.before.flatten(1) - mean) @ basis, []
    for scale in o["scales"]:
        moved = attributes.edit(here, probe, ATTRIBUTE[edit], scale)
        out.append({"scale": scale} | judge(judge.before + ((moved - here) @ basis.T).reshape(judge.before.shape)))
    return out


def load_models() -> dict:
    return {kind: pdae_lite.load("peeps", kind) for kind in MODELS}


def described(o: dict, models: dict) -> dict:
    """Where the figures come from."""
    return {**o, "sha256_of_weights": {kind: tensors_digest(model.state_dict()) for kind, model in models.items()},
            "made_with": {"torch": torch.__version__, "python": platform.python_version(), "device": "cpu",
                          "date": time.strftime("%Y-%m-%d")}}


def text_of(record: dict) -> str:
    """JSON with one line for each list of numbers."""
    return (re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]",
                   json.dumps(record, indent=1)) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="pairs of each edit (default: %(default)s)")
    parser.add_argument("--invert", type=int, default=25, help="steps of DDIM to infer x_T (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=12, help="steps of DPM-Solver++ to decode (default: %(default)s)")
    parser.add_argument("--bf16", action="store_true", help="decode in bfloat16, about twice as fast")
    parser.add_argument("--edits", nargs="+", default=list(data.EDITS), choices=data.EDITS)
    parser.add_argument("--out", type=Path, default=data.ASSETS / "counterfactuals.json")
    args = parser.parse_args()
    models, start = load_models(), time.process_time()
    size = models["pdae"].network.config.image_size
    o = {"what": "edits of peeps against the true ones; nothing is drawn at random, so there is no seed", "size": size,
         "train": TRAIN, "l2": L2, "keep": list(KEEP), "scales": list(SCALES), "factors": list(FACTORS),
         **{k: getattr(args, k) for k in ("count", "invert", "decode", "bf16")}}
    o["command"] = f"python scripts/results/counterfactuals.py --count {args.count}" + " --bf16" * args.bf16
    out = described(o, models) | {"cpu_seconds": 0, "edits": {}}
    try:
        out = record_before(args.out, {k: out[k] for k in (*o, "sha256_of_weights")}) or out
    except ValueError as e:
        parser.error(str(e))
    train = data.peeps("train", size)
    images = train.floats(slice(0, TRAIN))
    basis = metrics.principal_components(images.flatten(1), models["pdae"].z_dim)
    means = {kind: means_probe(attributes.encode_all(models[kind], train.images[:TRAIN]), train)
             for kind in ("pdae", "diffae")}
    for edit in [e for e in args.edits if e not in out["edits"]]:
        judge, has = Judge(edit, size, args.count, models["features"]), train.column(ATTRIBUTE[edit])[:TRAIN].bool()
        rows = {"pixels": by_pixels(images, has, judge, o), "pca": by_pca(images, has, basis, edit, judge, o)}
        for kind, probe in (("pdae", "probe"), ("diffae", "diffae_probe")):
            found = by_code(models[kind], models[probe], means[kind], edit, judge, o)
            rows |= {f"{kind}_{how}": listed for how, listed in found.items()}
        out["edits"][edit] = {"methods": rows, "seen_before": judge.seen(judge.before),
                              "seen_after": judge.seen(judge.after)}
        out["cpu_seconds"] = round(out["cpu_seconds"] + time.process_time() - start)
        start = time.process_time()
        write_text(args.out, text_of(out))
        inside = {method: [round(sum(r["inside"]) / args.count, 2) for r in listed] for method, listed in rows.items()}
        print(f"{edit}, {out['cpu_seconds']} s, inside: {inside}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
