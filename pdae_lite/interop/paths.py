"""Other Gaussian paths, x = a·x_0 + s·ε, as ours. Divided by √(a²+s²) they are variance-preserving, with ᾱ = a²/(a²+s²)
and the same ε; so a network of flow matching or of EDM is a noise predictor with another scale of what it is given,
another time that it is told, and another output."""
import math

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import describe
from ..networks import dpm
from ..schedule import NoiseSchedule, expand

PATHS = ("flow", "edm")


def flow_schedule(T: int = 1000, shift: float = 1.0) -> NoiseSchedule:
    """Flow matching, x = (1−τ) x_0 + τ ε, behind the division: σ = √(1−ᾱ)/√ᾱ = τ/(1−τ), τ = s r/(1+(s−1) r), r =
    (t+1)/(T+1)."""
    return _with_sigma([shift * r / (1 - r) for r in ((t + 1) / (T + 1) for t in range(T))])


def edm_schedule(T: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0,
                 kind: str = "karras") -> NoiseSchedule:
    """EDM (Karras et al. 2022), x = x_0 + σ ε, behind the division: σ^{1/ρ} ("karras") or ln σ ("exponential") in equal
    steps."""
    if not 0 < sigma_min < sigma_max or kind not in ("karras", "exponential"):
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}, kind {kind!r}; want 0 < sigma_min < "
                         "sigma_max, 'karras' or 'exponential'")
    f, g = (math.log, math.exp) if kind == "exponential" else (lambda s: s ** (1 / rho), lambda s: s**rho)
    return _with_sigma([g(u) for u in np.linspace(f(sigma_min), f(sigma_max), T)])


def _with_sigma(sigma: list[float]) -> NoiseSchedule:
    """β_t = 1 − ᾱ_t/ᾱ_{t−1} with ᾱ = 1/(1+σ²), in the form that cancels nothing."""
    return NoiseSchedule([(s * s - before * before) / (1 + s * s) for before, s in zip([0.0, *sigma], sigma)])


class OnPath(dpm.AsEpsilon):
    """A network of another path as a DPM that predicts ε. With σ = √(1−ᾱ)/√ᾱ at t:

        flow   a = 1−τ, s = τ = σ/(1+σ)   given u = √((1−τ)²+τ²) x_t     told T'·τ     ε = u + (1−τ) v,  v ≈ ε − x_0
        edm    a = 1, s = σ               given u = x_t/√(ᾱ(σ²+σ_d²))    told ¼ ln σ   ε = (σ u ∓ σ_d F)/√(σ²+σ_d²)

    The last is (x − D)/σ of Karras et al., D their denoiser, without its cancellation at small σ; the sign is − for F
    as they define it, + for diffusers' EDM with v_prediction.

    Args:
        model: a network cut in two; features of its trunk are a NamedTuple with x_t and t, as `networks.unet.Features`.
        kind: "flow" or "edm".
        schedule: `flow_schedule`, `edm_schedule`, or any other.
        told: flow: T', the time at τ = 1.
        sigma_data, sign: edm: σ_d, and the sign, −1 or 1.
    """

    def __init__(self, model: nn.Module, kind: str, schedule: NoiseSchedule, told: float = 1000,
                 sigma_data: float = 0.5, sign: int = -1):
        super().__init__(model, "epsilon", schedule)
        self.prediction = kind
        self.options = {"told": told} if kind == "flow" else {"sigma_data": sigma_data, "sign": sign}
        a, s = np.array([schedule.level(t) for t in range(schedule.T)]).T  # float64: told times have to be exact
        if kind == "flow":
            c = 1 / (a + s)
            self.float64 = {"given": c, "told": told * s * c, "of_input": c, "of_output": a * c}
        else:
            sigma, width = s / a, np.sqrt((s / a) ** 2 + sigma_data**2)
            self.float64 = {"given": 1 / (a * width), "told": np.log(sigma) / 4, "of_input": sigma / (a * width**2),
                            "of_output": sign * sigma_data / width}
        for name, table in self.float64.items():
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32, device="cpu"), persistent=False)

    def trunk(self, x_t: Tensor, t: int | Tensor, *condition):
        """Features of the wrapped network, given and told what it was trained with."""
        u, told = self._at("given", t, x_t) * x_t, self._at("told", t, x_t).reshape(-1).float().expand(len(x_t))
        return self.model.trunk(u, told, *condition)._replace(x_t=x_t, t=t)

    def convert(self, output: Tensor, features) -> Tensor:
        """What a head on these features says, as ε."""
        x_t, t = features.x_t, features.t
        return self._at("of_input", t, x_t) * x_t + self._at("of_output", t, x_t) * output

    def _at(self, name: str, t: int | Tensor, like: Tensor) -> Tensor:
        exact = like.dtype == torch.float64
        table = (torch.tensor(self.float64[name]) if exact else getattr(self, name).float()).to(like.device)
        return expand(table[torch.as_tensor(t, device=like.device).reshape(-1)], like)

    def to_config(self) -> dict:
        parts = {"model": describe(self.model), "schedule": self.schedule.to_config()}
        return parts | {"kind": self.prediction} | self.options


def as_epsilon(model: nn.Module, kind: str, schedule: NoiseSchedule, **options) -> nn.Module:
    """`model` itself if it predicts ε, otherwise wrapped so that it does. `kind`: "epsilon", "v" or "x_0"; or "flow" or
    "edm", with the `options` of `interop.paths.OnPath`."""
    if kind in PATHS:
        return OnPath(model, kind, schedule, **options)
    if kind not in dpm.PREDICTIONS:
        raise ValueError(f"prediction {kind!r}; want one of {', '.join((*dpm.PREDICTIONS, *PATHS))}")
    return dpm.as_epsilon(model, kind, schedule)
