"""What a command meets: missing devices, closed streams, poor encodings, signals; and files that it must not write
over."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import command_files
import pytest
import torch
from PIL import Image

from pdae_lite.checkpoint import load_model
from pdae_lite.commands import main, pictures
from pdae_lite.storage import read

PDAE = [sys.executable, "-m", "pdae_lite"]
TRAIN = ["--data", "digits", "--batch-size", 2, "--precision", "no", "--set", "unet.base_channels=8", "--set",
         "unet.num_res_blocks=1"]


def run(*argv):
    return main.main([str(a) for a in argv])


def fails(capsys, *argv):
    """The one line that a command leaves."""
    capsys.readouterr()
    assert run(*argv) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return command_files.fill(tmp_path_factory.mktemp("files"))


@pytest.fixture
def here(files, tmp_path, monkeypatch):
    """A copy of the files that may be changed, in the working directory."""
    shutil.copytree(files, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


SAMPLE = ["sample", "--model", "pdae.safetensors", "--latent", "latent.safetensors", "-n", 1, "--steps", 2]


# ---- devices, streams, encodings ------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "meta", "abacus"])
def test_a_device_that_is_not_there(device, capsys):
    assert f"--device {device}: " in fails(capsys, "evaluate", "--model", "digits", "--count", 2, "--device", device)


def shell(command, cwd, **env):
    return subprocess.run(["sh", "-c", command], cwd=cwd, capture_output=True, env=os.environ | env)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams(here, closed):
    command = " ".join(map(str, [*PDAE, *SAMPLE, "--out", "s.png"]))
    done = shell(f"exec {command} {closed}", here)
    assert done.returncode == 0 and json.loads((here / "s.json").read_text())["command"] == "sample"
    assert Image.open(here / "s.png").size == (16, 16)
    assert shell(f"exec {sys.executable} -m pdae_lite info nowhere {closed}", here).returncode == 2


def test_names_that_are_not_utf8(here):
    """The PNG was written, and its JSON wasn't."""
    name = b"\xe9t\xe9.png"
    shutil.copy(here / "one.png", os.fsencode(here) + b"/" + name)
    command = b" ".join([os.fsencode(sys.executable), b"-m pdae_lite reconstruct", name,
                         b"--model pdae.safetensors --steps 2 --out a.png"])
    done = subprocess.run([b"sh", b"-c", command], cwd=here, capture_output=True)
    assert done.returncode == 0 and not done.stderr.count(b"Traceback")
    assert json.loads((here / "a.json").read_text(encoding="utf-8"))["arguments"]["images"] == [os.fsdecode(name)]
    out = b"aus\xe9"
    train = f"{sys.executable} -m pdae_lite pretrain --steps 1 {' '.join(map(str, TRAIN))} --out ".encode() + out
    assert subprocess.run([b"sh", b"-c", train], cwd=here, capture_output=True).returncode == 0
    assert load_model(os.fsdecode(os.fsencode(here) + b"/" + out
                                  + b"/model.safetensors")).metadata["preset"] == "digits"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_poor_encodings_lose_nothing(here, encoding):
    for command in ("presets", "doctor pdae.safetensors --data photos --images 10 --checks fill --json d.json"):
        done = shell(f"{sys.executable} -m pdae_lite {command}", here, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
    assert json.loads((here / "d.json").read_text())["findings"]
    assert encoding == "cp1252" or b"\\u2026" in done.stdout  # …, which cp1252 has


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_stdout_is_said(here):
    done = shell(f"{sys.executable} -m pdae_lite info dpm.safetensors > /dev/full", here)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


def test_a_library_warning_is_one_line(here, capsys):
    (here / "classes/a/0.png").write_bytes(b"no image")
    assert run("probe", "--model", "pdae.safetensors", "--data", "classes:classes", "--l2", 1, "--out",
               "p.safetensors") == 0
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if "can't be read" in line]
    assert line.startswith("pdae probe: ") and "classes/a/0.png" in line and "Warning" not in err


# ---- signals ---------------------------------------------------------------------------------------------------------


def train_until(out, signals, ready):
    """`pdae pretrain` in a process of its own, signalled when `ready(out)`: (exit code, what it said)."""
    argv = [*PDAE, "pretrain", *map(str, TRAIN), "--steps", "100000", "--save-every", "100000", "--log-every", "1",
            "--out", str(out)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    limit = time.time() + 90
    while not ready(out) and time.time() < limit and process.poll() is None:
        time.sleep(0.05)
    for number in signals:
        time.sleep(1.0)
        process.send_signal(number)
    err = process.communicate(timeout=90)[1]
    return process.returncode, err.strip().splitlines()[-1]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_and_stops(tmp_path, number, code):
    out = tmp_path / "run"
    got, line = train_until(out, [number], lambda out: (out / "checkpoints").is_dir())
    (saved,) = (out / "checkpoints").iterdir()
    step = read(saved)[1]["step"]
    assert (got == code and line == f"pdae pretrain: stopped; the same command goes on from step {step}"
            and 1 <= step < 100000)
    assert [h["step"] for h in read(saved)[1]["history"]] == list(range(1, step + 1))
    assert not list(out.glob("*.safetensors"))


def test_a_stop_before_the_first_checkpoint_promises_nothing(tmp_path, monkeypatch, capsys):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pdae_lite.commands.train.train", stopped)
    assert run("pretrain", *TRAIN, "--out", tmp_path / "run") == 130
    assert capsys.readouterr().err == "\npdae pretrain: stopped; nothing was saved\n"
    monkeypatch.setattr(pictures, "load_autoencoder", stopped)
    command_files.picture(tmp_path / "x.png")
    assert run("reconstruct", tmp_path / "x.png", "--model", "digits", "--out", tmp_path / "y.png") == 130
    assert capsys.readouterr().err == "\npdae reconstruct: stopped\n"


def test_sigterm_is_handled_only_while_a_command_runs(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("pdae_lite.commands.about.load_model", lambda path: os.kill(os.getpid(), signal.SIGTERM))
    assert run("info", "digits") == 143 and signal.getsignal(signal.SIGTERM) is before


# ---- outputs ---------------------------------------------------------------------------------------------------------


def never(*args, **kwargs):
    raise AssertionError("the work began")


@pytest.mark.parametrize("argv, says", [
    ([*SAMPLE, "--out", "labels.png"], "labels.json exists, and no command wrote it"),
    ([*SAMPLE, "--out", "text.txt/x.png"], "text.txt/x.png can't be written (Not a directory)"),
    ([*SAMPLE, "--out", "s.png", "--each", "text.txt"], "--each text.txt/000000.png can't be written"),
    ([*SAMPLE, "--out", f"{'x' * 250}.png"], "can't be written (File name too long)"),
    (["reconstruct", "one.png", "--model", "pdae.safetensors", "--out", "one.png"],
     "--out one.png would overwrite what the command"),
    (["reconstruct", "one.png", "two.jpg", "--model", "pdae.safetensors", "--out", "link.png"],
     "link.png would overwrite what the"),
    (["edit", "one.png", "--model", "pdae.safetensors", "--probe", "probe.safetensors", "--attribute", "dark", "--out",
      "./one.png"],
     "one.png would overwrite what the command reads"),
    (["interpolate", "one.png", "one.png", "--model", "pdae.safetensors", "--out", "photos"],
     "want a file name that ends in .png"),
    (["probe", "--model", "pdae.safetensors", "--data", "classes:classes", "--out", "pdae.safetensors"],
     "would overwrite what"),
    (["probe", "--model", "pdae.safetensors", "--data", "classes:classes", "--out", "dpm.safetensors"],
     "and probe didn't write it"),
    (["probe", "--model", "pdae.safetensors", "--data", "classes:classes", "--out", "labels.safetensors"],
     "labels.json exists"),
    (["doctor", "pdae.safetensors", "--data", "photos", "--json", "pdae.safetensors"],
     "pdae.safetensors would overwrite what"),
    (["doctor", "pdae.safetensors", "--data", "photos", "--json", "labels.json"],
     "labels.json exists, and no command wrote it"),
    (["doctor", "pdae.safetensors", "--data", "photos", "--json", "photos"], "--json photos is a folder; want a file"),
    (["doctor", "pdae.safetensors", "--data", "photos", "--json", os.devnull],
     f"--json {os.devnull} is a device; want a file"),
    (["evaluate", "--model", "pdae.safetensors", "--data", "photos", "--json", "labels.json"], "labels.json exists"),
    (["evaluate", "--model", "digits", "--table", 1, "--json", "run/history.json"],
     "history.json exists, and no command wrote it"),
    ([*SAMPLE, "--out", "run/history.png"], "history.json exists, and no command wrote it"),
    (["export", "pdae.safetensors", "--onnx", "text.txt/graphs"], "can't be written (Not a directory)"),
    (["evaluate", "--model", "digits", "--table", 1, "--json", "text.txt"], "text.txt exists, and no command wrote it"),
    (["pretrain", *TRAIN, "--out", "text.txt"], "can't be written (Not a directory)"),
    (["train", "--dpm", "run/model.safetensors", *TRAIN[:-4], "--out", "run"],
     "run/model.safetensors would overwrite what the command"),
    (["pretrain", *TRAIN, "--out", "run"], "--out run holds a model.safetensors, and no run that could go on"),
    (["latent", "--model", "run/model.safetensors", "--data", "photos", "--out", "run"],
     "would overwrite what the command reads"),
])
def test_outputs_are_looked_at_before_the_work_begins(argv, says, here, capsys, monkeypatch):
    for place in ("pictures.load_model", "pictures.load_autoencoder", "doctor.load_autoencoder",
                  "evaluate.load_autoencoder", "tables.Subject", "export.load_autoencoder", "train.load_autoencoder",
                  "train.load_dpm"):
        monkeypatch.setattr(f"pdae_lite.commands.{place}", never)
    monkeypatch.setattr("pdae_lite.data.sources.open_source", never)
    (here / "run").mkdir()
    shutil.copy("pdae.safetensors", "run/model.safetensors")
    (here / "run/history.json").write_text('[{"step": 1}]')
    os.link("two.jpg", "link.png")
    before = {p: p.is_file() and p.stat().st_mtime_ns for p in here.rglob("*")}
    assert says in fails(capsys, *argv)
    assert {p: p.is_file() and p.stat().st_mtime_ns for p in here.rglob("*")} == before


def test_outputs_of_commands_are_written_anew(here, capsys):
    for _ in range(2):
        assert run(*SAMPLE, "--out", "s.png", "--each", "each") == 0
        assert run("doctor", "pdae.safetensors", "--data", "photos", "--images", 10, "--checks", "fill", "--json",
                   "d.json") == 0
        assert run("evaluate", "--model", "pdae.safetensors", "--data", "photos", "--count", 2, "--steps", 2, "--json",
                   "e.json") == 0
        assert run("probe", "--model", "pdae.safetensors", "--data", "classes:classes", "--l2", 1, "--out",
                   "p.safetensors") == 0


@pytest.mark.parametrize("argv", [
    ["sample", "--latent", "old_latent.safetensors"], ["sample", "--plain"], ["reconstruct", "one.png"],
    ["interpolate", "one.png", "two.jpg", "-n", 3],
    ["edit", "one.png", "--probe", "old_probe.safetensors", "--attribute", "dark"]])
def test_nan_is_never_written_as_black(argv, here, capsys):
    extra = ["-n", 2, "--each", "each"] if argv[0] == "sample" else []
    assert run(*argv, *extra, "--model", "broken.safetensors", "--steps", 2, "--out", "x.png") == 2
    assert "NaN" in capsys.readouterr().err
    assert not list(here.glob("x.*")) and not list(here.glob("each/*"))


def test_nan_in_one_bias_is_found(here, capsys):
    """At a scale of 1 the difference form doesn't run the DPM's head: pictures would come out, and look right."""
    model = command_files.pdae()
    with torch.no_grad():
        model.dpm.out[-1].bias[0] = torch.nan
    model.save("bias.safetensors")
    for argv in (["sample", "--latent", "old_latent.safetensors", "--off-last", 0], ["reconstruct", "one.png"],
                 ["sample", "--plain"],
                 ["interpolate", "one.png", "two.jpg"],
                 ["edit", "one.png", "--probe", "old_probe.safetensors", "--attribute", "dark"]):
        line = fails(capsys, *argv, "--model", "bias.safetensors", "--steps", 2, "--out", "x.png")
        assert ("bias.safetensors: dpm.out.2.bias holds NaN or infinity; `pdae doctor`" in line
                and not list(here.glob("x.*")))
    for argv in (["evaluate", "--model", "bias.safetensors", "--data", "photos"],
                 ["probe", "--model", "bias.safetensors", "--data", "classes:classes", "--out", "x.safetensors"],
                 ["latent", "--model", "bias.safetensors", "--data", "photos", "--size", 16, "--out", "run"],
                 ["train", "--dpm", "bias.safetensors", "--data", "photos", "--size", 16, "--out", "run"]):
        assert "holds NaN or infinity" in fails(capsys, *argv)
    assert run("doctor", "bias.safetensors", "--data", "photos", "--images", 10) == 0
    assert "hold NaN or infinite values" in capsys.readouterr().out


# ---- what belongs together -------------------------------------------------------------------------------------------


EDIT = ["edit", "one.png", "--attribute", "dark", "--scale", 0.1, "--steps", 2, "--out", "x.png"]


def test_a_partner_of_another_model_is_refused(here, capsys):
    for argv in (["sample", "--latent", "latent.safetensors", "-n", 1, "--steps", 2, "--out", "x.png"],
                 [*EDIT, "--probe", "probe.safetensors"]):
        assert run(*argv, "--model", "pdae.safetensors") == 0 and "another model" not in capsys.readouterr().err
        assert "is for the codes of another model than other.safetensors" in fails(capsys, *argv, "--model",
                                                                                   "other.safetensors")
        assert run(*argv, "--model", "other.safetensors", "--force") == 0
        old = [str(a).replace("latent.s", "old_latent.s").replace("probe.s", "old_probe.s") for a in argv]
        capsys.readouterr()
        assert run(*old, "--model", "other.safetensors") == 0
        assert "doesn't say which model's codes it is for" in capsys.readouterr().err
    command_files.pdae(1).save("of_digits.safetensors", {"data": "digits"})
    assert "for the codes of another model than of_digits.safetensors" in fails(
        capsys, "evaluate", "--table", 2, "--model", "of_digits.safetensors", "--latent", "latent.safetensors")


def test_latent_and_probe_say_whose_codes_they_are_for(here, capsys):
    latent = ["latent", "--model", "pdae.safetensors", "--data", "photos", "--preset", "digits", "--steps", 1,
              "--batch-size", 2, "--set", "latent.width=16", "--set", "latent.layers=3", "--out", "run"]
    assert run(*latent) == 0
    assert run("probe", "--model", "pdae.safetensors", "--data", "classes:classes", "--l2", 1, "--out",
               "p.safetensors") == 0
    capsys.readouterr()
    sample = ["sample", "--latent", "run/model.safetensors", "-n", 1, "--steps", 2, "--out", "x.png", "--model"]
    edit = ["edit", "one.png", "--attribute", "a", "--probe", "p.safetensors", "--steps", 2, "--out", "x.png",
            "--model"]
    for argv in (sample, edit):
        assert run(*argv, "pdae.safetensors") == 0 and "model" not in capsys.readouterr().err
        assert "of another model" in fails(capsys, *argv, "other.safetensors")


def test_what_ships_together_belongs_together(here, capsys):
    assert run("sample", "--model", "digits", "-n", 1, "--steps", 1, "--out", "x.png") == 0
    assert run("edit", "one.png", "--model", "digits", "--attribute", "8", "--scale", 0.1, "--steps", 1, "--out",
               "x.png") == 0
    assert "model" not in capsys.readouterr().err
