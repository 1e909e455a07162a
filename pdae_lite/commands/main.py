"""The `pdae` command: pre-train a DPM, train a PDAE on it, make pictures with it, look it over."""
import argparse
import sys

from .doctor import add_doctor
from .evaluate import add_evaluate
from .models import model_file
from .pictures import add_images
from .settings import UsageError, listing, show
from .train import METHODS, add_commands

EXAMPLES = """examples:
  pdae pretrain --data digits --out runs/dpm
  pdae train --dpm runs/dpm/model.safetensors --data digits --out runs/pdae
  pdae pretrain --data my_photos --size 64 --set unet.base_channels=48 --out runs/photos
  pdae train --dpm hf:google/ddpm-celebahq-256 --data my_photos --out runs/mine
  pdae presets peeps
  pdae reconstruct photo.png drawing.png --model digits --out rebuilt.png
  pdae interpolate one.png other.png --model digits --out between.png
  pdae probe --model digits --data digits --out probe.safetensors
  pdae edit one.png --model digits --probe probe.safetensors --attribute 8 --out edited.png
  pdae sample --model digits --plain --out samples.png
  pdae doctor runs/pdae/model.safetensors
  pdae evaluate --model digits --count 200 --json digits.json
  pdae info runs/pdae/model.safetensors

A run that was stopped goes on when the same command is given again. Several GPUs:
  torchrun --nproc_per_node 4 -m pdae_lite pretrain --data lmdb:ffhq256.lmdb --preset ffhq128 --out runs/ffhq"""


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, or 2 after one line on standard error."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    from ..training.loop import TrainingError

    try:
        args.run(args)
    except (ValueError, OSError, ImportError, TrainingError) as e:  # of imports, only an extra's can be missing: its message names it
        print(f"pdae {args.command}: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\npdae {args.command}: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pdae", description="Turn a pre-trained diffusion model into an autoencoder.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    add_commands(commands)
    add_images(commands)
    add_doctor(commands)
    add_evaluate(commands)

    presets = commands.add_parser("presets", help="list the presets, or the settings of one",
                                  description="List the presets of `pdae pretrain` and `pdae train`; with a name, all settings of that "
                                              "preset as --set takes them, under the command that they belong to.")
    presets.add_argument("name", nargs="?", metavar="NAME", help="a preset")
    presets.set_defaults(run=_presets)

    info = commands.add_parser("info", help="what a model file holds", description="Print what a model file holds.")
    info.add_argument("file", metavar="FILE", help="a model file, or the name of a shipped model (digits)")
    info.set_defaults(run=_info)
    return parser


# ---- commands -----------------------------------------------------------------------------------------------------------


def _info(args) -> None:
    from ..checkpoint import load_model

    path = model_file(args.file)
    model = load_model(path)
    print(f"{path}: {type(model).__name__}, {path.stat().st_size / 1e6:.1f} MB")
    for name, part in model.named_children():
        print(f"  {name}: {type(part).__name__}, {sum(p.numel() for p in part.parameters()):,} parameters")
    config = model.to_config()
    for key, value in config.items():
        print(f"  {key}: {value}")
    for key, value in model.metadata.items():
        print(f"  {key}: {value}")


def _presets(args) -> None:
    import torch

    from ..presets import PRESETS, STAGES

    if args.name is None:
        rows = [("NAME", "IMAGES", "Z_DIM", "DPM", "E AND G", "SEEN BY DPM", "BY PDAE", "")]
        for name, preset in PRESETS.items():
            with torch.device("meta"):  # counts only: no memory
                dpm = preset.dpm()
                trained = preset.pdae(dpm).trainable()
            counts = [f"{sum(p.numel() for p in part.parameters()) / 1e6:.1f}M" for part in (dpm, trained)]
            seen = [f"{c.steps * c.batch_size / 1e6:.1f}M" for c in (preset.pretrain, preset.train)]
            side = preset.unet.image_size
            rows.append((name, f"{preset.unet.in_channels}×{side}×{side}", str(preset.encoder.z_dim), *counts, *seen, preset.about))
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows:
            print("  ".join(cell.ljust(width) if i in (0, 7) else cell.rjust(width)
                            for i, (cell, width) in enumerate(zip(row, widths))).rstrip())
        return
    if args.name not in PRESETS:
        raise UsageError(f"preset {args.name!r}; want one of {', '.join(PRESETS)}")
    preset = PRESETS[args.name]
    print(f"{args.name}: {preset.about}")
    for stage, names in STAGES.items():
        print(f"\npdae {f'train --method {stage}' if stage in METHODS else stage}")
        for name, value in listing(preset, names).items():
            print(f"  {name}={show(value)}")
