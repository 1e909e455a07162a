"""The truncation-like effect (Fig. 9): digits drawn with the shift of a class-conditional G, and with a classifier's,
at several scales.

    python scripts/results/truncation.py    # pdae_lite/assets/truncation.json: about half an hour of one CPU core
    python scripts/results/truncation.py --file runs/short/model.safetensors --guided 0 --out short.json    # another G

Sample i asks for class i % 10 and starts from the noise counter_rng.normal(seed, 0, i), at every scale of either
method. What a third network, `digits_features`, sees in the samples: kernel distance (KID) from the 500 held-out
digits, class score (the formula of the Inception score), precision, recall, and the share that is of the class asked
for. Networks that sample compute in bfloat16; the record holds what that changes. It also holds how much of the DPM's
error each shift removes at each t.

Features of the samples go to --work, in blocks, so that a run that was stopped goes on, and a larger --count adds to a
smaller one. """
import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

import pdae_lite
from pdae_lite import counter_rng, data, metrics, sampling
from pdae_lite.checkpoint import tensors_digest, write_text
from pdae_lite.guidance import batch_map, guided
from pdae_lite.metrics.features import Features
from pdae_lite.networks.classifier import classifier_gradient
from pdae_lite.pdae import PDAE
from pdae_lite.reproduction.partial import Partial
from pdae_lite.speed import accelerate

SCALES = {"pdae": (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0), "classifier": (0.5, 1.0, 2.0, 4.0, 6.0)}
MODELS = ("class", "classifier", "features")  # which shifts by label, which guides, which judges
# weights that samples depend on
USED = {"pdae": ("class", "features"), "classifier": ("dpm", "classifier", "features")}
TS = (100, 200, 300, 400, 450, 500, 550, 600, 700, 800, 900, 950)
CURVES = ("kid", "class_score", "precision", "recall", "of_the_class")
BLOCK = 100  # samples at a time; as many of each class


def load_models(file: Path | None = None) -> dict:
    """A model for each of MODELS; the first from a file, if one is given."""
    own = {} if file is None else {"class": PDAE.load(file).eval().requires_grad_(False)}
    return {kind: own[kind] if kind in own else pdae_lite.load("digits", kind).requires_grad_(False) for kind in MODELS}


def in_bf16(models: dict) -> dict:
    """The same, with the DPM and G in bfloat16. The classifier stays: its gradients are small."""
    return models | {"class": accelerate(models["class"], torch.bfloat16).to(memory_format=torch.channels_last)}


def draw(models: dict, method: str, scale: float, index: Tensor, seed: int = 0, steps: int = 25) -> Tensor:
    """Samples number `index` [N] of a method at a scale: [N, 1, 32, 32]."""
    pdae, y = models["class"], index % 10
    x_T = counter_rng.normal(seed, 0, index, (1, 32, 32))
    if method == "pdae":
        return pdae.decode(pdae.encode(y), x_T, steps, scale=scale)
    return sampling.ddim(guided(pdae.dpm, models["classifier"], y, pdae.schedule, scale), x_T, pdae.schedule, steps)


@torch.no_grad()
def judged(net, images: Tensor) -> dict[str, Tensor]:
    """What the judge has to say: features [N, 64], logits [N, 10]; and the mean pixel of each image."""
    return {"features": net.features(images), "logits": net(images), "ink": images.mean((1, 2, 3))}


def samples(models: dict, method: str, scale: float, count: int, o: dict, work: Path) -> dict[str, Tensor]:
    """`judged` of the first `count` samples, block by block; those that lie in `work` aren't drawn again."""
    settings = {"seed": o["seed"], "steps": o["steps"]} | {k: o["sha256_of_weights"][k] for k in USED[method]}
    partial = Partial(work / f"{method}_{scale}", settings)
    for start in range(partial.count(), count, BLOCK):
        index = torch.arange(start, start + BLOCK)
        partial.extend(judged(models["features"], draw(models, method, scale, index, o["seed"], o["steps"])))
    return {k: v[:count] for k, v in partial.tensors.items()}


# ---- figures --------------------------------------------------------------------------------------------------------


def as_features(found: dict[str, Tensor]) -> Features:
    """Features of samples; as many are asked for of each class."""
    return Features(found["features"], "digits class features", torch.arange(len(found["features"])) % 10,
                    stratified=True)


def figures(found: dict[str, Tensor], real: Features) -> dict:
    """The four curves' values, the share of the class asked for, and what was seen in each sample.

    Recall depends on how many samples there are: it is that of the first as many as there are real images."""
    made, seen = as_features(found), found["logits"].argmax(1)
    return {"kid": metrics.kid(made, real).to_dict(),
            "class_score": metrics.class_score(found["logits"], made.space).to_dict(),
            "precision": metrics.precision_recall(made, real).precision.to_dict(),
            "recall": metrics.precision_recall(made[: len(real)], real).recall.to_dict(),
            "of_the_class": metrics.proportion(seen == made.labels).to_dict(),
            "seen": "".join(map(str, seen.tolist())), "ink": [round(v, 4) for v in found["ink"][:10].tolist()]}


@torch.no_grad()
def shifts(models: dict, images: Tensor, labels: Tensor, ts=TS, seed: int = 0) -> dict:
    """How much of the DPM's error each shift removes, on clean images [N, 1, 32, 32] with noise added; lists over `ts`.

    error_dpm: E‖ε − ε_θ‖² per pixel. For a shift δ, A = E⟨ε_θ − ε, δ⟩ and B = E‖δ‖²: at scale s the error falls by 2sA
    − s²B. Of G towards the true label ("pdae"); of the mean of G over labels, weighted by p(y | x_t) as the classifier
    has it ("mean"), which is 0 for a true gradient of log p(y | x_t); of G less that mean ("rest"); of the classifier's
    gradient."""
    pdae, classifier, schedule = models["class"], models["classifier"], models["class"].schedule
    names = [f"{k}_{m}" for k in "AB" for m in ("pdae", "mean", "rest", "classifier")]
    out = {"t": list(ts), "images": len(images)} | {name: [] for name in ("error_dpm", *names)}
    z, index = pdae.encode(torch.arange(10)), torch.arange(len(images))
    for t in ts:
        sums = {}
        for rows in index.split(BLOCK // 2):
            n, y = len(rows), labels[rows]
            t_batch = torch.full((n,), t)
            eps = counter_rng.normal(seed, t, rows, tuple(images.shape[1:]))
            x_t = schedule.add_noise(images[rows], t_batch, eps)
            features = pdae.features(x_t, t_batch)
            error = pdae.eps(features) - eps
            each = pdae.gradient(batch_map(features, n, lambda part: part.repeat_interleave(10, 0)),
                                 z.repeat(n, 1)).unflatten(0, (n, 10))
            own = each[torch.arange(n), y]
            mean = (classifier(x_t, t_batch).softmax(1)[:, :, None, None, None] * each).sum(1)
            found = {"pdae": own, "mean": mean, "rest": own - mean,
                     "classifier": classifier_gradient(classifier, x_t, t_batch, y)}
            root = schedule.sqrt_one_minus_alpha_bar[t]
            values = {"error_dpm": error.square()} | {f"A_{m}": root * error * g for m, g in found.items()}
            values |= {f"B_{m}": (root * g).square() for m, g in found.items()}
            for k, v in values.items():
                sums[k] = sums.get(k, 0.0) + float(v.double().mean()) * n / len(images)
        for k, v in sums.items():
            out[k].append(v)
    return out


def check_of_bf16(models: dict, drawn: dict, count: int, o: dict, real: Features, work: Path) -> list[dict]:
    """The first samples in float32 and in bfloat16 (`drawn`): how many are seen as the same digit, and by how much KID
    differs."""
    out, y = [], torch.arange(count) % 10
    for method, scale in (("pdae", 1.0), ("pdae", 3.0)):
        exact = samples(models, method, scale, count, o, work / "float32")
        quick = {k: v[:count] for k, v in drawn[method, scale].items()}
        seen = {"float32": exact["logits"].argmax(1), "bf16": quick["logits"].argmax(1)}
        out.append({"method": method, "scale": scale,
                    "same_digit_seen": metrics.proportion(seen["float32"] == seen["bf16"]).to_dict(),
                    "kid_bf16_minus_float32": metrics.kid_difference(as_features(quick), as_features(exact),
                                                                     real).to_dict(),
                    "of_the_class": {k: float((v == y).float().mean()) for k, v in seen.items()}})
    return out


def described(o: dict, models: dict) -> dict:
    """Where the figures come from."""
    nets = models | {"dpm": models["class"].dpm}
    digests = {k: tensors_digest(m.state_dict()) for k, m in nets.items()}
    return {"what": "digits by DDIM from a class-conditional G and from classifier guidance, at several scales, judged "
                    "by digits_features; sample i asks for class i % 10, from x_T = counter_rng.normal(seed, 0, i)",
            **o, "sha256_of_weights": digests,
            "made_with": {"torch": torch.__version__, "python": platform.python_version(), "device": "cpu",
                          "precision": "bfloat16 (DPM, G), float32 (classifier, judge)",
                          "date": time.strftime("%Y-%m-%d")}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="another class-conditional PDAE on the DPM that ships (default: "
                                                  "digits_class)")
    parser.add_argument("--count", type=int, default=2000, help="samples at each scale of G (default: %(default)s)")
    parser.add_argument("--guided", type=int, default=2000,
                        help="samples at each scale of classifier guidance; 0: leave it out (default: %(default)s)")
    parser.add_argument("--checked", type=int, default=200, help="samples drawn in float32 too (default: %(default)s)")
    parser.add_argument("--images", type=int, default=100, help="held-out images for the shifts at each t (default: "
                                                                "%(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="of DDIM (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/truncation"),
                        help="for what is done so far (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=data.ASSETS / "truncation.json")
    args = parser.parse_args()
    if args.count % BLOCK or args.guided % BLOCK or args.checked % BLOCK:
        parser.error(f"want multiples of {BLOCK} for --count, --guided and --checked: as many of each class in every "
                     "block")
    models = load_models(args.file)
    fast, real, test = in_bf16(models), metrics.reference("digits"), data.digits("test")
    given = [f"--{k} {v}" for k, v in vars(args).items() if k not in ("work", "out") and v is not None]
    o = described({"command": " ".join(["python scripts/results/truncation.py", *given]), "seed": args.seed,
                   "steps": args.steps}, models)
    rows, drawn, start = [], {}, time.process_time()
    counts = {"pdae": args.count, "classifier": args.guided}
    units = [(m, s) for m, scales in SCALES.items() if counts[m] for s in scales]
    # all scales in turn: what was stopped is as far with each
    for done in range(BLOCK, max(counts.values()) + 1, BLOCK):
        drawn |= {(m, s): samples(fast, m, s, done, o, args.work) for m, s in units if done <= counts[m]}
        print(f"{done} samples, {time.process_time() - start:.0f} s", flush=True)
    for method, scale in units:
        found = drawn[method, scale]
        row = {"method": method, "scale": scale, "count": len(found["logits"])} | figures(found, real)
        rows.append(row)
        print(f"{method} {scale}: " + ", ".join(f"{k} {row[k]['value']:.3f}" for k in CURVES), flush=True)
    for row in rows:
        scales = [s for m, s in units if m == row["method"]]
        before = scales[max(scales.index(row["scale"]) - 1, 0)]
        for key, scale in (("kid_minus_that_at_1", 1.0), ("kid_minus_that_before", before)):
            here, there = (as_features(drawn[row["method"], s]) for s in (row["scale"], scale))
            row[key] = metrics.kid_difference(here, there, real).to_dict()
    shift = {k: v if k in ("t", "images") else [float(f"{x:.5g}") for x in v]
             for k, v in shifts(models, test.floats(slice(args.images)), test.labels[: args.images]).items()}
    check = check_of_bf16(models, drawn, args.checked, o, real, args.work) if args.checked else []
    text = json.dumps(o | {"rows": rows, "shifts": shift, "bf16": check}, indent=1)
    write_text(args.out, text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
