"""The script that measures the noisy classifier that ships, and the card that it wrote."""
import hashlib
import json
import sys

import evaluate_classifier as script
import pytest
import torch

import pdae_lite
from pdae_lite import data
from pdae_lite.checkpoint import shipped_file
from pdae_lite.storage import contents

RECORD = json.loads((data.ASSETS / "digits_classifier.json").read_text(encoding="utf-8"))


def test_calibration_error():
    sure = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    assert script.calibration_error(sure,
                                    torch.tensor([True, True, True, True, True, False])) == pytest.approx((4 * 0.05 + 2
                                                                                                           * 0.05) / 6)
    assert script.calibration_error(torch.ones(4), torch.tensor([True, False, False, False])) == pytest.approx(0.75)


def test_the_card_is_of_the_file_that_ships():
    weights = contents(shipped_file("digits", "classifier"))
    assert RECORD["file"] == {"name": "digits_classifier.safetensors", "bytes": len(weights),
                              "sha256": hashlib.sha256(weights).hexdigest()}
    model = pdae_lite.load("digits", "classifier")
    assert (data.ASSETS / "digits_classifier.md").read_text(encoding="utf-8") == script.card(RECORD)
    assert script.command(model) == RECORD["command"] and "--set train.steps=1200" in RECORD["command"]
    assert RECORD["test_images"] == 500 and [r["t"] for r in RECORD["held_out"]] == list(range(0, 1000, 100))


def test_the_classifier_is_as_good_as_its_card_says():
    """60 of the 500 digits; 0.06 is two standard deviations of an accuracy of .95 on so few, and more."""
    model, test = pdae_lite.load("digits", "classifier"), data.digits("test")
    x_0, y = test.floats()[:60], test.labels[:60]
    for row in script.quality(model, x_0, y, (0, 200)):
        stored = RECORD["held_out"][row["t"] // 100]
        assert abs(row["accuracy"]["value"] - stored["accuracy"]["value"]) < 0.06
        assert row["accuracy"]["value"] == pytest.approx(float(model.accuracy(x_0, y, [row["t"]])))
    first = RECORD["held_out"][0]["accuracy"]
    assert first["value"] > 0.95 and RECORD["held_out"][9]["cross_entropy"]["value"] < 2.4


def test_the_script_writes_a_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate_classifier.py", "--images", "4", "--out", str(tmp_path)])
    assert script.main() == 0
    o = json.loads((tmp_path / "digits_classifier.json").read_text(encoding="utf-8"))
    text = (tmp_path / "digits_classifier.md").read_text(encoding="utf-8")
    assert o["test_images"] == 4 and o["file"] == RECORD["file"] and len(o["filled"]["fill"]) == 9
    assert o["file"]["sha256"] in text and "None" not in text and "nan" not in text and text in capsys.readouterr().out
