"""Images in one NumPy file."""
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import picture
from refusals import refuses
from torch.utils.data import DataLoader

from pdae_lite import data
from pdae_lite.data.sources import open_source
from pdae_lite.warning import PDAEWarning


def saved(path, array, **arrays):
    np.savez(path, **arrays) if arrays else np.save(path, array)
    return path


def ct(n=6, side=12):
    """int16 [N, H, W] in Hounsfield units: air, soft tissue, bone."""
    rng = np.random.default_rng(0)
    return (rng.choice([-1000, 40, 1200], (n, side, side)) + rng.integers(-30, 30, (n, side, side))).astype(np.int16)


def test_int16_like_ct_by_its_own_extremes_or_by_a_window(tmp_path):
    values = ct()
    path = saved(tmp_path / "ct.npy", values)
    low, high = int(values.min()), int(values.max())
    with pytest.warns(PDAEWarning, match=rf"ct\.npy: integers, .*taking {low} and {high}"):
        images = data.stack(path, 12, 1)
    assert len(images) == 6 and images[2].shape == (1, 12, 12) and images[2].dtype == torch.uint8
    expected = (values[2].astype(float) - low) / (high - low) * 255
    assert np.abs(images[2][0].numpy() - expected).max() <= 0.51
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        window = data.stack(path, 12, 3, value_range=(-160, 240))
        x = window[0].numpy()
    assert np.abs(x - ((values[0].astype(float) + 160) / 400 * 255).clip(0, 255)).max() <= 0.51
    assert window.fingerprint != images.fingerprint


@pytest.mark.parametrize("dtype, scale", [(np.uint8, 1), (np.uint16, 257), (np.float32, 1 / 255), (np.float16, 1 / 255),
                                          (np.float64, 1),
                                          (np.uint32, 1), (">u2", 257)])
def test_layouts_and_types(tmp_path, dtype, scale):
    pictures = np.stack([picture(10, 10, seed=i) for i in range(4)])
    colour = (pictures.astype(float) * scale).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last = data.stack(saved(tmp_path / "a.npy", colour), 10)
        first = data.stack(saved(tmp_path / "b.npy", colour.transpose(0, 3, 1, 2)), 10)
        grey = data.stack(saved(tmp_path / "c.npy", colour[..., 0]), 10, 1)
    for i in range(4):
        assert np.abs(last[i].numpy().astype(int) - pictures[i].transpose(2, 0, 1)).max() <= 1
        assert (torch.equal(last[i], first[i]) and np.abs(grey[i][0].numpy().astype(int) - pictures[i, ..., 0]).max()
                <= 1)


def test_it_is_cropped_and_resized_like_a_file(tmp_path):
    from PIL import Image

    wide = picture(40, 60)
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert torch.equal(data.stack(saved(tmp_path / "a.npy", wide[None]), 16)[0],
                       data.read_image(tmp_path / "a.png", 3, 16))
    mask = data.stack(saved(tmp_path / "m.npy", np.eye(8, dtype=bool)[None]), 8, 1)
    assert np.array_equal(mask[0][0], np.eye(8) * 255)


def test_npz_with_labels(tmp_path):
    images, labels = ct().astype(np.uint8), np.arange(6)[:, None] % 3
    path = saved(tmp_path / "med.npz", None, train_images=images, train_labels=labels, test_images=images[:2],
                 test_labels=labels[:2])
    train = data.stack(path, 12, 1)
    assert len(train) == 6 and train.labels.tolist() == [0, 1, 2, 0, 1, 2] and train.labels.dtype == torch.int64
    assert [label.item() for _, _, label in data.readable(train)] == train.labels.tolist()
    assert len(data.stack(path, 12, 1, key="test_images")) == 2
    assert len(open_source(f"stack:{path}:test_images", 12, 1)) == 2 and len(open_source(str(path), 12, 1)) == 6
    assert not hasattr(data.stack(saved(tmp_path / "one.npz", None, pixels=images, labels=labels[:4]), 12, 1), "labels")
    refuses("holds a, b; choose an array of images by key=", data.stack,
            saved(tmp_path / "two.npz", None, a=images, b=images), 12)


def test_it_refuses_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.npy: no such file"):
        data.stack(tmp_path / "nothing.npy", 8)
    for name in ("x.npy", "x.npz"):
        for content in (b"", b"rubbish", b"PK\x03\x04 and no more", b"\x93NUMPY\x01\0v\0{'descr'"):
            (tmp_path / name).write_bytes(content)
            refuses("is not a readable .npy or .npz file", data.stack, tmp_path / name, 8)
    for shape in ((8, 8), (0, 8, 8), (8, 8, 3), (2, 8, 8, 2), (2, 3, 8, 3), (2, 0, 8), (1, 1, 2, 8, 8)):
        refuses("has shape .*; want", data.stack, saved(tmp_path / "s.npy", np.zeros(shape)), 8)
    np.save(tmp_path / "o.npy", np.array([{}] * 3, dtype=object), allow_pickle=True)
    refuses("is not a readable", data.stack, tmp_path / "o.npy", 8)
    refuses("complex128; want numbers", data.stack, saved(tmp_path / "c.npy", np.zeros((2, 8, 8), complex)), 8)
    refuses("key='a', but .* an .npy file", data.stack, saved(tmp_path / "k.npy", np.zeros((2, 8, 8))), 8, key="a")


def test_an_image_with_nan_is_left_out(tmp_path):
    values = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)
    values[1, 2, 3] = np.nan
    images = data.stack(saved(tmp_path / "a.npy", values), 8, 1, value_range=(0, 1))
    with pytest.warns(PDAEWarning, match=r"1 of 4 images can't be read and are left out: .*a\.npy\[1\] .holds NaN"):
        assert [i for i, _, _ in data.readable(images)] == [0, 2, 3]


def test_workers_open_the_file_again(tmp_path):
    path = saved(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (9, 3, 64, 64), dtype=np.uint8))
    images = data.stack(path, 64)
    assert len(pickle.dumps(images)) < 2000 < path.stat().st_size
    there = torch.cat(list(DataLoader(images, batch_size=3, num_workers=1, multiprocessing_context="spawn")))
    assert torch.equal(there, torch.stack([images[i] for i in range(9)]))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(hnp.arrays(st.sampled_from([np.int8, np.uint8, np.int16, np.uint16, np.int64, np.float16, np.float64]),
                  hnp.array_shapes(min_dims=3, max_dims=3, min_side=5, max_side=9),
                  elements={"min_value": 0, "max_value": 100}))
def test_any_stack_keeps_order_of_brightness(tmp_path_factory, values):
    path = saved(tmp_path_factory.mktemp("x") / "a.npy", values)
    side = min(values.shape[1:])
    top, left = (values.shape[1] - side) // 2, (values.shape[2] - side) // 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = data.stack(path, side, 1)
        shown = np.stack([images[i][0] for i in range(len(images))]).ravel()
    square = values[:, top : top + side, left : left + side]
    assert (np.diff(shown[np.argsort(square, axis=None, kind="stable")].astype(int)) >= 0).all()
