"""What a linear probe finds in raw pixels of faces, to compare with codes (chapter 10):
pdae_lite/assets/pixel_probe.json.

    python scripts/results/pixel_probe.py            # about five minutes of one CPU core

A probe on z has 128 numbers to use; this one has all 3,072 of the image, and as many weights for each attribute.
Cross-validation would take many times as long, so the penalty is the one of PENALTIES with the highest mean AUROC on
the validation faces. """
import argparse
import json
import platform
import time
from pathlib import Path

import torch

from pdae_lite import data
from pdae_lite.applications.attributes import LinearProbe
from pdae_lite.checkpoint import write_text

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def pixels(split: str) -> torch.Tensor:
    """Faces of a split as vectors [N, 3072] in [−1, 1]."""
    return data.peeps(split, size=32).floats().flatten(1)


def fitted(l2: float, attributes: list[str] | None = None) -> LinearProbe:
    """A probe on the pixels of all training faces, for some attributes (None: all)."""
    train = data.peeps("train", size=32)
    names = list(train.attributes) if attributes is None else attributes
    labels = torch.stack([train.column(name) for name in names], 1)
    return LinearProbe.fit(train.floats().flatten(1), labels, names, l2=l2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=data.ASSETS / "pixel_probe.json")
    args = parser.parse_args()
    if args.out.is_file():
        print(f"{args.out} is there; remove it to measure anew")
        return 0
    valid, test = (data.peeps(split, size=32) for split in ("valid", "test"))
    probes, on_valid = {}, {}
    for l2 in PENALTIES:
        start = time.process_time()
        probes[l2] = fitted(l2)
        on_valid[str(l2)] = round(float(probes[l2].auroc(pixels("valid"), valid.labels).nanmean()), 5)
        print(f"l2 = {l2}: mean AUROC {on_valid[str(l2)]} on validation faces, {time.process_time() - start:.0f} s",
              flush=True)
    best = max(PENALTIES, key=lambda l2: on_valid[str(l2)])
    x = pixels("test")
    auroc, precision = probes[best].auroc(x, test.labels), probes[best].average_precision(x, test.labels)
    record = {"what": "linear probes on raw pixels of peeps 32×32, on held-out faces",
              "command": "python scripts/results/pixel_probe.py",
              "names": list(test.attributes), "numbers": x.shape[1], "l2": best,
              "mean_auroc_on_validation_faces": on_valid, "train": len(data.peeps("train", size=32)), "test": len(test),
              "auroc": [round(v, 5) for v in auroc.tolist()],
              "average_precision": [round(v, 5) for v in precision.tolist()],
              "mean_auroc": round(float(auroc.nanmean()), 5),
              "mean_average_precision": round(float(precision.nanmean()), 5),
              "torch": torch.__version__, "python": platform.python_version(), "device": "cpu",
              "date": time.strftime("%Y-%m-%d")}
    write_text(args.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
