"""pdae evaluate: the paper's protocol on the released fixture and a small LMDB, and reconstructions of any model."""
import io
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import fixture
from PIL import Image

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, counter_rng, data, metrics
from pdae_lite.commands import main
from pdae_lite.data.sources import open_source
from pdae_lite.networks.encoder import EncoderConfig
from pdae_lite.reproduction import protocol, published, released_files

lmdb = pytest.importorskip("lmdb", reason="lmdb isn't installed")
RELEASED = fixture("official_pdae_tiny")


def run(*argv):
    return main.main(["evaluate", *map(str, argv)])


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def faces(tmp_path_factory, images):
    """A folder with one LMDB, named and laid out as CelebA-HQ's."""
    root = tmp_path_factory.mktemp("data")
    with lmdb.open(str(root / "celebahq"), map_size=2**24) as env, env.begin(write=True) as transaction:
        for i, image in enumerate(images):
            png = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "PNG")
            transaction.put(f"256-{i:05d}".encode(), png.getvalue())
        transaction.put(b"length", str(len(images)).encode())
    return root


@pytest.fixture(scope="module")
def released():
    return released_files.find_released(RELEASED)["released"]


@pytest.fixture(scope="module")
def pdae(released):
    return released.load()


@pytest.fixture(scope="module")
def expected():
    with np.load(RELEASED / "expected.npz", allow_pickle=False) as f:
        return {k: torch.from_numpy(f[k]) for k in f.files if f[k].ndim}


class TinyInception(torch.nn.Module):
    """Takes and gives what StyleGAN2-ADA's TorchScript of Inception does, but for the number of features."""

    def forward(self, x: torch.Tensor, return_features: bool = False):
        assert x.dtype == torch.uint8 and return_features
        return x.float().mean((2, 3)) / 255


@pytest.fixture
def inception(tmp_path):
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch: TorchScript is to go
        torch.jit.script(TinyInception()).save(str(tmp_path / "inception.pt"))
    return tmp_path / "inception.pt"


# ---- the protocol is the release's -----------------------------------------------------------------------------------


def test_reconstructions_are_the_release_s(pdae, expected):
    """Whole runs agree with the fixture as far as float32 lets them: see test_interop."""
    one = {k: v[:1] for k, v in expected.items()}
    rows = protocol.rebuilt(one["x_0"], one["x_T"], 10, pdae, **protocol.PAPER)
    difference = (rows["PDAE, random x_T"] - one["ddim10_sample"]).abs()
    assert float((difference <= 1e-4).float().mean()) >= 0.999 and float(difference.max()) <= 1e-3
    inferred = pdae.decode(one["z"], one["ddim10_encode"], 10, grid="paper")
    assert float((rows["PDAE, inferred x_T"] - inferred).square().mean().sqrt()) < 1e-3
    assert float((rows["DDIM, inferred x_T"] - inferred).square().mean().sqrt()) > 1e-2  # no z


def test_latent_samples_are_the_release_s(released, expected):
    latent = released.load_latent()
    got = protocol.latent_samples(latent, expected["latent_z_t"], 10)
    want = expected["latent_ddim10_clamped_as_released"] * latent.stats.std + latent.stats.mean
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_ssim_sees_zeros_beyond_the_border():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 14, 13, generator=g, dtype=torch.float64)
    u = np.arange(-5, 6)
    window = np.exp(-(u[:, None] ** 2 + u**2) / 4.5)
    window /= window.sum()
    pads = [np.pad(x[0].numpy(), ((0, 0), (5, 5), (5, 5))) for x in (a, b)]
    total = 0.0
    for c, i, j in np.ndindex(3, 14, 13):
        p, q = (x[c, i:i + 11, j:j + 11] for x in pads)
        m_p, m_q = (window * p).sum(), (window * q).sum()
        v_p, v_q, cov = (window * p * p).sum() - m_p**2, (window * q * q).sum() - m_q**2, (window * p
                                                                                           * q).sum() - m_p * m_q
        total += (2 * m_p * m_q + 1e-4) * (2 * cov + 9e-4) / ((m_p**2 + m_q**2 + 1e-4) * (v_p + v_q + 9e-4))
    assert float(protocol.ssim(a, b)) == pytest.approx(total / (3 * 14 * 13), abs=1e-12)
    assert float(protocol.ssim(a, a)) == pytest.approx(1, abs=1e-12)
    # without the border
    assert float(metrics.ssim(2 * a - 1, 2 * b - 1)) != pytest.approx(total / (3 * 14 * 13), abs=1e-4)


def test_published_numbers():
    """As printed in the paper's tables; PDAE's own rows and the comparisons that it loses."""
    assert (published.TABLE_1["PDAE, inferred x_T"] == (0.993, 0.008, 5.48e-5)
            and published.TABLE_1["DDIM, inferred x_T"][0] == 0.917)
    assert published.TABLE_1["PDAE, random x_T"][1] > published.TABLE_1["Diff-AE, random x_T"][1]
    lost = [(name, T) for name, rows in published.TABLE_2.items()
            for T, a, b in zip(published.STEPS, rows["PDAE"], rows["Diff-AE"]) if a > b]
    assert lost == [("bedroom128", 100), ("celeba64", 50)]


# ---- pdae evaluate --protocol paper ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(faces, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "report.json"
    arguments = ["--protocol", "paper", "--released", RELEASED, "--data", faces, "--quick", "--steps", "1",
                 "--long-inversion", "0"]
    assert run(*arguments, "--table", 1, "--json", path) == 0
    table_1 = json.loads(path.read_text())
    shutil.copytree(faces / "celebahq", faces / "celeba64")
    assert run(*arguments, "--set", "celeba64", "--table", 2, "--samples", 20, "--seed", 3, "--json", path) == 0
    return table_1, json.loads(path.read_text())


def test_table_1(report, pdae, images):
    report = report[0]
    table = report["table_1"]
    assert set(table["measured"]) == {"1"} and table["images"] == 3
    assert list(table["measured"]["1"]) == ["DDIM, inferred x_T", "PDAE, random x_T", "PDAE, inferred x_T"]
    x_0 = data.to_float(images)
    x = pdae.decode(pdae.encode(x_0), counter_rng.normal(0, 0, torch.arange(3), (3, 64, 64)), 1, grid="paper",
                    clip=True)
    got = table["measured"]["1"]["PDAE, random x_T"]
    assert (got["MSE"]["value"] == pytest.approx(float(((x - x_0) / 2).square().mean()), rel=1e-4)
            and got["MSE"]["n"] == [3])
    assert got["MSE"]["low"] < got["MSE"]["value"] < got["MSE"]["high"]
    assert (table["metric"].startswith("distance in peeps class features at ") and table["metric"] in got
            and "LPIPS" not in got)
    assert any("isn't LPIPS" in note for note in report["notes"])
    assert table["paper"]["PDAE, inferred x_T"] == {"SSIM": 0.993, "LPIPS": 0.008, "MSE": 5.48e-5}


def test_table_2(report):
    report = report[1]
    table = report["table_2"]["celeba64"]
    assert table["samples"] == 20 and table["images"] == 3 and set(table["measured"]) == {"DDIM", "PDAE"}
    assert all(row["1"]["value"] > 0 and row["1"]["n"] == [20, 3] for row in table["measured"].values())
    assert table["metric"].startswith("Fréchet distance in peeps class features") and "FID" not in table["metric"]
    assert any("isn't FID" in note for note in report["notes"])
    assert table["paper"]["PDAE"] == [11.84, 9.65, 7.23, 5.19]


def test_what_a_report_says_of_itself(report):
    first, second = report
    assert first["command"].startswith("pdae evaluate --protocol paper --released ")
    assert "--steps 1" in first["command"] and "--count" not in first["command"]
    assert first["seed"] == 0 and second["seed"] == 3 and first["quick"] and first["device"] and "T" in first["date"]
    assert set(first["versions"]) == {"pdae_lite", "python", "torch", "torchvision", "torchmetrics", "numpy"}
    assert {Path(p).name for p in first["files"]} >= {"checkpoint.pt", "config.yml", "ddpm_config.yml"}
    assert all(len(digest) == 64 for digest in first["files"].values())


@pytest.fixture
def in_folders(tmp_path):
    """The fixture in the release's folders, as celeba64; without a latent DPM as horse128."""
    def put(name, target):
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(RELEASED / name, tmp_path / target)

    for name in ("celeba64", "horse128"):
        put("config.yml", f"trained-models/autoencoder/{name}/config.yml")
        put("checkpoint.pt", f"trained-models/autoencoder/{name}/checkpoint.pt")
        put("ddpm_config.yml", f"pre-trained-dpms/{name}/config.yml")
    put("latents.pt", "trained-models/latents/celeba64.pt")
    put("latent_config.yml", "trained-models/latent_denoise_fn/celeba64/config.yml")
    put("latent_checkpoint.pt", "trained-models/latent_denoise_fn/celeba64/checkpoint.pt")
    return tmp_path


def test_the_release_s_folders_and_inception(in_folders, faces, inception, tmp_path, capsys):
    found = released_files.find_released(in_folders)
    assert set(found) == {"celeba64", "horse128"} and found["celeba64"].has_latent and not found["horse128"].has_latent
    arguments = ["--protocol", "paper", "--released", in_folders, "--data", f"lmdb:{faces / 'celebahq'}", "--steps", 1,
                 "--samples", 20]
    assert run(*arguments) == 2
    assert "is one LMDB, but Table 2 is of horse128, celeba64; name the one" in capsys.readouterr().err
    assert run(*arguments, "--set", "celeba64", "--inception", inception, "--json", tmp_path / "r.json") == 0
    out = capsys.readouterr().out
    assert "Table 2: FID, celeba64, 20 samples against 3 images" in out and "isn't FID" not in out
    assert f"Note: Table 1 is left out, as {in_folders} holds no ffhq128" in out
    table = json.loads((tmp_path / "r.json").read_text())["table_2"]["celeba64"]
    assert (table["metric"] == "FID"
            and table["measured"]["DDIM"]["1"]["value"] != table["measured"]["PDAE"]["1"]["value"])
    assert run(*arguments, "--set", "horse128", "--table", 2) == 2
    assert "holds no latent DPM of horse128" in capsys.readouterr().err


def test_aligned_celeba_is_cropped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    with lmdb.open(str(tmp_path / "celeba64"), map_size=2**22) as env, env.begin(write=True) as transaction:
        transaction.put(b"None-0000000", png.getvalue())
        transaction.put(b"length", b"1")
    got = released_files.open_images(tmp_path, "celeba64", 128, 3)[0]
    assert np.array_equal(got.permute(1, 2, 0), pixels[57:57 + 128, 25:25 + 128])


# ---- any model -------------------------------------------------------------------------------------------------------


def test_any_model(tmp_path, capsys):
    torch.manual_seed(0)
    dpm = UNet(UNetConfig(32, 1, 8, (1, 2), 1, ()))
    torch.nn.init.normal_(dpm.out[-1].weight, std=0.1)
    model = PDAE(dpm, SemanticEncoder(EncoderConfig(32, 1, (8, 8), None, z_dim=4)), NoiseSchedule.linear()).eval()
    model.save(tmp_path / "model.safetensors", {"data": "digits"})
    arguments = ["--model", tmp_path / "model.safetensors", "--count", 3, "--batch-size", 2]
    assert run(*arguments, "--steps", "2,3", "--json", tmp_path / "r.json") == 0
    out = capsys.readouterr().out
    assert "3 images of digits, 2 steps" in out and "3 images of digits, 3 steps" in out and "PSNR" in out
    report = json.loads((tmp_path / "r.json").read_text())
    x_0 = data.digits("test").floats(slice(3))
    with torch.no_grad():
        z = model.encode(x_0)
        random = model.decode(z, counter_rng.normal(0, 0, torch.arange(3), (1, 32, 32)), 2)
        inferred = model.decode(z, model.invert(x_0, z, 2), 2)
    for row, x in (("random x_T", random), ("inferred x_T", inferred)):
        for name, metric in (("MSE", metrics.mse), ("SSIM", metrics.ssim), ("PSNR", metrics.psnr)):
            assert report["reconstruction"]["2"][row][name]["value"] == pytest.approx(float(metric(x_0, x).mean()),
                                                                                      rel=1e-4)
    assert report["counts"] == {"images": 3} and report["data"] == "digits" and len(report["model"]["sha256"]) == 64
    assert report["reconstruction"]["2"]["random x_T"]["MSE"] != report["reconstruction"]["3"]["random x_T"]["MSE"]


def test_peeps_come_in_the_model_s_size():
    for size in (16, 32, 64):
        assert open_source("peeps", size, 3, split="test")[0][0].shape == (3, size, size)


@pytest.mark.parametrize(("argv", "says"), [
    ([], "--model is missing"),
    (["--model", "nowhere"], "nowhere: no such file"),
    (["--model", "digits", "--inception", "x"], "--inception is for --protocol paper"),
    (["--model", "digits", "--count", "1"], "--count: 1; want a whole number, 2 or more"),
    (["--model", "digits", "--count", "2", "--steps", "ten"], "--steps ten; want whole numbers"),
    (["--model", "digits", "--count", "2", "--device", "abacus"], "--device abacus"),
    (["--protocol", "paper"], "wants --released DIR and --data LMDB"),
    (["--protocol", "paper", "--released", "nowhere", "--data", "x"],
     "nowhere holds no released model; want DIR/pre-trained-dpms"),
    (["--protocol", "paper", "--released", RELEASED, "--data", "nowhere"], "nowhere doesn't exist"),
    (["--protocol", "paper", "--released", RELEASED, "--data", "x", "--set", "cats"],
     "--set cats; want one of ffhq128"),
    (["--protocol", "paper", "--released", RELEASED, "--data", "x", "--samples", "19"],
     "--samples: 19; want a whole number, 20 or more"),
    (["--protocol", "paper", "--released", RELEASED, "--data", "x", "--table", "2", "--inception", "nowhere.pt"],
     "nowhere.pt: no such"),
])
def test_a_mistake_gives_one_line(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_lpips_is_called_so_only_when_it_is(monkeypatch):
    monkeypatch.setattr(metrics, "lpips", lambda a, b, download: torch.full((len(a),), 0.5))
    distance = protocol.lpips_distance()
    x = torch.zeros(2, 3, 16, 16)
    assert distance.name == "LPIPS" and distance.function(x, x).tolist() == [0.5, 0.5]
