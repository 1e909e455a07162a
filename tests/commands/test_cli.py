"""The pdae command, as a user types it."""
import io
import subprocess
import sys

import pytest
import torch
from PIL import Image

from pdae_lite import data
from pdae_lite.checkpoint import load_model, model_file, read
from pdae_lite.commands import main
from pdae_lite.data.builtin import Images
from pdae_lite.data.sources import SYNTAX, LMDBConfig, open_source
from pdae_lite.pdae import PDAE
from pdae_lite.presets import PRESETS
from pdae_lite.schedule import LOSS_WEIGHTS

TINY = ["--set", "unet.base_channels=8", "--precision", "no"]
SMALL = ["--data", "digits", "--batch-size", "8", "--save-every", "2", "--precision", "no"]


def run(*argv):
    return main.main([str(a) for a in argv])


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
    dpm, pdae = load_model(trained / "dpm/model.safetensors"), load_model(trained / "pdae/model.safetensors",
                                                                          expect=PDAE)
    assert all(torch.equal(a, b) for a, b in zip(dpm.state_dict().values(), pdae.dpm.state_dict().values()))


def test_the_same_command_again_changes_nothing(trained, capsys):
    before = (trained / "pdae/model.safetensors").read_bytes()
    assert run("train", "--dpm", trained / "dpm/model.safetensors", *SMALL, "--steps", 4, "--out",
               trained / "pdae") == 0
    assert (trained / "pdae/model.safetensors").read_bytes() == before


def test_more_steps_go_on_from_the_last_checkpoint(trained, tmp_path):
    out = tmp_path / "dpm"
    assert run("pretrain", *SMALL, "--steps", 2, "--out", out) == 0
    assert run("pretrain", *SMALL, "--steps", 4, "--out", out) == 0
    history = read(out / "checkpoints/step_000000004.safetensors")[1]["history"]
    assert [h["step"] for h in history] == [2, 4]


def test_a_dpm_that_exists_goes_on(trained, tmp_path, capsys):
    first, out = trained / "dpm/model.safetensors", tmp_path / "dpm"
    assert run("pretrain", "--dpm", first, *SMALL, "--lr", 1e-30, "--steps", 2, "--out", out) == 0
    # a step as small as that leaves the weights
    before, after = load_model(first), load_model(out / "model.safetensors")
    assert after.metadata["start"] == str(first) and after.metadata["preset"] == "digits"
    assert all(torch.allclose(a, b, atol=1e-6)
               for a, b in zip(before.state_dict().values(), after.state_dict().values()))
    assert run("pretrain", "--dpm", "digits", *SMALL, "--steps", 1, "--out", tmp_path / "shipped") == 0
    shipped, after = load_model(model_file("digits")).dpm, load_model(tmp_path / "shipped/model.safetensors")
    assert any(not torch.equal(a, b) for a, b in zip(shipped.state_dict().values(), after.state_dict().values()))
    capsys.readouterr()
    assert run("pretrain", "--dpm", "hf:x", *SMALL, "--steps", 1, "--out", tmp_path / "x") == 2
    assert "a file of `pdae pretrain`" in capsys.readouterr().err


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
    assert run("reconstruct", *(tmp_path / f"{i}.png" for i in range(3)), "--model", model, "--steps", 3, "--out",
               out) == 0
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
    (["pretrain", "--data", "digits", "--steps", "0", "--out", "x"], "--steps: 0; want a whole number, 1 to"),
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


def test_a_wrong_value_gives_2(capsys):
    assert run("pretrain", "--data", "digits", "--out", "x", "--steps", "many") == 2
    assert "--steps: many; want a whole number" in capsys.readouterr().err


def test_help_is_quick():
    """No torch for the list of commands, nor for the package itself."""
    code = ("import sys, pdae_lite.commands.main as m; "
            "sys.exit(m.main(['--help']) or 'torch' in sys.modules or 'numpy' in sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    assert f"usage: pdae {command}" in out and "None" not in out
    assert main.main([]) == 0 and command in capsys.readouterr().out


def test_a_mistake_of_the_parser_is_one_line_too(capsys):
    for argv in (["edit"], ["edit", "--nonsense"], ["nonsense"], ["sample", "--model", "digits", "-n", "many"]):
        assert run(*argv) == 2 and capsys.readouterr().err.count("\n") == 1


def test_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "pdae_lite", "--help"], capture_output=True, text=True, check=True)
    for command in ("pretrain", "train", "latent", "presets", "reconstruct", "info"):
        assert command in done.stdout


# ---- presets and settings --------------------------------------------------------------------------------------------


def test_presets_are_listed_with_their_sizes(capsys):
    assert run("presets") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(PRESETS)
    assert next(line for line in lines if line.startswith("ffhq128")).split()[:7] == [
        "ffhq128", "3×128×128", "512", "98.6M", "82.4M", "130.0M", "64.0M"]
    assert run("presets", "celeba64") == 0
    out = capsys.readouterr().out
    for line in ("pdae pretrain", "  unet.channel_mult=1,2,4,8", "  train.weight=simple", "pdae train --method pdae",
                 "  encoder.z_dim=512", "  train.weight=pdae", "  lmdb.crop=57,25,128,128",
                 "pdae train --method diffae", "pdae latent", "  latent.layers=10"):
        assert line in out.splitlines(), line


def test_set_changes_networks_and_training(trained, tmp_path):
    short = ["--data", "digits", "--steps", 1, "--batch-size", 4]
    assert run("pretrain", *short, *TINY, "--set", "train.lr=3e-4", "--set", "prediction=epsilon", "--out",
               tmp_path / "dpm") == 0
    dpm = load_model(tmp_path / "dpm/model.safetensors")
    assert type(dpm).__name__ == "UNet" and dpm.config.base_channels == 8
    assert (dpm.metadata["training"]["lr"], dpm.metadata["training"]["batch_size"],
            dpm.metadata["preset"]) == (3e-4, 4, "digits")
    assert run("train", "--dpm", tmp_path / "dpm/model.safetensors", *short, "--precision", "no", "--set",
               "encoder.z_dim=5",
              "--set", "encoder.channels=8,8", "--set", "train.batch_size=2", "--out", tmp_path / "pdae") == 0
    pdae = load_model(tmp_path / "pdae/model.safetensors")
    assert pdae.z_dim == 5 and pdae.metadata["training"]["batch_size"] == 4  # short options win


def test_a_pdae_takes_the_preset_that_its_dpm_was_trained_with(tmp_path):
    assert run("pretrain", "--data", "peeps", "--preset", "peeps_gpu", *TINY, "--no-compile", "--steps", 1,
               "--batch-size", 2, "--out", tmp_path / "dpm") == 0
    assert run("train", "--dpm", tmp_path / "dpm/model.safetensors", "--data", "peeps", "--precision", "no",
               "--no-compile", "--steps", 1, "--batch-size", 2, "--out", tmp_path / "pdae") == 0
    facts = load_model(tmp_path / "pdae/model.safetensors").metadata
    assert facts["preset"] == "peeps_gpu" and facts["training"]["warmup"] == PRESETS["peeps_gpu"].train.warmup


def test_diffae_is_trained_from_scratch_and_rebuilds(tmp_path, capsys):
    file = tmp_path / "ae/model.safetensors"
    assert run("train", "--method", "diffae", "--data", "digits", *TINY, "--steps", 1, "--batch-size", 2, "--out",
               file.parent) == 0
    model = load_model(file)
    assert type(model).__name__ == "DiffAE" and model.z_dim == 32 and model.network.config.base_channels == 8
    Image.new("L", (32, 32), 100).save(tmp_path / "x.png")
    assert run("reconstruct", tmp_path / "x.png", "--model", file, "--steps", 2, "--out", tmp_path / "y.png") == 0


def test_labels_in_place_of_an_encoder(trained, tmp_path, capsys):
    short = ["--data", "digits", "--labels", "--steps", 1, "--batch-size", 2, "--precision", "no"]
    assert run("pretrain", *short, *TINY, "--out", tmp_path / "dpm") == 0
    assert load_model(tmp_path / "dpm/model.safetensors").config.num_classes == 10
    assert run("train", "--dpm", trained / "dpm/model.safetensors", *short, "--set", "encoder.z_dim=6", "--out",
               tmp_path / "pdae") == 0
    encoder = load_model(tmp_path / "pdae/model.safetensors").encoder
    assert (type(encoder).__name__, encoder.num_classes, encoder.z_dim) == ("LabelEncoder", 10, 6)
    capsys.readouterr()
    assert run("pretrain", "--data", "peeps", "--labels", "--out", tmp_path / "faces") == 2
    assert "27 labels an image; want one class an image" in capsys.readouterr().err


def test_a_classifier_of_noisy_images(tmp_path):
    file = tmp_path / "out/model.safetensors"
    assert run("train", "--method", "classifier", "--data", "digits", *TINY, "--steps", 1, "--batch-size", 2, "--out",
               file.parent) == 0
    model = load_model(file)
    assert type(model).__name__ == "NoisyClassifier" and model.num_classes == 10


def test_a_latent_dpm_of_a_model_s_codes(trained, photos, tmp_path, capsys):
    short = ["--steps", 1, "--batch-size", 2, "--set", "latent.width=16", "--set", "latent.layers=3"]
    model = trained / "pdae/model.safetensors"
    assert run("latent", "--model", model, "--data", photos, *short, "--set", "train.flip=true", "--out",
               tmp_path / "latent") == 0
    latent, pdae = load_model(tmp_path / "latent/model.safetensors"), load_model(model)
    assert latent.z_dim == pdae.z_dim and latent.metadata["preset"] == "digits" and latent.config.width == 16
    images = data.to_float(torch.stack([*open_source(str(photos), 32, 1)]))
    z = pdae.encode(torch.cat([images, images.flip(-1)])).detach()
    torch.testing.assert_close(latent.stats.mean, z.mean(0), rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    for argv, says in ((["--set", "latent.z_dim=5"], "z_dim=5"), (["--size", "64"], "the given PDAE takes 32×32")):
        assert run("latent", "--model", model, "--data", photos, *short, *argv, "--out", tmp_path / "other") == 2
        assert says in capsys.readouterr().err
    assert run("latent", "--model", trained / "dpm/model.safetensors", "--data", photos, "--out",
               tmp_path / "other") == 2
    assert "holds a AsEpsilon; want a PDAE or a DiffAE" in capsys.readouterr().err


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """Four pictures, two in each of two folders."""
    for i in range(4):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40 + i, 30), 50).convert("RGB").save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_of_one_s_own_at_any_size(photos, tmp_path):
    tiny = [*TINY, "--steps", 1, "--batch-size", 2]
    assert run("pretrain", "--data", photos, "--size", 32, *tiny, "--out", tmp_path / "dpm") == 0
    dpm = load_model(tmp_path / "dpm/model.safetensors")
    assert (dpm.config.image_size, dpm.config.in_channels, dpm.metadata["preset"]) == (32, 3, "peeps64")
    assert run("train", "--dpm", tmp_path / "dpm/model.safetensors", "--data", f"classes:{photos}", "--precision", "no",
               "--steps", 1, "--batch-size", 2, "--out", tmp_path / "pdae") == 0
    assert load_model(tmp_path / "pdae/model.safetensors").encoder.config.image_size == 32
    assert run("pretrain", "--data", photos, "--preset", "digits", *tiny, "--out", tmp_path / "grey") == 0
    assert load_model(tmp_path / "grey/model.safetensors").config.in_channels == 1


def test_sources(photos, tmp_path, monkeypatch):
    assert open_source("digits", 32, 1)[0][0].shape == (1, 32, 32)
    assert open_source(str(photos), 16, 3)[3].shape == (3, 16, 16)
    classes = open_source(f"classes:{photos}", 16, 1)
    assert classes.classes == ["a", "b"] and [label for _, label in (classes[i] for i in range(4))] == [0, 0, 1, 1]
    seen = []

    def torchvision_set(name, split, root, download, size):
        seen.append((name, split, root, download, size))
        return Images(torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))

    monkeypatch.setattr("pdae_lite.data.sources.torchvision_set", torchvision_set)
    for spec, download in (("torchvision:celeba", False), ("torchvision:celeba:/a:b", True)):
        open_source(spec, 64, 3, download)
    assert seen == [("celeba", "train", "data", False, 64), ("celeba", "train", "/a:b", True, 64)]

    lmdb = pytest.importorskip("lmdb")
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "PNG")  # 256×256, black at the top
    with lmdb.open(str(tmp_path / "x.lmdb"),
                   map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, value in {"length": b"3", **{f"256-{i:05d}": buffer.getvalue() for i in range(3)}}.items():
            transaction.put(key.encode(), value)
    images = open_source(f"lmdb:{tmp_path / 'x.lmdb'}", 16, 3, lmdb=LMDBConfig(start=1, crop=(0, 0, 32, 32)))
    assert len(images) == 2 and images[0].max() < 40


@pytest.mark.parametrize("argv, says", [
    (["--data", "PHOTOS"], "has no preset of its own; add --preset NAME (`pdae presets` lists them) or --size S"),
    (["--data", "PHOTOS", "--size", "20"], "image_size=20; want a multiple of 16"),
    (["--data", "nowhere", "--size", "32"], "nowhere: no such folder; want digits, peeps, FOLDER"),
    (["--data", "lmdb:nowhere", "--size", "32"], "nowhere doesn't exist"),
    (["--data", "torchvision:mnist:nowhere"], "mnist isn't in nowhere"),
    (["--data", "torchvision:svhn", "--size", "32"], "name 'svhn'; want one of mnist"),
    (["--data", "digits", "--download"], "download, but data digits are nothing to fetch"),
    (["--data", "digits", "--size", "16"], "data digits: images of 1×32×32, but the model takes 1×16×16"),
    (["--data", "digits", "--preset", "dogs"], "--preset 'dogs'; want one of digits, digits_paper, peeps, "),
    (["--data", "digits", "--set", "train.learning_rate=1"], "setting 'train.learning_rate' is unknown here"),
    (["--data", "classes:PHOTOS/a", "--size", "32"], "0.png is in no subfolder"),
])
def test_data_and_settings_that_are_wrong(photos, argv, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("pretrain", *(a.replace("PHOTOS", str(photos)) for a in argv), "--out", "x") == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize("argv, says", [
    ([], "--dpm is missing"),
    (["--dpm", "digits", "--size", "64"], "--size 64, but the given AsEpsilon takes 32×32"),
    (["--dpm", "digits", "--method", "diffae"], "leave --dpm out"),
    (["--dpm", "digits", "--set", "unet.base_channels=8"], "setting 'unet.base_channels' is unknown here"),
])
def test_methods_say_what_they_need(argv, says, tmp_path, capsys):
    assert run("train", "--data", "digits", *argv, "--out", tmp_path / "x") == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_help_names_every_weighting_and_data_set(capsys):
    assert run("train", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"loss weighting: {', '.join([*LOSS_WEIGHTS][:-1])} or {[*LOSS_WEIGHTS][-1]} " in out
    for word in SYNTAX.replace(" or", ",").split(", "):
        assert word in out


def test_torchrun_joins_its_processes(tmp_path):
    """Where there is no GPU, processes that don't know of each other would train the same model into one folder. (That
    two joined ones train as one does: test_training.)"""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, "-m", "pdae_lite", "pretrain", "--data", "digits", *TINY, "--batch-size", "3",
                           "--out", tmp_path],
                          capture_output=True, text=True)
    assert done.returncode and "batch_size=3 doesn't divide by 2 processes" in done.stderr


def test_an_encoder_that_starts_from_a_plain_autoencoder(trained, tmp_path):
    out = tmp_path / "warm"
    short = ["--data", "digits", *TINY, "--steps", 1, "--batch-size", 4, "--set", "encoder.channels=8,8",
             "--warm-encoder", 8, "--out", out]
    assert run("train", "--method", "diffae", *short) == 0
    assert load_model(out / "model.safetensors").metadata["warm_encoder"] == 8
    assert load_model(out / "warm_encoder.safetensors").metadata == {"plain_autoencoder_images": 8}
    assert run("train", "--method", "diffae", *short[:-3], 0, "--out", tmp_path / "none") == 2
