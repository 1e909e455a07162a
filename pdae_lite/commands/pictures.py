"""The commands that make pictures with a trained model, reconstruct, interpolate, edit and sample, and `pdae probe`, which edit needs.
Each writes one PNG and, beside it, a JSON file with the arguments, a SHA-256 of every model, and the numbers."""
import argparse
import json
import math
from pathlib import Path

from .models import DPM, fingerprint, image_shape, kind_of, load_autoencoder, load_dpm, model_file
from .output import png, read_image, write_grid, write_record
from .settings import UsageError

AT_ONCE = 64  # images that go through a network together
SCALES = (-0.3, -0.15, 0.0, 0.15, 0.3)
MODEL = "name of a shipped model (digits), or a model file"


def add_images(commands) -> None:
    """Add the commands to an argparse subparsers object."""
    command = _command(commands, "reconstruct", _reconstruct, "encode images and rebuild them",
                       "Encode images and rebuild them from z alone (random x_T) and from z with the inferred x_T. Columns of the PNG: "
                       "original, z alone, z and x_T.")
    _takes_images(command, "+")
    _makes_picture(command)

    command = _command(commands, "interpolate", _interpolate, "images between two images",
                       "Interpolate between two images: z along a line, the inferred x_T along a great circle. The PNG is a strip from "
                       "the first to the second, both rebuilt.")
    _takes_images(command, 2)
    _makes_picture(command)
    command.add_argument("-n", type=int, default=9, metavar="N", help="images in the strip, the two ends among them (default: %(default)s)")

    command = _command(commands, "edit", _edit, "give images more or less of an attribute",
                       "Move the code of each image along the direction of an attribute, keep its inferred x_T, and decode. Columns of the "
                       "PNG: original, then one for each scale. The JSON file also says how likely the probe finds the attribute in each "
                       "edited image, encoded again.")
    _takes_images(command, "+")
    _makes_picture(command)
    command.add_argument("--attribute", required=True, metavar="NAME", help="a name that the probe knows; another lists them")
    command.add_argument("--probe", metavar="FILE", help="a file of `pdae probe`, or the name of a shipped model (default: the one that "
                                                         "ships with the model)")
    command.add_argument("--scale", type=float, nargs="+", default=SCALES, metavar="S",
                         help="steps along the direction, in units of a code's length; the paper uses 0.1 to 0.3 (default: "
                              f"{' '.join(f'{s:g}' for s in SCALES)})")
    command.add_argument("--keep", action="append", default=[], metavar="NAME", help="an attribute to leave alone; may be repeated")

    command = _command(commands, "sample", _sample, "draw new images",
                       "Draw new images: from a PDAE or a Diff-AE with codes of a latent DPM, a PDAE's last 30 % of the steps by its DPM "
                       "alone, as in the paper; or from a DPM.")
    command.add_argument("--model", required=True, metavar="MODEL", help=f"{MODEL}, of a PDAE, a Diff-AE or a DPM; or {DPM}")
    command.add_argument("--latent", metavar="FILE", help="a file of `pdae latent` (default: the one that ships with the model)")
    command.add_argument("--plain", action="store_true", help="of a PDAE, only the DPM inside it")
    command.add_argument("-n", type=int, default=16, metavar="N", help="how many (default: %(default)s)")
    command.add_argument("--off-last", type=float, metavar="P",
                         help="share of the steps, the last ones, that a PDAE leaves to its DPM alone (default: 0.3)")
    command.add_argument("--each", metavar="DIR", help="also write every image by itself into this folder")
    _makes_picture(command)

    command = _command(commands, "probe", _probe, "fit linear probes of attributes, for edit",
                       "Encode labelled images and fit linear classifiers of their codes; every fifth image is left out to test them on.")
    command.add_argument("--model", required=True, metavar="MODEL", help=MODEL)
    command.add_argument("--data", required=True, metavar="DATA", help="labelled images: digits, peeps, classes:FOLDER or torchvision:NAME")
    command.add_argument("--l2", type=float, help="penalty on the weights; 10 gives the directions that edit best, the difference of the "
                                                  "means (default: by cross-validation, which predicts best)")
    command.add_argument("--out", required=True, metavar="FILE", help="where to write the probes (.safetensors)")


def _command(commands, name: str, run, brief: str, about: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=brief, description=about)
    command.set_defaults(run=run)
    return command


def _takes_images(command: argparse.ArgumentParser, count) -> None:
    command.add_argument("images", nargs=count, metavar="FILE", help="image files; cropped to a square and resized to the model's size")
    command.add_argument("--model", required=True, metavar="MODEL", help=MODEL)
    command.add_argument("--negative", action="store_true",
                         help="swap black and white first: the digits model wants white strokes on black")


def _makes_picture(command: argparse.ArgumentParser) -> None:
    name = command.prog.split()[-1]
    command.add_argument("--out", default=f"{name}.png", metavar="PNG", help="where to write the picture; a .json goes beside it (default: "
                                                                             "%(default)s)")
    command.add_argument("--steps", type=int, default=100, metavar="N", help="sampling steps (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all noise (default: %(default)s)")


# ---- commands -----------------------------------------------------------------------------------------------------------


def _reconstruct(args) -> None:
    out, model, images, z = _encoded(args)
    from_z = _decode(model, z, model.noise(len(z), _generator(args)), args)
    exact = _decode(model, z, _invert(model, images, z, args), args)
    errors = {"z": _mse(from_z, images), "z_and_x_T": _mse(exact, images)}
    write_grid([images, from_z, exact], out)
    write_record(args, out, {"model": fingerprint(args.model)}, mse=[dict(zip(errors, pair)) for pair in zip(*errors.values())])
    for path, error_z, error in zip(args.images, *errors.values()):
        print(f"{path}: MSE on [0, 1] {error_z:.4f} from z alone, {error:.2e} with the inferred x_T")
    print(out)


def _interpolate(args) -> None:
    import torch

    from ..sampling import slerp

    if args.n < 2:
        raise UsageError(f"-n {args.n}; want at least 2, the two ends")
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
    import torch

    from ..applications.attributes import edit

    probe, probe_file = _probe_of(args)
    column = probe.column(args.attribute)
    out, model, images, z = _encoded(args)
    if probe.z_dim != model.z_dim:
        raise UsageError(f"{probe_file}: a probe of codes with z_dim={probe.z_dim}, but {args.model} has z_dim={model.z_dim}; fit one by "
                         "`pdae probe`")
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
        print(f"{path}: {args.attribute} {p:.2f}; " + ", ".join(f"{e['probability_of_image']:.2f} at {e['scale']:g}" for e in row))
    print(out)


def _sample(args) -> None:
    out = png(args.out)
    if args.n < 1:
        raise UsageError(f"-n {args.n}; want at least 1")
    model = None if kind_of(args.model) else _autoencoder_or_none(args.model)
    if model is None or args.plain:
        if args.latent or args.off_last is not None:
            raise UsageError(f"{'--latent' if args.latent else '--off-last'}, but a DPM by itself has no codes")
        images, models = _sample_plain(args)
    else:
        images, models = _sample_with_codes(args, model)
    side = math.ceil(math.sqrt(len(images)))
    write_grid([images[i::side] for i in range(side)], out)
    write_record(args, out, models)
    if args.each:
        from torchvision.transforms.functional import to_pil_image

        from ..data.builtin import to_uint8

        folder = Path(args.each)
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(to_uint8(images).cpu()):
            to_pil_image(image).save(folder / f"{i:06d}.png")
    print(out)


def _probe(args) -> None:
    import torch

    from ..applications.attributes import LinearProbe, encode_all
    from ..checkpoint import write_text
    from ..data.sources import open_source

    if Path(args.out).suffix != ".safetensors":
        raise UsageError(f"--out {args.out}; want a file name that ends in .safetensors")
    model = load_autoencoder(args.model).to(_device())
    data = open_source(args.data, *image_shape(model.network))
    labels = getattr(data, "labels", None)
    if labels is None:
        raise UsageError(f"--data {args.data} has no labels; want digits, peeps, classes:FOLDER or torchvision:NAME")
    labels = torch.as_tensor(labels).long()
    names = getattr(data, "attributes", None) or getattr(data, "classes", None) or [str(i) for i in range(int(labels.max()) + 1)]
    z = encode_all(model, data, AT_ONCE, progress=True)
    test = torch.arange(len(z)) % 5 == 4
    probe = LinearProbe.fit(z[~test], labels[~test], names, args.l2)
    numbers = {"accuracy": probe.accuracy(z[test], labels[test]), "auroc": probe.auroc(z[test], labels[test])}
    numbers = {k: [None if math.isnan(x) else round(x, 4) for x in v.reshape(-1).tolist()] for k, v in numbers.items()}
    counts = {"images": int((~test).sum()), "tested_on": int(test.sum())}
    facts = {"data": args.data, "model": fingerprint(args.model)} | counts | numbers
    probe.save(args.out, facts)
    write_text(Path(args.out).with_suffix(".json"), json.dumps({"attributes": list(names)} | facts, indent=1) + "\n")
    for name, area in zip(names, numbers["auroc"]):
        print(f"{name}: AUROC {'–' if area is None else f'{area:.3f}'}")
    print(f"{args.out}: {len(names)} {probe.kind}, tested on {counts['tested_on']} images that were left out")


# ---- images and codes ---------------------------------------------------------------------------------------------------


def _device():
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _generator(args):
    import torch

    return torch.Generator().manual_seed(args.seed)


def _encoded(args):
    """(PNG to write, model, images, their codes)."""
    import torch

    out = png(args.out)
    model = load_autoencoder(args.model).to(_device())
    if getattr(model.encoder, "takes_labels", False):
        raise UsageError(f"{args.model} embeds labels; want a model that encodes images")
    size, channels = image_shape(model.network)
    images = torch.stack([read_image(path, channels, size) for path in args.images]).to(model.device)
    images = -images if args.negative else images
    with torch.no_grad():
        return out, model, images, torch.cat([model.encode(part) for part in images.split(AT_ONCE)])


def _in_parts(function, *tensors):
    import torch

    return torch.cat([function(*parts) for parts in zip(*(t.split(AT_ONCE) for t in tensors))])


def _decode(model, z, x_T, args):
    return _in_parts(lambda a, b: model.decode(a, b, steps=args.steps, progress=True), z, x_T)


def _invert(model, images, z, args):
    return _in_parts(lambda a, b: model.invert(a, b, steps=args.steps, progress=True), images, z)


def _mse(images, originals) -> list[float]:
    """Mean square error of each image on [0, 1]."""
    return ((images - originals) / 2).square().flatten(1).mean(1).tolist()


def _probe_of(args):
    from .. import shipped
    from ..applications.attributes import LinearProbe
    from ..data.builtin import ASSETS

    name = args.probe or args.model
    path = ASSETS / f"{name}_probe.safetensors" if (name, "probe") in shipped() else Path(name)
    if args.probe is None and not path.name.endswith("_probe.safetensors"):
        raise UsageError(f"--probe is missing: none ships with {args.model}; fit one by `pdae probe --model {args.model} --data DATA`")
    return LinearProbe.load(path), path


def _autoencoder_or_none(name: str):
    from ..autoencoder import Autoencoder
    from ..checkpoint import load_model

    model = load_model(model_file(name))
    return model if isinstance(model, Autoencoder) else None


def _sample_plain(args):
    import torch

    from ..sampling import ddim

    dpm, schedule = load_dpm(args.model)
    if getattr(dpm.config, "num_classes", None) is not None:
        raise UsageError(f"{args.model} is conditional on a class; draw from it in Python")
    size, channels = image_shape(dpm)
    dpm = dpm.to(_device()).eval()
    x_T = torch.randn(args.n, channels, size, size, generator=_generator(args)).to(next(dpm.parameters()))
    return _in_parts(lambda x: ddim(dpm, x, schedule, args.steps, progress=True), x_T), {"model": fingerprint(args.model, dpm)}


def _sample_with_codes(args, model):
    from .. import shipped
    from ..applications.latent import LatentDPM, sample_images
    from ..data.builtin import ASSETS

    path = args.latent
    if path is None and (args.model, "latent") in shipped():
        path = str(ASSETS / f"{args.model}_latent.safetensors")
    if path is None:
        raise UsageError(f"--latent is missing: none ships with {args.model}; train one by `pdae latent`, or add --plain for a PDAE's DPM")
    latent, device = LatentDPM.load(path), _device()
    images = sample_images(model.to(device), latent.to(device), args.n, args.steps, off_last=args.off_last, generator=_generator(args),
                           batch_size=AT_ONCE, progress=True)
    return images, {"model": fingerprint(args.model), "latent": fingerprint(path)}
