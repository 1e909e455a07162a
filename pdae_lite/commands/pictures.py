"""The commands that make pictures with a trained model: reconstruct, interpolate, edit and sample; and probe, which
edit needs. Each writes one PNG and, beside it, a JSON file with the arguments, SHA-256s of the models, and numbers."""
import math
from pathlib import Path

import torch

from .. import data
from ..applications.attributes import LinearProbe, edit, encode_labelled
from ..applications.latent import LatentDPM, sample_images
from ..autoencoder import Autoencoder, load_autoencoder
from ..checkpoint import best_device, load_model, model_file, shipped, shipped_file
from ..data import sources
from ..interop.references import DPM, MODEL, fingerprint, image_shape, kind_of, load_codec, load_dpm
from ..sampling import ddim, slerp
from .output import (
    check_partner,
    pixels,
    place,
    place_with_record,
    whole,
    write_grid,
    write_json,
    write_png,
    write_record,
)
from .settings import SEED, UsageError, add_told, add_value_range, number, value_range

AT_ONCE = 64  # images that go through a network together
MOST = 1_000_000  # images of a command
SCALES = (-0.3, -0.15, 0.0, 0.15, 0.3)


def add_reconstruct(parser) -> None:
    """`pdae reconstruct`."""
    parser.description = """Encode images and rebuild them from z alone (random x_T) and from z with the inferred x_T.
        Columns of the PNG: original, z alone, z and x_T."""
    _takes_images(parser, "+")
    _makes_picture(parser, _reconstruct)


def add_interpolate(parser) -> None:
    """`pdae interpolate`."""
    parser.description = """Interpolate between two images: z along a line, the inferred x_T along a great circle. The
        PNG is a strip from the first to the second, both rebuilt."""
    _takes_images(parser, 2)
    _makes_picture(parser, _interpolate)
    parser.add_argument("-n", type=number(int, 2, MOST), default=9, metavar="N", help="images, the two ends among them")


def add_edit(parser) -> None:
    """`pdae edit`."""
    parser.description = """Move the code of each image along the direction of an attribute, keep its inferred x_T, and
        decode. Columns of the PNG: original, then one for each scale. The JSON file also says how likely the probe
        finds the attribute in each edited image, encoded again."""
    _takes_images(parser, "+")
    _makes_picture(parser, _edit)
    add = parser.add_argument
    add("--attribute", required=True, metavar="NAME", help="a name that the probe knows; another lists them")
    add("--probe", metavar="FILE", help="""a file of `pdae probe`, or the name of a shipped model (default: the one that
        ships with the model)""")
    add("--scale", type=number(float), nargs="+", default=SCALES, metavar="S", help=f"""steps along the direction, in
        units of a code's length; the paper uses 0.1 to 0.3 (default: {' '.join(f'{s:g}' for s in SCALES)})""")
    add("--keep", action="append", default=[], metavar="NAME", help="an attribute to leave alone; may be repeated")
    add("--force", action="store_true", help="use the probe even if it is of another model's codes")


def add_sample(parser) -> None:
    """`pdae sample`."""
    parser.description = """Draw new images: from a PDAE or a Diff-AE with codes of a latent DPM, a PDAE's last 30 % of
        the steps by its DPM alone, as in the paper; or from a DPM."""
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help=f"{MODEL}, of a PDAE, a Diff-AE or a DPM; or {DPM}")
    add("--latent", metavar="FILE", help="a file of `pdae latent` (default: the one that ships with the model)")
    add("--force", action="store_true", help="use the latent DPM even if it is of another model's codes")
    add_told(parser)
    add("--plain", action="store_true", help="of a PDAE, only the DPM inside it")
    add("-n", type=number(int, 1, MOST), default=16, metavar="N", help="how many")
    add("--off-last", type=number(float, 0, 1), metavar="P",
        help="share of the steps, the last ones, that a PDAE leaves to its DPM alone (default: 0.3)")
    add("--each", metavar="DIR", help="also write every image by itself into this folder")
    _makes_picture(parser, _sample)


def add_probe(parser) -> None:
    """`pdae probe`."""
    parser.description = """Encode labelled images and fit linear classifiers of their codes; every fifth image is left
        out to test them on."""
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help=MODEL)
    add("--data", required=True, metavar="DATA", help="labelled: digits, peeps, classes:FOLDER or torchvision:NAME")
    add_value_range(parser)
    add("--l2", type=number(float, 0), help="""penalty on the weights; 10 gives the directions that edit best, the
        difference of the means (default: by cross-validation, which predicts best)""")
    add("--out", required=True, metavar="FILE", help="where to write the probes (.safetensors)")
    parser.set_defaults(run=_probe)


def _takes_images(parser, count) -> None:
    add = parser.add_argument
    add("images", nargs=count, metavar="FILE", help="image files; cropped to a square and resized to the model's size")
    add("--model", required=True, metavar="MODEL", help=MODEL)
    add_value_range(parser)
    add("--negative", action="store_true", help="swap black and white first: the digits model wants white on black")


def _makes_picture(parser, run) -> None:
    add = parser.add_argument
    add("--out", default=f"{parser.prog.split()[-1]}.png", metavar="PNG", help="the picture; a .json goes beside it")
    add("--steps", type=number(int, 1), default=100, metavar="N", help="sampling steps")
    add("--seed", type=SEED, default=0, metavar="S", help="seed of all noise")
    parser.set_defaults(run=run)


# ---- commands -----------------------------------------------------------------------------------------------------


def _reconstruct(args) -> None:
    out, model, images, z = _encoded(args)
    from_z = _decode(model, z, model.noise(len(z), _generator(args)), args)
    exact = _decode(model, z, _invert(model, images, z, args), args)
    errors = {"z": _mse(from_z, images), "z_and_x_T": _mse(exact, images)}
    if model.codec is not None:
        errors["codec"] = _mse(_in_parts(lambda x: model.codec.decode(model.codec.encode(x)), images), images)
    write_grid([images, from_z, exact], out)
    pairs = [dict(zip(errors, pair)) for pair in zip(*errors.values())]
    write_record(args, out, {"model": fingerprint(args.model)}, mse=pairs)
    for path, error_z, error, *of_codec in zip(args.images, *errors.values()):
        alone = "".join(f", {value:.2e} of the codec alone" for value in of_codec)
        print(f"{path}: MSE on [0, 1] {error_z:.4f} from z alone, {error:.2e} with the inferred x_T{alone}")
    print(out)


def _interpolate(args) -> None:
    out, model, images, z = _encoded(args)
    x_T = _invert(model, images, z, args)
    weight = torch.linspace(0, 1, args.n, device=z.device)
    codes = torch.lerp(z[:1], z[1:], weight[:, None])
    noise = slerp(x_T[:1].expand(args.n, *x_T.shape[1:]), x_T[1:].expand(args.n, *x_T.shape[1:]), weight)
    strip = _decode(model, codes, noise, args)
    write_grid(list(strip[:, None]), out)
    ends = _mse(strip[[0, -1]], images)
    write_record(args, out, {"model": fingerprint(args.model)}, weight=weight.tolist(), mse_of_ends=ends,
                 mse_to_first=_mse(strip, images[:1]), mse_to_second=_mse(strip, images[1:]))
    print(f"MSE on [0, 1] of the two ends: {ends[0]:.2e}, {ends[1]:.2e}")
    print(out)


def _edit(args) -> None:
    probe_file = _partner(args, "probe", args.probe, f"fit one by `pdae probe --model {args.model} --data DATA`")
    probe = whole(LinearProbe.load(probe_file), probe_file)
    column = probe.column(args.attribute)
    out, model, images, z = _encoded(args)
    if probe.z_dim != model.z_dim:
        raise UsageError(f"{probe_file}: a probe of codes with z_dim={probe.z_dim}, but {args.model} has "
                         f"z_dim={model.z_dim}; fit one by `pdae probe`")
    check_partner(args, "probe", probe_file, probe.metadata)
    probe.to(z.device)
    x_T = _invert(model, images, z, args)
    columns, rows = [images], [[] for _ in images]
    for scale in args.scale:
        code = edit(z, probe, args.attribute, scale, args.keep)
        edited = _decode(model, code, x_T, args)
        columns.append(edited)
        with torch.no_grad():
            seen = probe.probabilities(model.encode(edited))[:, column].tolist()
        for row, *numbers in zip(rows, probe.probabilities(code)[:, column].tolist(), seen, _mse(edited, images)):
            row.append({"scale": scale} | dict(zip(("probability_of_code", "probability_of_image", "mse"), numbers)))
    before = probe.probabilities(z)[:, column].tolist()
    write_grid(columns, out)
    found = [{"file": path, "probability": p, "edits": row} for path, p, row in zip(args.images, before, rows)]
    write_record(args, out, {"model": fingerprint(args.model), "probe": fingerprint(str(probe_file))}, images=found)
    for path, p, row in zip(args.images, before, rows):
        edits = ", ".join(f"{e['probability_of_image']:.2f} at {e['scale']:g}" for e in row)
        print(f"{path}: {args.attribute} {p:.2f}; {edits}")
    print(out)


def _sample(args) -> None:
    out = place_with_record(args, args.out, ".png")
    if args.each:
        place(args, Path(args.each) / "000000.png", option="--each")
    model = None if kind_of(args.model) else whole(load_model(model_file(args.model)), args.model)
    if args.plain or not isinstance(model, Autoencoder):
        if args.latent or args.off_last is not None:
            raise UsageError(f"{'--latent' if args.latent else '--off-last'}, but a DPM by itself has no codes")
        images, models = _sample_plain(args)
    else:
        images, models = _sample_with_codes(args, model)
    side = math.ceil(math.sqrt(len(images)))
    write_grid([images[i::side] for i in range(side)], out)
    write_record(args, out, models)
    for i, image in enumerate(pixels(images) if args.each else ()):
        write_png(image, Path(args.each) / f"{i:06d}.png")
    print(out)


def _probe(args) -> None:
    out = place_with_record(args, args.out, ".safetensors")
    model = whole(load_autoencoder(args.model), args.model).to(best_device())
    images = sources.open_source(args.data, *image_shape(model.network, model.codec),
                                 value_range=value_range(args, model, args.data))
    labels = getattr(images, "labels", None)
    if labels is None:
        raise UsageError(f"--data {args.data} has no labels; want digits, peeps, classes:FOLDER or torchvision:NAME")
    names = sources.names_of(images) or [str(i) for i in range(int(labels.max()) + 1)]
    z, labels = encode_labelled(model, images, AT_ONCE, progress=True)
    test = torch.arange(len(z)) % 5 == 4
    probe = LinearProbe.fit(z[~test], labels[~test], names, args.l2)
    numbers = {"accuracy": probe.accuracy(z[test], labels[test]), "auroc": probe.auroc(z[test], labels[test])}
    numbers = {k: [None if math.isnan(x) else round(x, 4) for x in v.reshape(-1).tolist()] for k, v in numbers.items()}
    counts = {"images": int((~test).sum()), "tested_on": int(test.sum())}
    facts = {"data": args.data, "value_range": args.value_range, "model": fingerprint(args.model)} | counts | numbers
    probe.save(out, facts)
    write_json(out.with_suffix(".json"), {"attributes": list(names)} | facts)
    for name, area in zip(names, numbers["auroc"]):
        print(f"{name}: AUROC {'–' if area is None else f'{area:.3f}'}")
    print(f"{out}: {len(names)} {probe.kind}, tested on {counts['tested_on']} images that were left out")


# ---- images and codes ---------------------------------------------------------------------------------------------


def _generator(args):
    return torch.Generator().manual_seed(args.seed)


def _encoded(args):
    """(PNG to write, model, images, their codes)."""
    out = place_with_record(args, args.out, ".png")
    model = whole(load_autoencoder(args.model), args.model).to(best_device())
    if getattr(model.encoder, "takes_labels", False):
        raise UsageError(f"{args.model} embeds labels; want a model that encodes images")
    size, channels = image_shape(model.network, model.codec)
    span = value_range(args, model)
    images = torch.stack([data.read_image(path, channels, size, value_range=span) for path in args.images])
    images = data.to_float(255 - images if args.negative else images).to(model.device)
    with torch.no_grad():
        return out, model, images, torch.cat([model.encode(part) for part in images.split(AT_ONCE)])


def _in_parts(function, *tensors):
    return torch.cat([function(*parts) for parts in zip(*(t.split(AT_ONCE) for t in tensors))])


def _decode(model, z, x_T, args):
    return _in_parts(lambda a, b: model.decode(a, b, steps=args.steps, progress=True), z, x_T)


def _invert(model, images, z, args):
    return _in_parts(lambda a, b: model.invert(a, b, steps=args.steps, progress=True), images, z)


def _mse(images, originals) -> list[float]:
    """Mean square error of each image on [0, 1]."""
    return ((images - originals) / 2).square().flatten(1).mean(1).tolist()


def _partner(args, kind: str, given: str | None, without: str) -> Path:
    """The file of a probe or a latent DPM: the one that was given, or the one that ships with the model."""
    name = given or args.model
    if (name, kind) in shipped():
        return shipped_file(name, kind)
    if given is None:
        raise UsageError(f"--{kind} is missing: none ships with {args.model}; {without}")
    return model_file(given)


def _sample_plain(args):
    dpm, schedule = load_dpm(args.model, prompt=args.prompt, label=args.label)
    if getattr(dpm.config, "num_classes", None) is not None:
        raise UsageError(f"{args.model} is conditional on a class; draw from it in Python")
    (size, channels), codec = image_shape(dpm), load_codec(args.model)
    dpm = whole(dpm, args.model).to(best_device()).eval()
    x_T = torch.randn(args.n, channels, size, size, generator=_generator(args)).to(next(dpm.parameters()))
    images = _in_parts(lambda x: ddim(dpm, x, schedule, args.steps, progress=True), x_T)
    if codec is not None:
        images = _in_parts(codec.to(images.device).decode, images)
    return images, {"model": fingerprint(args.model, dpm)}


def _sample_with_codes(args, model):
    path = _partner(args, "latent", args.latent, "train one by `pdae latent`, or add --plain for a PDAE's DPM")
    latent, device = whole(LatentDPM.load(path), path), best_device()
    check_partner(args, "latent", path, latent.metadata)
    images = sample_images(model.to(device), latent.to(device), args.n, args.steps, off_last=args.off_last,
                           generator=_generator(args), batch_size=AT_ONCE, progress=True)
    return images, {"model": fingerprint(args.model), "latent": fingerprint(str(path))}
