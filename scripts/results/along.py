"""The PDAE of digits in the difference form that ships, trained, and what it draws along the way: the same held-out
digits from their codes, again and again, and the fill and the error at each of those moments.

Writes pdae_lite/assets/along.json (chapter 5).

    python scripts/results/along.py            # 45 minutes of one CPU core; a run that was stopped goes on

The run is that of `pdae train --dpm digits --data digits`, bit for bit: looking changes nothing.
"""
import argparse
import base64
import json
import platform
import time
import zlib
from pathlib import Path

import torch

from pdae_lite import counter_rng, data, losses, metrics
from pdae_lite.checkpoint import tensors_digest, write_text
from pdae_lite.interop.references import load_dpm
from pdae_lite.presets import PRESETS
from pdae_lite.training import train

TS = (300, 400, 500, 600)
SHOWN, MEASURED = 8, 64  # held-out digits


@torch.no_grad()
def look(model) -> dict:
    """Eight held-out digits from their codes and one noise (deflated bytes in base64), the error of 64, and the mean
    fill."""
    model.eval()
    x_0 = data.digits("test").floats(slice(MEASURED))
    alone, told = (losses.noise_error(of, x_0, model.schedule, TS) for of in (lambda x: model.dpm,
                                                                             lambda x: model.trained_denoiser(
                                                                                 model.encode(x))))
    noise = counter_rng.normal(0, 0, torch.zeros(MEASURED, dtype=torch.int64), (1, 32, 32))  # the same for all
    drawn = model.decode(model.encode(x_0), noise, steps=20)
    packed = zlib.compress(data.to_uint8(drawn[:SHOWN]).numpy().tobytes(), 9)
    return {"fill_300_600": float(losses.fill(told, alone).mean()), "mse": float(metrics.mse(drawn, x_0).mean()),
            "drawn": base64.b64encode(packed).decode()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dpm", default="digits", help="the DPM: a file, or a shipped model (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=PRESETS["digits"].train.steps,
                        help="of the run (default: the preset's, %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/digits-difference"),
                        help="folder of the run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=data.ASSETS / "along.json")
    args = parser.parse_args()
    preset, start = PRESETS["digits"], time.process_time()
    torch.manual_seed(preset.train.seed)
    model = preset.pdae(load_dpm(args.dpm)[0])
    first = {"images": 0, **look(model)}
    wanted = {step for step in (25 * 2**k for k in range(12)) if step < 0.75 * args.steps} | {args.steps}
    options = {"steps": args.steps, "log_every": 25}
    result = train(model, data.digits(), preset.train, out=args.work, progress=False,
                   metadata={"data": "digits", "preset": "digits", "dpm": args.dpm},
                   callback=lambda step, m: look(m) if step in wanted else None, **options)
    points = [first] + [{k: e[k] for k in first} for e in result.history if "drawn" in e]
    record = {"what": "the PDAE of digits that ships, looked at along its training",
              "command": "python scripts/results/along.py",
              "form": model.form, "options": options, "shape": [SHOWN, 1, 32, 32], "measured": MEASURED,
              "points": points, "sha256_of_dpm": tensors_digest(model.dpm.state_dict()), "torch": torch.__version__,
              "python": platform.python_version(), "device": "cpu", "cpu_seconds": round(time.process_time() - start),
              "date": time.strftime("%Y-%m-%d")}
    write_text(args.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
