"""The command `pdae export`: a model for other runtimes."""
from pathlib import Path

from ..autoencoder import load_autoencoder
from ..interop.onnx import WEIGHTS, import_onnx, to_onnx
from .output import place, table, whole
from .settings import UsageError


def add_export(parser) -> None:
    """`pdae export`."""
    parser.description = """Write a PDAE as ONNX graphs: encoder, trunk, the DPM's own head, and the head that knows z.
        The heads share the trunk's features, so weights are stored once. Each graph is checked by onnxruntime against
        PyTorch. For PDAEs on a U-Net of this library or a UNet2DModel of diffusers."""
    add = parser.add_argument
    add("file", metavar="MODEL", help="a model file, or the name of a shipped model (digits)")
    add("--onnx", required=True, metavar="DIR", help="folder for the graphs and model.json, which a sampler needs")
    add("--weights", choices=WEIGHTS, default="int8", help="how weights are stored; the arithmetic is float32")
    parser.set_defaults(run=_export)


def _export(args) -> None:
    import_onnx()
    folder = Path(args.onnx)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--onnx {folder} is a file; want a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.json").is_file():
        raise UsageError(f"--onnx {folder} holds other files; want a new or an empty folder, or an export")
    place(args, folder / "encoder.onnx", option="--onnx")
    facts = to_onnx(whole(load_autoencoder(args.file), args.file), folder, args.weights)
    print(table(("GRAPH", "MB", "DIFFERENCE", f"AS {args.weights.upper()}", "MS"), [
        [part, f"{f['bytes'] / 1e6:.2f}", f"{f['difference']:.1e}", f"{f['as_stored']:.1e}", f"{f['milliseconds']:.1f}"]
        for part, f in facts.items()]))
    total, cost = sum(f["bytes"] for f in facts.values()) / 1e6, {p: f["milliseconds"] for p, f in facts.items()}
    plain = cost["trunk"] + cost["head"]
    print(f"{folder}: {total:.1f} MB; an evaluation takes {plain + cost['known']:.0f} ms on one core, {plain:.0f} ms "
          "where z "
          "has no say\ndifferences: the largest between onnxruntime and PyTorch, in standard deviations of the output")
