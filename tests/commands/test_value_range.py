"""`--value-range`: which values are black and white, from the first training to the last picture; for CT, say."""
import json

import command_files
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import tiff
from PIL import Image

from pdae_lite.checkpoint import load_model
from pdae_lite.commands.main import main

WINDOW = ["--value-range", "-160", "240"]  # soft tissue
STEP = ["--steps", "1", "--batch-size", "2"]
RNG = np.random.default_rng(0)
SCAN = (RNG.choice([-1000, 40, 1200], (16, 16)) + RNG.integers(-30, 30, (16, 16))).astype(np.int16)  # Hounsfield units


def shown(values, low, high):
    """A scan as 8 bits."""
    return ((values.astype(float) - low) / (high - low) * 255).clip(0, 255).round()


def original(png):
    """The first picture of a grid."""
    return np.asarray(Image.open(png).convert("L"))[2:18, 2:18].astype(float)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Scans in a stack and in TIFFs, and a model that knows nothing of them."""
    folder = tmp_path_factory.mktemp("scans")
    np.save(folder / "ct.npy", np.stack([np.roll(SCAN, i, 0) for i in range(12)]))
    for label in "ab":
        (folder / "tiffs" / label).mkdir(parents=True)
        for i in range(6):
            (folder / "tiffs" / label / f"{i}.tif").write_bytes(tiff(np.roll(SCAN, i, 1)))
    (folder / "one.tif").write_bytes(tiff(SCAN))
    command_files.pdae().save(folder / "plain.safetensors")
    return folder


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """No bars of progress on stderr."""
    monkeypatch.setenv("TQDM_DISABLE", "1")


def run(capsys, *argv):
    """What a command said on stderr."""
    code = main([str(a) for a in argv])
    err = capsys.readouterr().err
    assert code == 0, err
    return err


def test_training_keeps_it_and_later_commands_follow(scans, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(scans)
    dpm, model, latent = (tmp_path / name / "model.safetensors" for name in ("dpm", "pdae", "latent"))
    small = [*STEP, "--preset", "digits", "--size", 16]
    assert run(capsys, "pretrain", "--data", "ct.npy", *WINDOW, *small, "--set", "unet.base_channels=8", "--out",
               dpm.parent) == ""
    assert load_model(dpm).metadata["value_range"] == [-160, 240]
    follows = ("black and white are taken to be -160 and 240, as in the images that the model was trained on; "
               "--value-range LOW HIGH says")
    assert follows in run(capsys, "train", "--dpm", dpm, "--data", "tiffs", *small, "--out", model.parent)
    assert load_model(model).metadata["value_range"] == [-160, 240]
    assert follows in run(capsys, "latent", "--model", model, "--data", "ct.npy", *STEP, "--out", latent.parent)
    assert load_model(latent).metadata["value_range"] == [-160, 240]
    report, record = tmp_path / "e.json", tmp_path / "r.json"
    assert follows in run(capsys, "evaluate", "--model", model, "--data", "ct.npy", "--count", 2, "--steps", 1,
                          "--json", report)
    assert json.loads(report.read_text())["value_range"] == [-160, 240]
    assert follows in run(capsys, "doctor", model, "--data", "ct.npy", "--train", "tiffs", "--images", 10, "--checks",
                          "fill", "--json", report)
    assert json.loads(report.read_text())["value_range"] == [-160, 240]
    probe = tmp_path / "p.safetensors"
    assert follows in run(capsys, "probe", "--model", model, "--data", "classes:tiffs", "--l2", 1, "--out", probe)
    for argv in (["reconstruct", "one.tif"], ["edit", "one.tif", "--probe", probe, "--attribute", "a"]):
        assert follows in run(capsys, *argv, "--model", model, "--steps", 1, "--out", record.with_suffix(".png"))
        assert np.abs(original(record.with_suffix(".png")) - shown(SCAN, -160, 240)).max() <= 1
        assert json.loads(record.read_text())["arguments"]["value_range"] == [-160, 240]
    assert run(capsys, "interpolate", "one.tif", "one.tif", "--model", model, "--value-range", -1000, 2000, "--steps",
               1, "--out", record.with_suffix(".png")) == ""
    assert json.loads(record.read_text())["arguments"]["value_range"] == [-1000, 2000]


def test_a_guess_at_a_stack_is_kept_and_others_are_told(scans, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(scans)
    low, high = int(SCAN.min()), int(SCAN.max())
    err = run(capsys, "pretrain", "--data", "ct.npy", *STEP, "--preset", "digits", "--size", 16, "--set",
              "unet.base_channels=8", "--out", tmp_path / "run")
    assert f"taking {low} and {high}, as they run from" in err
    assert load_model(tmp_path / "run/model.safetensors").metadata["value_range"] == [low, high]
    err = run(capsys, "reconstruct", "one.tif", "--model", "plain.safetensors", "--steps", 1, "--out",
              tmp_path / "x.png")
    assert f"taking {low} and {high}" in err and err.count("\n") == 1


@settings(derandomize=True, deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(-2000, 2000), st.integers(1, 4000))
def test_any_range_is_what_the_model_sees(scans, tmp_path, capsys, low, width):
    out = tmp_path / "x.png"
    assert run(capsys, "reconstruct", scans / "one.tif", "--model", scans / "plain.safetensors", "--steps", 1, "--out",
               out, "--value-range", low, low + width) == ""
    assert np.abs(original(out) - shown(SCAN, low, low + width)).max() <= 1


@pytest.mark.parametrize("argv, says", [
    (["reconstruct", "one.tif", "--model", "plain.safetensors", "--value-range", 3, 3],
     "value_range=(3.0, 3.0); want (low, high)"),
    (["reconstruct", "one.tif", "--model", "plain.safetensors", "--value-range", 0, "nan"],
     "--value-range: nan; want a number"),
    (["reconstruct", "one.tif", "--model", "plain.safetensors", "--value-range", 3],
     "--value-range: expected 2 arguments"),
    (["pretrain", "--data", "digits", "--out", "run", "--value-range", 0, 9],
     "value_range=[0.0, 9.0], but data digits hold 8 bits"),
    (["evaluate", "--table", 1, "--model", "digits", "--value-range", 0, 9],
     "--value-range is for --data of your own")])
def test_a_range_that_makes_no_sense(scans, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(scans)
    assert main([str(a) for a in argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
