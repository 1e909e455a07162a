"""Keyed random numbers: distribution, independence, and that they depend on their key alone."""
import pytest
import torch

from pdae_lite import counter_rng

N = 4000
INDEX = torch.arange(N)


def test_uniform_moments():
    u = counter_rng.uniform(0, 0, INDEX, 25, "t").double()  # 100,000 values
    assert 0 <= float(u.min()) and float(u.max()) < 1
    sigma = 1 / (12 * u.numel()) ** 0.5  # of the mean
    assert abs(float(u.mean()) - 0.5) < 4.5 * sigma
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.02)
    counts = torch.histc(u, 20, 0, 1) / u.numel()
    assert float((counts - 0.05).abs().max()) < 4.5 * (0.05 * 0.95 / u.numel()) ** 0.5


def test_normal_moments():
    x = counter_rng.normal(0, 0, INDEX, (5, 5)).double()
    n = x.numel()
    assert x.shape == (N, 5, 5) and bool(x.isfinite().all())
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # E x^k and Var x^k
        assert abs(float((x**power).mean()) - mean) < 4.5 * (variance / n) ** 0.5, power
    assert float((x.abs() > 1.959964).double().mean()) == pytest.approx(0.05, abs=4.5 * (0.05 * 0.95 / n) ** 0.5)


def test_values_in_one_sample_are_uncorrelated():
    x = counter_rng.normal(3, 1, INDEX, (32,)).double()
    correlation = torch.corrcoef(x.T) - torch.eye(32)
    assert float(correlation.abs().max()) < 5 / N**0.5  # 496 pairs; also cosine against sine of one Box–Muller pair
    squares = torch.corrcoef(x.square().T) - torch.eye(32)
    assert float(squares.abs().max()) < 6 / N**0.5


@pytest.mark.parametrize("other", [
    {"seed": 1}, {"step": 1}, {"step": 2**40}, {"stream": "augment"}, {"index": INDEX + 1}, {"index": INDEX + N},
    {"seed": -1},
    {"seed": 2**63 + 5},
])
def test_any_part_of_the_key_gives_other_numbers(other):
    key = {"seed": 0, "step": 0, "index": INDEX, "shape": (8,), "stream": "noise"}
    a, b = counter_rng.normal(**key), counter_rng.normal(**(key | other))
    assert abs(float((a * b).double().mean())) < 4.5 / a.numel() ** 0.5
    assert float((a == b).double().mean()) < 1e-3


def test_streams_are_apart():
    draws = [counter_rng.uniform(0, 0, INDEX, 1, s)[:, 0] for s in counter_rng.STREAMS]
    correlation = torch.corrcoef(torch.stack(draws).double()) - torch.eye(len(draws))
    assert float(correlation.abs().max()) < 4.5 / N**0.5
    with pytest.raises(KeyError):
        counter_rng.uniform(0, 0, INDEX, 1, "other")


def test_swapping_seed_and_step_matters():
    a, b = counter_rng.normal(1, 2, INDEX, (4,)), counter_rng.normal(2, 1, INDEX, (4,))
    assert abs(float((a * b).mean())) < 4.5 / (4 * N) ** 0.5


def test_any_split_of_a_batch_gives_the_same_numbers():
    index = torch.arange(12)
    for draw in (lambda i: counter_rng.normal(5, 9, i, (3, 3)), lambda i: counter_rng.uniform(5, 9, i, 3, "flip")):
        whole = draw(index)
        assert torch.equal(torch.cat([draw(part) for part in index.split(5)]), whole)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        assert torch.equal(draw(index[order]), whole[order])
        assert torch.equal(draw(index), whole)  # no hidden state


def test_global_state_is_left_alone():
    before = torch.random.get_rng_state()
    counter_rng.normal(0, 0, INDEX, (3,))
    assert torch.equal(before, torch.random.get_rng_state())
