"""What a user installs: the wheel, in an environment of its own, away from the repository."""
import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = (sys.executable, "-m", "pip")
USE = """
import json, sys
import pdae_lite, torch
pdae = pdae_lite.load("digits")
images = pdae_lite.data.digits("test").floats(slice(1))
with torch.no_grad():
    z = pdae.encode(images)
print(json.dumps({"file": pdae_lite.__file__, "shape": list(z.shape), "z_dim": pdae.z_dim,
                  "finite": bool(z.isfinite().all()),
                  "slider": len(pdae_lite.viz.slider(images, ["one"], id="a", label="b", alt="c").html)}))
"""


def run(*command, cwd):
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(map(str, command[:6]))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources: no stale build folder can hide a missing file."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "pdae_lite", sources / "pdae_lite", ignore=shutil.ignore_patterns("__pycache__"))
    run(*PIP, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", sources / "dist", sources,
        cwd=sources)
    (path,) = (sources / "dist").glob("pdae_lite-*.whl")
    return path


def test_the_wheel_holds_every_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [p.relative_to(ROOT) for p in (ROOT / "pdae_lite").rglob("*") if p.is_file()]
    wanted = {p.as_posix() for p in files if "__pycache__" not in p.parts}
    assert wanted <= names
    assert any(n.endswith("LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "notebooks/", "book/", "runs/"))]


def test_installed_it_loads_a_shipped_model(wheel, tmp_path):
    environment = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # torch is large: lend it from here. A path in a .pth file is searched, but the .pth files found there aren't run,
    # so that the editable pdae_lite stays out of sight.
    (packages / "lent.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    run(*PIP, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    found = json.loads(run(python, "-I", "-c", USE, cwd=tmp_path).splitlines()[-1])
    assert Path(found["file"]).is_relative_to(environment)
    assert found["shape"] == [1, found["z_dim"]] and found["finite"] and found["slider"] > 500
    assert "pretrain" in run(python, "-I", "-m", "pdae_lite", "--help", cwd=tmp_path)
