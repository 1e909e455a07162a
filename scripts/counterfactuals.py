"""Score attribute edits of faces against the true ones: the same face, drawn again with glasses, a mask, a beard, …

    python scripts/counterfactuals.py --count 60         # pdae_lite/assets/counterfactuals.json: some ten minutes of a core a model

For each of the six edits of `data.peeps_counterfactuals`, at each scale, the mean over the first `count` pairs of
`attributes.counterfactual_scores`, and how often the network of `peeps_features` sees the attribute. Methods:

* `pdae`, `diffae`: z moved along the probe's direction, decoded from the inferred x_T; `_keep`: the direction is made
  orthogonal to those of all other attributes of the six edits;
* `truth in z`: z of the true image after the edit, decoded from the x_T of the one before: what a perfect direction could do;
* `pixels`: the mean training image with the attribute less the mean one without, added with a factor;
* `pca`: a probe on as many principal components as z has numbers, moved like z.
"""
import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from measurements import principal_components
from torch import Tensor

import pdae_lite
from pdae_lite import attributes, data
from pdae_lite.checkpoint import write_text

ATTRIBUTE = {name: {"smile": "smiling"}.get(name, name) for name in data.EDITS}
SCALES = (0.1, 0.2, 0.3, 0.5, 0.8)
FACTORS = (0.25, 0.5, 1.0, 1.5)  # of the mean difference of pixels


class Judge:
    """The scores of edited images."""

    def __init__(self, edit: str, size: int, count: int):
        self.before, self.after = (data.to_float(x[:count]) for x in data.peeps_counterfactuals(edit, size))
        self.net = pdae_lite.load("peeps", "features")
        self.column = self.net.config.labels.index(ATTRIBUTE[edit])

    @torch.no_grad()
    def seen(self, images: Tensor) -> float:
        """How often the network sees the attribute."""
        return float((self.net(images)[:, self.column] > 0).float().mean())

    def __call__(self, images: Tensor) -> dict:
        inside, outside = attributes.counterfactual_scores(images.clamp(-1, 1), self.before, self.after)
        return {"inside": float(inside.mean()), "outside": float(outside.mean()), "seen": self.seen(images.clamp(-1, 1))}


def by_code(model, probe, edit: str, judge: Judge, steps: int, keep: tuple[str, ...]) -> dict:
    """Edits in z, at every scale, with and without the other attributes kept; and with the code of the true image."""
    z, out = model.encode(judge.before).detach(), {"": [], "_keep": []}
    x_T = model.invert(judge.before, z, steps=steps)
    for scale in SCALES:
        for key, others in (("", ()), ("_keep", keep)):
            moved = attributes.edit(z, probe, ATTRIBUTE[edit], scale, others)
            out[key].append({"scale": scale} | judge(model.decode(moved, x_T, steps=steps)))
    truth = judge(model.decode(model.encode(judge.after).detach(), x_T, steps=steps))
    return {"": out[""], "_keep": out["_keep"], " truth in z": [truth]}


def by_pixels(train: data.Faces, edit: str, judge: Judge) -> list[dict]:
    """The mean difference of training images, added."""
    has = train.column(ATTRIBUTE[edit]).bool()
    difference = train.floats(has).mean(0) - train.floats(~has).mean(0)
    return [{"scale": f} | judge(judge.before + f * difference) for f in FACTORS]


def by_pca(train: data.Faces, basis: Tensor, mean: Tensor, edit: str, judge: Judge) -> list[dict]:
    """A probe on principal components, moved as z is."""
    codes, column = (train.floats().flatten(1) - mean) @ basis, train.column(ATTRIBUTE[edit])[:, None]
    probe = attributes.LinearProbe.fit(codes, column, [ATTRIBUTE[edit]])
    here, out = (judge.before.flatten(1) - mean) @ basis, []
    for scale in SCALES:
        moved = attributes.edit(here, probe, ATTRIBUTE[edit], scale)
        out.append({"scale": scale} | judge(judge.before + ((moved - here) @ basis.T).reshape(judge.before.shape)))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="pairs of each edit (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="of inversion, and of decoding (default: %(default)s)")
    parser.add_argument("--edits", nargs="+", default=list(data.EDITS), choices=data.EDITS)
    parser.add_argument("--out", type=Path, default=data.ASSETS / "counterfactuals.json")
    args = parser.parse_args()
    models = {kind: (pdae_lite.load("peeps", kind), pdae_lite.load("peeps", "probe" if kind == "pdae" else f"{kind}_probe"))
              for kind in ("pdae", "diffae") if ("peeps", kind) in pdae_lite.shipped()}
    size = models["pdae"][0].network.config.image_size
    train, start = data.peeps("train", size), time.time()
    flat = train.floats().flatten(1)
    basis, mean = principal_components(flat, models["pdae"][0].z_dim), flat.mean(0)
    out = {"command": f"python scripts/counterfactuals.py --count {args.count} --steps {args.steps}",
           "count": args.count, "steps": args.steps, "size": size, "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__,
           "python": platform.python_version(), "device": "cpu", "edits": {}}
    for edit in args.edits:
        judge, others = Judge(edit, size, args.count), tuple(ATTRIBUTE[e] for e in data.EDITS if e != edit)
        rows = {"pixels": by_pixels(train, edit, judge), "pca": by_pca(train, basis, mean, edit, judge)}
        for kind, (model, probe) in models.items():
            rows |= {f"{kind}{key}": found for key, found in by_code(model, probe, edit, judge, args.steps, others).items()}
        out["edits"][edit] = {"methods": rows, "seen_before": judge.seen(judge.before), "seen_after": judge.seen(judge.after)}
        best = max(rows["pdae"], key=lambda r: r["inside"])
        print(f"{edit}, {time.time() - start:.0f} s: PDAE at scale {best['scale']} inside {best['inside']:.2f}, seen {best['seen']:.2f}",
              flush=True)
    write_text(args.out, json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
