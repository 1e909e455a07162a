"""The package computes what it computed before its files were moved, and reads what it wrote then. See record.py."""
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for whoever imports this file by another way than pytest's usual one
import record  # noqa: E402

TOLERANCE = 1e-6  # absolute or relative, whichever is larger
# for what rounds otherwise: since then, attention takes the fast path, and ten steps of bf16 differ by 0.01
ELSEWHERE = 2e-2

with np.load(record.RECORD, allow_pickle=False) as file:
    BEFORE = {k: v for k, v in file.items() if k != "machine"}


def keys(*parts):
    return [k for k in BEFORE if k.split("/")[0] in parts]


@cache
def computed(name):
    """A part of the record, or the error that came in place of it: once for all its keys, and no part stops another."""
    try:
        return record.arrays(name, record.PARTS[name])
    except Exception as e:
        return e


def tolerance(key):
    trained = key.startswith(("training/", "resumed/"))
    if "/float32/" in key or trained and torch.accelerator.is_available():  # where `train` trains
        return ELSEWHERE
    return TOLERANCE


def assert_as_before(key, now):
    before = BEFORE[key]
    assert key in now, f"{key} isn't computed any more"
    assert (now[key].shape, now[key].dtype) == (before.shape, before.dtype)
    if before.dtype.kind == "f":
        np.testing.assert_allclose(now[key], before, rtol=tolerance(key), atol=tolerance(key), err_msg=key)
    else:  # whole numbers and names
        np.testing.assert_array_equal(now[key], before, err_msg=key)


def test_the_record_has_all_parts():
    assert {k.split("/")[0] for k in BEFORE} == {*record.PARTS, "saved", "resumed"}


@pytest.mark.parametrize("key", keys(*record.PARTS))
def test_numbers_are_those_of_before(key):
    now = computed(key.split("/")[0])
    if isinstance(now, Exception):
        raise now
    assert_as_before(key, now)


@pytest.fixture(scope="module")
def saved():
    return record.arrays("saved", record.saved, record.MODEL)


@pytest.mark.parametrize("key", keys("saved"))
def test_a_saved_model_is_what_it_was(key, saved):
    assert_as_before(key, saved)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    copy = shutil.copytree(record.RUN, tmp_path_factory.mktemp("before") / "run")
    return record.arrays("resumed", record.resumed, copy)


@pytest.mark.parametrize("key", keys("resumed"))
def test_a_run_goes_on_from_its_checkpoint(key, resumed):
    assert_as_before(key, resumed)
