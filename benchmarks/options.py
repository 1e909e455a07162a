"""What each option of the training step buys: images a second of one PDAE with an option switched off, and of a Diff-AE
beside it.

    python benchmarks/options.py --preset digits        # writes pdae_lite/assets/training_options.json: two minutes of
    a CPU core

As in training.py, all run in the loop that `pdae train` runs and take turns in one process; here a turn is one step of
the preset's batch, and on a CPU its cost is processor time of one thread, which other programs on the machine don't
lengthen much.
"""
import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import training  # noqa: E402  (the script beside this one)
from training import PlainPDAE, Variant, parts, provenance, whole_step  # noqa: E402

from pdae_lite.data import ASSETS  # noqa: E402
from pdae_lite.presets import PRESETS  # noqa: E402

training.VARIANTS["thawed"] = Variant(
    "PDAE, with the DPM inside autograd",
    lambda p: PlainPDAE(p.dpm(), p.new_encoder(), p.schedule(), precondition=p.precondition, form=p.form), whole_step)
# name -> (what is different from the first line, which model, which settings)
OPTIONS = {
    "preset": ("PDAE as the preset has it: bf16, channels_last, DPM frozen", "pdae", {}),
    "float32": ("float32 in place of bf16", "pdae", {"precision": "no"}),
    "nchw": ("without channels_last", "pdae", {"channels_last": False}),
    "float32_nchw": ("float32, and without channels_last", "pdae", {"precision": "no", "channels_last": False}),
    "thawed": ("DPM inside autograd, not frozen", "thawed", {}),
    "diffae": ("Diff-AE, with PDAE's encoder", "diffae", {}),
    "diffae_unet": ("Diff-AE, with its own encoder (half a U-Net)", "diffae_unet", {}),
}


class Run(training.Run):
    """A training whose turns are timed by processor time where that means something."""

    def _go(self) -> float:
        if self.device.type != "cpu":
            return super()._go()
        start = time.process_time()
        next(self.turns)
        return time.process_time() - start


def measure(preset, config, names: list[str], rounds: int, device: torch.device) -> dict:
    """{name: about, images per second (median, all), seconds relative to "preset" (median, low, high), predicted
    ratio}."""
    runs = {name: Run(preset, OPTIONS[name][1], replace(config, **OPTIONS[name][2]), device) for name in names}
    for i in range(rounds):
        for name in names if i % 2 else reversed(names):
            runs[name].turn()
    cost = {name: run.variant.cost(**parts(preset, OPTIONS[name][1])) / 1e9 for name, run in runs.items()}
    found, images = {}, config.log_every * config.batch_size
    for name, run in runs.items():
        each = [b / a for a, b in zip(runs["preset"].seconds, run.seconds)]
        found[name] = {"about": OPTIONS[name][0], "images_per_second": images / statistics.median(run.seconds),
                       "seconds": [round(s, 4) for s in run.seconds], "gflop_per_image": cost[name],
                       "times_slower": {"measured": statistics.median(each), "low": min(each), "high": max(each),
                                        "by_arithmetic": cost[name] / cost["preset"]}}
    return found


def main(argv: list[str] | None = None) -> dict:
    """Run it; returns what it writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits_paper", choices=list(PRESETS), metavar="NAME",
                        help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a step (default: the preset's)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N",
                        help="turns of each that count (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--json", type=Path, default=ASSETS / "training_options.json", metavar="FILE",
                        help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torch.set_num_threads(1)  # processor time of several threads would be their sum
    preset = PRESETS[args.preset]
    config = replace(preset.train, batch_size=args.batch_size or preset.train.batch_size, log_every=1, save_every=10**9,
                     steps=args.rounds + 2, warmup=0, decay=0.0)
    device = torch.device(args.device)
    command = (f"python benchmarks/options.py --preset {args.preset} "
               f"--batch-size {config.batch_size} --rounds {args.rounds}")
    result = {"command": command + (" --device cuda" if args.device == "cuda" else ""),
              "provenance": provenance(device),
              "preset": args.preset, "train": asdict(config), "rounds": args.rounds, "seed": config.seed,
              "options": measure(preset, config, list(OPTIONS), args.rounds, device)}
    for v in result["options"].values():
        s = v["times_slower"]
        print(f"{v['about']:62s}{v['images_per_second']:7.0f} images/s  time × {s['measured']:.2f} ({s['low']:.2f} … "
              f"{s['high']:.2f}), "
              f"by arithmetic {s['by_arithmetic']:.2f}")
    args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
