"""The noise schedule: every constant that depends on t alone (Sections 2 and 3 of the paper).

Code counts t = 0 … T−1 where the paper counts 1 … T. The clean image is t = −1, with ᾱ_{−1} = 1. Everywhere t is an int
or a 0-d tensor, one for all images, or an int64 tensor [N], one for each."""
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Time = int | Tensor

# The default γ of each weighting scheme; None: the scheme has no γ.
LOSS_WEIGHTS = {"pdae": 0.1, "simple": None, "vlb": None, "p2": 1.0, "min_snr": 5.0, "v": None, "flow": None}


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [N] to [N, 1, 1, …] so that it broadcasts against `like` [N, …]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class NoiseSchedule(nn.Module):
    """β_t and all that follows from it.

    Tables are built in float64 and stay on the host as `float64[name]`, NumPy arrays [T]. Float32 copies, the
    attributes below, are buffers that move with the model that holds the schedule, but keep their precision and are in
    no state dict. Methods compute in the dtype and on the device of the images they are given.

    Args:
        beta: [T], each in (0, 1).

    Raises:
        ValueError: β outside (0, 1), or a last ᾱ of zero (zero terminal SNR), where ε says nothing about x_0.
    """

    beta: Tensor
    alpha: Tensor
    alpha_bar: Tensor
    alpha_bar_prev: Tensor  # ᾱ_{t−1}
    snr: Tensor  # ᾱ/(1−ᾱ)
    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor
    posterior_x_0: Tensor  # μ̃_t = c_0 x_0 + c_t x_t: c_0
    posterior_x_t: Tensor  # c_t
    posterior_variance: Tensor  # β̃_t
    model_mean_eps: Tensor  # μ_θ = (x_t − c_ε ε_θ)/√α_t: c_ε
    gap_coefficient: Tensor  # μ̃_t − μ_θ = c_ε/√α_t (ε_θ − ε): c_ε/√α_t
    shift_coefficient: Tensor  # k_t = √α_t √(1−ᾱ_t)/β_t · β̃_t

    def __init__(self, beta, spec: dict | None = None):
        super().__init__()
        beta = np.array(beta.tolist() if torch.is_tensor(beta) else beta, dtype=np.float64).reshape(-1)
        if beta.size < 1:
            raise ValueError("beta is empty; want at least one value")
        if not ((beta > 0) & (beta <= 1)).all():
            raise ValueError(f"beta runs from {beta.min():.3g} to {beta.max():.3g}; want values in (0, 1)")
        alpha, alpha_bar = 1 - beta, np.cumprod(1 - beta)
        if alpha_bar[-1] < 1e-10:
            raise ValueError(f"zero-terminal-SNR schedule (last alpha_bar = {alpha_bar[-1]:.1e}): noise prediction is "
                             "undefined there; rescale beta so that the last alpha_bar stays above 1e-10")
        # 1 − ᾱ by recursion, 1 − ᾱ_t = β_t + α_t (1 − ᾱ_{t−1}): no cancellation where ᾱ is close to 1.
        one_minus = np.empty_like(beta)
        previous = 0.0
        for i in range(len(beta)):
            one_minus[i] = previous = beta[i] + alpha[i] * previous
        alpha_bar_prev, one_minus_prev = np.append(1.0, alpha_bar[:-1]), np.append(0.0, one_minus[:-1])
        self.float64 = {
            "beta": beta,
            "alpha": alpha,
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": alpha_bar_prev,
            "snr": alpha_bar / one_minus,
            "sqrt_alpha_bar": np.sqrt(alpha_bar),
            "sqrt_one_minus_alpha_bar": np.sqrt(one_minus),
            "posterior_x_0": np.sqrt(alpha_bar_prev) * beta / one_minus,
            "posterior_x_t": np.sqrt(alpha) * one_minus_prev / one_minus,
            "posterior_variance": beta * one_minus_prev / one_minus,
            "model_mean_eps": beta / np.sqrt(one_minus),
            "gap_coefficient": beta / (np.sqrt(alpha) * np.sqrt(one_minus)),
            "shift_coefficient": np.sqrt(alpha) * one_minus_prev / np.sqrt(one_minus),
        }
        for name in self.float64:
            self.register_buffer(name, self._float32(name, "cpu"), persistent=False)
        self._spec = spec or {"beta": beta.tolist()}

    def _float32(self, name: str, device) -> Tensor:
        return torch.tensor(self.float64[name], dtype=torch.float32, device=device)

    def _apply(self, fn, recurse=True):
        """`to`, `half`, `to_empty` and their like: tables take the device alone, and are filled anew."""
        device = fn(torch.empty(0, device="cpu" if self.beta.is_meta else self.beta.device)).device
        for name in self.float64:
            setattr(self, name, self._float32(name, device))
        return self

    # ---- ways to make one -------------------------------------------------------------------------------------

    @classmethod
    def linear(cls, T: int = 1000, start: float = 1e-4, end: float = 0.02) -> "NoiseSchedule":
        """β_t from `start` to `end` in equal steps (DDPM; the paper's schedule)."""
        return cls(np.linspace(start, end, _positive("T", T)), {"name": "linear", "T": T, "start": start, "end": end})

    @classmethod
    def cosine(cls, T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> "NoiseSchedule":
        """ᾱ_t ∝ cos²((t/T + s)/(1 + s) · π/2), β ≤ `max_beta` (Nichol & Dhariwal 2021, eq. 17)."""
        u = np.linspace(0, 1, _positive("T", T) + 1)
        f = np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        spec = {"name": "cosine", "T": T, "offset": offset, "max_beta": max_beta}
        return cls((1 - f[1:] / f[:-1]).clip(max=max_beta), spec)

    @classmethod
    def constant(cls, beta: float = 0.008, T: int = 1000) -> "NoiseSchedule":
        """The same β at every t (the paper's latent DPM: β = 0.008)."""
        return cls(np.full(_positive("T", T), float(beta)), {"name": "constant", "beta": beta, "T": T})

    @classmethod
    def from_diffusers(cls, scheduler) -> "NoiseSchedule":
        """The schedule of a diffusers scheduler (any that has `betas`)."""
        config = getattr(scheduler, "config", {})
        if config.get("rescale_betas_zero_snr", False):
            raise ValueError("scheduler has rescale_betas_zero_snr=True, a zero-terminal-SNR schedule: "
                             "noise prediction is undefined at its last step")
        if getattr(scheduler, "betas", None) is None:
            raise ValueError(f"scheduler {type(scheduler).__name__} has no betas; want one of the DDPM/DDIM family")
        return cls(scheduler.betas)

    def to_config(self) -> dict:
        """What rebuilds this schedule, as JSON-able values: the name and arguments, or the list of β."""
        return dict(self._spec)

    @classmethod
    def from_config(cls, config: dict) -> "NoiseSchedule":
        """The inverse of `to_config`."""
        arguments = dict(config)
        name = arguments.pop("name", None)
        if name is None:
            return cls(arguments["beta"])
        makers: dict[str, Callable[..., NoiseSchedule]] = {"linear": cls.linear, "cosine": cls.cosine,
                                                           "constant": cls.constant}
        if name not in makers:
            raise ValueError(f"schedule {name!r}; want one of {', '.join(makers)}, or a list 'beta'")
        return makers[name](**arguments)

    def same_as(self, other) -> bool:
        """Whether the other is a schedule with the same β."""
        return isinstance(other, NoiseSchedule) and np.array_equal(self.float64["beta"], other.float64["beta"])

    def extra_repr(self) -> str:
        """T and the ends of β, for print."""
        b = self.float64["beta"]
        return f"T={self.T}, beta={b[0]:.3g}…{b[-1]:.3g}"

    # ---- tables -----------------------------------------------------------------------------------------------

    @property
    def T(self) -> int:
        """Number of timesteps."""
        return len(self.float64["beta"])

    def at(self, table: str, t: Time, like: Tensor) -> Tensor:
        """Values of a table at t, broadcastable against `like` [N, …], in its dtype (float32 at least). For one t that
        the host knows it is a 0-d tensor on the CPU: nothing travels, and no GPU waits."""
        self.check_t(t)
        dtype = torch.promote_types(torch.float32, like.dtype)
        if not torch.compiler.is_compiling() and (not torch.is_tensor(t) or t.ndim == 0 and t.device.type == "cpu"):
            return torch.tensor(self.float64[table][int(t)], dtype=dtype, device="cpu")
        values = getattr(self, table) if dtype == torch.float32 else torch.tensor(self.float64[table], dtype=dtype)
        return expand(values.to(like.device)[t.to(like.device) if torch.is_tensor(t) else t], like)

    def check_t(self, t: Time) -> None:
        """Raise a ValueError unless t is an integer in 0 … T−1, or an integer tensor, 0-d or [N], of them (values are
        read on the CPU only: elsewhere that would make a GPU wait, or break a compiled graph)."""
        if torch.is_tensor(t):
            if t.is_floating_point() or t.ndim > 1:
                raise ValueError(f"t is {t.dtype} {list(t.shape)}; want an int, or int64, 0-d or [N]")
            if torch.compiler.is_compiling() or t.device.type != "cpu" or not t.numel():
                return
            low, high = int(t.min()), int(t.max())
        elif isinstance(t, (int, np.integer)) and not isinstance(t, bool):
            low = high = t
        else:
            raise ValueError(f"t is {type(t).__name__}; want an int, or int64, 0-d or [N]")
        if not 0 <= low <= high < self.T:
            raise ValueError(f"t runs from {low} to {high}; want 0 … {self.T - 1}")

    def level(self, t: int) -> tuple[float, float]:
        """(√ᾱ_t, √(1−ᾱ_t)) as Python floats, for one t in −1 … T−1; t = −1 is the clean image: (1, 0)."""
        if t < 0:
            return 1.0, 0.0
        return float(self.float64["sqrt_alpha_bar"][t]), float(self.float64["sqrt_one_minus_alpha_bar"][t])

    def loss_weight(self, name: str = "pdae", gamma: float | None = None, k: float = 1.0) -> Tensor:
        """λ_t [T], float32, where the schedule is: the weight of E‖ε − ε̂‖² at each t.

        - ``pdae``: SNR^γ/(1+SNR), γ = 0.1 (the paper's eq. 10)
        - ``simple``: 1
        - ``vlb``: β_t/(α_t(1−ᾱ_t)), the variational bound's, up to the factor 1/2 and with σ² = β_t
        - ``p2``: 1/(k+SNR)^γ, k = 1, γ = 1 (Choi et al. 2022)
        - ``min_snr``: min(SNR, γ)/SNR, γ = 5 (Hang et al. 2023)
        - ``v``: (1+SNR)/SNR, which makes it the error of v (Salimans & Ho 2022)
        - ``flow``: (1+σ)², σ² = 1/SNR, which makes it the error of flow matching's v = ε − x_0 (Lipman et al. 2023)

        `gamma` overrides the scheme's own default; `k` is P2's alone."""
        if name not in LOSS_WEIGHTS:
            raise ValueError(f"loss weight {name!r}; want one of {', '.join(LOSS_WEIGHTS)}")
        if gamma is not None and (LOSS_WEIGHTS[name] is None or not math.isfinite(gamma)):
            raise ValueError(f"gamma={gamma} given, but loss weight {name!r} has no gamma" if math.isfinite(gamma) else
                             f"gamma={gamma}")
        gamma = LOSS_WEIGHTS[name] if gamma is None else gamma
        snr, one_minus = self.float64["snr"], self.float64["sqrt_one_minus_alpha_bar"] ** 2
        schemes = {
            "pdae": lambda: snr**gamma / (1 + snr),
            "simple": lambda: np.ones_like(snr),
            "vlb": lambda: self.float64["beta"] / (self.float64["alpha"] * one_minus),
            "p2": lambda: 1 / (k + snr) ** gamma,
            "min_snr": lambda: snr.clip(max=gamma) / snr,
            "v": lambda: (1 + snr) / snr,
            "flow": lambda: (1 + snr**-0.5) ** 2,
        }
        return torch.tensor(schemes[name](), dtype=torch.float32, device=self.beta.device)

    # ---- the forward process and its posterior ----------------------------------------------------------------

    def add_noise(self, x_0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε. Shapes [N, …]; t an int, or int64, 0-d or [N]."""
        return self.at("sqrt_alpha_bar", t, x_0) * x_0 + self.at("sqrt_one_minus_alpha_bar", t, x_0) * eps

    def predict_x_0(self, x_t: Tensor, t: Time, eps: Tensor) -> Tensor:
        """x̂_0 = (x_t − √(1−ᾱ_t) ε)/√ᾱ_t: `add_noise` solved for x_0."""
        return (x_t - self.at("sqrt_one_minus_alpha_bar", t, x_t) * eps) / self.at("sqrt_alpha_bar", t, x_t)

    def predict_eps(self, x_t: Tensor, t: Time, x_0: Tensor) -> Tensor:
        """ε = (x_t − √ᾱ_t x_0)/√(1−ᾱ_t): `add_noise` solved for ε."""
        return (x_t - self.at("sqrt_alpha_bar", t, x_t) * x_0) / self.at("sqrt_one_minus_alpha_bar", t, x_t)

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Time) -> Tensor:
        """μ̃_t, the mean of q(x_{t−1} | x_t, x_0); its variance is the table `posterior_variance` (β̃_t)."""
        return self.at("posterior_x_0", t, x_t) * x_0 + self.at("posterior_x_t", t, x_t) * x_t

    def model_mean(self, x_t: Tensor, t: Time, eps: Tensor) -> Tensor:
        """μ_θ = (x_t − β_t/√(1−ᾱ_t) ε)/√α_t, the mean of p(x_{t−1} | x_t) that a noise prediction implies."""
        return (x_t - self.at("model_mean_eps", t, x_t) * eps) / self.at("alpha", t, x_t).sqrt()


def _positive(name: str, value: int) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"{name}={value}; want a whole number of at least 1")
    return int(value)
