"""The command `pdae doctor`: a trained model looked over on images that it hasn't seen."""
import json
from pathlib import Path

from .settings import UsageError

TESTED = ("digits", "peeps", "torchvision")  # data that come with images held out
HELD_OUT = """images that the model wasn't trained on, as for `pdae train`; of digits, peeps and torchvision sets the test images
(default: the data that it was trained on)"""


def add_doctor(commands) -> None:
    """Add the command to an argparse subparsers object."""
    doctor = commands.add_parser("doctor", help="what is right or wrong with a trained model",
                                 description="Look a PDAE or a Diff-AE over: does z fill the gap, does it matter, is x_T Gaussian, are "
                                             "images rebuilt, or learnt by heart? One verdict each, ok, look or bad, with the numbers "
                                             "and the cure.")
    doctor.add_argument("file", metavar="FILE", help="a model file, or the name of a shipped model (digits)")
    doctor.add_argument("--data", metavar="DATA", help=HELD_OUT)
    doctor.add_argument("--train", metavar="DATA", help="training images, to look for overfitting and copies; digits, peeps and "
                                                        "torchvision sets bring their own")
    doctor.add_argument("--labels", action="store_true", help="train linear probes on z for the labels that the data come with")
    doctor.add_argument("--images", type=int, default=100, metavar="N", help="images to measure on (default: %(default)s)")
    doctor.add_argument("--checks", metavar="NAME,NAME", help="only these checks, such as fill,z")
    doctor.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the choice of images and of noise (default: %(default)s)")
    doctor.add_argument("--json", metavar="FILE", help="also write all numbers there")
    doctor.set_defaults(run=_doctor)


def _doctor(args) -> None:
    from ..checkpoint import write_text
    from ..evaluation.doctor import examine
    from .train import load_autoencoder

    model = load_autoencoder(args.file)
    name = args.data or model.metadata.get("data")
    if not name:
        raise UsageError(f"{args.file} doesn't say which data it was trained on; add --data DATA, images that it hasn't seen")
    kind = name.partition(":")[0]
    if args.data is None and kind not in TESTED:
        raise UsageError(f"{args.file} was trained on {name}; add --data DATA with images that it hasn't seen (and --train {name})")
    held_out, train = _open(name, model, "test"), None
    if args.train or kind in TESTED:
        train = _open(args.train or name, model, "train")
    labels, train_labels, names = None, None, None
    if args.labels:
        labels, train_labels = (getattr(images, "labels", None) for images in (held_out, train))
        names = getattr(held_out, "attributes", None) or getattr(held_out, "classes", None)
        if labels is None:
            raise UsageError(f"--labels, but {name} has none; use digits, peeps, classes:FOLDER or a torchvision set")
        if getattr(train, "classes", names) != names or getattr(train, "attributes", names) != names:
            raise UsageError(f"--labels, but {name} and {args.train} have different classes")
    checks = None if args.checks is None else [check.strip() for check in args.checks.split(",")]
    report = examine(model, held_out, train, labels, train_labels, names=names, features=_feature_net(kind, model), images=args.images,
                     checks=checks, seed=args.seed, progress=True)
    print(report)
    if args.json:
        write_text(args.json, json.dumps({"file": Path(args.file).name, "data": name} | report.to_dict(), indent=1) + "\n")


def _open(name: str, model, split: str):
    from .. import data
    from ..data.sources import open_source

    size, channels = model.network.config.image_size, model.network.config.in_channels
    kind, _, rest = name.partition(":")
    if split == "train" or kind not in TESTED:
        return open_source(name, size, channels)
    if kind == "torchvision":
        known, _, root = rest.partition(":")
        images = data.torchvision_set(known, "test", root or "data", size=size)
    else:
        images = data.shipped_images(kind, "test", size)
    shape = tuple((images[0][0]).shape)
    if shape != (channels, size, size):
        raise UsageError(f"{name} holds images of {'×'.join(map(str, shape))}, the model takes {channels}×{size}×{size}")
    return images


def _feature_net(kind: str, model):
    """The shipped network to tell such images apart, if there is one."""
    from .. import load, shipped

    if (kind, "features") not in shipped():
        return None
    net = load(kind, "features")
    takes = (net.config.image_size, net.config.in_channels)
    return net if takes == (model.network.config.image_size, model.network.config.in_channels) else None
