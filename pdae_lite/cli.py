"""The `pdae` command: pre-train a DPM, train a PDAE on it, list presets, rebuild images, look a model over."""
import argparse
import sys
from pathlib import Path

from .cli_doctor import add_doctor
from .cli_train import METHODS, add_commands, load_autoencoder, model_file
from .settings import UsageError, listing, show

EXAMPLES = """examples:
  pdae pretrain --data digits --out runs/dpm
  pdae train --dpm runs/dpm/model.safetensors --data digits --out runs/pdae
  pdae pretrain --data my_photos --size 64 --set unet.base_channels=48 --out runs/photos
  pdae presets peeps
  pdae reconstruct photo.png drawing.png --model digits --out rebuilt.png
  pdae doctor runs/pdae/model.safetensors
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
    from .training import TrainingError

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
    add_doctor(commands)

    presets = commands.add_parser("presets", help="list the presets, or the settings of one",
                                  description="List the presets of `pdae pretrain` and `pdae train`; with a name, all settings of that "
                                              "preset as --set takes them, under the command that they belong to.")
    presets.add_argument("name", nargs="?", metavar="NAME", help="a preset")
    presets.set_defaults(run=_presets)

    rebuild = commands.add_parser("reconstruct", help="encode images and rebuild them",
                                  description="Encode images and rebuild them from z alone (random x_T) and from z with the inferred x_T. "
                                              "Columns of the PNG: original, z alone, z and x_T.")
    rebuild.add_argument("images", nargs="+", metavar="FILE", help="image files; cropped to a square and resized to the model's size")
    rebuild.add_argument("--model", required=True, metavar="MODEL", help="name of a shipped model (digits), or a model file")
    rebuild.add_argument("--out", required=True, metavar="PNG", help="where to write the picture")
    rebuild.add_argument("--steps", type=int, default=100, metavar="N", help="sampling steps (default: %(default)s)")
    rebuild.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the random x_T (default: %(default)s)")
    rebuild.add_argument("--negative", action="store_true",
                         help="swap black and white first: the digits model wants white strokes on black")
    rebuild.set_defaults(run=_reconstruct)

    info = commands.add_parser("info", help="what a model file holds", description="Print what a model file holds.")
    info.add_argument("file", metavar="FILE", help="a model file, or the name of a shipped model (digits)")
    info.set_defaults(run=_info)
    return parser


# ---- commands -----------------------------------------------------------------------------------------------------------


def _reconstruct(args) -> None:
    import torch

    if Path(args.out).suffix.lower() != ".png":
        raise UsageError(f"--out {args.out}; want a file name that ends in .png")
    model = load_autoencoder(args.model)
    config = model.network.config
    images = torch.stack([_read_image(path, config.in_channels, config.image_size) for path in args.images])
    images = -images if args.negative else images
    z = model.encode(images).detach()
    generator = torch.Generator().manual_seed(args.seed)
    from_z = model.decode(z, model.noise(len(z), generator), steps=args.steps, progress=True)
    exact = model.decode(z, model.invert(images, z, steps=args.steps, progress=True), steps=args.steps, progress=True)
    out = _write_grid(torch.stack([images, from_z, exact], 1), args.out)
    for path, error_z, error in zip(args.images, *[((x - images) / 2).square().flatten(1).mean(1).tolist() for x in (from_z, exact)]):
        print(f"{path}: MSE on [0, 1] {error_z:.4f} from z alone, {error:.2e} with the inferred x_T")
    print(out)


def _info(args) -> None:
    from .checkpoint import load_model

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

    from .presets import PRESETS, STAGES

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


# ---- arguments to things ----------------------------------------------------------------------------------------------


def _read_image(path: str, channels: int, size: int):
    """An image file as float [C, size, size] in [−1, 1]: centre-cropped to a square, resized with antialiasing."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    from .image_files import flatten

    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with Image.open(path) as opened:
            image = flatten(opened, channels)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        raise UsageError(f"{path}: not a readable image; want PNG, JPEG or another format that Pillow reads") from None
    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    array = torch.from_numpy(np.array(image)).reshape(size, size, channels)
    return array.permute(2, 0, 1).float() / 127.5 - 1


def _write_grid(images, path: str) -> Path:
    """[rows, columns, C, H, W] in [−1, 1] as one PNG."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    out = Path(path)
    grid = make_grid(images.flatten(0, 1).clamp(-1, 1), nrow=images.shape[1], padding=2, pad_value=1.0, normalize=True, value_range=(-1, 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(grid).save(out)
    return out
