"""Measure a model that ships on held-out images, fit its linear probe, and write its card.

    python scripts/assets/evaluate.py digits           # the shipped PDAE: about 15 CPU minutes
    python scripts/assets/evaluate.py digits diffae    # its noise error is compared with the DPM's of digits_pdae
    python scripts/assets/evaluate.py peeps --history runs/pdae/history.json --dpm-history runs/dpm/history.json
    python scripts/assets/evaluate.py peeps --file runs/pdae/model.safetensors --quick --out look

Writes NAME_KIND.json (every figure), NAME_KIND.md (the card), NAME_KIND.png (its picture), and the linear probe
NAME_probe, or NAME_KIND_probe for other kinds than pdae. Needs the network of features (make_features.py). --history, a
run's history.json, adds the loss curve and the time that it took; it is kept for the next evaluation of the same file.
"""
import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import safetensors.torch
import torch
from cards import card, criteria, draw, file_facts
from measurements import QUICK, Counts, Subject, measured, pictures

from pdae_lite.checkpoint import shipped_file, write_text
from pdae_lite.data import ASSETS
from pdae_lite.pdae import PDAE
from pdae_lite.storage import PACKED, contents


def described(s: Subject) -> dict:
    """What the file is, and how it was made."""
    parts = ("dpm", "encoder", "estimator") if isinstance(s.model, PDAE) else ("network", "encoder")
    config = s.model.network.config
    return {"name": s.name, "kind": s.kind, "type": type(s.model).__name__, "z_dim": s.model.z_dim,
            "images": [config.in_channels, config.image_size, config.image_size], "train_images": len(s.train),
            "test_images": len(s.test),
            "file": file_facts(s.path), "stored_as": stored_as(s.path),
            "parameters": {k: sum(p.numel() for p in getattr(s.model, k).parameters()) for k in parts},
            "training": s.model.metadata}


def stored_as(path: Path) -> str:
    """float16 or int8: what most of a file's numbers are."""
    sizes: dict[str, int] = {}
    for tensor in safetensors.torch.load(bytes(contents(path))).values():
        name = str(tensor.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + tensor.numel()
    return max(sizes, key=lambda name: sizes[name])


def thinned(path: Path, points: int = 80) -> dict:
    """A run's history: images seen, and the mean loss since the point before; and the hours that it took."""
    entries = json.loads(path.read_text())
    size = -(-len(entries) // points)
    groups = [entries[i : i + size] for i in range(0, len(entries), size)]
    images = [0] + [e["images"] for e in entries]
    seconds = sum((b - a) / e["images_per_second"] for a, b, e in zip(images, images[1:], entries)
                  if e.get("images_per_second"))
    return {"images": [g[-1]["images"] for g in groups], "loss": [sum(e["loss"] for e in g) / len(g) for g in groups],
            "hours": seconds / 3600}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("digits", "peeps"))
    parser.add_argument("kind", nargs="?", default="pdae", help="pdae (default), diffae, or another one that ships")
    parser.add_argument("--file", type=Path, help="the model file (default: the shipped one)")
    parser.add_argument("--out", type=Path, default=ASSETS, help="where to write (default: beside the shipped models)")
    parser.add_argument("--history", type=Path, help="history.json of the run that made the model")
    parser.add_argument("--dpm-history", type=Path, help="history.json of the run that made its DPM")
    parser.add_argument("--counts", default="", metavar="NAME=N,…", help="""on other numbers of images or in other
        numbers of steps, for example cases=300,samples=500; the card tells them""")
    parser.add_argument("--quick", action="store_true", help="tiny counts, to see that all runs; wants --out")
    args = parser.parse_args()
    if args.quick and args.out == ASSETS:
        parser.error("--quick measures nothing worth shipping; give --out DIR")
    stem = f"{args.name}_{args.kind}"
    path = args.file or shipped_file(args.name, args.kind)
    counts = replace(QUICK if args.quick else Counts(),
                     **{k: int(v) for k, v in (c.split("=") for c in args.counts.split(",") if c)})
    s = Subject.open(args.name, args.kind, path, counts)
    if s.net is None:
        parser.error(f"the network of features of {args.name} is missing; make it by scripts/assets/make_features.py "
                     f"{args.name}")
    todo, target = measured(s), args.out / f"{stem}.json"
    out = described(s)
    before = json.loads(target.read_text()) if target.is_file() else {}
    if before.get("file") == out["file"]:
        out["histories"] = before.get("histories", {})
    for key, history in (("model", args.history), ("dpm", args.dpm_history)):
        if history is not None:
            out.setdefault("histories", {})[key] = thinned(history)
    start = time.time()
    for name in todo:
        out[name] = todo[name](s)
        if name == "probe":
            out[name], fitted = out[name]
            file = args.out / f"{args.name}_{'' if args.kind == 'pdae' else args.kind + '_'}probe{PACKED}"
            fitted.save(file, {"data": args.name, "codes": out["file"], "train": out[name]["train"]})
        print(f"{name}, {time.time() - start:.0f} s: {brief(out[name])}", flush=True)
    out["made_with"] = {"torch": torch.__version__, "python": platform.python_version(), "device": str(s.model.device),
                        "counts": asdict(s.counts)}
    out["criteria"] = [asdict(c) for c in criteria(out)]
    write_text(target, json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    draw(out, pictures(s), args.out / f"{stem}.png")
    write_text(args.out / f"{stem}.md", card(out, s.model))
    print(f"{target.with_suffix('.md')}, {time.time() - start:.0f} s")
    return 0


def brief(found: dict) -> dict:
    """Single numbers, for the log."""
    flat = {k: v["value"] if isinstance(v, dict) and "value" in v else v for k, v in found.items()}
    return {k: round(v, 4) for k, v in flat.items() if isinstance(v, (int, float))}


if __name__ == "__main__":
    sys.exit(main())
