"""What there is: `pdae presets` and `pdae info`."""
import torch

from ..checkpoint import load_model, model_file
from ..presets import PRESETS, STAGES
from .output import table
from .settings import UsageError, listing, show
from .train import METHODS


def add_presets(parser) -> None:
    """`pdae presets`."""
    parser.description = """List the presets of `pdae pretrain` and `pdae train`; with a name, all settings of that one,
        as --set takes them, under the command that they belong to."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a preset")
    parser.set_defaults(run=_presets)


def add_info(parser) -> None:
    """`pdae info`."""
    parser.description = "Print what a model file holds."
    parser.add_argument("file", metavar="FILE", help="a model file, or the name of a shipped model (digits)")
    parser.set_defaults(run=_info)


def _presets(args) -> None:
    if args.name is None:
        head = ("NAME", "IMAGES", "Z_DIM", "DPM", "E AND G", "SEEN BY DPM", "BY PDAE", "")
        print(table(head, [[name, *_facts(preset)] for name, preset in PRESETS.items()], left=(0, 7)))
        return
    if args.name not in PRESETS:
        raise UsageError(f"preset {args.name!r}; want one of {', '.join(PRESETS)}")
    preset = PRESETS[args.name]
    print(f"{args.name}: {preset.about}")
    for stage, names in STAGES.items():
        print(f"\npdae {f'train --method {stage}' if stage in METHODS else stage}")
        for name, value in listing(preset, names).items():
            print(f"  {name}={show(value)}")


def _facts(preset) -> list[str]:
    with torch.device("meta"):  # counts only: no memory
        dpm = preset.dpm()
        trained = preset.pdae(dpm).trainable()
    counts = [f"{sum(p.numel() for p in part.parameters()) / 1e6:.1f}M" for part in (dpm, trained)]
    seen = [f"{c.steps * c.batch_size / 1e6:.1f}M" for c in (preset.pretrain, preset.train)]
    side = preset.unet.image_size
    return [f"{preset.unet.in_channels}×{side}×{side}", str(preset.encoder.z_dim), *counts, *seen, preset.about]


def _info(args) -> None:
    path = model_file(args.file)
    model = load_model(path)
    print(f"{path}: {type(model).__name__}, {path.stat().st_size / 1e6:.1f} MB")
    for name, part in model.named_children():
        print(f"  {name}: {type(part).__name__}, {sum(p.numel() for p in part.parameters()):,} parameters")
    for key, value in (*model.to_config().items(), *model.metadata.items()):
        print(f"  {key}: {value}")
