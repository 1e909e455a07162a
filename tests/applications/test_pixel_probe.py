"""What is stored of linear probes on raw pixels: whole, and one attribute comes out again."""
import json

import pixel_probe
import pytest

from pdae_lite import data

STORED = json.loads((data.ASSETS / "pixel_probe.json").read_text(encoding="utf-8"))


def test_the_record_is_whole():
    test = data.peeps("test", size=32)
    assert STORED["names"] == list(test.attributes) and STORED["numbers"] == 3 * 32 * 32 and STORED["test"] == len(test)
    for key in ("auroc", "average_precision"):
        assert len(STORED[key]) == len(test.attributes) and all(0 <= v <= 1 for v in STORED[key])
        assert STORED[f"mean_{key}"] == pytest.approx(sum(STORED[key]) / len(STORED[key]), abs=1e-4)
    tried = STORED["mean_auroc_on_validation_faces"]
    assert list(tried) == [str(l2) for l2 in pixel_probe.PENALTIES] and max(tried, key=tried.get) == str(STORED["l2"])
    assert pixel_probe.PENALTIES[0] < STORED["l2"] < pixel_probe.PENALTIES[-1]  # the best lies inside


def test_one_attribute_comes_out_again():
    test = data.peeps("test", size=32)
    found = pixel_probe.fitted(STORED["l2"], ["mask"]).auroc(pixel_probe.pixels("test"), test.column("mask")[:, None])
    assert float(found) == pytest.approx(STORED["auroc"][STORED["names"].index("mask")], abs=1e-3)
