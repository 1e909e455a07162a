"""What can't be read is left out everywhere, label and all; nothing stands in for it."""
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, half, write_lmdb
from PIL import Image
from torch.utils.data import Subset
from training_runs import SCHEDULE, filled, pdae

from pdae_lite import data
from pdae_lite.applications.attributes import LinearProbe, encode_all, encode_labelled
from pdae_lite.applications.latent import latent_codes
from pdae_lite.commands.main import main
from pdae_lite.data.sources import open_source
from pdae_lite.data.torchvision_sets import TorchvisionCelebA
from pdae_lite.evaluation.checks import pick
from pdae_lite.metrics.features import extract
from pdae_lite.reproduction.protocol import reconstruction
from pdae_lite.training import TrainConfig, TrainingError, train
from pdae_lite.training.batches import Batches
from pdae_lite.warning import PDAEWarning

PER_CLASS = 6


def shade(label, number):
    """What an image shows, so that it tells which one it is: a grey level."""
    return 20 + 70 * label + 10 * number


def image(label, number, side=16):
    """Noise about its shade: too much for half of a file to be the whole of it."""
    rng = np.random.default_rng(100 * label + number)
    return (shade(label, number) + rng.integers(-4, 5, (side, side, 3))).astype(np.uint8)


def told(x):
    """The label of each image [n, C, H, W], by its shade; uint8 or float."""
    x = x if x.dtype == torch.uint8 else data.to_uint8(x)
    return ((x.float().mean((1, 2, 3)) - 20 + 5) / 70).long().tolist()


def classes(root, broken=()):
    """A folder of three classes; the broken (label, number) are cut short."""
    for label in range(3):
        (root / f"class{label}").mkdir(parents=True, exist_ok=True)
        for number in range(PER_CLASS):
            path = root / f"class{label}" / f"{number}.png"
            Image.fromarray(image(label, number)).save(path)
            if (label, number) in broken:
                half(path)
    return root


BROKEN = ((0, 0), (0, 5), (1, 2), (2, 5))


def celeba(broken):
    """torchvision's CelebA as far as it is used, of 18 images."""
    labels = torch.arange(18) // PER_CLASS

    class Source:
        attr, attr_names = torch.stack([labels == 0, labels == 1, labels == 2], 1).long(), ["a", "b", "c", ""]
        filename = [f"{i:06d}.jpg" for i in range(18)]

        def __len__(self):
            return 18

        def __getitem__(self, i):
            label, number = divmod(i, PER_CLASS)
            if (label, number) in broken:
                raise OSError("image file is truncated")
            return Image.fromarray(image(label, number, 250)), None

    return TorchvisionCelebA(Source(), 16)


def some_lmdb(path, broken):
    items = {f"16-{PER_CLASS * a + b:05d}": encoded(image(a, b)) for a in range(3) for b in range(PER_CLASS)}
    for a, b in broken:
        items[f"16-{PER_CLASS * a + b:05d}"] = b"no image"
    return data.lmdb(write_lmdb(path, items, 18), 16)


# ---- reading ---------------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.sets(st.tuples(st.integers(0, 2), st.integers(0, PER_CLASS - 1)), max_size=17), st.integers(1, 7),
       st.randoms())
def test_every_reader_leaves_out_the_same_images_with_their_labels(tmp_path_factory, broken, size, random):
    root = classes(tmp_path_factory.mktemp("x") / "classes", broken)
    whole = [i for i in range(18) if divmod(i, PER_CLASS) not in broken]
    order = random.sample(range(18), 18)
    for images in (open_source(f"classes:{root}", 16, 3), celeba(broken)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = list(data.readable(images))
            batches = list(data.in_batches(images, size, order))
        assert len(said) == (2 if broken else 0) and all(f"{len(broken)} of 18 images" in str(w.message) for w in said)
        assert [i for i, _, _ in found] == whole
        y = torch.stack([torch.as_tensor(label) for _, _, label in found])
        assert told(torch.stack([x for _, x, _ in found])) == (y if y.ndim == 1 else y.argmax(1)).tolist()
        assert torch.cat([index for index, _, _ in batches]).tolist() == [i for i in order if i in whole]
        for _, x, y in batches:
            assert len(x) <= size and told(x) == (y if y.ndim == 1 else y.argmax(1)).tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            n = min(5, len(whole))
            labels = torch.arange(18) // PER_CLASS
            x, y = pick(images, n, seed=size, labels=labels)
            assert len(x) == n and told(x) == y.tolist() and len({v.numpy().tobytes() for v in x}) == n


def test_names_and_a_count_are_told_once(tmp_path):
    images = open_source(f"classes:{classes(tmp_path / 'c', BROKEN)}", 16, 3)
    with pytest.warns(PDAEWarning) as said:
        assert len(list(data.readable(images))) == 14
    (message,) = [str(w.message) for w in said]
    assert message.startswith("4 of 18 images can't be read and are left out: ") and "\n" not in message
    assert all(f"class{a}/{b}.png (image file is truncated" in message.replace("\\", "/") for a, b in BROKEN)
    many = classes(tmp_path / "many", [(a, b) for a in range(3) for b in range(5)])
    with pytest.warns(PDAEWarning, match="15 of 18 images .*; and 5 more$"):
        list(data.readable(data.folder(many, 16)))


def test_a_set_of_which_nothing_can_be_read_is_refused(tmp_path):
    images = data.folder(classes(tmp_path / "c", [(a, b) for a in range(3) for b in range(PER_CLASS)]), 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reader in (lambda: list(data.readable(images)), lambda: next(data.in_batches(images, 4)),
                       lambda: pick(images, 3),
                       lambda: train(small(), images, schedule=SCHEDULE, steps=1, batch_size=2, progress=False)):
            with pytest.raises(ValueError, match=r"none of .*18 images can be read: .*png"):
                reader()


# ---- training --------------------------------------------------------------------------------------------------------


def small():
    from pdae_lite import UNet, UNetConfig

    torch.manual_seed(0)
    return UNet(UNetConfig(16, 3, 8, (1, 2), 1, (2,)))


def batches(images, steps, start=0, **settings):
    config = TrainConfig(batch_size=4, seed=3, **settings)
    source = Batches(images, config, torch.device("cpu"), [torch.arange(2), torch.arange(2, 4)], start, (-1.0, 1.0))
    return source, [source.get(step, part) for step in range(start, steps) for part in range(2)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_takes_the_next_of_its_order_with_its_own_label(tmp_path, workers):
    root = classes(tmp_path / "c", BROKEN)
    images = open_source(f"classes:{root}", 16, 3)
    source, found = batches(images, 12, workers=workers)
    for x, y in found:
        assert len(x) == 2 and told(x) == y.tolist()
    with pytest.warns(PDAEWarning, match="4 of 18 images can't be read and are left out") as said:
        source.left_out.tell()
    source.left_out.tell()  # nothing is told twice
    assert len(said) == 1
    # a pure function of the step, whatever was read before; and the order of a set without damage
    _, later = batches(open_source(f"classes:{root}", 16, 3), 12, start=7)
    assert all(torch.equal(a, b) and torch.equal(p, q) for (a, p), (b, q) in zip(found[14:], later))
    _, whole = batches(open_source(f"classes:{classes(tmp_path / 'whole')}", 16, 3), 12)
    same = [bool((a == b).all()) for (x, _), (v, _) in zip(found, whole) for a, b in zip(x, v)]
    assert sum(same) == len(same) - sum(1 for (v, _) in whole for a in v if any(
        torch.equal(data.to_uint8(a), torch.from_numpy(image(*at)).permute(2, 0, 1)) for at in BROKEN))


def test_attributes_of_celeba_stay_with_their_images():
    _, found = batches(celeba(BROKEN), 9)
    assert all(told(x) == y.argmax(1).tolist() for x, y in found)


def test_training_tells_at_the_next_log_entry(tmp_path):
    images = data.folder(classes(tmp_path / "c", BROKEN), 16)
    with pytest.warns(PDAEWarning) as said:
        train(small(), images, schedule=SCHEDULE, steps=10, batch_size=4, log_every=5, progress=False)
    told_of = [str(w.message) for w in said if "left out" in str(w.message)]
    assert (1 <= len(told_of) <= 2 and told_of[-1].startswith("4 of 18")
            and sum(m.count("truncated") for m in told_of) == 4)


# ---- what belongs to a run -------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_same_files_alone(tmp_path):
    def go(root, steps=4, **options):
        return train(small(), data.folder(root, 16, **options), schedule=SCHEDULE, steps=steps, batch_size=4,
                     save_every=2, out=tmp_path / "run", progress=False)

    root = classes(tmp_path / "c")
    go(root)
    root.rename(tmp_path / "moved")  # it is the same all the same
    root = tmp_path / "moved"
    assert go(root, 6).history[-1]["step"] == 6
    for spoil, mend in ((lambda: (root / "class0" / "0.png").rename(root / "class0" / "z.png"),
                         lambda: (root / "class0" / "z.png").rename(root / "class0" / "0.png")),
                        (lambda: Image.fromarray(image(0, 0, 20)).save(root / "class0" / "0.png"),
                         lambda: Image.fromarray(image(0, 0)).save(root / "class0" / "0.png"))):
        spoil()
        with pytest.raises(TrainingError, match="holds a run with another data set; choose another --out"):
            go(root, 8)
        mend()
    with pytest.raises(TrainingError, match="another data set"):
        go(root, 8, value_range=(0, 100))
    assert go(root, 8).history[-1]["step"] == 8


def test_a_run_of_an_older_version_goes_on(tmp_path):
    from pdae_lite.checkpoint import read, write

    root = classes(tmp_path / "c")
    options = dict(schedule=SCHEDULE, batch_size=4, save_every=2, out=tmp_path / "run", progress=False)
    train(small(), data.folder(root, 16), steps=2, **options)
    (path,) = (tmp_path / "run" / "checkpoints").glob("*.safetensors")
    tensors, header = read(path)
    assert len(header["run"].pop("data")) == 64
    write(path, tensors, header)
    assert train(small(), data.folder(root, 16), steps=4, **options).history[-1]["step"] == 4


def test_fingerprints_tell_sets_apart(tmp_path):
    pytest.importorskip("lmdb")
    root = classes(tmp_path / "c")
    array = np.stack([image(a, 0) for a in range(3)])
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array[::-1])
    lmdb = some_lmdb(tmp_path / "x.lmdb", ())
    sets = [data.folder(root, 16), data.folder(root, 16, background=0), open_source(f"classes:{root}", 16, 3),
            celeba(()),
            data.stack(tmp_path / "a.npy", 16), data.stack(tmp_path / "b.npy", 16), lmdb,
            data.lmdb(tmp_path / "x.lmdb", 16, start=1),
            Subset(lmdb, [0, 1]), Subset(lmdb, [1, 0])]
    prints = [data.fingerprint(images) for images in sets]
    assert all(len(p) == 64 for p in prints) and len(set(prints)) == len(prints)
    assert prints[0] == data.fingerprint(data.folder(root, 32))  # the side belongs to the model
    assert data.fingerprint(data.digits("test")) is None and data.fingerprint(Subset(data.digits("test"), [0])) is None


# ---- codes, probes, measurements -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return filled(pdae()).eval()


@pytest.fixture
def grey(tmp_path):
    """(classes:FOLDER as the model takes it, indices of what is whole, their images [N, 1, 16, 16])."""
    name = f"classes:{classes(tmp_path / 'c', BROKEN)}"
    whole = [i for i in range(18) if divmod(i, PER_CLASS) not in BROKEN]
    images = open_source(name, 16, 1)
    return SimpleNamespace(name=name, images=images, whole=whole,
                           x=data.to_float(torch.stack([images[i][0] for i in whole])))


def test_codes_and_labels_stay_together(model, grey):
    labels = torch.tensor(grey.whole) // PER_CLASS
    expected = model.encode(grey.x)
    with pytest.warns(PDAEWarning, match="4 of 18 images"):
        z, y = encode_labelled(model, grey.images, 4)
    assert torch.allclose(z, expected, atol=1e-5) and y.tolist() == labels.tolist()
    with pytest.warns(PDAEWarning, match="4 of 18 images"):
        assert torch.equal(encode_all(model, grey.images, 4), z)
    with pytest.warns(PDAEWarning, match="4 of 18 images"):
        codes, stats = latent_codes(model, grey.images, 5, flip=True)
    assert len(codes) == 28 and codes.tensors[1].tolist() == labels.tolist() * 2
    assert torch.allclose(stats.denormalise(codes.tensors[0])[:14], z, atol=1e-5)


def test_measurements_count_each_image_once(model, grey):
    from pdae_lite.metrics.features import FeatureConfig, FeatureNet

    with pytest.warns(PDAEWarning, match="4 of 18 images"):
        rows = reconstruction(model, grey.images, steps=2, batch_size=4)
    whole = reconstruction(model, grey.x, steps=2, batch_size=4)
    assert rows["inferred x_T"]["MSE"].n == (14,)
    # no noise is drawn for it
    assert rows["inferred x_T"]["MSE"].value == pytest.approx(whole["inferred x_T"]["MSE"].value, rel=1e-4)
    net = FeatureNet(FeatureConfig("tiny", ("a", "b"), image_size=16)).eval()
    with pytest.warns(PDAEWarning, match="4 of 18 images"):
        features = extract(net, grey.images, batch_size=5)
    assert features.labels.tolist() == [i // PER_CLASS for i in grey.whole]
    assert torch.allclose(features.values, extract(net, grey.x).values, atol=1e-5)


def test_commands_leave_them_out(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model.save("model.safetensors")
    monkeypatch.setattr("test_left_out.PER_CLASS", 12)
    broken = [(0, 3), (1, 11), (2, 0)]
    name = f"classes:{classes(tmp_path / 'c', broken)}"
    labels = [i // 12 for i in range(36) if divmod(i, 12) not in broken]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["probe", "--model", "model.safetensors", "--data", name, "--l2", "0.1", "--out",
                     "probe.safetensors"]) == 0
        assert main(["evaluate", "--model", "model.safetensors", "--data", name, "--steps", "2", "--json",
                     "e.json"]) == 0
        assert main(["doctor", "model.safetensors", "--data", name, "--train", name, "--labels", "--checks", "probes",
                     "--json", "d.json"]) == 0
    written = json.loads((tmp_path / "probe.json").read_text())
    probe = LinearProbe.load("probe.safetensors")
    test = [i for i in range(33) if i % 5 == 4]
    assert (written["images"], written["tested_on"]) == (33 - len(test), len(test))
    assert probe.examples.tolist() == [sum(labels[i] == c for i in range(33) if i not in test) for c in range(3)]
    assert json.loads((tmp_path / "e.json").read_text())["counts"]["images"] == 33
    found = json.loads((tmp_path / "d.json").read_text())["findings"][0]
    assert (found["numbers"]["train"], found["numbers"]["test"]) == (33, 33)
