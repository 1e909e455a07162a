"""The directive {try_it}: the shipped digits PDAE, computing in the page. Its files are made from the shipped weights,
kept in _build/live, and made anew only when the weights or what makes them changed.
"""
import hashlib
import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

import pdae_lite
from pdae_lite import data
from pdae_lite.checkpoint import model_file
from pdae_lite.interop import onnx
from pdae_lite.viz import live

FOLDER = Path(__file__).resolve().parents[1] / "_build" / "live"


def made_from() -> str:
    """SHA-256 of all that the files depend on."""
    sources = [model_file("digits"), Path(onnx.__file__), Path(live.__file__), *sorted(live.LIVE.iterdir())]
    return hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in sources)).hexdigest()


def make(app, config):
    """The files in FOLDER/live, and the page's HTML in FOLDER/page.html."""
    stamp, now = FOLDER / "made.json", made_from()
    if not stamp.is_file() or json.loads(stamp.read_text())["from"] != now:
        model = pdae_lite.load("digits", device="cpu").eval()
        size = live.live_files(model, FOLDER / "static" / "live")
        text = live.live_html(model, data.digits("test"), "_static/live/", size=size)
        (FOLDER / "page.html").write_text(text, encoding="utf-8")
        stamp.write_text(json.dumps({"from": now, "bytes": size}))
    config.html_static_path.append(str(FOLDER / "static"))


class TryIt(Directive):
    """{try_it}"""

    def run(self):
        self.state.document.settings.env.note_dependency(str(FOLDER / "page.html"))
        return [nodes.raw("", (FOLDER / "page.html").read_text(encoding="utf-8"), format="html")]


def setup(app):
    app.add_directive("try_it", TryIt)
    app.connect("config-inited", make)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
