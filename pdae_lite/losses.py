"""What is minimised, and what is measured: noise-prediction losses, the posterior-mean gap, fill, nats."""
import numpy as np
import torch
from torch import Tensor

from . import counter_rng
from .schedule import NoiseSchedule, Time


def weighted_mean(values: Tensor, t: Time, schedule: NoiseSchedule, weight: str | Tensor) -> Tensor:
    """E[λ_t · values [N]], a scalar. `weight`: a name of `NoiseSchedule.loss_weight`, or λ [T]."""
    table = schedule.loss_weight(weight) if isinstance(weight, str) else weight
    return (table.to(values.device)[t] * values).mean()


def weighted_mse(error: Tensor, t: Time, schedule: NoiseSchedule, weight: str | Tensor) -> Tensor:
    """E[λ_t · mean over pixels of error²], a scalar; see `weighted_mean`."""
    return weighted_mean(error.float().square().flatten(1).mean(1), t, schedule, weight)


def dpm_loss(dpm, x_0: Tensor, t: Time, eps: Tensor, schedule: NoiseSchedule, weight: str | Tensor = "simple",
             y: Tensor | None = None) -> Tensor:
    """E[λ_t ‖ε − ε_θ(x_t, t)‖²] for a noise predictor; y [N] for a class-conditional one.

    Args: x_0 [N, C, H, W] clean data, t int64 [N], eps [N, C, H, W] the noise to add."""
    x_t = schedule.add_noise(x_0, t, eps)
    prediction = dpm(x_t, t) if y is None else dpm(x_t, t, y)
    return weighted_mse(eps - prediction, t, schedule, weight)


def pdae_loss(pdae, x_0: Tensor, t: Time, eps: Tensor, weight: str | Tensor = "pdae",
              z: Tensor | None = None) -> Tensor:
    """E[λ_t ‖ε − ε_z(x_t, t)‖²], with ε_z the best guess at ε given z: the second head's own in the difference form; in
    the paper's ε_θ − k_t G(x_t, z, t), its loss after eq. (7). z is encoded from x_0 unless given."""
    z = pdae.encoder(x_0) if z is None else z
    known = pdae.known_eps(pdae.schedule.add_noise(x_0, t, eps), t, z)
    return weighted_mse(eps - known, t, pdae.schedule, weight)


def latent_loss(latent, z_0: Tensor, t: Time, eps: Tensor, schedule: NoiseSchedule,
                weight: str | Tensor = "simple") -> Tensor:
    """E[λ_t |ε − ε_θ(z_t, t)|], the mean absolute error per dimension, for a noise predictor of normalised codes.

    Args: z_0 [N, z_dim] clean normalised codes, t int64 [N], eps [N, z_dim] the noise to add."""
    error = eps - latent(schedule.add_noise(z_0, t, eps), t)
    return weighted_mean(error.float().abs().flatten(1).mean(1), t, schedule, weight)


# ---- measuring the gap ----------------------------------------------------------------------------------------------


@torch.no_grad()
def noise_error(denoiser_for, x_0: Tensor, schedule: NoiseSchedule, ts, seed: int = 0, batch_size: int = 250,
                noise: str = "gaussian") -> Tensor:
    """E‖ε − ε̂‖² per pixel at each t of `ts`: float32 [len(ts)].

    Args:
        denoiser_for: called with clean images [n, …], returns the denoiser (x_t, t) -> ε̂ to measure on them. So a PDAE
            is ``lambda x: pdae.trained_denoiser(pdae.encode(x))`` and a plain DPM ``lambda x: dpm``.
        seed: the noise of image i at timestep t depends on (seed, t, i) alone: with one seed two models see the same.
        noise: "gaussian"; "uniform" on [0, 1) repeats the authors' released measurement, which is inflated at large t.
    """
    if not x_0.is_floating_point() or len(x_0) < 1:
        raise ValueError(f"x_0 is {x_0.dtype} {list(x_0.shape)}; want float [N, …] with N of at least 1")
    if noise not in ("gaussian", "uniform"):
        raise ValueError(f"noise {noise!r}; want 'gaussian' or 'uniform'")
    total = torch.zeros(len(ts), dtype=torch.float64)
    for batch, index in zip(x_0.split(batch_size), torch.arange(len(x_0), device=x_0.device).split(batch_size)):
        denoiser = denoiser_for(batch)
        for i, t in enumerate(map(int, ts)):
            if noise == "gaussian":
                eps = counter_rng.normal(seed, t, index, batch.shape[1:])
            else:
                eps = counter_rng.uniform(seed, t, index, batch[0].numel(), "noise").reshape(batch.shape)
            eps = eps.to(batch.dtype)
            error = eps - denoiser(schedule.add_noise(batch, t, eps), t)
            total[i] += error.square().flatten(1).mean(1).cpu().double().sum()
    return (total / len(x_0)).float()


def posterior_mean_gap(denoiser_for, x_0: Tensor, schedule: NoiseSchedule, ts, **options) -> Tensor:
    """Mean square of μ̃_t − μ = β_t/(√α_t √(1−ᾱ_t)) (ε̂ − ε) per pixel, at each t of `ts` (the curve of Fig. 5).

    Arguments as for `noise_error`."""
    return schedule.gap_coefficient[torch.as_tensor(ts)] ** 2 * noise_error(denoiser_for, x_0, schedule, ts, **options)


def fill(error: Tensor, error_dpm: Tensor) -> Tensor:
    """fill(t) = 1 − E‖ε − ε̂‖²/E‖ε − ε_θ‖²: the share of the gap that the shift fills, at each t."""
    return 1 - error / error_dpm


def nats(error: Tensor, error_dpm: Tensor, schedule: NoiseSchedule, ts, dims: int) -> float:
    """Σ_{t ≥ 1} (gap²_DPM(t) − gap²_PDAE(t))/(2 β̃_t), summed over pixels: what z improves the variational bound by.

    An estimate of the information I(x_0; z) in nats, up to the DPM's own error.

    Args:
        error, error_dpm: E‖ε − ε̂‖² per pixel at each t of `ts` (`noise_error`), interpolated linearly between them.
        ts: increasing, from 1 or above; the ends are extended as constants.
        dims: number of values in one image, C·H·W.
    """
    ts = torch.as_tensor(ts)
    if len(ts) < 2 or ts[0] < 1 or bool((ts[1:] <= ts[:-1]).any()):
        raise ValueError(f"ts is {ts.tolist()}; want at least two increasing values from 1 on: beta-tilde is 0 at t = "
                         "0")
    # The summand is a factor that varies over orders of magnitude times a smooth error: interpolate the error.
    difference = np.interp(np.arange(1, schedule.T), ts.cpu(), (error_dpm - error).double().cpu())
    factor = schedule.gap_coefficient.double()[1:] ** 2 / (2 * schedule.posterior_variance.double()[1:])
    return float(factor.cpu().numpy() @ difference * dims)
