"""Linear probes find what is linear in z; editing moves logits by exactly what algebra says."""
import math

import pytest
import torch

from pdae_lite import data
from pdae_lite.applications.attributes import LinearProbe, counterfactual_scores, direction, edit, encode_all
from pdae_lite.checkpoint import CheckpointError, load_model
from pdae_lite.networks.encoder import EncoderConfig, SemanticEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.schedule import NoiseSchedule

Z_DIM = 6
NAMES = ("hat", "beard", "tall")


def codes(n=400, seed=0):
    """Codes with means and scales far from 0 and 1, and correlated dimensions."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, Z_DIM, generator=g)
    z[:, 1] = 0.6 * z[:, 0] + 0.8 * z[:, 1]
    return z * torch.tensor([1.0, 5.0, 0.1, 1.0, 20.0, 1.0]) + torch.tensor([0.0, 3.0, 0.0, -9.0, 100.0, 0.0])


def labels_of(z):
    """Attributes that lean on single dimensions, softly: no plane separates them."""
    g = torch.Generator().manual_seed(5)
    x = (z - codes().mean(0)) / codes().std(0)
    logits = 3 * torch.stack([x[:, 0], x[:, 1] + 0.5, x[:, 4]], 1)
    return (torch.rand(logits.shape, generator=g) < logits.sigmoid()).long()


@pytest.fixture(scope="module")
def probe():
    z = codes()
    return LinearProbe.fit(z, labels_of(z), NAMES)


# ---- fitting ---------------------------------------------------------------------------------------------------------


def test_weights_are_where_the_gradient_vanishes():
    z = codes()
    y = labels_of(z)
    fitted = LinearProbe.fit(z, y, NAMES, l2=0.01)
    x = fitted.stats.normalise(z).double()
    residual = fitted.probabilities(z).double() - y
    gradient = residual.T @ x / len(z) + 2 * 0.01 * fitted.weight.double()
    assert gradient.abs().max() < 1e-5
    assert residual.mean(0).abs().max() < 1e-5  # the bias isn't penalised


def test_classes_are_softmax_regression():
    z = codes()
    y = (z[:, 3] > -9.5).long() + (z[:, 3] > -8.5).long()
    fitted = LinearProbe.fit(z, y, ("low", "middle", "high"), l2=1e-3)
    assert fitted.kind == "classes"
    assert torch.allclose(fitted.probabilities(z).sum(1), torch.ones(len(z)))
    residual = fitted.probabilities(z).double() - torch.nn.functional.one_hot(y, 3)
    gradient = residual.T @ fitted.stats.normalise(z).double() / len(z) + 2e-3 * fitted.weight.double()
    assert gradient.abs().max() < 1e-5
    assert fitted.accuracy(z, y) > 0.9


def test_it_generalises_and_scaling_of_z_changes_nothing(probe):
    z = codes(seed=1)
    y = labels_of(z)
    assert probe.auroc(z, y).min() > 0.85
    scaled = LinearProbe.fit(codes() * 1000 - 7, labels_of(codes()), NAMES)
    assert torch.allclose(scaled.logits(z * 1000 - 7), probe.logits(z), atol=1e-3)


def test_cross_validation_wants_more_shrinkage_where_there_is_only_noise():
    z, g = codes(60), torch.Generator().manual_seed(2)
    noise = (torch.rand(60, 1, generator=g) < 0.5).long()
    plain = (z[:, :1] > z[:, :1].median()).long()
    fitted = LinearProbe.fit(z, torch.cat([plain, noise], 1), ("plain", "noise"))
    assert fitted.l2[0] < 1e-3 and fitted.l2[1] >= 0.1 - 1e-6


def test_a_rare_attribute_is_left_out_but_not_the_others():
    z = codes()
    y = labels_of(z)
    y[:, 1] = 0
    y[:4, 1] = 1
    fitted = LinearProbe.fit(z, y, NAMES, l2=1e-3)
    assert not fitted.weight[1].any() and fitted.weight[[0, 2]].any(1).all()
    assert abs(float(fitted.probabilities(z)[0, 1]) - 4.5 / 401) < 1e-3
    assert fitted.examples.tolist() == y.sum(0).tolist()
    with pytest.raises(ValueError, match="'beard' has no direction: the probe saw 4"):
        direction(fitted, "beard")
    alone = LinearProbe.fit(z, y[:, [0, 2]], ("hat", "tall"), l2=1e-3)
    assert torch.allclose(alone.weight, fitted.weight[[0, 2]], atol=1e-4)


def test_measures_by_hand():
    z = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    p = LinearProbe(("a", "b"), 1)
    p.weight[:] = torch.tensor([[1.0], [-1.0]])
    p.bias[:] = torch.tensor([-1.5, 1.5])
    y = torch.tensor([[0, 1], [1, 1], [0, 1], [1, 1]])
    assert p.accuracy(z, y).tolist() == [0.5, 0.5]
    auroc, precision = p.auroc(z, y), p.average_precision(z, y)
    assert math.isclose(auroc[0], 0.75) and math.isclose(precision[0], (1 + 2 / 3) / 2, rel_tol=1e-6)
    assert auroc[1].isnan() and precision[1].isnan()


# ---- editing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, -0.1, 0.0])
def test_an_edit_raises_the_logit_by_scale_times_root_z_dim_times_norm(probe, scale):
    z = codes(seed=3)
    moved = edit(z, probe, "hat", scale)
    rise = probe.logits(moved)[:, 0] - probe.logits(z)[:, 0]
    assert torch.allclose(rise, torch.full_like(rise, scale * math.sqrt(Z_DIM) * float(probe.weight[0].norm())),
                          atol=1e-4)


def test_a_scale_for_each_code(probe):
    z = codes(4)
    scale = torch.tensor([0.0, 0.1, 0.2, 0.3])
    together = edit(z, probe, "tall", scale)
    assert torch.allclose(together,
                          torch.cat([edit(z[i : i + 1], probe, "tall", float(s)) for i, s in enumerate(scale)]))


def test_kept_attributes_keep_their_logits(probe):
    z = codes(seed=4)
    plain, careful = (probe.logits(edit(z, probe, "hat", 0.5, keep)) - probe.logits(z)
                      for keep in ((), ("beard", "tall")))
    assert plain[:, 1].abs().min() > 0.05  # hat and beard lean on correlated dimensions
    assert careful[:, 1:].abs().max() < 1e-4
    assert 0 < careful[0, 0] < plain[0, 0]
    w, others = probe.weight[0], probe.weight[1:]
    v = direction(probe, "hat", keep=iter(("beard", "tall")))
    assert math.isclose(v.norm(), 1, rel_tol=1e-5)
    # w minus its least-squares fit by the others' weights
    rest = w - others.T @ torch.linalg.lstsq(others.T, w).solution
    assert torch.allclose(v, rest / rest.norm(), atol=1e-5)


def test_dimensions_that_do_not_vary_stay_as_they_are():
    z = codes()
    y = labels_of(z)
    z[:, 5] = 7.0
    fitted = LinearProbe.fit(z, y, NAMES, l2=1e-3)
    assert torch.equal(edit(z, fitted, "hat", 1.0)[:, 5], z[:, 5])


# ---- files, data sets, mistakes --------------------------------------------------------------------------------------


def test_a_probe_survives_its_file(probe, tmp_path):
    probe.save(tmp_path / "probe.safetensors", {"note": "x"})
    again = LinearProbe.load(tmp_path / "probe.safetensors")
    z = codes(seed=6)
    assert torch.equal(again.logits(z), probe.logits(z))
    assert (again.names, again.kind, again.metadata) == (NAMES, "attributes", {"note": "x"})
    with pytest.raises(CheckpointError, match="LinearProbe; want a PDAE"):
        load_model(tmp_path / "probe.safetensors", expect=PDAE)


def test_codes_of_a_data_set_and_of_a_tensor():
    torch.manual_seed(0)
    pdae = PDAE(UNet(UNetConfig(32, 1, 8, (1, 2), 1, (2,))), SemanticEncoder(EncoderConfig(32, 1, (8, 8, 8), 1, 2, 4)),
                NoiseSchedule.linear()).eval()
    digits = data.digits("test")
    some = data.Images(digits.images[:7], digits.labels[:7])
    z = encode_all(pdae, some, batch_size=3)
    assert z.shape == (7, 4) and not z.requires_grad
    assert torch.equal(z, encode_all(pdae, some.images, batch_size=3))
    assert torch.allclose(z, pdae.encode(some.floats()), atol=1e-6)


@pytest.mark.parametrize("change, says", [
    ({"labels": torch.zeros(400, 2, dtype=torch.int64)}, r"labels are \[400, 2\] for 400 codes and 3 names"),
    ({"labels": torch.full((400, 3), 2)}, "from 2 to 2; want integers from 0 to 1"),
    ({"labels": torch.rand(400, 3)}, "want integers"),
    ({"labels": torch.zeros(400, dtype=torch.int64)}, "class 'beard' has 0 of 400 codes; want at least 5"),
    ({"names": ("a", "a", "b")}, "each only once"),
    ({"l2": -1.0}, "l2=-1.0; want 0 or more"),
    ({"z": codes()[:9], "labels": labels_of(codes())[:9]}, "9 codes; want at least 10"),
    ({"z": codes()[0]}, "z is float32"),
    ({"z": codes() * torch.nan}, "NaN"),
])
def test_mistakes_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        LinearProbe.fit(**({"z": codes(), "labels": labels_of(codes()), "names": NAMES} | change))


def test_mistakes_in_editing_are_named(probe):
    z = codes(3)
    for call, says in ((lambda: edit(z, probe, "nose", 1), "attribute 'nose'; want one of hat, beard, tall"),
                       (lambda: direction(probe, "hat", ["hat"]), "keep holds 'hat'"),
                       (lambda: edit(z, probe, "hat", torch.zeros(2)), "2 entries for 3 codes"),
                       (lambda: edit(z[:, :2], probe, "hat", 1), r"want float \[N, 6\]")):
        with pytest.raises(ValueError, match=says):
            call()
    twice = LinearProbe(("a", "b"), 2)
    twice.weight[:] = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    with pytest.raises(ValueError, match="no direction that keeps b"):
        direction(twice, "a", ["b"])


def test_counterfactual_scores():
    before, after = torch.zeros(3, 3, 8, 8), torch.zeros(3, 3, 8, 8)
    after[:, :, 2:4, 2:4] = 0.5
    edited = torch.stack([after[0], before[0], after[0]])
    edited[2, :, 2:4, 2:4] = 0.25  # half of the change
    edited[2, :, 6:, 6:] = 0.2  # and something that isn't asked for
    inside, outside = counterfactual_scores(edited, before, after)
    assert inside.tolist() == pytest.approx([1, 0, 0.75])
    assert outside.tolist() == pytest.approx([0, 0, 4 * 0.1**2 / 60])
    with pytest.raises(ValueError, match="alike in some pair"):
        counterfactual_scores(edited, before, before)
    with pytest.raises(ValueError, match=r"edited is \[2, 3, 8, 8\]"):
        counterfactual_scores(edited[:2], before, after)
