"""A page that computes: a PDAE of small images in the reader's browser, from a folder or any static host."""
import base64
import gzip
import html
import json
import lzma
import tempfile
from pathlib import Path

import torch

from ..applications.attributes import LinearProbe, edit
from ..data.builtin import ASSETS, Images
from ..interop.onnx import PARTS, to_onnx
from ..pdae import PDAE
from ..sampling import dpm_solver
from ..storage import write_text
from .sliders import slider

LIVE = ASSETS / "live"
ORT = {"ort.js": "ort.wasm.min.js.xz", "ort.mjs": "ort-wasm-simd-threaded.mjs.xz",
       "ort.wasm": "ort-wasm-simd-threaded.wasm.xz"}
SIDES, PICKS, STEPS = (32, 64), 10, 12


def live_files(model: PDAE, folder: str | Path, weights: str = "int8", tell=lambda facts: None) -> int:
    """Write what the page loads when its reader presses Start: the runtime and the model, as scripts that browsers load
    from a folder, too. Beside them, what the page itself needs.

    Args:
        weights: see `interop.onnx.to_onnx`.
        tell: is told what that returns, sizes and milliseconds, before anything is written.

    Returns:
        Bytes of the runtime and the model, packed, before base64.

    Raises:
        ValueError: a model of other images than grey or RGB ones of 32×32 or 64×64, or one that can't be exported.
    """
    channels, side = _shape(model)
    if channels not in (1, 3) or side not in SIDES or tuple(model.data_range or ()) != (-1, 1):
        raise ValueError(f"the page shows grey or RGB images of 32×32 or 64×64 in [-1, 1]; this model's are {channels}×"
                         f"{side}×{side} in {model.data_range}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        tell(to_onnx(model, made, weights))
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
def live_html(model: PDAE, held_out: Images, base: str, id: str = "try-it", size: int = 0, noun: str = "digit",
              probe: LinearProbe | None = None) -> str:
    """The page's HTML, with ten held-out images, of ten classes one each, and a static slider for those who can't
    compute.

    Args:
        noun: what an image is called.
        probe: gives a slider for each attribute that it has a direction for; see `applications.attributes.edit`.
        base: where the files of `live_files` lie, as the page names it, with a slash at the end.
        size: what `live_files` returned.
    """
    labels, (channels, side) = held_out.labels, _shape(model)
    classes = labels.unique().tolist() if labels.ndim == 1 else []
    by_class = classes == list(range(PICKS))
    chosen = [int((labels == c).nonzero()[0]) for c in classes] if by_class else list(range(min(PICKS, len(labels))))
    images, z = held_out.floats(chosen), model.encode(held_out.floats())
    shown, frames = [3, 5, 8] if by_class else [*range(min(3, len(chosen)))], []
    x_T = torch.randn(len(shown), channels, side, side, generator=torch.Generator().manual_seed(0))
    denoiser, t_s = model.denoiser(z[[chosen[i] for i in shown]]), []

    def guess(x, t):
        eps = denoiser(x, t)
        t_s.append(int(t))
        frames.append(torch.cat([images[shown], model.schedule.predict_x_0(x, t, eps).clamp(-1, 1)]))
        return eps

    last = dpm_solver(guess, x_T, model.schedule, STEPS, grid="quadratic")
    frames.append(torch.cat([images[shown], last]))
    fallback = slider(frames, [f"t = {t}" for t in t_s] + ["done"], id=f"{id}-before", columns=3, scale=96 // side,
                      start=STEPS,
                      label="Decoding from z, step by step",
                      alt=f"Held-out {noun}s, and below each what is decoded from its code and noise")
    names = [] if probe is None else [n for n, w in zip(probe.names, probe.weight) if bool(w.any())]
    facts = {"labels": [f"the {c}" for c in classes] if by_class else [f"image {i + 1}" for i in range(len(chosen))],
             "side": side, "channels": channels,
             "attributes": {n: [round(v, 5) for v in (edit(z[:1], probe, n, 1.0) - z[:1])[0].tolist()] for n in names},
             "z_mean": z.mean(0).tolist(), "z_std": z.std(0).tolist(),
             "images": [base64.b64encode(held_out.images[i].numpy().tobytes()).decode() for i in chosen]}
    drawn = ("drawing", "Draw", "more ink", "less ink") if channels == 1 else ("image", "Take", "brighter", "darker")
    texts = dict(zip(("LIVE-SOURCE", "LIVE-DRAW", "LIVE-MORE", "LIVE-LESS"), drawn))
    texts["LIVE-DRAW"] += f" {'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    texts |= {"LIVE-SIDE": str(side), "LIVE-NOUN": noun, "LIVE-ID": id, "LIVE-BASE": html.escape(base),
             "LIVE-FALLBACK": fallback.html,
             "LIVE-LABEL": id, "LIVE-WEIGHT": f"loads {size / 1e6:.1f} MB, once" if size else ""}
    page = (LIVE / "page.html").read_text(encoding="utf-8")
    for name, text in texts.items():
        page = page.replace(name, text)
    return (f'<link rel="stylesheet" href="{base}page.css">\n<div>\n{page}'
            f'<script type="application/json" data-digits>{json.dumps(facts)}</script>\n</div>\n'
            f'<script defer src="{base}sampler.js"></script>\n<script defer src="{base}page.js"></script>\n')


def live_page(model: PDAE, held_out: Images, folder: str | Path, title: str, weights: str = "int8", noun: str = "image",
              probe: LinearProbe | None = None, tell=lambda facts: None) -> int:
    """A folder with index.html, which opens as it lies and on any static host. Arguments and errors: see `live_files`,
    whose bytes it returns, and `live_html`."""
    folder = Path(folder)
    size = live_files(model, folder / "live", weights, tell)
    head = (LIVE / "alone.html").read_text(encoding="utf-8").replace("LIVE-TITLE", html.escape(title))
    page = live_html(model, held_out, "live/", size=size, noun=noun, probe=probe)
    write_text(folder / "index.html", f"{head}{page}</main>\n</html>\n")
    return size


def _shape(model: PDAE) -> tuple[int, int]:
    """Channels, and height and width, of its images; 0 where they aren't known."""
    config = getattr(model.network, "config", None)
    return getattr(config, "in_channels", 0), getattr(config, "image_size", 0) or 0
