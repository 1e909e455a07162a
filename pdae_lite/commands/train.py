"""The commands that train: `pdae pretrain`, `pdae train` and `pdae latent`."""
import contextlib
import os
from argparse import BooleanOptionalAction
from dataclasses import replace
from pathlib import Path

import torch

from ..applications.latent import latent_codes
from ..applications.warm_start import warm_encoder
from ..autoencoder import load_autoencoder
from ..checkpoint import best_device, model_file
from ..data import sources
from ..data.latents import latents
from ..interop.references import DPM, fingerprint, image_shape, kind_of, load_codec, load_dpm
from ..networks.encoder import SemanticEncoder
from ..pdae import PDAE
from ..presets import PRESETS, STAGES
from ..storage import file_digest
from ..training.loop import join_processes, train
from .output import place, whole
from .settings import SEED, UsageError, add_told, add_value_range, number, override, value_range

DATA = """training data: digits or peeps, which ship; FOLDER, every image below it; classes:FOLDER, the same with a
subfolder for each class; stack:FILE, an .npy or .npz of images; lmdb:PATH, in Diff-AE's layout;
torchvision:NAME[:ROOT], mnist, fashion_mnist, cifar10 or celeba in the folder ROOT (default: data)"""
COUNT = number(int, 1, 10**9)
FLAGS = {"steps": (COUNT, "optimizer steps"), "batch_size": (COUNT, "images a step"),
         "lr": (number(float, 0), "learning rate"), "save_every": (COUNT, "steps between checkpoints"),
         "log_every": (COUNT, "steps between log entries"), "seed": (SEED, "seed of weights, data order and noise"),
         "weight": (str, "loss weighting: pdae, simple, vlb, p2, min_snr, v or flow"),
         "precision": (("no", "bf16"), "autocast to bf16, or not"), "tensorboard": (bool, "also log for TensorBoard"),
         "compile": (bool, "torch.compile the training step, or don't")}
WITHOUT_PRESET = "peeps64"  # whose networks --size alone stretches to other images


def add_pretrain(parser) -> None:
    """`pdae pretrain`."""
    parser.description = "Train a diffusion model, from scratch or on from the weights of one that exists."
    parser.add_argument("--dpm", metavar="FILE", help="""go on from these weights, with an optimizer and an average of
        their own: a file of `pdae pretrain`, or the name of a shipped model""")
    _options(parser, _pretrain, labels=True)


def add_train(parser) -> None:
    """`pdae train`."""
    parser.description = """Train an encoder and a gradient estimator on a frozen diffusion model (PDAE); or, from
        scratch, an encoder and a diffusion model together (diffae), or a classifier of noisy images (classifier)."""
    parser.add_argument("--method", choices=tuple(METHODS), default="pdae", help="what to train")
    parser.add_argument("--dpm", metavar="DPM", help=f"for pdae: {DPM}")
    parser.add_argument("--dpm-by", choices=("value", "reference"), default="value",
                        help="for hf: what the PDAE's file holds of its DPM: the weights, or where they are")
    add_told(parser)
    parser.add_argument("--warm-encoder", type=COUNT, metavar="IMAGES",
                        help="for pdae, diffae: first train the encoder for so many images in a plain autoencoder")
    _options(parser, _train, labels=True)


def add_latent(parser) -> None:
    """`pdae latent`."""
    parser.description = "Encode the training images and train a diffusion model of their codes."
    parser.add_argument("--model", required=True, metavar="FILE", help="""the PDAE or Diff-AE whose codes to learn: a
        file of `pdae train`, or the name of a shipped model (digits)""")
    _options(parser, _latent)


def _options(parser, run, labels: bool = False) -> None:
    add = parser.add_argument
    parser.set_defaults(run=run)
    add("--data", required=True, metavar="DATA", help=DATA)
    add_value_range(parser)
    add("--download", action="store_true", help="let torchvision fetch the data set if it isn't in its folder")
    add("--out", required=True, metavar="DIR", help="folder for model.safetensors (EMA weights) and checkpoints")
    add("--preset", metavar="NAME", help="""networks and settings; `pdae presets` lists them (default: the one that the
        given model was trained with, or else the data set's)""")
    add("--size", type=number(int, 1, 8192), metavar="S", help=f"""side of the images in pixels (default: the preset's);
        without a preset, the networks of {WITHOUT_PRESET} for that side""")
    for name, (kind, what) in FLAGS.items():
        how = {"action": BooleanOptionalAction} if kind is bool else {"type": kind, "metavar": name[0].upper()}
        how = {"choices": kind} if isinstance(kind, tuple) else how
        add(f"--{name.replace('_', '-')}", help=f"{what} (default: the preset's)", **how)
    add("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="""change any setting, such as
        train.warmup=500, unet.channel_mult=1,2,2 or encoder.z_dim=128; may be given several times; `pdae presets NAME`
        lists the settings of a preset. The options above win over it""")
    if labels:
        add("--labels", action="store_true", help="""condition on the class of an image: a DPM that takes it; a PDAE or
            a Diff-AE with an embedding of it in place of the encoder""")


# ---- commands -----------------------------------------------------------------------------------------------------


def _pretrain(args) -> None:
    _begin(args)
    if args.dpm is not None:
        return _pretrain_on(args)
    preset = _sized(args, "pretrain")
    data, config = _data(args, preset), preset.pretrain
    preset = _labelled(args, preset, data, config)
    _run(preset.dpm(), data, config, args, schedule=preset.schedule())


def _pretrain_on(args) -> None:
    if kind_of(args.dpm) is not None or args.labels:
        raise UsageError(f"--dpm {args.dpm}; to go on training, want a file of `pdae pretrain` or a shipped model, "
                         "and no --labels")
    dpm, schedule = load_dpm(args.dpm)
    whole(dpm, args.dpm)
    size, channels = _takes(args, dpm, dpm)
    preset = _settings(args, "pretrain", _preset(args, dpm))
    data = _data(args, preset, size, channels, dpm)
    _run(dpm.requires_grad_(True), data, preset.pretrain, args,
         {"start": args.dpm, "start_sha256": file_digest(model_file(args.dpm))},
         schedule=schedule)


def _train(args) -> None:
    _begin(args)
    if args.dpm is not None and args.method != "pdae":
        raise UsageError(f"--dpm {args.dpm}, but --method {args.method} trains from scratch; leave --dpm out")
    for name in ("prompt", "label"):
        if getattr(args, name) is not None and args.method != "pdae":
            raise UsageError(f"--{name} is what a given DPM is told; --method {args.method} has none, leave it out")
    METHODS[args.method](args)


def _train_pdae(args) -> None:
    if args.dpm is None:
        raise UsageError("--dpm is missing; train a DPM by `pdae pretrain`, name a shipped model (digits), or bring "
                         "one: hf:…, adm:…, released:…")
    kind = kind_of(args.dpm)
    ours, of_adm = ([s for s in args.settings if s.startswith("adm.") == adm] for adm in (False, True))
    with _one_first(kind == "hf"):
        dpm, schedule = load_dpm(args.dpm, of_adm, args.dpm_by, args.size, args.prompt, args.label)
        codec = load_codec(args.dpm, args.dpm_by)
    whole(dpm, args.dpm)
    size, channels = _takes(args, dpm, dpm, codec)
    side, depth = image_shape(dpm)  # of what the encoder sees: images, or latents
    named, args.settings, args.size = args.preset is not None, ours, size
    preset = _preset(args, dpm).encoding(side, depth)
    if args.preset == WITHOUT_PRESET and not named and getattr(dpm, "metadata", {}).get("preset") is None:
        # For a DPM that came without one: an encoder like the paper's for such images, and the paper's learning rate:
        # the network is likely to be of the size of the paper's.
        preset = replace(preset, encoder=SemanticEncoder.for_images(side, depth, z_dim=512).config,
                         train=replace(preset.train, steps=20_000, lr=1e-4, ema=0.9995))
    preset = _settings(args, "pdae", preset)
    data, config = _data(args, preset, size, channels, dpm), preset.train
    preset = _labelled(args, preset, data, config)
    facts = {} if kind is None else {"dpm_sha256": fingerprint(args.dpm, dpm)["sha256"]}
    pdae = PDAE(dpm, preset.new_encoder(), schedule, precondition=preset.precondition, form=preset.form, codec=codec)
    if codec is not None:  # encoded once, mirrored images apart
        with _one_first(True):
            data = latents(codec.to(best_device()), data, config.flip, Path(args.out), progress=True)
        config = replace(config, flip=False)
    _run(pdae, data, config, args, {"dpm": args.dpm} | facts | _warm(pdae.encoder, data, config, args))


def _train_diffae(args) -> None:
    preset = _sized(args, "diffae")
    data, config = _data(args, preset), preset.train_diffae
    preset = _labelled(args, preset, data, config)
    model = preset.diffae()
    _run(model, data, config, args, _warm(model.encoder, data, config, args))


def _warm(encoder, data, config, args) -> dict:
    """Start the encoder from a plain autoencoder, if asked to; what the file says of it."""
    if args.warm_encoder is None:
        return {}
    kept = Path(args.out) / "warm_encoder.safetensors"
    encoder.load_state_dict(warm_encoder(encoder, data, args.warm_encoder, config, kept).state_dict())
    return {"warm_encoder": args.warm_encoder}


def _train_classifier(args) -> None:
    preset = _sized(args, "classifier")
    data, config = _data(args, preset), preset.train_classifier
    classes = sources.count_classes(data)
    torch.manual_seed(config.seed)
    _run(preset.classifier(classes), data, config, args)


METHODS = {"pdae": _train_pdae, "diffae": _train_diffae, "classifier": _train_classifier}


def _latent(args) -> None:
    _begin(args)
    model = whole(load_autoencoder(args.model), args.model)
    size, channels = _takes(args, model, model.network, model.codec)
    preset = _preset(args, model)
    preset = _settings(args, "latent", replace(preset, mlp=replace(preset.mlp, z_dim=model.z_dim)))
    data, config = _data(args, preset, size, channels, model), preset.train_latent
    codes, stats = latent_codes(model.to(best_device()), data, flip=config.flip, progress=True)
    torch.manual_seed(config.seed)
    _run(preset.latent(preset.mlp.z_dim, stats), codes, replace(config, flip=False), args,
         {"model": args.model, "model_sha256": file_digest(model_file(args.model))})


def _begin(args) -> None:
    for name in ("model.safetensors", "history.json"):
        place(args, Path(args.out) / name)
        if Path(args.out, name).exists() and not Path(args.out, "checkpoints").is_dir():
            raise UsageError(f"--out {args.out} holds a {name}, and no run that could go on; choose another folder")
    join_processes()


def _run(model, data, config, args, facts: dict | None = None, **options) -> None:
    facts = {"data": args.data, "preset": args.preset} | (facts or {})
    facts |= {} if args.value_range is None else {"value_range": args.value_range}
    try:
        result = train(model, data, config, out=args.out, metadata=facts, **options)
    except KeyboardInterrupt as e:
        saved = sorted(Path(args.out, "checkpoints").glob("step_*.safetensors"))
        e.args = (f"the same command goes on from step {int(saved[-1].stem[5:])}" if saved else "nothing was saved",)
        raise
    last = {"step": 0, "images": 0, "loss": float("nan")} | (result.history[-1] if result.history else {})
    if os.environ.get("RANK", "0") == "0":  # one line, however many processes
        print(f"{result.path}: {last['step']} steps, {last['images']} images, loss {last['loss']:.5f}")


# ---- arguments to things ------------------------------------------------------------------------------------------


def _takes(args, model, dpm, codec=None) -> tuple[int, int]:
    """Side and channels of the images that a given model takes; --size may only say the same."""
    size, channels = image_shape(dpm, codec)
    if args.size not in (None, size):
        raise UsageError(f"--size {args.size}, but the given {type(model).__name__} takes {size}×{size}")
    return size, channels


def _labelled(args, preset, data, config):
    """The preset, for labels if they are asked for; weights are drawn next."""
    preset = preset.with_labels(sources.count_classes(data)) if args.labels else preset
    torch.manual_seed(config.seed)
    return preset


def _preset(args, given=None):
    """The preset that the arguments, or the given model, choose; its name is left in `args.preset`."""
    args.preset = args.preset or _default_preset(args, getattr(given, "metadata", {}).get("preset"))
    if args.preset not in PRESETS:
        raise UsageError(f"--preset {args.preset!r}; want one of {', '.join(PRESETS)}")
    return PRESETS[args.preset]


def _default_preset(args, of_given: str | None) -> str:
    if of_given in PRESETS:
        return of_given
    known = ":".join(args.data.split(":")[:2]) if args.data.startswith("torchvision:") else args.data
    for name, preset in PRESETS.items():
        if preset.data and preset.data == known:
            return name
    if args.size is None:
        raise UsageError(f"--data {args.data} has no preset of its own; add --preset NAME (`pdae presets` lists them) "
                         "or --size S")
    return WITHOUT_PRESET


def _settings(args, stage: str, preset):
    """The preset as --set and the short options change it."""
    preset, field = override(preset, args.settings, STAGES[stage]), STAGES[stage]["train"]
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    return replace(preset, **{field: replace(getattr(preset, field), **given)})


def _sized(args, stage: str):
    preset = _preset(args)
    return _settings(args, stage, preset if args.size is None else preset.resized(args.size, preset.unet.in_channels))


def _data(args, preset, size: int | None = None, channels: int | None = None, given=None):
    """The images; their black and white are left in `args.value_range`, where one pair holds for all."""
    with _one_first(args.download):
        images = sources.open_source(args.data, size or preset.unet.image_size, channels or preset.unet.in_channels,
                                     args.download, preset.lmdb, value_range=value_range(args, given, args.data))
    args.value_range = args.value_range or getattr(images, "guessed_range", None)
    return images


def _one_first(wait: bool):
    """With several processes: one downloads while the others wait."""
    if not wait or "LOCAL_RANK" not in os.environ:
        return contextlib.nullcontext()
    from accelerate import PartialState

    return PartialState().local_main_process_first()
