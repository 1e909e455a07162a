"""Few-shot generation: classifiers that recover known probabilities, rejection that gives the right distribution, the
stored record."""
import json
import math

import pytest
import torch
from refusals import refuses

import pdae_lite
from pdae_lite import data
from pdae_lite.applications import few_shot
from pdae_lite.checkpoint import tensors_digest
from pdae_lite.metrics import features
from pdae_lite.reproduction import table_3 as table

SHARE, APART = 0.3, 2.0


def codes(n, seed=0, share=SHARE, apart=APART):
    """Codes [n, 6] of two kinds: Gaussians whose first number has mean ±apart/2; and which they are."""
    g = torch.Generator().manual_seed(seed)
    y = torch.rand(n, generator=g) < share
    z = torch.randn(n, 6, generator=g)
    z[:, 0] += apart * (y.float() - 0.5)
    return z, y


def truth(z, share=SHARE, apart=APART):
    """p(y = 1 | z): of two unit Gaussians, the log odds are apart · z_0 + log of the prior odds."""
    return (apart * z[:, 0] + math.log(share / (1 - share))).sigmoid()


class Latent:
    """In place of a latent DPM."""

    def __init__(self):
        self.drawn = 0

    def sample(self, n, steps, generator=None):
        self.drawn += n
        return codes(n, seed=int(torch.randint(10_000, (1,), generator=generator)))[0]


# ---- classifiers -----------------------------------------------------------------------------------------------------


def test_binary_labels_give_balanced_probabilities_and_the_prior_mends_them():
    z, y = codes(6000)
    known = few_shot.fit_binary(z[y][:1000], z[~y][:1000], l2=0.0)
    new, _ = codes(2000, seed=1)
    assert (known.probability(new) - truth(new, 0.5)).abs().mean() < 0.02
    assert (few_shot.with_prior(known.probability(new), SHARE) - truth(new)).abs().mean() < 0.02
    assert (known.probability(new) - truth(new)).abs().mean() > 0.05  # so the prior does matter
    assert torch.equal(known.probability(new, 0), 1 - known.probability(new))


def test_positive_and_unlabelled_codes_are_enough():
    z, y = codes(8000, apart=8.0)
    positive = z[y][:480]  # of 2,400 or so: c = 0.2
    rest = torch.cat([z[~y], z[y][480:]])
    known = few_shot.fit_pu(positive, rest)
    assert abs(known.c - 480 / int(y.sum())) < 0.03
    new, kind = codes(2000, seed=1, apart=8.0)
    assert ((known.probability(new) > 0.5) == kind).float().mean() > 0.97
    raw = known.probe.probabilities(new)[:, 0]
    assert raw.max() < 0.5  # g alone would reject everything


def test_where_kinds_overlap_c_comes_out_too_small():
    z, y = codes(8000)
    known = few_shot.fit_pu(z[y][:480], torch.cat([z[~y], z[y][480:]]))
    c = 480 / int(y.sum())
    assert 0.4 * c < known.c < 0.95 * c


def test_classifiers_refuse_what_they_cant_use():
    z, _ = codes(40)
    refuses(r"positive codes are \[4, 6\]; want \[N, z_dim\] with N of at least 5", few_shot.fit_binary, z[:4], z)
    refuses("negative codes are list", few_shot.fit_binary, z, [1, 2])
    refuses("9 positive codes; want at least 10", few_shot.fit_pu, z[:9], z)
    refuses("wanted=2; want 1", few_shot.fit_binary(z[:20], z[20:]).probability, z, 2)
    refuses("prior=1.0; want a share between 0 and 1", few_shot.with_prior, torch.rand(3), 1.0)


# ---- rejection -------------------------------------------------------------------------------------------------------


def test_sampling_by_right_probabilities_gives_the_class_and_a_threshold_something_narrower():
    z, y = codes(100_000)
    # another seed than that of y
    kept = z[few_shot.accept(truth(z), "sample", generator=torch.Generator().manual_seed(5))]
    assert abs(len(kept) / len(z) - SHARE) < 0.01
    assert abs(float(kept[:, 0].mean()) - APART / 2) < 0.03 and abs(float(kept[:, 0].std()) - 1) < 0.03
    above = z[few_shot.accept(truth(z), threshold=0.8)]
    assert above[:, 0].std() < 0.7 and above[:, 0].mean() > APART / 2 + 0.2


def test_codes_are_drawn_until_there_are_enough():
    z, y = codes(4000)
    known, latent = few_shot.fit_binary(z[y][:500], z[~y][:500]), Latent()
    found = few_shot.sample_codes(latent, known, 200, threshold=0.9, generator=torch.Generator().manual_seed(3),
                                  batch_size=300)
    assert found.z.shape == (200, 6) and bool((known.probability(found.z) > 0.9).all())
    assert found.rate.n == (latent.drawn,) and latent.drawn % 300 == 0
    share = float((known.probability(codes(20_000, seed=9)[0]) > 0.9).float().mean())
    assert abs(found.rate.value - share) < 0.03
    again = few_shot.sample_codes(Latent(), known, 200, threshold=0.9, generator=torch.Generator().manual_seed(3),
                                  batch_size=300)
    assert torch.equal(found.z, again.z)
    without = few_shot.sample_codes(Latent(), known, 50, wanted=0, threshold=0.9,
                                    generator=torch.Generator().manual_seed(3))
    assert without.z[:, 0].mean() < -0.5 < 0.5 < found.z[:, 0].mean()


def test_nothing_accepted_is_an_error_that_says_why():
    z, y = codes(400)
    known, latent = few_shot.fit_binary(z[y][:50], z[~y][:50]), Latent()
    refuses(r"none of 1,000 codes accepted \(highest probability .*, threshold 1\); lower the threshold, draw more, or "
            r"give more labels",
            few_shot.sample_codes, latent, known, 5, threshold=1.0, most=1000)
    assert latent.drawn == 1000
    refuses("only .* of the 5000 wanted of 300 codes accepted", few_shot.sample_codes, Latent(), known, 5000,
            rule="sample", most=300)
    refuses("n=0, most=10000; want at least 1", few_shot.sample_codes, Latent(), known, 0)
    refuses("rule 'best'; want 'threshold' or 'sample'", few_shot.sample_codes, Latent(), known, 1, rule="best")


# ---- the stored record -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record():
    return json.loads((data.ASSETS / "few_shot.json").read_text(encoding="utf-8"))


def test_the_record_is_whole(record):
    assert set(record["attributes"]) == set(table.ATTRIBUTES) and record["kinds"] == ["pdae", "diffae"]
    assert record["pool"] % table.BLOCK == 0 and record["pool"] >= 1000 and record["draws"] >= 3
    for kind, digest in record["sha256_of_weights"].items():
        model = pdae_lite.load("peeps", "features" if kind == "net" else kind)
        assert digest == tensors_digest(dict(model.state_dict())), f"{kind}: made with other weights"
    for found in record["attributes"].values():
        for value, rows in found["classes"].items():
            for kind in record["kinds"]:
                for scenario in ("binary", "PU"):
                    draws = rows[f"{kind}, {scenario}"]
                    assert len(draws) == record["draws"]
                    assert all(abs(d["n"] - d["rate"] * record["pool"]) < 1 for d in draws)
                    assert all(0 <= d["seen"] <= 1 and d["kid_half"] > 0 for d in draws if d["n"] >= 20)
            assert abs(rows["real, of the class"]["kid"]) < 0.05 < rows["real, of the class"]["seen"]
        for kind in record["kinds"]:
            assert list(found["counts"][kind]) == [str(n) for n in table.COUNTS]
            rates = [sum(d["rate"] for d in draws) for draws in found["thresholds"][kind].values()]
            assert rates == sorted(rates, reverse=True)  # a higher threshold accepts no more
            assert found["thresholds"][kind]["0.5"] == found["rules"][kind]["threshold"]


@pytest.mark.parametrize(("kind", "latent"), [("pdae", "latent"), ("diffae", "diffae_latent")])
def test_a_slice_comes_out_again(record, kind, latent):
    """The first block of the pool is drawn anew: which codes a classifier from 100 labels accepts, and features of four
    images."""
    model, latent = pdae_lite.load("peeps", kind), pdae_lite.load("peeps", latent)
    train, stored = data.peeps("train", 32), record["check"][kind]
    z, x_T = table.drawn(latent, model, 0, record["seed"])
    with torch.no_grad():
        shown = [model.encode(train.floats(where[:50])).half().float()
                 for where in table.labelled(train.column("mask"), 0)]
    accepted = int((few_shot.fit_binary(*shown).probability(z) > 0.5).sum())
    assert abs(accepted - stored["first_block_accepted"]) <= 3
    images = model.decode(z[:4], x_T[:4], steps=10, sampler="dpm_solver").clamp(-1, 1)
    found = features.extract(pdae_lite.load("peeps", "features"), images).values[:, :8]
    was = torch.tensor(stored["first_features"])
    assert (found - was).abs().mean() < 0.25 * was.abs().mean()  # float32 against bf16; of other images: 1 or so
