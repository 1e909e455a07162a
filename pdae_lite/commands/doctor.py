"""The command `pdae doctor`: a trained model looked over on images that it hasn't seen."""
from pathlib import Path

from ..autoencoder import load_autoencoder
from ..checkpoint import load, shipped
from ..data import sources
from ..evaluation.doctor import examine
from ..interop.references import image_shape
from .output import place, write_json
from .settings import SEED, UsageError, add_value_range, number, value_range

HELD_OUT = """images that the model wasn't trained on, as for `pdae train`; of digits, peeps and torchvision sets the
test images (default: the data that it was trained on)"""


def add_doctor(parser) -> None:
    """`pdae doctor`."""
    parser.description = """Look a PDAE or a Diff-AE over: does z fill the gap, does it matter, is x_T Gaussian, are
        images rebuilt, or learnt by heart? One verdict each, ok, look or bad, with the numbers and the cure."""
    add = parser.add_argument
    add("file", metavar="FILE", help="a model file, or the name of a shipped model (digits)")
    add("--data", metavar="DATA", help=HELD_OUT)
    add("--train", metavar="DATA", help="training images, to look for overfitting and copies; those sets bring theirs")
    add_value_range(parser)
    add("--labels", action="store_true", help="train linear probes on z for the labels that the data come with")
    add("--images", type=number(int, 1), default=100, metavar="N", help="images to measure on", dest="count")
    add("--checks", metavar="NAME,NAME", help="only these checks, such as fill,z")
    add("--seed", type=SEED, default=0, metavar="S", help="seed of the choice of images and of noise")
    add("--json", metavar="FILE", help="also write all numbers there")
    parser.set_defaults(run=_doctor)


def _doctor(args) -> None:
    if args.json:
        place(args, args.json, option="--json")
    model = load_autoencoder(args.file)
    name = trained_on(args.data, model, args.file)
    if args.data is None and not sources.has_test(name):
        raise UsageError(f"{args.file} was trained on {name}; add --data DATA with images that it hasn't seen "
                         f"(and --train {name})")
    shape, train = image_shape(model.network, model.codec), None
    span = value_range(args, model, name)
    held_out = sources.open_source(name, *shape, split="test", value_range=span)
    if args.train or sources.has_test(name):
        train = sources.open_source(args.train or name, *shape, value_range=span)
    labels, train_labels, names = None, None, None
    if args.labels:
        labels, train_labels = (getattr(images, "labels", None) for images in (held_out, train))
        names = sources.names_of(held_out)
        if labels is None:
            raise UsageError(f"--labels, but {name} has none; use digits, peeps, classes:FOLDER or a torchvision set")
        if train is not None and sources.names_of(train) != names:
            raise UsageError(f"--labels, but {name} and {args.train} have different classes")
    checks = None if args.checks is None else [check.strip() for check in args.checks.split(",")]
    features = load(name, "features") if (name, "features") in shipped() else None  # tells such images apart
    if features is not None and (features.config.image_size, features.config.in_channels) != shape:
        features = None
    report = examine(model, held_out, train, labels, train_labels, names=names, features=features, images=args.count,
                     checks=checks, seed=args.seed, progress=True)
    if args.json:
        write_json(args.json, {"file": Path(args.file).name, "data": name, "value_range": span} | report.to_dict())
    print(report)


def trained_on(name: str | None, model, file: str) -> str:
    """The data that were asked for, or those that a model was trained on."""
    if name := name or model.metadata.get("data"):
        return name
    raise UsageError(f"{file} doesn't say which data it was trained on; add --data DATA, images that it hasn't seen")
