"""The drawn faces that ship: labels against pixels, true counterfactuals, splits, card."""
import hashlib
import time

import numpy as np
import pytest
import torch

from pdae_lite import data
from pdae_lite.data import builtin
from pdae_lite.data.builtin import load_arrays

FILES = ("peeps_train.npz.xz", "peeps_valid.npz.xz", "peeps_test.npz.xz", "peeps_edits.npz.xz")


@pytest.fixture(scope="module")
def peeps():
    return {split: data.peeps(split) for split in ("train", "valid", "test")}


def shares(images, *colors):
    """Number of pixels that have exactly one of the colours: int64 [N]."""
    wanted = torch.tensor([[int(c[i:i + 2], 16) for i in (0, 2, 4)] for c in colors], dtype=torch.uint8)
    return sum((images == color[:, None, None]).all(1).sum((1, 2)) for color in wanted)


def test_shapes_and_kinds(peeps):
    for split, n in (("train", 10_500), ("valid", 500), ("test", 1_000)):
        faces = peeps[split]
        assert (faces.images.shape == (n, 3, 64, 64) and faces.images.dtype == torch.uint8
                and faces.images.is_contiguous())
        assert faces.labels.shape == (n, len(faces.attributes)) and faces.labels.dtype == torch.int64
        assert set(faces.labels.unique().tolist()) == {0, 1}
        assert faces.pose.shape == (n, 5) and faces.pose.dtype == torch.float32
        assert (faces.attributes == peeps["train"].attributes and len(set(faces.attributes)) == len(faces.attributes)
                >= 20)
    image, label = peeps["test"][7]
    assert torch.equal(image, peeps["test"].images[7]) and torch.equal(label, peeps["test"].labels[7])
    assert peeps["test"].floats(slice(2)).min() >= -1
    share = peeps["train"].labels.float().mean(0)
    assert share.min() > 0.04 and share.max() < 0.6  # every attribute can be learned
    assert (peeps["train"].labels.float().mean(0) - peeps["test"].labels.float().mean(0)).abs().max() < 0.06


def test_splits_share_no_image_and_no_pose(peeps):
    keys = [{image.numpy().tobytes() for image in faces.images} for faces in peeps.values()]
    poses = [{tuple(row) for row in faces.pose.tolist()} for faces in peeps.values()]
    for some in (keys, poses):
        assert not some[0] & some[1] and not some[0] & some[2] and not some[1] & some[2]
    assert sum(map(len, keys)) == 12_000


def test_labels_fit_each_other(peeps):
    faces = peeps["train"]
    for part, whole in (("full_beard", "facial_hair"), ("goatee", "facial_hair"), ("moustache", "facial_hair"),
                        ("hat", "head_covering")):
        assert (faces.column(part) <= faces.column(whole)).all()
    for some in (("glasses", "sunglasses", "eyepatch"), ("mask", "facial_hair"), ("mask", "smiling"), ("mask", "teeth"),
                 ("dark_skin", "light_skin"), ("sunglasses", "eyes_closed"), ("sunglasses", "wide_eyes"),
                 ("bald", "long_hair", "short_hair", "head_covering", "bun")):
        assert sum(faces.column(name) for name in some).max() == 1, some
    assert torch.equal(faces.column("facing_left"), faces.pose[:, 4].long())
    rotate, right, down, scale, _ = faces.pose.T
    assert rotate.abs().max() <= 8 and right.abs().max() <= 5 and down.abs().max() <= 5
    assert scale.min() >= 0.9 and scale.max() <= 1.08 and rotate.std() > 4
    with pytest.raises(ValueError, match="attribute 'beard'; want one of glasses, "):
        faces.column("beard")


def test_labels_agree_with_pixels(peeps):
    for faces in peeps.values():
        dark, light = shares(faces.images, "ae5d29", "694d3d"), shares(faces.images, "ffdbb4", "edb98a")
        middle = shares(faces.images, "d08b5b")
        most = torch.stack([middle, dark, light], 1).argmax(1)
        assert (torch.equal(most == 1, faces.column("dark_skin").bool())
                and torch.equal(most == 2, faces.column("light_skin").bool()))
        tinted = shares(faces.images, "e8e1e1", "ecdcbf", "d6b370", "f59797", "b58143")
        assert tinted[faces.column("light_hair").bool()].min() >= 5
        # A medical mask is white, a respirator teal: in the middle of the picture little else is so much of either.
        mask = shares(faces.images[:, :, 24:50, 14:50], "ffffff", "9ddadb")
        assert ((mask > 70) == faces.column("mask").bool()).float().mean() > 0.98
        black = shares(faces.images, "000000").float()
        assert black[faces.column("bald").bool()].mean() < black[faces.column("afro").bool()].mean() / 2


def test_smaller_faces_are_means_of_squares(peeps):
    small = data.peeps("valid", size=16)
    assert (small.images.shape == (500, 3, 16, 16) and small.images.dtype == torch.uint8
            and torch.equal(small.labels, peeps["valid"].labels))
    expected = peeps["valid"].images[7, 2, 20:24, 8:12].double().mean()
    assert abs(float(small.images[7, 2, 5, 2]) - expected) <= 0.5
    before, after = data.peeps_counterfactuals("mask", size=32)
    assert before.shape == after.shape == (200, 3, 32, 32) and (before != after).flatten(1).any(1).all()
    for size in (48, 128, 0):
        with pytest.raises(ValueError, match=f"size {size} of peeps; want 64 or what divides it: 32, 16"):
            data.peeps("valid", size=size)


def test_mirrored_faces_look_left(peeps):
    """The nose points to the side that the label says: the face's outline lies off the middle of the shirt."""
    faces = peeps["train"]
    bald = faces.column("bald").bool() & (faces.column("dark_skin") == 0) & (faces.column("light_skin") == 1)
    images, left = faces.images[bald], faces.column("facing_left")[bald].bool()
    skin = sum((images == torch.tensor(c, dtype=torch.uint8)[:, None, None]).all(1).float()
               for c in ((255, 219, 180), (237, 185, 138)))
    ink = (images == 0).all(1)[:, 22:46].float()  # eyes, brows, nose and mouth, beside the outline
    x = torch.arange(64.0)
    centre = (skin.sum(1) * x).sum(1) / skin.sum((1, 2))
    off = (ink.sum(1) * x).sum(1) / ink.sum((1, 2)) - centre
    assert off[left].mean() < -1 and off[~left].mean() > 1


@pytest.mark.parametrize("edit, box, least",
                         [("glasses", 0.15, 50), ("sunglasses", 0.14, 80), ("facial_hair", 0.15, 80),
                          ("mask", 0.22, 200), ("smile", 0.10, 40), ("hat", 0.75, 500)])
def test_pairs_differ_in_a_small_box_only(peeps, edit, box, least):
    before, after = data.peeps_counterfactuals(edit)
    assert before.shape == after.shape == (200, 3, 64, 64) and before.dtype == after.dtype == torch.uint8
    changed = (before != after).any(1)
    areas = []
    for one in changed:
        rows, columns = one.any(1).nonzero(), one.any(0).nonzero()
        areas.append(float((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)) / 64**2)
    # "hat" draws the head anew, not the shirt, not the ground
    assert (max(areas) < box and changed.sum((1, 2)).min() >= least)
    assert not changed[:, -5:].any()


@pytest.mark.parametrize("edit, absent", [
    ("glasses", ("glasses", "sunglasses", "eyepatch")), ("sunglasses", ("glasses", "sunglasses", "eyepatch")),
    ("facial_hair", ("facial_hair", "mask")), ("mask", ("facial_hair", "mask"))])
def test_the_image_before_is_a_test_image_without_the_attribute(peeps, edit, absent):
    test = peeps["test"]
    place = {image.numpy().tobytes(): i for i, image in enumerate(test.images)}
    before, after = data.peeps_counterfactuals(edit)
    chosen = [place[image.numpy().tobytes()] for image in before]  # KeyError: not a test image
    assert len(set(chosen)) == 200
    assert all(test.column(name)[chosen].sum() == 0 for name in absent)
    assert not {image.numpy().tobytes() for image in peeps["train"].images} & {image.numpy().tobytes()
                                                                               for image in after}


def test_edits_change_colours_as_they_should():
    before, after = data.peeps_counterfactuals("mask")
    assert ((shares(after, "ffffff") - shares(before, "ffffff")) > 60).float().mean() > 0.98
    for edit, least in (("sunglasses", 40), ("facial_hair", 20), ("hat", 150)):
        before, after = data.peeps_counterfactuals(edit)
        assert (shares(after, "000000") - shares(before, "000000")).float().mean() > least


def test_refuses_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split 'all'; want 'train', 'valid' or 'test'"):
        data.peeps("all")
    with pytest.raises(ValueError, match="edit 'beard'; want one of glasses, sunglasses"):
        data.peeps_counterfactuals("beard")
    packed = (data.ASSETS / "peeps_valid.npz.xz").read_bytes()
    monkeypatch.setattr(builtin, "ASSETS", tmp_path)
    with pytest.raises(FileNotFoundError, match="peeps_valid.npz.xz is missing.*install pdae_lite again"):
        data.peeps("valid")
    for damaged in (packed[:len(packed) // 2], packed[:5000] + b"\0" * 64 + packed[5064:], b""):
        (tmp_path / "peeps_valid.npz.xz").write_bytes(damaged)
        with pytest.raises(OSError, match="peeps_valid.npz.xz is damaged .*install pdae_lite again"):
            data.peeps("valid")


def test_the_card_states_the_files_and_the_frequencies(peeps):
    card = (data.ASSETS / "peeps.md").read_text()
    for name in FILES:
        packed = (data.ASSETS / name).read_bytes()
        assert len(packed) < 15 * 2**20
        assert f"| `{name}` | {len(packed):,} | `{hashlib.sha256(packed).hexdigest()}` |" in card
    assert sum((data.ASSETS / name).stat().st_size for name in FILES) < 18 * 2**20
    share = torch.cat([faces.labels for faces in peeps.values()]).double().mean(0)
    for name, value in zip(peeps["train"].attributes, share.tolist()):
        assert f"| {name} | {value:.1%} |" in card
    assert "CC0" in card and "Pablo Stanley" in card


def test_loads_fast():
    start = time.process_time()  # of this process alone: other work on the machine doesn't count
    data.peeps("train")
    assert time.process_time() - start < 3


def test_arrays_hold_nothing_but_numbers_and_names():
    for name in FILES:
        assert all(a.dtype.kind in "uifU" for a in load_arrays(name).values())
    assert np.array_equal(load_arrays("peeps_edits.npz.xz")["mask_before"], np.zeros((200, 64, 64, 4), np.uint8))
