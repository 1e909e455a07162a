"""The paper's tables in small: cells and what they cost, stopped and resumed, `pdae evaluate --table`."""
import json
from unittest.mock import Mock

import pytest
import torch

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, counter_rng, data, metrics
from pdae_lite.applications.latent import LatentConfig, LatentDPM
from pdae_lite.commands import main
from pdae_lite.networks.encoder import EncoderConfig
from pdae_lite.reproduction import small, table_3
from pdae_lite.reproduction import table_2 as better
from pdae_lite.reproduction.partial import Partial
from pdae_lite.reproduction.subject import Subject
from pdae_lite.reproduction.table_2 import Cell

# ---- samples ---------------------------------------------------------------------------------------------------------


def small_pdae():
    torch.manual_seed(0)
    pdae = PDAE(UNet(UNetConfig(32, 1, 8, (1, 2), 1, ())), SemanticEncoder(EncoderConfig(32, 1, (8, 8), None, z_dim=4)),
                NoiseSchedule.linear(), form="paper").eval().requires_grad_(False)
    for out in (pdae.dpm.out[-1], pdae.estimator.shift_out[-1]):
        torch.nn.init.normal_(out.weight, std=0.1)
    return pdae


def small_latent():
    return LatentDPM(LatentConfig(4, 2, 8, 8)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def subject():
    from pdae_lite import load

    return Subject("digits", load("digits", "features"), pdae=small_pdae(), latent=small_latent())


@pytest.fixture(scope="module")
def files(tmp_path_factory, subject):
    folder = tmp_path_factory.mktemp("models")
    subject.pdae.save(folder / "pdae.safetensors", {"data": "digits"})
    subject.latent.save(folder / "latent.safetensors")
    return folder / "pdae.safetensors", folder / "latent.safetensors"


def test_the_sweep_is_what_decode_gives(subject):
    z, x_T = torch.randn(2, 4), torch.randn(2, 1, 32, 32)
    group = [Cell("PDAE", 10, off) for off in (0.3, 0.0, 0.05, 0.6, 1.0)]
    found = dict(better.every_off_last(subject, z, x_T, 10, group))
    assert len(found) == 5
    for cell in group:
        assert torch.equal(found[cell.name], subject.pdae.decode(z, x_T, 10, off_last=cell.off_last)), cell
    assert not torch.equal(found["PDAE, T = 10"], found["PDAE, T = 10, plain in the last 60%"])
    (alone,) = better.every_off_last(subject, z, x_T, 10, group[3:4])
    assert torch.equal(alone[1], found["PDAE, T = 10, plain in the last 60%"])


def test_samples_come_in_pairs_whatever_the_batch(subject):
    wanted = [Cell("DDIM", 3), Cell("PDAE", 3, 0.3)]
    whole = dict(better.draw(subject, wanted, torch.arange(4), seed=5))
    part = dict(better.draw(subject, wanted, torch.arange(2, 4), seed=5))
    for name, images in part.items():
        torch.testing.assert_close(whole[name][2:], images, rtol=1e-4, atol=1e-4)
    x_T = counter_rng.normal(5, 0, torch.arange(4), (1, 32, 32))
    z = subject.latent.sample(z_T=counter_rng.normal(5, 1, torch.arange(4), (4,)))
    torch.testing.assert_close(whole["PDAE, T = 3"], subject.pdae.decode(z, x_T, 3, off_last=0.3), rtol=1e-4, atol=1e-4)
    assert not torch.equal(whole["DDIM, T = 3"], whole["PDAE, T = 3"])


def test_costs(subject):
    each = better.gflop(subject)
    assert set(each) == {"plain", "shifted", "latent"} and 1.5 < each["shifted"] / each["plain"] < 2
    codes = better.LATENT_STEPS * each["latent"]
    assert better.cost(subject, each, "PDAE", 10, 0.3) == pytest.approx(3 * each["plain"] + 7 * each["shifted"] + codes)
    wanted, equal = better.cells(subject, (20, 50))
    cost = {c.name: c.cost for c in wanted}
    assert len(cost) == len(wanted) == 2 + 2 + 2 + 6  # two methods at two T, as many at equal cost, and the sweep
    for T, names in equal.items():
        assert cost[names["PDAE"]] == pytest.approx(T * each["plain"], rel=0.1) and names["DDIM"] == f"DDIM, T = {T}"
    assert cost["PDAE, T = 20"] > 1.3 * cost["DDIM, T = 20"]


def test_shipped_models_have_every_row():
    s = Subject.open("peeps")
    wanted, equal = better.cells(s)
    names = {c.name for c in wanted}
    assert names >= {f"{m}, T = {T}" for m in ("DDIM", "Diff-AE", "PDAE") for T in (10, 20, 50, 100)}
    assert all(equal[T]["Diff-AE"] == f"Diff-AE, T = {T}" for T in equal)  # costs what the plain DPM costs
    assert set(s.digests()) == {"pdae", "diffae", "latent", "diffae_latent", "net"}


# ---- stopped and resumed ---------------------------------------------------------------------------------------------


def test_goes_on_where_it_was_stopped(subject, tmp_path):
    wanted = [Cell("DDIM", 2), Cell("PDAE", 2, 0.3)]
    at_once = Partial(None, {})
    better.collect(subject, wanted, 6, at_once, batch_size=2)
    for count in (4, 6):
        seen = []
        again = Partial(tmp_path / "t.json", {"same": (1, 2)})
        better.collect(subject, wanted, count, again, batch_size=2, report=seen.append)
        assert seen == ([2, 4] if count == 4 else [6])
    assert all(torch.equal(v, again.tensors[k]) for k, v in at_once.tensors.items()) and len(again.tensors) == 2
    assert Partial(tmp_path / "t.json", {"same": (1, 3)}).count() == 0
    more = [*wanted, Cell("PDAE", 2, 0.0)]  # what is there serves a larger table
    better.collect(subject, more, 6, again, batch_size=4, report=seen.append)
    assert seen[-2:] == [4, 6] and len(again.tensors) == 3 and again.count() == 6
    again.done()
    assert not list(tmp_path.iterdir())


# ---- the command -----------------------------------------------------------------------------------------------------


def run(*argv):
    return main.main(["evaluate", *map(str, argv)])


def test_table_1_of_a_file(files, subject, tmp_path, capsys, monkeypatch):
    arguments = ["--table", 1, "--model", files[0], "--count", 3, "--steps", 2, "--batch-size", 2, "--json",
                 tmp_path / "t.json"]
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert "3 held-out digits rebuilt, T = 2" in out and "isn't LPIPS" in out
    record = json.loads((tmp_path / "t.json").read_text())
    rows = record["measured"]["2"]
    assert {row: columns["latent"] for row, columns in rows.items()} == {
        "DDIM, inferred x_T": 1024, "PDAE, random x_T": 4, "PDAE, inferred x_T": 1028}
    x_0, pdae = data.digits("test").floats(slice(3)), subject.pdae
    z = pdae.encode(x_0)
    x = pdae.decode(z, counter_rng.normal(0, 0, torch.arange(3), (1, 32, 32)), 2)
    got = rows["PDAE, random x_T"]
    assert got["MSE"]["value"] == pytest.approx(float(metrics.mse(x_0, x).mean()), rel=1e-3)
    assert got["first"] == pytest.approx(metrics.mse(x_0, x).tolist(), rel=1e-3)
    assert got["SSIM"]["value"] == pytest.approx(float(metrics.ssim(x_0, x).mean()), rel=1e-3)
    assert record["metric"] == "distance in digits shape features" and not record["is_lpips"] and "LPIPS" not in got
    assert (record["seed"] == 0 and len(record["sha256_of_weights"]["pdae"]) == 64 and record["device"]
            and record["date"])
    assert not (tmp_path / "t.json.part").exists()
    monkeypatch.setattr(small, "compare", None)  # a record that is complete isn't measured again
    assert run(*arguments) == 0 and capsys.readouterr().out == out
    assert run(*arguments, "--seed", 1) == 2
    assert "holds figures of other settings or models (seed); remove it" in capsys.readouterr().err


def test_table_2_of_files(files, tmp_path, capsys, monkeypatch):
    arguments = ["--table", 2, "--model", files[0], "--latent", files[1], "--steps", "2,3", "--json",
                 tmp_path / "t.json"]
    assert run(*arguments, "--samples", 20, "--dtype", "bf16") == 0
    out = capsys.readouterr().out
    assert "KID in digits class features, 20 samples against 500 real images" in out and "FID's formula" not in out
    record = json.loads((tmp_path / "t.json").read_text())
    cells = {c["name"]: c for c in record["cells"]}
    assert set(cells) >= {"DDIM, T = 2", "DDIM, T = 3", "PDAE, T = 2", "PDAE, T = 3"} and record["samples"] == 20
    assert all(c["kid"]["low"] < c["kid"]["value"] < c["kid"]["high"] and len(c["first"]) == 64 for c in cells.values())
    assert cells["DDIM, T = 2"]["to_the_end"]["value"] > 0 and "to_the_end" not in cells["DDIM, T = 3"]
    d = record["differences"][0]
    assert (d["a"], d["b"]) == ("PDAE, T = 2", "DDIM, T = 2")
    assert d["kid"]["value"] == pytest.approx(cells[d["a"]]["kid"]["value"] - cells[d["b"]]["kid"]["value"], rel=1e-4,
                                              abs=1e-4)
    check = record["precision_check"]
    assert check["samples"] == 20 and check["difference"]["low"] <= check["difference"]["high"]
    assert record["dtype"] == "bf16" and record["paper"]["horse128"]["PDAE"][0] == 11.94
    monkeypatch.setattr(better, "collect", None)
    assert run(*arguments, "--samples", 20, "--dtype", "bf16") == 0  # complete
    assert run(*arguments, "--samples", 20) == 2
    assert "holds figures of other settings or models (dtype)" in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "says"), [
    (["--table", "2", "--model", "FILE"], "Table 2 wants a latent DPM"),
    (["--table", "1", "--model", "FILE", "--dtype", "bf16"], "lower precision adds to the errors of Table 1"),
    (["--table", "1", "--model", "FILE", "--data", "cats"], "the small tables are of digits and peeps"),
    (["--table", "2", "--model", "digits", "--latent", "x"], "has its own latent DPMs"),
    (["--model", "digits", "--samples", "30"], "--samples is for --table; add that"),
    (["--model", "digits", "--dtype", "bf16"], "--dtype is for --table; add that"),
    (["--table", "3", "--model", "digits"], "the small Table 3 is of peeps at 32×32"),
    (["--table", "3", "--model", "peeps", "--steps", "5"], "--steps isn't for --table 3"),
    (["--table", "3", "--model", "peeps", "--samples", "100"], "Table 3 wants pools of at least 250"),
    (["--table", "1"], "--model is missing"),
    (["--protocol", "paper", "--table", "3", "--released", "x", "--data", "y"], "--protocol paper has Tables 1 and 2"),
])
def test_a_mistake_gives_one_line(argv, says, files, capsys):
    assert run(*(files[0] if a == "FILE" else a for a in argv)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_table_3_of_files(tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    measure = table_3.measure
    pdae = PDAE(UNet(UNetConfig(32, 3, 8, (1, 2), 1, ())), SemanticEncoder(EncoderConfig(32, 3, (8, 8), None, z_dim=4)),
                NoiseSchedule.linear())
    pdae.save(tmp_path / "pdae.safetensors", {"data": "peeps"})
    small_latent().save(tmp_path / "latent.safetensors")
    arguments = ["--table", 3, "--model", tmp_path / "pdae.safetensors", "--latent", tmp_path / "latent.safetensors",
                 "--quick", "--json", tmp_path / "t.json"]
    monkeypatch.setattr(table_3, "COUNTS", (10, 100))
    monkeypatch.setattr(table_3, "THRESHOLDS", (0.5,))
    monkeypatch.setattr(table_3, "SLOW", 3)
    monkeypatch.setattr(table_3, "measure", interrupt := Mock(side_effect=KeyboardInterrupt))
    assert run(*arguments) == 130 and interrupt.called and (tmp_path / "t.json.part").is_file()
    monkeypatch.setattr(table_3, "measure", measure)
    monkeypatch.setattr(table_3, "drawn", None)  # the pool is there
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "t.json").read_text())
    assert (record["kinds"] == ["pdae"] and list(record["attributes"]) == ["mask"] and record["pool"] == 250
            and record["draws"] == 2)
    rows = record["attributes"]["mask"]["classes"]["1"]
    assert rows["pdae, unselected"]["n"] == 250 and len(rows["pdae, binary"]) == 2
    assert all(row["n"] == round(250 * row["rate"]) for row in rows["pdae, binary"])
    assert rows["real, of the class"]["kid"] < rows["pdae, unselected"]["kid"]  # an untrained model draws no faces
    assert (record["decoded"].startswith("DPM-Solver++, 10 evaluations, float32")
            and record["check"]["pdae"]["images"] == 100)
    kid = sum(row["kid"] for row in rows["labelled, 50"]) / 2
    assert f"/ {kid:.3g}" in next(line for line in out.splitlines() if line.startswith("naive: 50"))
    assert "PDAE, 100 positives" in out and "Diff-AE" not in out and not (tmp_path / "t.json.part").exists()
    monkeypatch.setattr(table_3, "fill", None)
    assert run(*arguments) == 0 and capsys.readouterr().out.endswith(out[-200:])  # complete
