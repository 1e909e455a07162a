"""A page that computes: a PDAE of small grey images in the reader's browser, from a folder or any static host."""
import base64
import gzip
import html
import json
import lzma
import tempfile
from pathlib import Path

import torch

from ..data.builtin import ASSETS, Images
from ..interop.onnx import PARTS, to_onnx
from ..pdae import PDAE
from ..sampling import dpm_solver
from ..storage import write_text
from .sliders import slider

LIVE = ASSETS / "live"
ORT = {"ort.js": "ort.wasm.min.js.xz", "ort.mjs": "ort-wasm-simd-threaded.mjs.xz",
       "ort.wasm": "ort-wasm-simd-threaded.wasm.xz"}
SIDE, DIGITS, STEPS = 32, 10, 12


def live_files(model: PDAE, folder: str | Path, weights: str = "int8") -> int:
    """Write what the page loads when its reader presses Start: the runtime and the model, as scripts that browsers load
    from a folder, too. Beside them, what the page itself needs.

    Args:
        weights: see `interop.onnx.to_onnx`.

    Returns:
        Bytes of the runtime and the model, packed, before base64.

    Raises:
        ValueError: a model of other images than 1×32×32, or one that can't be exported.
    """
    config = getattr(model.network, "config", None)
    if (getattr(config, "in_channels", 0), getattr(config, "image_size", 0)) != (1, SIDE):
        raise ValueError(f"the page draws 1×{SIDE}×{SIDE}; this model has other images")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        to_onnx(model, made, weights)
        graphs = {part: (Path(made) / f"{part}.onnx").read_bytes() for part in PARTS}
        graphs["model.json"] = (Path(made) / "model.json").read_bytes()
    runtime = {part: lzma.decompress((LIVE / name).read_bytes()) for part, name in ORT.items()}
    runtime |= {name: (LIVE / name).read_bytes() for name in ("sampler.js", "worker.js")}
    total = 0
    for name, parts in (("runtime.js", runtime), ("model.js", graphs)):
        packed = {part: gzip.compress(content, 9, mtime=0) for part, content in parts.items()}
        total += sum(map(len, packed.values()))
        write_text(folder / name, "".join(f'pdaeLive.part("{part}","{base64.b64encode(content).decode()}");\n'
                                          for part, content in packed.items()))
    for name in ("sampler.js", "page.js", "page.css"):
        write_text(folder / name, (LIVE / name).read_text(encoding="utf-8"))
    return total


@torch.no_grad()
def live_html(model: PDAE, held_out: Images, base: str, id: str = "try-it", size: int = 0) -> str:
    """The page's HTML, with ten held-out images, one of each class, and a static slider for those who can't compute.

    Args:
        base: where the files of `live_files` lie, as the page names it, with a slash at the end.
        size: what `live_files` returned.
    """
    chosen = [int((held_out.labels == label).nonzero()[0]) for label in range(DIGITS)]
    images, z = held_out.floats(chosen), model.encode(held_out.floats())
    shown, frames, noise = [3, 5, 8], [], torch.Generator().manual_seed(0)
    x_T = torch.randn(len(shown), 1, SIDE, SIDE, generator=noise)
    denoiser, t_s = model.denoiser(z[[chosen[i] for i in shown]]), []

    def guess(x, t):
        eps = denoiser(x, t)
        t_s.append(int(t))
        frames.append(torch.cat([images[shown], model.schedule.predict_x_0(x, t, eps).clamp(-1, 1)]))
        return eps

    last = dpm_solver(guess, x_T, model.schedule, STEPS, grid="quadratic")
    frames.append(torch.cat([images[shown], last]))
    fallback = slider(frames, [f"t = {t}" for t in t_s] + ["done"], id=f"{id}-before", columns=3, scale=3, start=STEPS,
                      label="Decoding from z, step by step",
                      alt="Three digits of the test set, and below each what is decoded from its code and noise")
    facts = {"labels": held_out.labels[chosen].tolist(), "z_mean": z.mean(0).tolist(), "z_std": z.std(0).tolist(),
             "images": [base64.b64encode(held_out.images[i].numpy().tobytes()).decode() for i in chosen]}
    texts = {"LIVE-ID": id, "LIVE-BASE": html.escape(base), "LIVE-FALLBACK": fallback.html,
             "LIVE-LABEL": id, "LIVE-WEIGHT": f"loads {size / 1e6:.1f} MB, once" if size else ""}
    page = (LIVE / "page.html").read_text(encoding="utf-8")
    for name, text in texts.items():
        page = page.replace(name, text)
    return (f'<link rel="stylesheet" href="{base}page.css">\n<div>\n{page}'
            f'<script type="application/json" data-digits>{json.dumps(facts)}</script>\n</div>\n'
            f'<script defer src="{base}sampler.js"></script>\n<script defer src="{base}page.js"></script>\n')
