"""Packed files: what ships is a safetensors file whose low and high bytes are compressed apart."""
import hashlib

import pytest
import torch
from safetensors.torch import load as from_bytes

from pdae_lite import checkpoint
from pdae_lite.storage import PACKED, CheckpointError, contents, file_digest, pack, read, unpack, write


@pytest.mark.parametrize("data", [b"", b"x", b"abcdefg", bytes(range(256)) * 3])
def test_packing_loses_nothing(data):
    assert unpack(pack(data)) == data


def test_a_packed_file_is_smaller_and_holds_the_same(tmp_path):
    plain, packed = tmp_path / "m.safetensors", tmp_path / f"m{PACKED}"
    tensors = {"w": torch.randn(300, 70, generator=torch.Generator().manual_seed(0)).half(), "b": torch.arange(3)}
    for path in (plain, packed):
        write(path, tensors, {"note": "é"})
    assert contents(packed) == plain.read_bytes() and packed.stat().st_size < 0.9 * plain.stat().st_size
    assert file_digest(packed) == file_digest(plain) == hashlib.sha256(plain.read_bytes()).hexdigest()
    found, header = read(packed)
    assert header == {"note": "é"} and all(torch.equal(found[k], v) for k, v in tensors.items())


def test_a_damaged_one_is_named(tmp_path):
    path = tmp_path / f"m{PACKED}"
    write(path, {"w": torch.randn(1000)}, {})
    whole = path.read_bytes()
    for bad in (whole[: len(whole) // 2], b"nothing", whole[:100] + b"xxxx" + whole[104:], pack(b"short"), b""):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="not a complete safetensors file|checksum"):
            read(path)


@pytest.mark.parametrize("name, kind", checkpoint.shipped())
def test_what_ships_unpacks_to_a_safetensors_file(name, kind):
    data = contents(checkpoint.shipped_file(name, kind))
    assert from_bytes(data) and len(data) > checkpoint.shipped_file(name, kind).stat().st_size
