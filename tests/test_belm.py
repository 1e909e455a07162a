"""O-BELM: exact both ways, and of second order."""
import pytest
import torch
from test_sampling import LINEAR, MEAN, STD, Gaussian, network, noise

from pdae_lite import sampling
from pdae_lite.belm import belm, belm_invert

X_0 = MEAN + STD * noise(100, 1)
X_T = (X_0 - MEAN) / STD  # the exact noise of a Gaussian datum


@pytest.mark.parametrize("denoiser", [Gaussian(), network], ids=["gaussian", "nonlinear"])
@pytest.mark.parametrize("grid", ["uniform", "paper", (0, 10, 200, 201, 700, 999)])
def test_the_pair_leads_back_exactly(denoiser, grid):
    pair = belm_invert(denoiser, X_0, LINEAR, 30, grid=grid)
    torch.testing.assert_close(belm(denoiser, pair, LINEAR, 30, grid=grid), X_0, rtol=1e-9, atol=1e-9)


def test_in_float32_too():
    x_0 = X_0.float()
    torch.testing.assert_close(belm(network, belm_invert(network, x_0, LINEAR, 100), LINEAR, 100), x_0, rtol=0,
                               atol=1e-3)


def test_one_state_alone_does_not():
    x_T, _ = belm_invert(network, X_0, LINEAR, 30)
    assert (belm(network, x_T, LINEAR, 30) - X_0).abs().max() > 1e-4


def test_closer_to_the_exact_solution_than_ddim_at_equal_steps():
    for steps in (25, 50, 100):
        belm_error = (belm(Gaussian(), X_T, LINEAR, steps) - X_0).abs().mean()
        ddim_error = (sampling.ddim(Gaussian(), X_T, LINEAR, steps, clip=False) - X_0).abs().mean()
        assert belm_error < 0.2 * ddim_error
    inverse_error = (belm_invert(Gaussian(), X_0, LINEAR, 50)[0] - X_T).abs().mean()
    assert inverse_error < 0.2 * (sampling.invert(Gaussian(), X_0, LINEAR, 50) - X_T).abs().mean()


def test_evaluations():
    counted = Gaussian()
    pair = belm_invert(counted, X_0, LINEAR, 12)
    assert len(counted.seen) == 12 and counted.seen[0] == 0 and counted.seen == sorted(counted.seen)
    for start, count in ((pair, 11), (X_T, 12)):
        counted.seen.clear()
        visited = []
        belm(counted, start, LINEAR, 12, callback=lambda t, x: visited.append(t))
        assert len(counted.seen) == count and len(visited) == 11 and visited[-1] == -1


def test_two_steps_at_least():
    for run in (belm, belm_invert):
        with pytest.raises(ValueError, match="the grid has 1 step; a two-step integrator wants at least 2"):
            run(network, X_0, LINEAR, 1)
