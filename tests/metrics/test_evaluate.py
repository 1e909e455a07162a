"""The scripts that measure what ships and write its cards."""
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cards
import contest
import evaluate
import evaluate_generators
import measurements
import pytest
import torch
import training_efficiency
from PIL import Image

import pdae_lite
from pdae_lite import data
from pdae_lite.applications.attributes import LinearProbe
from pdae_lite.applications.latent import LatentStats
from pdae_lite.checkpoint import load_model, save_model, shipped_file
from pdae_lite.losses import noise_error
from pdae_lite.metrics import LinearGaussian
from pdae_lite.presets import PRESETS
from pdae_lite.storage import PACKED, file_digest

TINY = measurements.Counts(fill=2, nats=2, cases=4, inferred=2, samples=20, steps=2, inferred_steps=2, linear=40,
                           probe=300, shown=3)
DIGITS = shipped_file("digits")


class Crops:
    """In place of a feature network: pixels of every eighth row."""

    config = type("Config", (), {"name": "rows of digits", "in_channels": 1})
    training = False

    def features(self, x, layer):
        return x[:, :, ::8].flatten(1)

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, x):
        return x.flatten(1)[:, 200:210]

    def train(self, mode=True):
        return self

    eval = train


@pytest.fixture(scope="module")
def subject():
    digits = measurements.Subject.open("digits", "pdae", DIGITS, TINY)
    return replace(digits, net=Crops())


@pytest.fixture(scope="module")
def found(subject):
    """All measurements of the shipped digits model, on a few images."""
    out = evaluate.described(subject)
    for name, measure in measurements.measured(subject).items():
        out[name] = measure(subject)
    out["probe"], probe = out["probe"]
    assert isinstance(probe, LinearProbe) and probe.z_dim == 32
    return json.loads(json.dumps(out))  # all of it is JSON


def test_measurements_are_what_they_say(subject, found):
    x, ts = subject.test.floats(slice(2)), measurements.TS
    errors = noise_error(lambda v: subject.model.dpm, x, subject.model.schedule, ts)
    assert found["fill"]["error_dpm"] == pytest.approx(errors.tolist())
    ratio = torch.tensor(found["fill"]["error_model"]) / torch.tensor(found["fill"]["error_dpm"])
    assert found["fill"]["model"] == pytest.approx((1 - ratio).tolist(), abs=1e-6)
    assert found["fill"]["mean_300_600"] == pytest.approx(sum(found["fill"]["model"][5:12]) / 7, abs=1e-6)
    linear = LinearGaussian(subject.train.floats(slice(40)), 32).fill(subject.model.schedule, ts)
    assert found["fill"]["linear_mean_100_900"] == pytest.approx(float(linear[1:18:2].mean()))
    assert found["random_x_T"]["cases"] == 4 and found["random_x_T"]["candidates"] == 500
    assert found["random_x_T"]["nearest_is_original"]["pixels"]["value"] == 1.0
    assert found["probe"]["measure"] == "accuracy" and 0.6 < found["probe"]["mean_accuracy"] < 1
    assert found["samples"]["count"] == 20 and "fid" not in found["samples"]  # 500 real digits are too few


def test_a_diffae_is_measured_against_the_dpm_of_the_pdae(tmp_path, found):
    torch.manual_seed(0)
    save_model(tmp_path / "diffae.safetensors", PRESETS["digits"].diffae(), {"preset": "digits", "data": "digits"})
    s = measurements.Subject.open("digits", "diffae", tmp_path / "diffae.safetensors", TINY)
    assert "samples" not in measurements.measured(s)
    assert s.error(s.test.floats(slice(2)), measurements.TS,
                   "dpm").tolist() == pytest.approx(found["fill"]["error_dpm"])


def test_criteria(found):
    rows = {c.what.split(" (")[0]: c for c in cards.criteria(found)}
    fill = rows["fill, mean over t = 300 … 600"]
    assert fill.value == found["fill"]["mean_300_600"] and fill.met and fill.wanted == "≥ 0.65"
    for value, met in ((0.65, True), (0.6499, False)):
        assert cards.criteria(found | {"fill": found["fill"] | {"mean_300_600": value}})[0].met is met
    worse = found["samples"] | {"precision": found["samples"]["precision"] | {"value": 0.6}}
    # more than 0.6 is wanted
    assert not next(c for c in cards.criteria(found | {"samples": worse}) if c.what.endswith("precision")).met
    near = (found["samples"] | {"distance_to_nearest_training_image": {"value": 1.0},
                                "the_same_for_held_out_images": {"value": 1.1}})
    assert not cards.criteria(found | {"samples": near})[-1].met
    faces = found["probe"] | {"measure": "auroc", "mean_auroc": 0.91}
    assert next(c for c in cards.criteria(found | {"probe": faces}) if "AUROC" in c.what).wanted == "≥ 0.9"


def test_card_and_picture(subject, found, tmp_path):
    text = cards.card(found, subject.model)
    assert (text.startswith("# digits_pdae\n") and found["file"]["sha256"] in text and "None" not in text
            and "nan" not in text)
    assert "pdae pretrain --data digits --out runs/dpm\n" in text  # its preset's settings, so no --set
    assert "mixed up Adam's" in text  # the note is of this very file
    assert "mixed up" not in cards.card(found | {"file": found["file"] | {"sha256": "0" * 64}}, subject.model)
    rows = measurements.pictures(subject)
    assert list(rows)[-1] == "drawn by the DPM alone" and all(len(x) == 3 for x in rows.values())
    cards.draw(found, rows, tmp_path / "card.png")
    with Image.open(tmp_path / "card.png") as image:
        assert image.size[0] == 864
    assert (tmp_path / "card.png").stat().st_size <= cards.LARGEST


def test_commands_name_what_differs_from_the_preset():
    model = load_model(DIGITS)
    model.metadata["training"] = asdict(replace(PRESETS["digits"].train, steps=10, log_every=3))
    assert cards.changes("pdae", model.metadata, model) == " --set train.steps=10 --set form=paper --set precondition=v"
    model.dpm.config = replace(model.dpm.config, base_channels=24)
    assert cards.changes("pretrain", model.metadata["dpm_training"], model) == " --set unet.base_channels=24"
    of_gpu = cards.changes("pretrain", {"preset": "digits_gpu", "data": "digits"}, load_model(DIGITS))
    assert of_gpu.startswith(" --preset digits_gpu --set ")


def test_a_history_is_thinned(tmp_path):
    entries = [{"images": 100 * (i + 1), "loss": float(i), "images_per_second": 50.0 if i < 5 else 100.0}
               for i in range(10)]
    (tmp_path / "history.json").write_text(json.dumps(entries))
    thin = evaluate.thinned(tmp_path / "history.json", points=5)
    assert thin["images"] == [200, 400, 600, 800, 1000] and thin["loss"] == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert thin["hours"] == pytest.approx((5 * 2 + 5 * 1) / 3600)


@pytest.mark.parametrize("path", sorted(data.ASSETS.glob("*_*.json")), ids=lambda p: p.stem)
def test_shipped_cards_say_what_was_measured(path):
    o = json.loads(path.read_text())
    if o.get("kind") in evaluate_generators.WHAT:
        assert path.with_suffix(".md").read_text() == evaluate_generators.card(o)
        assert path.with_suffix(".png").stat().st_size <= cards.LARGEST
        assert o["file"]["sha256"] == file_digest(path.with_suffix(PACKED))
        return
    if "criteria" not in o:
        pytest.skip("another kind of card, which has a test of its own")
    model = load_model(path.with_suffix(PACKED))
    assert path.with_suffix(".md").read_text() == cards.card(o, model)
    assert o["criteria"] == [asdict(c) for c in cards.criteria(o)]
    assert path.with_suffix(".png").stat().st_size <= cards.LARGEST


@pytest.mark.parametrize("kind", ["latent", "class", "cond_dpm"])
def test_generators_are_measured(kind, tmp_path, monkeypatch):
    preset, meta = PRESETS["digits"], {"images_seen": 10, "training": asdict(PRESETS["digits"].pretrain), "torch": "2"}
    torch.manual_seed(0)
    if kind == "latent":
        pdae = load_model(DIGITS)
        model = preset.latent(32, LatentStats.of(pdae.encode(data.digits("test").floats(slice(20))).detach()))
    else:
        dpm = replace(preset, unet=replace(preset.unet, base_channels=16)).with_labels(10).dpm()
        model = preset.with_labels(10).pdae(load_model(DIGITS).dpm) if kind == "class" else dpm
    path = tmp_path / f"digits_{kind}.safetensors"
    save_model(path, model, meta)
    few = {split: data.Images(*(v[start::5] for v in data.digits("test").tensors))
           for split, start in (("train", 1), ("test", 0))}
    monkeypatch.setattr(data, "digits", lambda split="train": few[split])
    monkeypatch.setattr(evaluate_generators, "TS", [300, 600])
    (tmp_path / "history.json").write_text(json.dumps([{"images": 10, "loss": 1.0, "images_per_second": 5.0}]))
    monkeypatch.setattr(sys, "argv", ["x", "digits", kind, "--file", str(path), "--out", str(tmp_path), "--count", "20",
                                      "--steps", "2", "--history", str(tmp_path / "history.json")])
    assert evaluate_generators.main() == 0
    o = json.loads((tmp_path / f"digits_{kind}.json").read_text())
    assert ((tmp_path / f"digits_{kind}.md").read_text() == evaluate_generators.card(o)
            and (tmp_path / f"digits_{kind}.png").is_file())
    assert o["images"]["count"] == 20 and o["images"]["kid"]["value"] > 0.2  # untrained, or 2 steps
    if kind == "latent":
        assert 0.7 < o["codes"]["training"] < 1.1  # E|ε| is 0.8, and the network gives 0
    elif kind == "class":  # an untrained estimator shifts nothing
        assert o["class"]["share"] == pytest.approx([0, 0], abs=1e-5) and o["images"]["of_the_class"]["value"] < 0.5
    else:
        assert max(o["class"]["share"]) < 0  # an untrained network is worse than the DPM


def test_the_record_of_training_efficiency_is_of_one_piece():
    o = json.loads((data.ASSETS / "training_efficiency.json").read_text())
    assert (data.ASSETS / "training_efficiency.md").read_text() == training_efficiency.card(o)
    assert o["summary"] == training_efficiency.summary(o["runs"])
    assert {(r["method"], r["seed"]) for r in o["runs"]} == {(m, s) for m in ("pdae", "diffae") for s in (0, 1, 2)}
    at = [{"images": 0, "loss": 4.0}, {"images": 100, "loss": 2.0}, {"images": 200, "loss": 1.0}]
    assert (training_efficiency.images_until(at, "loss", 3.0) == 50
            and training_efficiency.images_until(at, "loss", 2.0) == 100)
    assert (training_efficiency.images_until(at, "loss", 0.5) is None
            and training_efficiency.images_until(at, "loss", 5.0) == 0)
    runs = [{"method": "pdae", "seed": 0, "points": [p | {"mse": 1.0} for p in at]},
            {"method": "diffae", "seed": 0, "points": [p | {"loss": p["loss"] + 1, "mse": 2.0} for p in at]}]
    assert training_efficiency.summary(runs) == {"loss": [0.5], "mse": [0.0]}


def test_the_contest_counts_images_until_a_target():
    at = [{"images": 0, "loss": 4.0, "fill": -1.0}, {"images": 100, "loss": 2.0, "fill": 0.0},
          {"images": 200, "loss": 1.0, "fill": 0.5}]
    until = contest.images_until
    assert (until(at, "loss", 3.0), until(at, "loss", 2.0), until(at, "fill", 0.25)) == (50, 100, 150)
    assert (until(at, "loss", 0.5), until(at, "fill", 0.6), until(at, "loss", 5.0)) == (None, None, 0)
    runs = [{"method": "pdae", "seed": 0, "points": [p | {"mse": 1.0} for p in at]},
            {"method": "diffae", "seed": 0, "points": [p | {"loss": p["loss"] + 1, "mse": 2.0} for p in at]}]
    assert contest.summary(runs) == {"pdae": {"loss": [0.5], "fill": [1.0], "mse": [0.0]}}


def test_the_methods_that_are_compared_start_where_they_should():
    """Both forms of PDAE, the blind one and Diff-AE from the DPM begin as the DPM; Diff-AE from scratch doesn't."""
    torch.manual_seed(0)
    dpm, x_t, t = pdae_lite.load("digits", "dpm"), torch.randn(2, 1, 32, 32), torch.tensor([300, 600])
    for method, build in contest.METHODS.items():
        model = build(dpm).eval()
        with torch.no_grad():
            known = contest.told(model)(model.encode(torch.rand(2, 1, 32, 32) * 2 - 1))(x_t, t)
            assert torch.allclose(known, dpm(x_t, t), atol=1e-5) is (method != "diffae")
    assert not model.encode(torch.rand(2, 1, 32, 32)).any()  # the blind one, which is the last


def test_the_table_of_models_is_up_to_date():
    import model_table

    page = (Path(__file__).parents[2] / "book" / "models.md").read_text(encoding="utf-8")
    assert model_table.renewed(page) == page, "run python scripts/pages/model_table.py"
    assert model_table.table().count("\n") > 5
