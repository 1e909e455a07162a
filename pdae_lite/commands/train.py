"""The commands that train: `pdae pretrain`, `pdae train` and `pdae latent`."""
import argparse
import contextlib
import os
from dataclasses import replace

from .models import DPM, fingerprint, image_shape, kind_of, load_autoencoder, load_dpm, model_file
from .settings import UsageError, override

__all__ = ["METHODS", "add_commands", "load_autoencoder", "load_dpm", "model_file"]

DATA = """training data: digits or peeps, which ship; FOLDER, every image below it; classes:FOLDER, the same with a subfolder
for each class; lmdb:PATH, in Diff-AE's layout; torchvision:NAME[:ROOT], mnist, fashion_mnist, cifar10 or celeba in the folder
ROOT (default: data)"""
FLAGS = (("steps", int, "optimizer steps"), ("batch-size", int, "images a step"), ("lr", float, "learning rate"),
         ("save-every", int, "steps between checkpoints"), ("log-every", int, "steps between log entries"),
         ("seed", int, "seed of weights, data order and noise"))
WITHOUT_PRESET = "peeps64"  # whose networks --size alone stretches to other images


def add_commands(commands) -> None:
    """Add the commands to an argparse subparsers object."""
    pretrain = commands.add_parser("pretrain", help="train a diffusion model (the DPM)",
                                   description="Train a diffusion model from scratch.")
    pretrain.set_defaults(run=_pretrain)
    _options(pretrain)

    train = commands.add_parser("train", help="train a PDAE on a frozen DPM, a Diff-AE, or a classifier of noisy images",
                                description="Train an encoder and a gradient estimator on a frozen diffusion model (PDAE); or, from "
                                            "scratch, an encoder and a diffusion model together (diffae), or a classifier of noisy "
                                            "images, for guidance (classifier).")
    train.add_argument("--method", choices=tuple(METHODS), default="pdae", help="what to train (default: %(default)s)")
    train.add_argument("--dpm", metavar="DPM", help=f"for pdae: {DPM}")
    train.add_argument("--dpm-by", choices=("value", "reference"), default="value",
                       help="for hf: what the PDAE's file holds of its DPM: the weights, or where they are (default: %(default)s)")
    train.set_defaults(run=_train)
    _options(train)
    for command in (pretrain, train):
        command.add_argument("--labels", action="store_true",
                             help="condition on the class of an image: a DPM that takes it; a PDAE or a Diff-AE with an embedding of it in "
                                  "place of the encoder")

    latent = commands.add_parser("latent", help="train a latent DPM, which draws new codes",
                                 description="Encode the training images and train a diffusion model of their codes.")
    latent.add_argument("--model", required=True, metavar="FILE",
                        help="the PDAE or Diff-AE whose codes to learn: a file of `pdae train`, or the name of a shipped model (digits)")
    latent.set_defaults(run=_latent)
    _options(latent)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="DATA", help=DATA)
    parser.add_argument("--download", action="store_true", help="let torchvision fetch the data set if it isn't in its folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for model.safetensors (EMA weights) and checkpoints")
    parser.add_argument("--preset", metavar="NAME", help="networks and settings; `pdae presets` lists them (default: the one that the "
                                                         "given model was trained with, or else the data set's)")
    parser.add_argument("--size", type=int, metavar="S", help="side of the images in pixels (default: the preset's); without a preset, the "
                                                              f"networks of {WITHOUT_PRESET} for that side")
    for name, kind, what in FLAGS:
        parser.add_argument(f"--{name}", type=kind, metavar=name[0].upper(), help=f"{what} (default: the preset's)")
    parser.add_argument("--weight", help="loss weighting: pdae, simple, vlb, p2, min_snr or v (default: the preset's)")
    parser.add_argument("--precision", choices=("no", "bf16"), help="autocast to bf16, or not (default: the preset's)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile the training step, or don't (default: "
                                                                                 "the preset's)")
    parser.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, help="also log for TensorBoard (default: the preset's)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="change any setting, such as train.warmup=500, unet.channel_mult=1,2,2 or encoder.z_dim=128; may be given "
                             "several times; `pdae presets NAME` lists the settings of a preset. The options above win over it")


# ---- commands -----------------------------------------------------------------------------------------------------------


def _pretrain(args) -> None:
    _join_processes()
    preset = _sized(args, "pretrain")
    data, config = _data(args, preset), preset.pretrain
    preset = _labelled(args, preset, data)
    _seed(config)
    _run(preset.dpm(), data, config, args, schedule=preset.schedule())


def _train(args) -> None:
    _join_processes()
    if args.dpm is not None and args.method != "pdae":
        raise UsageError(f"--dpm {args.dpm}, but --method {args.method} trains everything from scratch; leave --dpm out")
    METHODS[args.method](args)


def _train_pdae(args) -> None:
    if args.dpm is None:
        raise UsageError("--dpm is missing; train a DPM by `pdae pretrain`, name a shipped model (digits), or bring one: hf:…, adm:…, "
                         "released:…")
    from ..pdae import PDAE

    kind = kind_of(args.dpm)
    ours, of_adm = ([s for s in args.settings if s.startswith("adm.") == adm] for adm in (False, True))
    with _one_first(kind == "hf"):
        dpm, schedule = load_dpm(args.dpm, of_adm, args.dpm_by, args.size)
    size, channels = _takes(args, dpm, dpm)
    named, args.settings, args.size = args.preset is not None, ours, size
    preset = _preset(args, dpm).encoding(size, channels)
    if args.preset == WITHOUT_PRESET and not named and getattr(dpm, "metadata", {}).get("preset") is None:
        preset = _for_photos(preset, size, channels)
    preset = _settings(args, "pdae", preset)
    data, config = _data(args, preset, size, channels), preset.train
    preset = _labelled(args, preset, data)
    _seed(config)
    facts = {"dpm": args.dpm} if kind is None else {"dpm": args.dpm, "dpm_sha256": fingerprint(args.dpm, dpm)["sha256"]}
    _run(PDAE(dpm, preset.new_encoder(), schedule, precondition=preset.precondition), data, config, args, metadata=facts)


def _train_diffae(args) -> None:
    preset = _sized(args, "diffae")
    data, config = _data(args, preset), preset.train_diffae
    preset = _labelled(args, preset, data)
    _seed(config)
    _run(preset.diffae(), data, config, args)


def _train_classifier(args) -> None:
    from ..data.sources import count_classes

    preset = _sized(args, "classifier")
    data, config = _data(args, preset), preset.train_classifier
    classes = count_classes(data)
    _seed(config)
    _run(preset.classifier(classes), data, config, args)


def _latent(args) -> None:
    import torch

    from ..applications.latent import latent_codes

    _join_processes()
    model = load_autoencoder(args.model)
    size, channels = _takes(args, model, model.network)
    preset = _preset(args, model)
    preset = _settings(args, "latent", replace(preset, mlp=replace(preset.mlp, z_dim=model.z_dim)))
    data, config = _data(args, preset, size, channels), preset.train_latent
    codes, stats = latent_codes(model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu"), data, flip=config.flip,
                                progress=True)
    _seed(config)
    _run(preset.latent(preset.mlp.z_dim, stats), codes, replace(config, flip=False), args, metadata={"model": args.model})


METHODS = {"pdae": _train_pdae, "diffae": _train_diffae, "classifier": _train_classifier}


def _join_processes() -> None:
    from ..training.loop import join_processes

    join_processes()


def _seed(config) -> None:
    import torch

    torch.manual_seed(config.seed)


def _run(model, data, config, args, metadata: dict | None = None, **options) -> None:
    from ..training.loop import train

    facts = {"data": args.data, "preset": args.preset, **(metadata or {})}
    result = train(model, data, config, out=args.out, metadata=facts, **options)
    last = result.history[-1] if result.history else {}
    if os.environ.get("RANK", "0") == "0":  # one line, however many processes
        print(f"{result.path}: {last.get('step', 0)} steps, {last.get('images', 0)} images, loss {last.get('loss', float('nan')):.5f}")


# ---- arguments to things ----------------------------------------------------------------------------------------------


def _takes(args, model, dpm) -> tuple[int, int]:
    """Side and channels of the images that a given model takes; --size may only say the same."""
    size, channels = image_shape(dpm)
    if args.size not in (None, size):
        raise UsageError(f"--size {args.size}, but the given {type(model).__name__} takes {size}×{size}")
    return size, channels


def _for_photos(preset, size: int, channels: int):
    """The preset for a DPM that came without one: an encoder like the paper's for such images, and the paper's learning rate, as
    the network is likely to be of the size of the paper's."""
    from ..networks.encoder import SemanticEncoder

    encoder = SemanticEncoder.for_images(size, channels, z_dim=512).config
    return replace(preset, encoder=encoder, train=replace(preset.train, steps=20_000, lr=1e-4, ema=0.9995))


def _labelled(args, preset, data):
    from ..data.sources import count_classes

    return preset.with_labels(count_classes(data)) if args.labels else preset


def _preset(args, given=None):
    """The preset that the arguments, or the given model, choose; its name is left in `args.preset`."""
    from ..presets import PRESETS

    args.preset = args.preset or _default_preset(args, PRESETS, getattr(given, "metadata", {}).get("preset"))
    if args.preset not in PRESETS:
        raise UsageError(f"--preset {args.preset!r}; want one of {', '.join(PRESETS)}")
    return PRESETS[args.preset]


def _settings(args, stage: str, preset):
    """The preset as --set and the short options change it."""
    from ..presets import STAGES

    preset, field = override(preset, args.settings, STAGES[stage]), STAGES[stage]["train"]
    flags = (*(name.replace("-", "_") for name, _, _ in FLAGS), "weight", "precision", "compile", "tensorboard")
    given = {name: getattr(args, name) for name in flags if getattr(args, name) is not None}
    return replace(preset, **{field: replace(getattr(preset, field), **given)})


def _sized(args, stage: str):
    preset = _preset(args)
    return _settings(args, stage, preset if args.size is None else preset.resized(args.size, preset.unet.in_channels))


def _default_preset(args, presets: dict, of_given: str | None) -> str:
    if of_given in presets:
        return of_given
    known = ":".join(args.data.split(":")[:2]) if args.data.startswith("torchvision:") else args.data
    for name, preset in presets.items():
        if preset.data and preset.data == known:
            return name
    if args.size is None:
        raise UsageError(f"--data {args.data} has no preset of its own; add --preset NAME (`pdae presets` lists them) or --size S")
    return WITHOUT_PRESET


def _data(args, preset, size: int | None = None, channels: int | None = None):
    from ..data.sources import open_source

    with _one_first(args.download):
        return open_source(args.data, size or preset.unet.image_size, channels or preset.unet.in_channels, args.download, preset.lmdb)


def _one_first(wait: bool):
    """With several processes: one downloads while the others wait."""
    if not wait or "LOCAL_RANK" not in os.environ:
        return contextlib.nullcontext()
    from accelerate import PartialState

    return PartialState().local_main_process_first()
