"""Put a trained model into the package: float16 or int8 weights, under pdae_lite/assets.

    python scripts/assets/ship.py runs/pdae/model.safetensors digits_pdae [--dpm runs/dpm/model.safetensors]
    python scripts/assets/ship.py runs/class/model.safetensors digits_class --shipped-dpm digits --int8

With --dpm, the record of how the frozen DPM was trained is copied into the file's metadata. Paths of this machine are
left out."""
import argparse

import torch

from pdae_lite.checkpoint import ASSETS, keep_shipped, load_model, save_model
from pdae_lite.storage import PACKED

LIMIT = 15 * 2**20

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("name")
    parser.add_argument("--dpm")
    parser.add_argument("--shipped-dpm", metavar="NAME", help="the DPM is that of this shipped model: refer to it, "
                                                              "don't store it twice")
    parser.add_argument("--int8", action="store_true", help="weights as int8 with a scale each row, in place of "
                                                            "float16")
    args = parser.parse_args()
    model = load_model(args.model)
    # where they lay is nobody's business
    metadata = {k: v for k, v in model.metadata.items() if k not in ("dpm", "model")}
    if args.dpm:
        metadata["dpm_training"] = load_model(args.dpm).metadata
    if args.shipped_dpm:
        keep_shipped(model.dpm, args.shipped_dpm)
    target = ASSETS / f"{args.name}{PACKED}"
    save_model(target, model, metadata, dtype=torch.int8 if args.int8 else torch.float16)
    size = target.stat().st_size
    print(target.name, f"{size / 1e6:.1f} MB")
    if size > LIMIT:
        raise SystemExit(f"{target.name} is larger than {LIMIT >> 20} MiB; use fewer channels")
