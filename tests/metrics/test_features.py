"""The feature networks and the reference that ship: as good as their cards say, of one piece, and able to tell images
apart."""
import hashlib
import json

import numpy as np
import pytest
import torch

import pdae_lite
from pdae_lite import checkpoint, data, metrics
from pdae_lite.checkpoint import shipped_file
from pdae_lite.metrics.features import FeatureConfig, FeatureNet, Features, extract, reference
from pdae_lite.storage import contents

CARDS = {name: json.loads((data.ASSETS / f"{name}_features.json").read_text()) for name in ("digits", "peeps")}


@pytest.fixture(scope="module")
def nets():
    return {name: pdae_lite.load(name, kind="features") for name in CARDS}


@pytest.fixture(scope="module")
def faces(nets):
    return data.peeps("test", size=nets["peeps"].config.image_size)


@pytest.fixture(scope="module")
def real():
    return reference("peeps")


def tiny(**changes):
    torch.manual_seed(0)
    return FeatureNet(FeatureConfig(**({"name": "tiny", "labels": ("a", "b", "c"), "image_size": 8, "channels": (4, 6),
                                        "strides": (2, 2),
                                        "width": 5} | changes))).eval()


# ---- what ships ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CARDS)
def test_files_are_those_of_their_cards(name):
    record, card = CARDS[name], (data.ASSETS / f"{name}_features.md").read_text()
    for entry in (record["file"], *([record["reference"]["file"]] if "reference" in record else [])):
        path = data.ASSETS / entry["name"]
        stored = path.read_bytes() if path.exists() else contents(shipped_file(name, "features"))
        assert (hashlib.sha256(stored).hexdigest() == entry["sha256"] and len(stored) == entry["bytes"]
                and entry["sha256"] in card)
    assert (record["file"]["bytes"] < 0.7e6 and record["training"]["command"] in card
            and f"seed {record['training']['seed']}" in card)


def test_digits_are_known_as_well_as_the_card_says(nets):
    net, test = nets["digits"], data.digits("test")
    with torch.no_grad():
        right = net(test.floats()).argmax(1) == test.labels
    assert net.config.labels == tuple("0123456789") and not net.training
    assert float(right.float().mean()) == pytest.approx(CARDS["digits"]["held_out"]["accuracy"]["value"], abs=0.003)
    assert float(right.float().mean()) > 0.97


@torch.no_grad()
def test_faces_are_known_as_well_as_the_card_says(nets, faces):
    net, record, x = nets["peeps"], CARDS["peeps"]["held_out"], faces.floats(slice(300))
    logits, turned = net(x), net.pose(x)
    assert net.config.labels == faces.attributes and logits.shape == (300, len(faces.attributes))
    right = ((logits > 0) == (faces.labels[:300] > 0)).float().mean(0)
    recorded = torch.tensor([record["accuracy"][name] for name in faces.attributes])
    # 300 of the 1,000
    assert (float((right - recorded).abs().max()) < 0.04 and abs(float(right.mean() - recorded.mean())) < 0.01)
    assert record["auroc_mean"] > 0.96 and record["auroc_least"] > 0.65  # expressions are a few pixels of 32×32
    error = (turned - faces.pose[:300, :4]).abs().mean(0)
    assert torch.allclose(error, torch.tensor(list(record["pose_mean_absolute_error"].values())), rtol=0.15)
    assert float((error / faces.pose[:, :4].std(0)).max()) < 0.4
    mirrored = net(x.flip(-1))
    left = faces.attributes.index("facing_left")
    assert float((mirrored[:, left] > 0).eq(logits[:, left] < 0).float().mean()) > 0.97
    assert torch.allclose(net.pose(x.flip(-1))[:, 0].mean(), -turned[:, 0].mean(), atol=0.5)


@pytest.mark.parametrize("name", CARDS)
def test_class_features_have_about_unit_variance_and_none_is_dead(nets, faces, name):
    images = {"digits": data.digits("test"), "peeps": faces}[name].images[:500]
    std = extract(nets[name], images).values.std(0)  # to the letter it is over training images
    assert 0.9 < float(std.mean()) < 1.1 and float(std.min()) > 0.5 and float(std.max()) < 1.6


@torch.no_grad()
def test_shape_features_know_which_image_it_was(nets, faces):
    for net, images in ((nets["digits"], data.digits("test").floats()), (nets["peeps"], faces.floats(slice(500)))):
        noisy = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
        a, b = extract(net, noisy, "shape"), extract(net, images, "shape")
        assert a.values.shape[1] > 900 and a.space == f"{net.config.name} shape features"
        assert metrics.nearest_is_own(a, b).value > 0.97


# ---- the reference ------------------------------------------------------------------------------------------------


def test_the_reference_is_of_fresh_faces_like_the_others(nets, faces, real):
    record = CARDS["peeps"]
    assert len(real) == 10_000 and real.values.shape == (10_000, 64) and real.values.dtype == torch.float32
    assert record["reference"]["network"] == record["file"]["sha256"]  # made by the network that ships
    assert real.attributes == faces.attributes and set(real.labels.unique().tolist()) == {0, 1}
    assert float((real.labels.float().mean(0) - faces.labels.float().mean(0)).abs().max()) < 0.05
    logits = nets["peeps"].logits(real.values).detach()
    assert float(((logits > 0) == (real.labels > 0)).float().mean()) > 0.96  # the labels belong to these features
    own = extract(nets["peeps"], faces)
    # no test face is among them
    assert (own.space == real.space and float(metrics.nearest_distance(own, real).min()) > 0)


def test_held_out_faces_are_near_the_reference_and_spoilt_ones_far(nets, faces, real):
    x = faces.floats()
    pooled = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 2), scale_factor=2)
    noisy = (x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    own, blurred, noised = (extract(nets["peeps"], images) for images in (x, pooled, noisy))
    fids = [metrics.fid(f, real) for f in (own, blurred, noised)]
    assert 5 * fids[0].value < fids[1].value and 3 * fids[0].value < fids[2].value
    assert (fids[1] - fids[0]).low > 0 and (fids[2] - fids[0]).low > 0
    assert fids[0].value == pytest.approx(CARDS["peeps"]["sensitivity"]["as they are"]["fid"]["value"], rel=1e-3)
    assert not metrics.kid(own, real[:2000]).excludes(0) and metrics.kid(noised, real[:2000]).low > 0


def test_class_references(real, faces, nets):
    glasses, bare = real.where("glasses"), real.where("glasses", 0)
    assert len(glasses) + len(bare) == len(real) and glasses.labels[:, faces.attributes.index("glasses")].min() == 1
    own = extract(nets["peeps"], faces)
    same, other = (metrics.kid(own.where("glasses"), part[:2000]) for part in (glasses, bare))
    assert (other - same).low > 0 and same.n == (int(faces.column("glasses").sum()), 2000)
    digits = reference("digits")
    assert len(digits) == 500 and digits.space == "digits class features" and len(digits.where(3)) == 50
    with pytest.raises(ValueError, match="attribute 'beard'; want one of glasses"):
        real.where("beard")
    with pytest.raises(ValueError, match="these features carry no labels"):
        Features(torch.zeros(3, 2)).where(1)
    with pytest.raises(ValueError, match="reference 'cats'; want 'digits' or 'peeps'"):
        reference("cats")


def test_spaces_cant_be_mixed_up(real):
    with pytest.raises(ValueError, match=r"digits class features \[N, 64\] against peeps class features"):
        metrics.kid(reference("digits"), real)


# ---- networks and features at large -------------------------------------------------------------------------------


def test_a_network_saves_and_loads_itself(tmp_path):
    net = tiny(multi_label=True, pose=True)
    checkpoint.save_model(tmp_path / "net.safetensors", net, {"seed": 1})
    again, x = checkpoint.load_model(tmp_path / "net.safetensors"), torch.rand(2, 1, 8, 8) * 2 - 1
    assert again.config == net.config and again.metadata == {"seed": 1}
    assert torch.equal(again(x), net(x)) and torch.equal(again.pose(x), net.pose(x)) and again.pose(x).shape == (2, 4)
    assert torch.equal(net(x), net.logits(net.features(x, layer="class")))
    assert net.features(x).shape == (2, 5) and net.features(x, "shape").shape == (2, 24)


def test_extract_takes_bytes_floats_and_data_sets():
    net = tiny().train()
    pixels = torch.randint(0, 256, (7, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(7)
    features = extract(net, data.Images(pixels, labels), batch_size=3)
    assert net.training and not features.values.requires_grad  # in eval mode meanwhile, and as it was afterwards
    assert torch.equal(features.labels, labels) and features.space == "tiny class features"
    assert torch.allclose(extract(net, data.to_float(pixels)).values, features.values, atol=1e-6)
    assert (len(features[2:4]) == 2 and features[2:4].labels.tolist() == [2, 3]
            and features.where(5).labels.tolist() == [5])


def test_larger_images_are_shrunk():
    net, x = tiny(), torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.allclose(net(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), net(x), atol=1e-6)


@pytest.mark.parametrize("call, message", [
    (lambda: tiny().features(torch.zeros(1, 1, 8, 8), "logits"), "layer 'logits'; want 'class' or 'shape'"),
    (lambda: tiny()(torch.zeros(1, 1, 12, 12)), "x is 12×12; the network for tiny takes 8×8, or multiples of it"),
    (lambda: tiny()(torch.zeros(1, 1, 16, 8)), "x is 16×8; the network for tiny takes 8×8"),
    (lambda: tiny()(torch.zeros(1, 3, 8, 8)), r"x has shape \[1, 3, 8, 8\]"),
    (lambda: tiny()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), "x is torch.uint8"),
    (lambda: tiny().pose(torch.zeros(1, 1, 8, 8)), "the network for tiny was not trained to tell a pose"),
    (lambda: tiny(image_size=10), "image_size=10; want a multiple of 4"),
    (lambda: tiny(strides=(2,)), "channels has 2 entries, strides 1"),
    (lambda: extract(tiny(), torch.full((1, 1, 8, 8), 2.0)), r"images runs from 2 to 2; want values in \[-1, 1\]"),
    (lambda: extract(tiny(), torch.zeros(0, 1, 8, 8)), r"images is \[0, 1, 8, 8\]; want \[N, C, H, W\], N ≥ 1"),
    (lambda: extract(tiny(), np.zeros((1, 1, 8, 8))), "images is .*; want"),
    (lambda: Features(torch.zeros(3, 2), labels=torch.zeros(2)), "2 labels for 3 features"),
])
def test_refuses_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
