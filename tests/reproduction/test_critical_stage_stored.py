"""What is stored of the search for the critical stage: whole, and comes out again."""
import json

import critical_stage
import pytest

from pdae_lite.data import ASSETS

STORED = json.loads((ASSETS / "critical_stage.json").read_text(encoding="utf-8"))


def test_what_is_stored_is_whole():
    assert STORED["scale"] == 3 and STORED["steps"] == 20
    stages = {f"{a}-{b}" for a in range(0, 1000, 50) for b in range(50, 1001, 50) if a < b} | {"0-0"}
    assert set(STORED["hits"]) == set(STORED["accuracy"]) == stages
    for stage, hits in STORED["hits"].items():
        assert len(hits) == STORED["samples"] and set(hits) <= {"0", "1"}
        assert STORED["accuracy"][stage] == pytest.approx(hits.count("1") / len(hits), abs=1e-4)


def test_a_slice_of_what_is_stored_comes_out_again():
    """Ten samples, two stages: at most one of 20 is judged otherwise (networks round differently from one CPU to the
    next)."""
    models, only = critical_stage.load_models(), {(400, 700), (0, 1000)}
    assert critical_stage.described({}, models, "cpu")["sha256_of_weights"] == STORED["sha256_of_weights"]
    found = critical_stage.block(models, 0, 10, STORED, only)
    assert set(found) == {"400-700", "0-1000"}
    assert sum(a != b for stage, hits in found.items() for a, b in zip(hits, STORED["hits"][stage])) <= 1, found
