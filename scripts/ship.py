"""Put a trained model into the package: float16 weights, under pdae_lite/assets.

    python scripts/ship.py runs/pdae/model.safetensors digits_pdae [--dpm runs/dpm/model.safetensors]

With --dpm, the record of how the frozen DPM was trained is copied into the file's metadata. Paths of this machine are left out.
"""
import argparse

import torch

from pdae_lite.checkpoint import load_model, save_model
from pdae_lite.data import ASSETS

LIMIT = 15 * 2**20

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("name")
    parser.add_argument("--dpm")
    args = parser.parse_args()
    model = load_model(args.model)
    metadata = {k: v for k, v in model.metadata.items() if k not in ("dpm", "model")}  # where they lay is nobody's business
    if args.dpm:
        metadata["dpm_training"] = load_model(args.dpm).metadata
    target = ASSETS / f"{args.name}.safetensors"
    save_model(target, model, metadata, dtype=torch.float16)
    size = target.stat().st_size
    print(target.name, f"{size / 1e6:.1f} MB")
    if size > LIMIT:
        raise SystemExit(f"{target.name} is larger than {LIMIT >> 20} MiB; use fewer channels")
