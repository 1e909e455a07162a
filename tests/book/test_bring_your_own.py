"""The commands that the chapter "Any pre-trained DPM" shows, as it shows them, in a folder where every file that they
name is a tiny one. Only steps, batch sizes and numbers of processes are made smaller."""
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from fixtures import fixture
from PIL import Image

from pdae_lite.checkpoint import load_model
from pdae_lite.commands import main

ROOT = Path(__file__).parents[2]
CHAPTER = ROOT / "notebooks" / "16_any_pretrained_dpm.ipynb"
TINY = {
    "train": "--steps 1 --batch-size 2 --precision no --no-compile --set encoder.z_dim=4",
    "latent": "--steps 1 --batch-size 2 --set latent.width=16 --set latent.layers=3",
    "doctor": "--images 10 --checks fill",
    "reconstruct": "--steps 2", "interpolate": "--steps 2 -n 3", "edit": "--steps 2", "sample": "--steps 2 -n 2",
    "probe": "",
}
LAUNCHED = {"accelerate": ("--num_processes 4", "--cpu --num_processes 2"),
            "torchrun": ("--nproc_per_node 4", "--nproc_per_node 2")}


def shown():
    """Every line of the chapter's shell blocks, in order."""
    notebook = nbformat.read(CHAPTER, as_version=4)
    blocks = [b for c in notebook.cells if c.cell_type == "markdown"
              for b in re.findall(r"^```sh\n(.*?)^```", c.source, re.M | re.S)]
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What the chapter's reader has: a model of the hub's name, checkpoints of other projects, photos."""
    from small_pipelines import save as save_pipeline
    from small_unets import diffusers, scheduler, unet

    folder = tmp_path_factory.mktemp("reader")
    diffusers.DDPMPipeline(unet("celebahq"),
                           scheduler("celebahq", "DDPMScheduler")).save_pretrained(folder / "google/ddpm-celebahq-256")
    save_pipeline("sd", folder / "sd", sample_size=16)
    (folder / "sd-legacy").mkdir()
    (folder / "sd" / "pipeline").rename(folder / "sd-legacy/stable-diffusion-v1-5")
    shutil.copy(fixture("diffae_tiny") / "ddpm_last.ckpt", folder / "last.ckpt")
    shutil.copy(fixture("adm_tiny") / "model.pt", folder / "64x64_diffusion.pt")
    shutil.copy(fixture("official_pdae_tiny") / "ddpm_checkpoint.pt", folder / "checkpoint.pt")
    shutil.copy(fixture("official_pdae_tiny") / "ddpm_config.yml", folder / "config.yml")
    places = (["me.png", "you.png"] + [f"my_photos/{i}.png" for i in range(4)]
              + [f"unseen_photos/{i}.png" for i in range(10)])
    places += [f"sorted_photos/{kind}/{i}.png" for kind in ("smiling", "serious") for i in range(8)]
    for path in places:
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        Image.effect_noise((40, 30), 60).convert("RGB").save(folder / path)
    return folder


def test_every_command_is_of_a_kind_that_is_run():
    lines = shown()
    assert {shlex.split(line)[0] for line in lines} == {"pip", "pdae", "accelerate", "torchrun"}
    assert {shlex.split(line)[1] for line in lines if line.startswith("pdae ")} == set(TINY)


def test_commands_on_one_device(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for line in shown():
        words = shlex.split(line)
        if words[0] == "pdae":
            assert main.main([*words[1:], *shlex.split(TINY[words[1]])]) == 0, f"{line}: {capsys.readouterr().err}"
            if "--out" in words:
                out = place / words[words.index("--out") + 1]
                assert out.is_file() or (out / "model.safetensors").is_file(), line
    adm = load_model("runs/adm/model.safetensors")
    assert (adm.schedule.to_config()["name"], adm.dpm.config.image_size) == ("cosine", 64)


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_commands_on_several_devices(launcher, place):
    (line,) = [line for line in shown() if line.startswith(launcher)]
    many, two = LAUNCHED[launcher]
    assert many in line
    line = line.replace(many, two).replace("runs/four", f"runs/{launcher}")
    words = [*shlex.split(line), *shlex.split(TINY["train"])]
    words[0] = str(Path(sys.executable).parent / words[0])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    model = load_model(place / f"runs/{launcher}/model.safetensors")
    assert model.z_dim == 4 and model.metadata["training"]["batch_size"] == 2
