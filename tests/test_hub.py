"""Models in folders and on the hub: against a folder, and against a stand-in for the hub's server."""
import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from pdae_lite import PDAE, EncoderConfig, NoiseSchedule, SemanticEncoder, UNet, UNetConfig
from pdae_lite.checkpoint import CheckpointError, Source

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub isn't installed")


@pytest.fixture
def pdae():
    torch.manual_seed(0)
    return PDAE(UNet(UNetConfig(16, 1, 8, (1, 2), 1, ())), SemanticEncoder(EncoderConfig(16, 1, (8, 8), None, z_dim=4)),
                NoiseSchedule.linear()).eval()


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_folder(pdae, tmp_path):
    pdae.save_pretrained(tmp_path / "faces", {"data": "faces", "images": 64000})
    assert sorted(p.name for p in (tmp_path / "faces").iterdir()) == ["README.md", "model.safetensors"]
    loaded = PDAE.from_pretrained(tmp_path / "faces")
    assert same(loaded, pdae) and loaded.metadata == {"data": "faces", "images": 64000}
    card = (tmp_path / "faces" / "README.md").read_text(encoding="utf-8")
    assert (card.startswith("---\nlibrary_name: pdae_lite\n") and "| images | 64000 |" in card
            and "| z_dim | 4 |" in card)
    (tmp_path / "faces" / "README.md").write_text("mine")
    loaded.save_pretrained(tmp_path / "faces")
    assert ((tmp_path / "faces" / "README.md").read_text() == "mine"
            and PDAE.from_pretrained(tmp_path / "faces").metadata == loaded.metadata)
    with pytest.raises(CheckpointError, match="model.safetensors: no such file"):
        PDAE.from_pretrained(tmp_path)


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub's server as a model of one small file needs."""

    files, asked, commit = {}, [], "c" * 40

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.commit, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.asked.append(self.path)
        if "/resolve/" in self.path:
            name = self.path.split("?")[0].rsplit("/", 1)[1]
            content = self.files[name]
            return self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"')
        if not self.path.startswith("/api/models/me/faces"):
            return self.answer({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        if "/tree/" in self.path:
            return self.answer([{"type": "file", "path": name, "oid": "0", "size": len(v)}
                                for name, v in self.files.items()])
        return self.answer({"id": "me/faces", "sha": self.commit,
                            "siblings": [{"rfilename": name} for name in self.files]})

    do_HEAD = do_GET

    def do_POST(self):
        self.asked.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/preupload/main"):
            names = [f["path"] for f in json.loads(body)["files"]]
            return self.answer({"files":
                                [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/me/faces/commit/{self.commit}"
            return self.answer({"commitUrl": address, "commitOid": self.commit, "success": True})
        return self.answer({"url": f"http://{self.headers['Host']}/me/faces", "name": "me/faces", "id": "me/faces"})

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    StandIn.files, StandIn.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_up_and_down_again(pdae, endpoint, tmp_path):
    address = pdae.push_to_hub("me/faces", {"data": "faces"}, endpoint=endpoint, token="hf_stand_in")
    assert "me/faces" in address and set(StandIn.files) == {"README.md", "model.safetensors"}
    assert "PDAE.from_pretrained('me/faces')" in StandIn.files["README.md"].decode()
    got = PDAE.from_pretrained("me/faces", endpoint=endpoint, cache_dir=tmp_path / "cache")
    assert same(got, pdae) and got.metadata == {"data": "faces"}
    StandIn.asked.clear()
    again = PDAE.from_pretrained("me/faces", endpoint=endpoint, cache_dir=tmp_path / "cache", local_files_only=True)
    assert same(again, pdae) and not StandIn.asked
    with pytest.raises(CheckpointError, match="me/nothing: neither a folder, nor to be had from the hub") as e:
        PDAE.from_pretrained("me/nothing", endpoint=endpoint, cache_dir=tmp_path / "cache")
    assert "\n" not in str(e.value)


def test_without_a_network(tmp_path):
    with pytest.raises(CheckpointError, match="me/faces: neither a folder, nor to be had from the hub") as e:
        PDAE.from_pretrained("me/faces", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)
    assert "\n" not in str(e.value)


def test_nothing_that_refers_to_this_machine_is_pushed(pdae, tmp_path):
    pdae.dpm.source = Source("diffusers", str(tmp_path / "faces"), "0" * 64, by_reference=True)
    with pytest.raises(ValueError, match="dpm is kept by reference to .*faces, which others don't have; keep it by "
                                         "value"):
        pdae.push_to_hub("me/faces")
