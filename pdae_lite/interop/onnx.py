"""A PDAE as ONNX graphs, for onnxruntime anywhere, a browser included. Needs the extra `onnx`.

    encoder(x_0)                 -> z [N, z_dim]
    trunk(x_t, t)                -> features f0, f1, …, which the two heads share, so that weights are stored once
    head(x_t, t, f0, …)          -> ε_θ, the DPM's own prediction
    known(x_t, t, f0, …, z)      -> ε_z in the difference form; the shift √(1−ᾱ_t) G in the paper's

t is int64 [1], one for all N images. A head has those of these inputs that it uses. `model.json` beside them says all
that a sampler needs: form, sizes, data range, √ᾱ_t and √(1−ᾱ_t).
"""
import copy
import io
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..pdae import PDAE
from ..storage import write_text

WEIGHTS = ("int8", "fp16", "fp32")
PARTS = ("encoder", "trunk", "head", "known")
SMALL = 4096  # weights with fewer numbers stay in half precision: they are few bytes and count much


class _Graph(nn.Module):
    """One of the graphs; `like`: features, packed as a head gets them."""

    def __init__(self, pdae: PDAE, part: str, like=None):
        super().__init__()
        self.pdae, self.part, self.like = pdae, part, like

    def forward(self, *given: Tensor):
        pdae = self.pdae
        if self.part == "encoder":
            return pdae.encoder(*given)
        if self.part == "trunk":
            return tuple(_packed(pdae.dpm.trunk(*given))[0])
        features = _unpacked(self.like, *given)
        if self.part == "head":
            return pdae.dpm.head(features)
        known = pdae.estimate(features, given[-1])
        if pdae.form == "paper":
            known = pdae.schedule.at("sqrt_one_minus_alpha_bar", given[1], known) * known
        return known


def _packed(features) -> tuple[list[Tensor], list]:
    """The different tensors among features, without x_t and t, and for each feature its place among them."""
    tensors: list[Tensor] = []

    def place(part):
        if isinstance(part, tuple):
            return tuple(map(place, part))
        if part is None:
            return None
        index = next((i for i, t in enumerate(tensors) if t is part), len(tensors))
        tensors.extend([part] * (index == len(tensors)))
        return index

    return tensors, [place(part) for part in features[2:]]


def _unpacked(like, x_t: Tensor, t: Tensor, *parts: Tensor):
    """Features from their parts, packed as `like`'s."""
    def fetch(place):
        return tuple(map(fetch, place)) if isinstance(place, tuple) else None if place is None else parts[place]

    return type(like)(x_t, t, *map(fetch, _packed(like)[1]))


def to_onnx(pdae: PDAE, folder: str | Path, weights: str = "int8") -> dict:
    """Write the graphs and `model.json` into a folder, and check each by onnxruntime at two batch sizes.

    Args:
        weights: how they are stored: "int8" with a scale a row, "fp16" or "fp32". They are unpacked when a file is
            loaded; the arithmetic is float32 in any case.

    Returns:
        For each part its `bytes`, the largest difference to PyTorch as float32 (`difference`) and as stored
        (`as_stored`), in standard deviations of the output, and `milliseconds` for one image on one core.

    Raises:
        ValueError: a model whose DPM is no U-Net of ours or `UNet2DModel` of diffusers, or unknown `weights`.
        ImportError: onnx or onnxruntime isn't installed.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r}; want one of {', '.join(WEIGHTS)}")
    onnx, _ = import_onnx()
    channels, size = _check(pdae)
    folder, pdae = Path(folder), copy.deepcopy(pdae).cpu().float().eval()
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, channels, *size, generator=generator), torch.tensor([pdae.schedule.T // 2])
    facts = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: what is read of a tensor here is its shape, and t's range
        features = pdae.dpm.trunk(x, t)
        shared, z = _packed(features)[0], pdae.encoder(x.clamp(-1, 1))
        told = {"x_t": x, "t": t} | {f"f{i}": f for i, f in enumerate(shared)}
        inputs = {"encoder": {"x_0": x.clamp(-1, 1)}, "trunk": {"x_t": x, "t": t}, "head": told,
                  "known": told | {"z": z}}
        outputs = {"encoder": ["z"], "trunk": list(told)[2:], "head": ["eps"], "known": ["known"]}
        for part in PARTS:
            graph, path, given = _Graph(pdae, part, features).eval(), folder / f"{part}.onnx", inputs[part]
            axes = {name: {0: "n"} for name, value in (given | dict.fromkeys(outputs[part], x)).items()
                    if name != "t" and len(value) == 2}
            made = io.BytesIO()  # in memory: the exporter's own writer refuses names of files that aren't UTF-8
            torch.onnx.export(graph, tuple(given.values()), made, input_names=list(given), output_names=outputs[part],
                              dynamic_axes=axes, opset_version=17, dynamo=False)
            content = made.getvalue()
            exact = stored = _difference(content, graph, given)
            if weights != "fp32":
                model = onnx.load_model_from_string(content)
                _shrink(model, weights)
                content = model.SerializeToString()
                stored = _difference(content, graph, given)
            path.write_bytes(content)
            facts[part] = {"bytes": len(content), "difference": exact, "as_stored": stored,
                           "milliseconds": _milliseconds(content, given)}
    tables = {name: pdae.schedule.float64[name].tolist() for name in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar")}
    write_text(folder / "model.json", json.dumps({
        "form": pdae.form, "channels": channels, "size": size, "z_dim": pdae.encoder.z_dim,
        "data_range": pdae.data_range, "weights": weights, **tables}))
    return facts


def import_onnx():
    """onnx and onnxruntime, or an ImportError that says how to install them."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise ImportError("this needs onnx and onnxruntime; pip install 'pdae_lite[onnx]'") from None
    return onnx, onnxruntime


def _check(pdae: PDAE) -> tuple[int, tuple[int, int]]:
    """Channels, and height and width, of the images."""
    dpm = getattr(pdae, "dpm", None)
    network = getattr(dpm, "model", dpm)
    kind = type(getattr(network, "unet", network)).__name__
    if not isinstance(pdae, PDAE) or kind not in ("UNet", "UNet2DModel") or pdae.codec is not None:
        what = type(pdae).__name__ + (f" on a {kind}" if dpm is not None else "")
        raise ValueError(f"a {what} can't be exported; want a PDAE on a U-Net of this library or a UNet2DModel of "
                         "diffusers")
    size = dpm.config.image_size or pdae.encoder.config.image_size
    return dpm.config.in_channels, (size, size) if isinstance(size, int) else size


def _run(content: bytes, given: dict[str, Tensor], count: int, times: int = 0):
    """Outputs for the first `count` images; with `times`, milliseconds of a run on one core."""
    _, runtime = import_onnx()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    feed = {name: given[name][: count if len(given[name]) > 1 else None].numpy() for name in names}
    if not times:
        return session.run(None, feed)
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        session.run(None, feed)
        taken.append(1000 * (time.perf_counter() - start))
    return min(taken)


def _difference(content: bytes, graph: nn.Module, given: dict[str, Tensor]) -> float:
    """The largest, of all outputs and of one and two images, in standard deviations of the output."""
    worst = 0.0
    for count in (1, 2):
        wanted = graph(*(v[: count if len(v) > 1 else None] for v in given.values()))
        for mine, its in zip(_run(content, given, count), wanted if isinstance(wanted, tuple) else (wanted,)):
            worst = max(worst, float(np.abs(mine - its.numpy()).max() / its.std()))
    return worst


def _milliseconds(content: bytes, given: dict[str, Tensor]) -> float:
    return _run(content, given, 1, times=5)


def _shrink(model, weights: str) -> None:
    """Store weights in fewer bits, and in front of all nodes those that unpack them, which runtimes fold on loading."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, kept = [], []
    for tensor in model.graph.initializer:
        w = numpy_helper.to_array(tensor)
        if w.dtype != np.float32 or w.ndim < 2 or w.size < 256:
            kept.append(tensor)
            continue
        name, half = tensor.name, weights == "fp16" or w.size < SMALL
        packed = w.astype(np.float16)
        if not half:  # a scale for each row, by the first axis or the last, whichever loses less
            tries = []
            for axis in (0, w.ndim - 1):
                others = tuple(i for i in range(w.ndim) if i != axis)
                scale = np.maximum(np.abs(w).max(others, keepdims=True), 1e-12) / 127
                q = np.round(w / scale).astype(np.int8)
                tries.append((float(np.square(q * scale - w).sum()), q, scale.astype(np.float32)))
            _, packed, scale = min(tries, key=lambda one: one[0])
            kept.append(numpy_helper.from_array(scale, f"{name}:scale"))
        kept.append(numpy_helper.from_array(packed, f"{name}:packed"))
        floats = name if half else f"{name}:cast"
        nodes.append(helper.make_node("Cast", [f"{name}:packed"], [floats], to=TensorProto.FLOAT))
        if not half:
            nodes.append(helper.make_node("Mul", [floats, f"{name}:scale"], [name]))
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
