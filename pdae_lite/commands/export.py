"""The command `pdae export`: a model for other runtimes, and as a page that computes."""
from pathlib import Path

import torch

from ..applications.attributes import LinearProbe
from ..autoencoder import load_autoencoder
from ..checkpoint import model_file, shipped, shipped_file
from ..data import sources
from ..data.builtin import Images
from ..interop.onnx import WEIGHTS, import_onnx, to_onnx
from ..interop.references import image_shape
from ..viz.live import STEPS, live_page
from .output import check_partner, place, table, whole
from .settings import UsageError

HELD_OUT = 500  # images of --data at most, which the bars of z are scaled by


def add_export(parser) -> None:
    """`pdae export`."""
    parser.description = """Write a PDAE as ONNX graphs: encoder, trunk, the DPM's own head, and the head that knows z.
        The heads share the trunk's features, so weights are stored once. Each graph is checked by onnxruntime against
        PyTorch. For PDAEs on a U-Net of this library or a UNet2DModel of diffusers. With --page, a folder with an
        index.html that runs them in the reader's browser, to open as it lies or to put on any static host."""
    add = parser.add_argument
    add("file", metavar="MODEL", help="a model file, or the name of a shipped model (digits)")
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--onnx", metavar="DIR", help="folder for the graphs and model.json, which a sampler needs")
    to.add_argument("--page", metavar="DIR", help="folder for a page: grey or RGB images, 32×32 or 64×64")
    add("--data", metavar="DATA", help="""with --page: held-out images to choose from, as for `pdae train`; of digits,
        peeps and torchvision sets the test images (default: the model's own, if it ships)""")
    add("--probe", metavar="FILE", help="""with --page: a file of `pdae probe`, or the name of a shipped model, for
        sliders of attributes""")
    add("--force", action="store_true", help="use the probe even if it is of another model's codes")
    add("--weights", choices=WEIGHTS, default="int8", help="how weights are stored; the arithmetic is float32")
    parser.set_defaults(run=_export)


def _export(args) -> None:
    import_onnx()
    option = "--page" if args.page else "--onnx"
    folder, kept = Path(args.page or args.onnx), "live/model.js" if args.page else "model.json"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{option} {folder} is a file; want a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / kept).is_file():
        raise UsageError(f"{option} {folder} holds other files; want a new or an empty folder, or an export")
    if args.onnx and (args.data or args.probe):
        raise UsageError(f"{'--data' if args.data else '--probe'} is for --page")
    place(args, folder / ("index.html" if args.page else "encoder.onnx"), option=option)
    model = whole(load_autoencoder(args.file), args.file).cpu().eval()
    if args.page:
        return _page(args, model, folder)
    _told(to_onnx(model, folder, args.weights), args.weights, str(folder))


def _page(args, model, folder: Path) -> None:
    name = args.data or args.file
    if not args.data and not sources.has_test(name):
        raise UsageError(f"--data is missing: images to choose from, {sources.SYNTAX}")
    images = sources.open_source(name, *image_shape(model.network, model.codec), split="test")
    items = [images[i] for i in range(min(len(images), HELD_OUT))]
    pixels, labels = zip(*[item if isinstance(item, tuple) else (item, torch.zeros(())) for item in items])
    probe = None
    if args.probe:
        file = shipped_file(args.probe, "probe") if (args.probe, "probe") in shipped() else model_file(args.probe)
        probe, args.model = whole(LinearProbe.load(file), file), args.file
        if probe.z_dim != model.z_dim:
            raise UsageError(f"{file}: a probe of codes with z_dim={probe.z_dim}, but {args.file} has "
                             f"z_dim={model.z_dim}")
        check_partner(args, "probe", file, probe.metadata)
    held_out = Images(torch.stack(pixels), torch.stack([torch.as_tensor(label) for label in labels]))
    title = args.file if (args.file, "pdae") in shipped() else Path(args.file).stem
    size = live_page(model, held_out, folder, f"{title}: a PDAE in your browser", args.weights,
                     "digit" if name == "digits" else "image", probe,
                     lambda facts: _told(facts, args.weights, "the model", STEPS))
    print(f"{folder / 'index.html'}: open it, or put the folder on any static host; it loads {size / 1e6:.1f} MB "
          "on Start")


def _told(facts: dict, weights: str, what: str, steps: int = 0) -> None:
    """Sizes, differences and speed, on the screen."""
    print(table(("GRAPH", "MB", "DIFFERENCE", f"AS {weights.upper()}", "MS"), [
        [part, f"{f['bytes'] / 1e6:.2f}", f"{f['difference']:.1e}", f"{f['as_stored']:.1e}", f"{f['milliseconds']:.1f}"]
        for part, f in facts.items()]))
    total, cost = sum(f["bytes"] for f in facts.values()) / 1e6, {p: f["milliseconds"] for p, f in facts.items()}
    plain = cost["trunk"] + cost["head"]
    each = f"; {steps} steps, one image, {steps * (plain + cost['known']) / 1000:.1f} s here; a browser needs longer"
    print(f"{what}: {total:.1f} MB; an evaluation takes {plain + cost['known']:.0f} ms on one core, {plain:.0f} ms "
          f"where z has no say{each if steps else ''}\n"
          "differences: the largest between onnxruntime and PyTorch, in standard deviations of the output")
