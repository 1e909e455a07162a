"""Which stage of guidance decides the class (Fig. 3)? Every stage [t1, t2), t1 < t2 in steps of 50, on digits.

    python scripts/results/critical_stage.py                    # 100 samples: about 12 minutes of one CPU core
    python scripts/results/critical_stage.py --samples 200      # adds to the stored ones
    python scripts/results/critical_stage.py --only 400-700 --samples 20 --out /tmp/look.json

Each sample is drawn by 20 steps of DDIM, with classifier guidance inside the stage and by the DPM alone outside, always
from the same x_T, and counts as a hit if a network that has nothing to do with the guiding one sees the class that was
asked for. What stages have in common is walked once. Writes pdae_lite/assets/critical_stage.json after every 10
samples, and goes on where a run before was stopped; sample i depends on the seed and on i alone. """
import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import pdae_lite
from pdae_lite import counter_rng, sampling
from pdae_lite.checkpoint import tensors_digest, write_text
from pdae_lite.data import ASSETS
from pdae_lite.guidance import guided, staged
from pdae_lite.reproduction.partial import record_before
from pdae_lite.schedule import NoiseSchedule

BLOCK = 10  # samples at a time, one of each class
MODELS = ("dpm", "classifier", "features")  # which walks, which guides, which judges


@torch.no_grad()
def every_stage(plain, inside, x_T: Tensor, schedule: NoiseSchedule, judge: Callable[[Tensor], Tensor], steps: int = 20,
                only: set[tuple[int, int]] | None = None) -> dict[tuple[int, int], Tensor]:
    """What `judge` says of the samples [N, C, H, W] of every stage (t1, t2); (0, 0) is the empty stage.

    The same as judge(sampling.ddim(staged(inside, plain, t1, t2), x_T, schedule, steps)), stage by stage, in fewer
    steps.

    Args:
        plain, inside: denoisers outside and inside the stage.
        only: the stages to look at (default: all whose ends are ends of steps).
    """
    points = sampling.time_grid(schedule, steps)
    ends = [t + 1 for t in points]  # the step down from points[i] is the one in [ends[i-1], ends[i])
    wanted = {(a, b) for a in ends for b in ends if a < b} | {(0, 0)} if only is None else set(only)
    if not all(a in ends and b in ends and (a < b or a == b == 0) for a, b in wanted):
        raise ValueError(f"stages {sorted(wanted)}; want t1 < t2 out of {ends}, or (0, 0)")
    found, above = {}, {}  # above: the states that stages begin from, by their ends
    for top in sorted({b for _, b in wanted}):
        bottoms, begin = sorted(a for a, b in wanted if b == top), top if above else ends[-1]
        seen = {begin: above.get(begin, x_T)}
        image = sampling.ddim(staged(inside, plain, bottoms[0], top), seen[begin], schedule,
                              grid=[t for t in points if 0 <= t < begin],
                              callback=lambda t, x: seen.update({t + 1: x}))
        above = above or seen  # the first walk began at x_T; above its stage, which ends lowest, it is the plain one
        for bottom in bottoms:
            if bottom > bottoms[0]:
                image = sampling.ddim(plain, seen[bottom], schedule, grid=[t for t in points if 0 <= t < bottom])
            found[bottom, top] = judge(image)
    return found


def block(models, first: int, count: int, o: dict, only=None, device="cpu") -> dict[str, str]:
    """Hits of samples first … first+count−1, of classes 0, 1, … 9, 0, …: "t1-t2" → a string of 0 and 1."""
    dpm, classifier, judge = models
    index = torch.arange(first, first + count, device=device)
    y = index % 10
    x_T = counter_rng.normal(o["seed"], 0, index, (1, 32, 32))
    inside = guided(dpm, classifier, y, dpm.schedule, o["scale"])
    found = every_stage(dpm, inside, x_T, dpm.schedule, lambda x: judge(x).argmax(1) == y, o["steps"], only)
    return {f"{a}-{b}": "".join("01"[hit] for hit in hits.tolist()) for (a, b), hits in sorted(found.items())}


def load_models(device="cpu"):
    return tuple(pdae_lite.load("digits", kind, device=device) for kind in MODELS)


def described(o: dict, models, device: str) -> dict:
    """Where the figures come from."""
    return {"what": "digits: hits of classifier guidance in the stage t1 <= t < t2 alone, by DDIM, judged by "
                    "digits_features; sample i asks for class i % 10, from x_T = counter_rng.normal(seed, 0, i)",
            **o, "sha256_of_weights": {k: tensors_digest(m.state_dict()) for k, m in zip(MODELS, models)},
            "made_with": {"torch": torch.__version__, "python": platform.python_version(), "device": device}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="how many in all (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=3.0, help="of the guidance (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of DDIM; T/steps is the grid's width (default: "
                                                              "%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="stages t1-t2, separated by commas (default: all)")
    parser.add_argument("--out", type=Path, default=ASSETS / "critical_stage.json")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    only = args.only and {tuple(map(int, s.split("-"))) for s in args.only.split(",")}
    models = load_models(args.device)
    o = described({k: getattr(args, k) for k in ("scale", "steps", "seed")}, models, args.device)
    try:
        before = record_before(args.out, {k: o[k] for k in ("scale", "steps", "seed", "sha256_of_weights")}) or {}
    except ValueError as e:
        parser.error(str(e))
    hits, seconds = before.get("hits", {}), before.get("cpu_seconds", 0.0)
    done = len(next(iter(hits.values()), ""))
    while done < args.samples:
        start = time.process_time()
        count = min(BLOCK, args.samples - done)
        more = block(models, done, count, o, only, args.device)
        if hits and hits.keys() != more.keys():
            parser.error(f"{args.out} holds other stages; give another --out")
        hits, done = {k: hits.get(k, "") + v for k, v in more.items()}, done + count
        seconds += time.process_time() - start
        accuracy = {k: round(v.count("1") / done, 4) for k, v in hits.items()}
        made = {"command": f"python scripts/results/critical_stage.py --scale {args.scale:g} --samples {done}",
                "date": time.strftime("%Y-%m-%d")}
        text = json.dumps(o | made | {"samples": done, "cpu_seconds": round(seconds), "accuracy": accuracy,
                                      "hits": hits}, indent=1)
        write_text(args.out, text + "\n")
        print(f"{done} samples, {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
