"""The stored marks of attribute edits: whole, of the weights that ship, and a piece of them comes out again."""
import json
import sys

import counterfactuals
import pytest

from pdae_lite import data
from pdae_lite.applications import attributes
from pdae_lite.data import ASSETS

STORED = json.loads((ASSETS / "counterfactuals.json").read_text(encoding="utf-8"))
METHODS = {"pixels", "pca",
           *(f"{kind}_{how}" for kind in ("pdae", "diffae") for how in ("weights", "means", "keep", "truth"))}


def test_what_is_stored_is_whole():
    assert (ASSETS / "counterfactuals.json").stat().st_size < 100_000
    assert set(STORED["edits"]) == set(data.EDITS) and STORED["count"] >= 8
    for of_edit in STORED["edits"].values():
        assert set(of_edit["methods"]) == METHODS
        for method, listed in of_edit["methods"].items():
            scales = [None] if method.endswith("truth") else STORED["factors" if method == "pixels" else "scales"]
            assert [row["scale"] for row in listed] == scales
            for row in listed:
                assert (len(row["inside"]) == STORED["count"] and max(row["inside"]) <= 1 and row["outside"] >= 0
                        and 0 <= row["seen"] <= 1)
        assert of_edit["seen_before"] < 0.5  # a face before the edit lacks the attribute, as a rule


def test_a_piece_of_what_is_stored_comes_out_again():
    """Two pairs by PDAE, to 0.1 each (the record may be of bfloat16); all pairs by pixels, to 0.002; of these very
    weights."""
    models = counterfactuals.load_models()
    assert counterfactuals.described({}, models)["sha256_of_weights"] == STORED["sha256_of_weights"]
    o = STORED | {"bf16": False, "scales": [0.3]}
    train = data.peeps("train", STORED["size"])
    codes = attributes.encode_all(models["pdae"], train.images[: STORED["train"]])
    means = counterfactuals.means_probe(codes, train)
    judge = counterfactuals.Judge("mask", STORED["size"], 2, models["features"])
    (row,) = counterfactuals.by_code(models["pdae"], None, means, "mask", judge, o, hows=("means",))["means"]
    (stored,) = (r for r in STORED["edits"]["mask"]["methods"]["pdae_means"] if r["scale"] == 0.3)
    assert row["inside"] == pytest.approx(stored["inside"][:2], abs=0.1)

    images, has = train.floats(slice(0, STORED["train"])), train.column("mask")[: STORED["train"]].bool()
    judge = counterfactuals.Judge("mask", STORED["size"], STORED["count"], models["features"])
    for row, stored in zip(counterfactuals.by_pixels(images, has, judge, o),
                           STORED["edits"]["mask"]["methods"]["pixels"], strict=True):
        assert (row["inside"] == pytest.approx(stored["inside"], abs=2e-3)
                and row["outside"] == pytest.approx(stored["outside"], abs=2e-5))


def test_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(counterfactuals.attributes, "encode_all", lambda *a: None)
    monkeypatch.setattr(counterfactuals, "means_probe", lambda *a: None)
    monkeypatch.setattr(counterfactuals.metrics, "principal_components", lambda *a: None)
    monkeypatch.setattr(counterfactuals, "by_pca", lambda *a: [])
    monkeypatch.setattr(counterfactuals, "by_code", lambda model, w, m, edit, *a: made.append(edit) or {"truth": []})

    def run(*more):
        monkeypatch.setattr(sys, "argv",
                            ["counterfactuals.py", "--count", "2", "--out", str(tmp_path / "a.json"), *more])
        assert counterfactuals.main() == 0
        return json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))

    first = run("--edits", "mask")
    second = run("--edits", "hat", "mask")
    assert made == ["mask", "mask", "hat", "hat"] and list(second["edits"]) == ["mask", "hat"]
    assert second["edits"]["mask"] == first["edits"]["mask"]
    with pytest.raises(SystemExit):
        run("--bf16")
    assert "holds figures of other settings or models" in capsys.readouterr().err
