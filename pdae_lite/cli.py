"""The `pdae` command: pre-train a DPM, train a PDAE on it, rebuild images, look into a file."""
import argparse
import sys
from dataclasses import replace
from pathlib import Path

EXAMPLES = """examples:
  pdae pretrain --data digits --out runs/dpm
  pdae train --dpm runs/dpm/model.safetensors --data digits --out runs/pdae
  pdae reconstruct photo.png drawing.png --model digits --out rebuilt.png
  pdae info runs/pdae/model.safetensors

A run that was stopped goes on when the same command is given again."""


class UsageError(ValueError):
    """Something on the command line is wrong; the message is the one line that the user sees."""


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
    except (ValueError, OSError, TrainingError) as e:
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

    pretrain = commands.add_parser("pretrain", help="train a diffusion model (the DPM)",
                                   description="Train a diffusion model from scratch.")
    pretrain.set_defaults(run=_pretrain)
    _training_options(pretrain)

    train = commands.add_parser("train", help="train a PDAE on a frozen DPM",
                                description="Train an encoder and a gradient estimator on a frozen diffusion model.")
    train.add_argument("--dpm", required=True, metavar="FILE",
                       help="the pre-trained DPM: a file of `pdae pretrain`, or the name of a shipped model (digits)")
    train.set_defaults(run=_train)
    _training_options(train)

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


def _training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="DATA", help="training data: digits")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for model.safetensors (EMA weights) and checkpoints")
    parser.add_argument("--preset", metavar="NAME", help="network and training settings (default: the data set's)")
    for name, kind, what in (("steps", int, "optimizer steps"), ("batch-size", int, "images a step"), ("lr", float, "learning rate"),
                             ("save-every", int, "steps between checkpoints"), ("log-every", int, "steps between log entries"),
                             ("seed", int, "seed of weights, data order and noise")):
        parser.add_argument(f"--{name}", type=kind, metavar=name[0].upper(), help=f"{what} (default: the preset's)")
    parser.add_argument("--weight", help="loss weighting: pdae, simple, vlb, p2, min_snr or v (default: the preset's)")
    parser.add_argument("--precision", choices=("no", "bf16"), help="autocast to bf16, or not (default: the preset's)")
    parser.add_argument("--compile", action="store_true", default=None, help="torch.compile the training step")
    parser.add_argument("--tensorboard", action="store_true", default=None, help="also log for TensorBoard")


# ---- commands -----------------------------------------------------------------------------------------------------------


def _pretrain(args) -> None:
    import torch

    data, preset = _data(args.data), _preset(args)
    config = _config(preset.pretrain, args)
    torch.manual_seed(config.seed)
    _run(preset.dpm(), data, config, args, schedule=preset.schedule())


def _train(args) -> None:
    import torch

    data, preset = _data(args.data), _preset(args)
    config = _config(preset.train, args)
    dpm = _dpm(args.dpm)
    torch.manual_seed(config.seed)
    _run(preset.pdae(dpm), data, config, args, metadata={"dpm": args.dpm})


def _run(model, data, config, args, metadata: dict | None = None, **options) -> None:
    from .training import train

    facts = {"data": args.data, "preset": args.preset or args.data, **(metadata or {})}
    result = train(model, data, config, out=args.out, metadata=facts, **options)
    last = result.history[-1] if result.history else {}
    print(f"{result.path}: {last.get('step', 0)} steps, {last.get('images', 0)} images, loss {last.get('loss', float('nan')):.5f}")


def _reconstruct(args) -> None:
    import torch

    if Path(args.out).suffix.lower() != ".png":
        raise UsageError(f"--out {args.out}; want a file name that ends in .png")
    model = _pdae(args.model)
    images = torch.stack([_read_image(path, model.dpm.config.in_channels, model.dpm.config.image_size) for path in args.images])
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

    path = _asset(args.file) or Path(args.file)
    model = load_model(path)
    print(f"{path}: {type(model).__name__}, {path.stat().st_size / 1e6:.1f} MB")
    for name, part in model.named_children():
        print(f"  {name}: {type(part).__name__}, {sum(p.numel() for p in part.parameters()):,} parameters")
    config = model.to_config()
    for key, value in config.items():
        print(f"  {key}: {value}")
    for key, value in model.metadata.items():
        print(f"  {key}: {value}")


# ---- arguments to things ----------------------------------------------------------------------------------------------


def _preset(args):
    from .presets import PRESETS

    name = args.preset or args.data
    if name not in PRESETS:
        raise UsageError(f"--preset {name!r}; want one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _data(name: str):
    from . import data

    sets = {"digits": data.digits, "peeps": data.peeps}
    if name not in sets:
        raise UsageError(f"--data {name!r}; want one of {', '.join(sets)}")
    return sets[name]("train")


def _config(config, args):
    names = ("steps", "batch_size", "lr", "save_every", "log_every", "seed", "weight", "precision", "compile", "tensorboard")
    given = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    return replace(config, **given)


def _asset(name: str) -> Path | None:
    from .data import ASSETS

    path = ASSETS / f"{name}_pdae.safetensors"
    return path if path.is_file() else None


def _dpm(name: str):
    from .checkpoint import CheckpointError, load_model
    from .model import PDAE

    path = _asset(name) or Path(name)
    model = load_model(path)
    model = model.dpm if isinstance(model, PDAE) else model
    if not hasattr(model, "trunk"):
        raise CheckpointError(f"{path}: holds a {type(model).__name__}; want a DPM or a PDAE")
    return model


def _pdae(name: str):
    from .model import PDAE

    return PDAE.load(_asset(name) or Path(name))


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
