"""The pdae command, as a user types it."""
import subprocess
import sys

import pytest
import torch
from PIL import Image

from pdae_lite import cli
from pdae_lite.checkpoint import load_model, read
from pdae_lite.model import PDAE

SMALL = ["--data", "digits", "--batch-size", "8", "--save-every", "2", "--precision", "no"]


def run(*argv):
    return cli.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A DPM and a PDAE of four steps each, made by the command."""
    folder = tmp_path_factory.mktemp("runs")
    assert run("pretrain", *SMALL, "--steps", 4, "--out", folder / "dpm") == 0
    assert run("train", "--dpm", folder / "dpm/model.safetensors", *SMALL, "--steps", 4, "--out", folder / "pdae") == 0
    return folder


def test_pretrain_and_train_leave_one_model_file_each(trained):
    for name, kind in (("dpm", "AsEpsilon"), ("pdae", "PDAE")):
        files = list((trained / name).glob("*.safetensors"))
        assert [f.name for f in files] == ["model.safetensors"]
        assert type(load_model(files[0])).__name__ == kind
        checkpoints = sorted(p.name for p in (trained / name / "checkpoints").iterdir())
        assert checkpoints == ["step_000000002.safetensors", "step_000000004.safetensors"]
    dpm, pdae = load_model(trained / "dpm/model.safetensors"), load_model(trained / "pdae/model.safetensors", expect=PDAE)
    assert all(torch.equal(a, b) for a, b in zip(dpm.state_dict().values(), pdae.dpm.state_dict().values()))


def test_the_same_command_again_changes_nothing(trained, capsys):
    before = (trained / "pdae/model.safetensors").read_bytes()
    assert run("train", "--dpm", trained / "dpm/model.safetensors", *SMALL, "--steps", 4, "--out", trained / "pdae") == 0
    assert (trained / "pdae/model.safetensors").read_bytes() == before


def test_more_steps_go_on_from_the_last_checkpoint(trained, tmp_path):
    out = tmp_path / "dpm"
    assert run("pretrain", *SMALL, "--steps", 2, "--out", out) == 0
    assert run("pretrain", *SMALL, "--steps", 4, "--out", out) == 0
    history = read(out / "checkpoints/step_000000004.safetensors")[1]["history"]
    assert [h["step"] for h in history] == [2, 4]


def test_seed_decides_the_weights(trained, tmp_path):
    for seed in (0, 1):
        assert run("pretrain", *SMALL, "--steps", 4, "--seed", seed, "--out", tmp_path / str(seed)) == 0
    first = load_model(trained / "dpm/model.safetensors").state_dict()
    again, other = (load_model(tmp_path / s / "model.safetensors").state_dict() for s in ("0", "1"))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_reconstruct_writes_a_png(trained, tmp_path, capsys):
    for i, mode in enumerate(("L", "RGB", "RGBA")):
        Image.new(mode, (40 + i, 30), 100).save(tmp_path / f"{i}.png")
    out = tmp_path / "sub" / "out.png"
    model = trained / "pdae/model.safetensors"
    assert run("reconstruct", *(tmp_path / f"{i}.png" for i in range(3)), "--model", model, "--steps", 3, "--out", out) == 0
    with Image.open(out) as image:
        assert image.size == (3 * 34 + 2, 3 * 34 + 2)
    assert capsys.readouterr().out.count("MSE on [0, 1]") == 3


def test_info_of_a_file_and_of_a_shipped_model(trained, capsys):
    assert run("info", trained / "dpm/model.safetensors") == 0
    assert "prediction: v" in capsys.readouterr().out
    assert run("info", "digits") == 0
    assert "PDAE" in capsys.readouterr().out


@pytest.mark.parametrize("argv, says", [
    (["info", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
    (["pretrain", "--data", "cats", "--out", "x"], "cats"),
    (["pretrain", "--data", "digits", "--steps", "0", "--out", "x"], "steps=0"),
    (["pretrain", "--data", "digits", "--weight", "heavy", "--out", "x"], "heavy"),
    (["train", "--dpm", "nowhere", "--data", "digits", "--out", "x"], "nowhere: no such file"),
    (["reconstruct", "nowhere.png", "--model", "digits", "--out", "x.png"], "nowhere.png: no such file"),
    (["reconstruct", "README.md", "--model", "nowhere", "--out", "x.png"], "nowhere: no such file"),
])
def test_a_mistake_gives_one_line_and_code_2(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_files_that_are_not_what_they_should_be(trained, tmp_path, capsys):
    text = tmp_path / "text.png"
    text.write_text("not an image")
    assert run("reconstruct", text, "--model", trained / "pdae/model.safetensors", "--out", tmp_path / "x.png") == 2
    assert "not a readable image" in capsys.readouterr().err
    assert run("reconstruct", text, "--model", trained / "dpm/model.safetensors", "--out", tmp_path / "x.png") == 2
    assert "want a PDAE" in capsys.readouterr().err
    assert run("info", trained / "dpm/checkpoints/step_000000004.safetensors") == 2
    assert "training state" in capsys.readouterr().err


def test_a_wrong_value_exits_2(capsys):
    with pytest.raises(SystemExit) as e:
        run("pretrain", "--data", "digits", "--out", "x", "--steps", "many")
    assert e.value.code == 2


def test_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "pdae_lite", "--help"], capture_output=True, text=True, check=True)
    for command in ("pretrain", "train", "reconstruct", "info"):
        assert command in done.stdout
