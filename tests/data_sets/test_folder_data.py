"""Images of one's own: folders, LMDB in Diff-AE's layout, torchvision's sets."""
import io
import os
import re
import struct
import warnings

import numpy as np
import pytest
import torch
from pictures import encoded, half, picture, write_lmdb
from PIL import Image
from torch.utils.data import DataLoader

from pdae_lite import data
from pdae_lite.warning import PDAEWarning

lmdb = pytest.importorskip("lmdb")


# ---- folder ----------------------------------------------------------------------------------------------------------


def test_folder_is_recursive_sorted_and_ignores_other_files(tmp_path):
    for name, seed in (("b.png", 1), ("deep/er/a.JPG", 2), ("a.bmp", 3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed=seed)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = data.folder(tmp_path, 16)
        assert [p.name for p in images.paths] == ["a.bmp", "b.png", "a.JPG"] and len(images) == 3
        x = torch.stack([images[i] for i in range(3)])
    assert x.dtype == torch.uint8 and x.shape == (3, 3, 16, 16)
    assert torch.equal(images[-1], images[2])
    with pytest.raises(IndexError):
        images[3]


def test_folder_crops_the_centre_and_antialiases(tmp_path):
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, ::2] = 255  # the finest there are: grey once resized
    stripes[:, :32], stripes[:, 96:] = (255, 0, 0), (255, 0, 0)  # outside the centre square
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    x = data.folder(tmp_path, 16)[0].float()
    inner = x[:, :, 1:-1]
    assert (inner - 127.5).abs().max() < 20 and (inner[0] - inner[1]).abs().max() == 0
    square = picture(32, 32)
    Image.fromarray(square).save(tmp_path / "a.png")
    assert np.array_equal(data.folder(tmp_path, 32)[0].permute(1, 2, 0), square)  # nothing to do: nothing done


def test_folder_handles_grey_alpha_palette_16_bit_and_exif(tmp_path):
    grey = picture(32, 32)[..., 0]
    Image.fromarray(grey).save(tmp_path / "0_grey.png")
    half_clear = np.full((32, 32, 4), 9, np.uint8)
    half_clear[..., 3] = np.where(np.arange(32) < 16, 255, 0)
    Image.fromarray(half_clear).save(tmp_path / "1_alpha.png")
    Image.fromarray(picture(32, 32)).quantize(8).save(tmp_path / "2_palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "3_deep.png")
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    Image.fromarray(grey).save(tmp_path / "4_turned.png", exif=turned)
    Image.fromarray(np.dstack([grey, np.full_like(grey, 0)])).save(tmp_path / "5_clear.png")
    rgb, l_only = data.folder(tmp_path, 32), data.folder(tmp_path, 32, channels=1)
    assert all(rgb[i].shape == (3, 32, 32) and l_only[i].shape == (1, 32, 32) for i in range(6))
    assert np.array_equal(rgb[0], np.stack([grey] * 3)) and np.array_equal(l_only[0][0], grey)
    assert (rgb[1][:, :, :16] == 9).all() and (rgb[1][:, :, 16:] == 255).all()
    assert (data.folder(tmp_path, 32, background=0)[1][:, :, 16:] == 0).all()
    assert np.array_equal(l_only[3][0], grey)
    assert np.array_equal(l_only[4][0], grey[::-1, ::-1])
    assert (rgb[5] == 255).all()


def test_folder_names_corrupt_files_and_skips_them(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(seed=i)))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.warns(PDAEWarning, match=r"2 of 5 images can't be read and are left out: .*empty\.png.*text\.jpg"):
        images = data.folder(tmp_path, 8)
    assert len(images) == 3

    half(tmp_path / "1.png")
    for _ in range(2):
        with pytest.raises(data.Unreadable, match=r"1\.png .image file is truncated"):
            images[1]
    assert len(images) == 3 and torch.equal(images[2], data.read_image(tmp_path / "2.png", 3, 8))
    with pytest.warns(PDAEWarning, match=r"3 of 5 images .*1\.png"):
        assert len(data.folder(tmp_path, 8, verify=True)) == 2


def test_hidden_folders_are_skipped_at_any_depth_and_links_followed(tmp_path):
    root, elsewhere = tmp_path / ".home" / "photos", tmp_path / "elsewhere"
    for path in (root / "a" / "1.png", root / "a" / ".ipynb_checkpoints" / "1.png", root / ".trash" / "deep" / "2.png",
                 root / "a" / "._1.png", elsewhere / "in" / "3.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()).save(path)
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)  # round in a circle
    (root / "a" / "self").symlink_to(root / "a")
    (root / "4.png").symlink_to(elsewhere / "in" / "3.png")
    (root / "same").symlink_to(elsewhere / "in")
    found = [p.relative_to(root).as_posix() for p in data.folder(root, 8).paths]
    assert found == ["4.png", "a/1.png", "linked/in/3.png", "same/3.png"]


def test_what_a_folder_hides_is_told(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    with pytest.warns(PDAEWarning, match=r"2 of 3 images .*gone\.png .No such file.*round\.png .Too many levels"):
        assert len(data.folder(tmp_path, 8)) == 1
    if os.geteuid():
        (tmp_path / "shut").mkdir(mode=0)
        with pytest.warns(PDAEWarning, match=r"shut .Permission denied"):
            data.folder(tmp_path, 8)


def test_folder_refuses_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        data.folder(tmp_path / "nowhere", 8)
    with pytest.raises(ValueError, match="holds no readable image"):
        data.folder(tmp_path, 8)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    for wrong in ({"size": 0}, {"size": 8, "channels": 4}):
        with pytest.raises(ValueError, match="want"):
            data.folder(tmp_path, **wrong)


def test_training_takes_a_folder(tmp_path):
    from pdae_lite import NoiseSchedule, UNet, UNetConfig, train

    for i in range(5):
        Image.fromarray(picture(seed=i)).save(tmp_path / f"{i}.png")
    unet = UNet(UNetConfig(image_size=8, base_channels=32, channel_mult=(1,), num_res_blocks=1,
                           attention_downsampling=()))
    result = train(unet, data.folder(tmp_path, 8), schedule=NoiseSchedule.linear(), steps=2, batch_size=4, flip=True,
                   progress=False)
    assert result.history[-1]["images"] == 8 and result.history[-1]["loss"] > 0


# ---- LMDB ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix, digits, format", [("256", 5, "JPEG"), ("256", 7, "PNG"), ("None", 7, "JPEG")])
def test_lmdb_in_the_layouts_of_ffhq_lsun_and_celeba(tmp_path, prefix, digits, format):
    pictures = [picture(32, 32, seed=i) for i in range(4)]
    path = write_lmdb(tmp_path / "x.lmdb",
                      {f"{prefix}-{i:0{digits}d}": encoded(p, format) for i, p in enumerate(pictures)}, 4)
    images = data.lmdb(path, 32)
    assert len(images) == 4 and images[2].dtype == torch.uint8 and images.key(2) == f"{prefix}-{2:0{digits}d}"
    for i, expected in enumerate(pictures):
        decoded = np.asarray(Image.open(io.BytesIO(encoded(expected, format))))
        assert np.array_equal(images[i].permute(1, 2, 0), decoded)
    assert data.lmdb(path, 16)[0].shape == (3, 16, 16) and data.lmdb(path, 16, channels=1)[0].shape == (1, 16, 16)


def test_lmdb_crops_celeba_as_in_the_literature(tmp_path):
    aligned = picture(218, 178)
    path = write_lmdb(tmp_path / "celeba.lmdb", {"None-0000000": encoded(aligned)}, 1)
    assert np.array_equal(data.lmdb(path, 128, crop=data.CELEBA64_CROP)[0].permute(1, 2, 0),
                          aligned[57:57 + 128, 25:25 + 128])
    assert data.lmdb(path, 64, crop=data.CELEBA64_CROP)[0].shape == (3, 64, 64)
    with pytest.raises(data.Unreadable, match="None-0000000 .218×178 pixels, too small for the crop"):
        data.lmdb(path, 64, crop=(100, 25, 128, 128))[0]


def test_lmdb_ranges_resolutions_and_gaps(tmp_path):
    items = {f"{r}-{i:05d}": encoded(picture(8, 8, seed=10 * r + i)) for r in (64, 128) for i in range(5)}
    items["128-00003"] = b"no image"
    del items["128-00004"]
    path = write_lmdb(tmp_path / "ffhq.lmdb", items, 5)
    with pytest.raises(ValueError, match="several resolutions: 128, 64; choose one"):
        data.lmdb(path, 8)
    with pytest.raises(ValueError, match="resolution=32; .* holds 128, 64"):
        data.lmdb(path, 8, resolution=32)
    test, train = data.lmdb(path, 8, resolution=64, stop=2), data.lmdb(path, 8, resolution=64, start=2)
    assert (len(test), len(train), train.key(0)) == (2, 3, "64-00002")
    assert np.array_equal(train[0].permute(1, 2, 0), picture(8, 8, seed=642))
    with pytest.raises(ValueError, match="start=5, stop=None; want a range within 0 to 5"):
        data.lmdb(path, 8, resolution=64, start=5)
    with pytest.warns(PDAEWarning, match=r"ffhq\.lmdb: 4 images; its 'length' says 5"):
        broken = data.lmdb(path, 8, resolution=128)
    assert len(broken) == 4
    with pytest.raises(data.Unreadable, match="128-00003 .not an image"):
        broken[3]


@pytest.mark.parametrize("numbers, length, says", [
    (range(4), 9, "4 images; its 'length' says 9"), (range(1, 5), 4, "4 images, numbered from 1; its 'length' says 4"),
    ((0, 1, 4, 5), 6, "4 images, without 8-00002, 8-00003; its 'length' says 6"),
    (range(6), 4, "6 images; its 'length' says 4"),
    ((0, 99_999, 100_000), 3, "3 images, without 8-00001, .* and others"), (range(4), 4, None)])
def test_an_lmdb_holds_the_images_that_its_keys_say(tmp_path, numbers, length, says):
    shown = {i: picture(8, 8, seed=i) for i in numbers}
    path = write_lmdb(tmp_path / "x.lmdb", {f"8-{i:05d}": encoded(p) for i, p in shown.items()}, length)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = data.lmdb(path, 8)
    assert len(said) == (says is not None) and all(w.category is PDAEWarning for w in said)
    if says:
        assert re.search(says, str(said[0].message))
    assert len(images) == len(shown)
    for image, expected in zip(images, shown.values()):
        assert np.array_equal(image.permute(1, 2, 0), expected)
    half_way = sorted(numbers)[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [len(data.lmdb(path, 8, stop=half_way)), len(data.lmdb(path, 8, start=half_way))] == [2, len(shown) - 2]


def test_lmdb_refuses_other_layouts(tmp_path):
    with pytest.raises(FileNotFoundError, match="doesn't exist"):
        data.lmdb(tmp_path / "nothing.lmdb", 8)
    lsun = write_lmdb(tmp_path / "lsun", {"0a1b2c": encoded(picture())}, None)
    with pytest.raises(ValueError, match="other keys than Diff-AE's"):
        data.lmdb(lsun, 8)
    (tmp_path / "file.lmdb").write_bytes(b"rubbish" * 1000)
    with pytest.raises(ValueError, match="not a readable LMDB"):
        data.lmdb(tmp_path / "file.lmdb", 8)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_lmdb_is_read_by_worker_processes(tmp_path, method):
    path = write_lmdb(tmp_path / "x.lmdb", {f"8-{i:05d}": encoded(picture(8, 8, seed=i)) for i in range(6)}, 6)
    images = data.lmdb(path, 8)
    here = torch.stack([images[i] for i in range(6)])
    there = torch.cat(list(DataLoader(images, batch_size=3, num_workers=2, multiprocessing_context=method)))
    assert torch.equal(here, there)


# ---- torchvision -----------------------------------------------------------------------------------------------------


def test_mnist_comes_padded_from_a_folder_that_holds_it(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, labels = np.arange(3 * 784, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28), np.array([7, 0, 9],
                                                                                                       np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 3, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 3) + labels.tobytes())
    for split in ("train", "test"):
        mnist = data.torchvision_set("mnist", split, tmp_path)
        assert (mnist.images.shape == (3, 1, 32, 32) and mnist.images.dtype == torch.uint8
                and mnist.labels.tolist() == [7, 0, 9])
        assert np.array_equal(mnist.images[:, 0, 2:-2, 2:-2], pixels) and int(mnist.images[:, :, :2].max()) == 0


def test_cifar10_and_celeba_have_the_library_s_shapes(monkeypatch):
    from torchvision import datasets

    asked = {}

    class CIFAR10:
        data, targets = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 32, 32, 3), [3, 5]

        def __init__(self, root, download, train):
            asked.update(root=root, download=download, train=train)

    class CelebA:
        attr, attr_names, filename = torch.tensor([[0, 1]]), ["Bald", "Smiling", ""], ["000001.jpg"]

        def __init__(self, root, download, split):
            asked.update(split=split)

        def __len__(self):
            return 1

        def __getitem__(self, i):
            return Image.fromarray(picture(218, 178)), self.attr[i]

    monkeypatch.setattr(datasets, "CIFAR10", CIFAR10)
    monkeypatch.setattr(datasets, "CelebA", CelebA)
    cifar = data.torchvision_set("cifar10", "test", "somewhere")
    assert asked == {"root": "somewhere", "download": False, "train": False}  # nothing is fetched unasked
    assert cifar.images.shape == (2, 3, 32, 32) and np.array_equal(cifar.images[1].permute(1, 2, 0), CIFAR10.data[1])
    assert cifar.labels.tolist() == [3, 5]
    celeba = data.torchvision_set("celeba", "valid", size=128)
    assert asked["split"] == "valid" and celeba.labels.tolist() == [[0, 1]] and celeba.attributes == ("Bald", "Smiling")
    assert np.array_equal(celeba[0].permute(1, 2, 0), picture(218, 178)[57:185, 25:153])


def test_torchvision_sets_refuse_in_one_line(tmp_path):
    for name in ("mnist", "fashion_mnist", "cifar10", "celeba"):
        with pytest.raises(FileNotFoundError, match=f"{name} isn't in .*; give its folder as root, or download=True"):
            data.torchvision_set(name, "train", tmp_path)
    with pytest.raises(ValueError, match="name 'svhn'; want one of mnist"):
        data.torchvision_set("svhn")
    with pytest.raises(ValueError, match="split 'valid' of mnist; want 'train' or 'test'"):
        data.torchvision_set("mnist", "valid")


def test_without_the_extra_lmdb_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"pip install 'pdae_lite\[lmdb\]'"):
        data.lmdb(tmp_path, 8)
