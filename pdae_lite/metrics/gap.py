"""How much of the gap a linear code could fill: principal components, and the reference line of every fill figure."""
import torch
from torch import Tensor

from ..losses import fill
from ..schedule import NoiseSchedule


def principal_components(x: Tensor, k: int) -> Tensor:
    """The first k principal directions [D, k] of images float [M, D], 1 ≤ k ≤ M, D; by random projection if D > 2048.

    Raises:
        ValueError: other images, or a k that is too large.
    """
    if x.ndim != 2 or not x.is_floating_point() or not 1 <= k <= min(x.shape):
        raise ValueError(f"x is {x.dtype} {list(x.shape)}, k={k}; want float [M, D] and 1 ≤ k ≤ M, D")
    centred = x - x.mean(0)
    if x.shape[1] <= 2048:
        return torch.linalg.svd(centred, full_matrices=False).Vh[:k].T
    with torch.random.fork_rng(devices=[]):  # torch's own projection draws from the global generator
        torch.manual_seed(0)
        return torch.svd_lowrank(centred, q=min(k + 32, len(x)), niter=6)[2][:, :k]


class LinearGaussian:
    """The data as one Gaussian, N(mean, covariance of `x_0`), and a code made of its first z_dim principal components.

    For this model everything is known in closed form: the ideal noise predictor without and with the code.

    Args:
        x_0: training images float [M, …], M ≥ 2, to take mean and covariance from.
        z_dim: number of principal components in the code, from 0 to all.

    Raises:
        ValueError: images of bytes, or that hold NaN; too few of them; a z_dim that is too large.
    """

    def __init__(self, x_0: Tensor, z_dim: int):
        if len(x_0) < 2 or not x_0.is_floating_point():
            raise ValueError(f"x_0 has {len(x_0)} images of {x_0.dtype}; want at least 2, float")
        if not bool(x_0.isfinite().all()):
            raise ValueError("x_0 holds NaN or infinite values")
        flat = x_0.flatten(1).cpu().double()
        if not 0 <= z_dim <= flat.shape[1]:
            raise ValueError(f"z_dim={z_dim}; want 0 … {flat.shape[1]}")
        self.shape, self.z_dim, self.mean = x_0.shape[1:], z_dim, flat.mean(0)
        flat = flat - self.mean
        if len(flat) < flat.shape[1]:  # only so many components vary, and the small matrix of products knows them
            variance, weights = torch.linalg.eigh(flat @ flat.T / (len(flat) - 1))
            basis = torch.nn.functional.normalize(flat.T @ weights, dim=0)
        else:
            variance, basis = torch.linalg.eigh(flat.T @ flat / (len(flat) - 1))
        self.variance, self.basis = variance.flip(0).clamp(min=0), basis.flip(1)  # largest first; columns of basis

    def denoiser(self, schedule: NoiseSchedule, x_0: Tensor | None = None):
        """The ideal noise predictor of the Gaussian; with x_0 given, the one that also knows the code of x_0 [N, …]."""
        basis, mean = (v.to(x_0 if x_0 is not None else self.mean) for v in (self.basis, self.mean))
        known = None if x_0 is None else (x_0.flatten(1) - mean) @ basis[:, : self.z_dim]

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            b, m = basis.to(x_t), mean.to(x_t)
            signal, noise = (schedule.at(k, t, x_t).reshape(-1, 1)
                             for k in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"))
            y = (x_t.flatten(1) - signal * m) @ b  # noisy coefficients
            var = self.variance.to(x_t)
            coefficients = signal * var / (signal**2 * var + noise**2) * y  # Wiener filter: E[x_0 | x_t]
            if known is not None:
                coefficients = torch.cat([known.to(x_t), coefficients[:, self.z_dim :]], 1)
            x_0_hat = (m + coefficients @ b.T).reshape(x_t.shape)
            return schedule.predict_eps(x_t, t, x_0_hat)

        return predict

    def error(self, schedule: NoiseSchedule, ts, with_code: bool) -> Tensor:
        """E‖ε − ε̂‖² per pixel in closed form for data from the Gaussian itself: [len(ts)]."""
        snr = schedule.snr.double()[torch.as_tensor(ts)][:, None]
        per_component = snr * self.variance / (snr * self.variance + 1)
        return (per_component[:, self.z_dim :] if with_code else per_component).sum(1).float() / self.shape.numel()

    def fill(self, schedule: NoiseSchedule, ts) -> Tensor:
        """The fill that this linear code reaches on its own Gaussian: [len(ts)]."""
        return fill(self.error(schedule, ts, True), self.error(schedule, ts, False))
