"""The helper that unpacks tests/data."""
import pytest
from fixtures import DATA, fixture


@pytest.mark.parametrize("name", sorted(p.name for p in DATA.iterdir() if p.is_dir() and p.name != "before"))
def test_a_fixture_is_whole_and_unpacked_once(name):
    folder = fixture(name)
    stored = {p.name.removesuffix(".xz") for p in (DATA / name).iterdir()}
    assert {p.name for p in folder.iterdir()} == stored and "expected.npz" in stored
    assert all(p.stat().st_size for p in folder.iterdir())
    assert fixture(name) is folder
