"""The noise schedule: every constant that depends on t alone (Sections 2 and 3 of the paper).

Code counts t = 0 … T−1 where the paper counts 1 … T. The clean image is t = −1, with ᾱ_{−1} = 1.
"""
import math

import torch
from torch import Tensor

# The default γ of each weighting scheme; None: the scheme has no γ.
LOSS_WEIGHTS = {"pdae": 0.1, "simple": None, "vlb": None, "p2": 1.0, "min_snr": 5.0, "v": None}


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [N] to [N, 1, 1, …] so that it broadcasts against `like` [N, …]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class NoiseSchedule:
    """β_t and all that follows from it.

    Args:
        beta: [T], each in (0, 1). Tables are built in float64; public ones are float32. Methods compute in the
            dtype and on the device of the images they are given, so float64 images see float64 constants.

    Raises:
        ValueError: β outside (0, 1), or a schedule whose last ᾱ is zero (zero terminal SNR): ε says nothing
            about x_0 there, and every formula below divides by it.
    """

    def __init__(self, beta, spec: dict | None = None):
        beta = torch.as_tensor(beta, dtype=torch.float64, device="cpu").flatten()
        if beta.numel() < 1:
            raise ValueError("beta is empty; want at least one value")
        if not bool(((beta > 0) & (beta <= 1)).all()):
            raise ValueError(f"beta runs from {beta.min():.3g} to {beta.max():.3g}; want values in (0, 1)")
        alpha_bar = torch.cumprod(1 - beta, 0)
        if alpha_bar[-1] < 1e-10:
            raise ValueError(f"zero-terminal-SNR schedule (last alpha_bar = {alpha_bar[-1]:.1e}): noise prediction is "
                             "undefined there; rescale beta so that the last alpha_bar stays above 1e-10")
        alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        alpha = 1 - beta
        # 1 − ᾱ by recursion, 1 − ᾱ_t = β_t + α_t (1 − ᾱ_{t−1}): no cancellation where ᾱ is close to 1.
        one_minus = torch.empty_like(beta)
        previous = 0.0
        for i, (a, b) in enumerate(zip(alpha.tolist(), beta.tolist())):
            previous = b + a * previous
            one_minus[i] = previous
        one_minus_prev = torch.cat([one_minus.new_zeros(1), one_minus[:-1]])
        self._tables = {
            "beta": beta,
            "alpha": alpha,
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": alpha_bar_prev,
            "snr": alpha_bar / one_minus,
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_one_minus_alpha_bar": one_minus.sqrt(),
            # μ̃_t = c_0 x_0 + c_t x_t, variance β̃_t
            "posterior_x_0": alpha_bar_prev.sqrt() * beta / one_minus,
            "posterior_x_t": alpha.sqrt() * one_minus_prev / one_minus,
            "posterior_variance": beta * one_minus_prev / one_minus,
            # μ_θ = (x_t − c_ε ε_θ)/√α_t, and the gap μ̃_t − μ_θ = c_ε/√α_t (ε_θ − ε)
            "model_mean_eps": beta / one_minus.sqrt(),
            "gap_coefficient": beta / (alpha.sqrt() * one_minus.sqrt()),
            # k_t = √α_t √(1−ᾱ_t)/β_t · β̃_t
            "shift_coefficient": alpha.sqrt() * one_minus_prev / one_minus.sqrt(),
        }
        self._spec = spec or {"beta": beta.tolist()}
        self._cache: dict = {}

    # ---- ways to make one -------------------------------------------------------------------------------------

    @classmethod
    def linear(cls, T: int = 1000, start: float = 1e-4, end: float = 0.02) -> "NoiseSchedule":
        """β_t from `start` to `end` in equal steps (DDPM; the paper's schedule)."""
        return cls(torch.linspace(start, end, _positive("T", T), dtype=torch.float64, device="cpu"),
                   {"name": "linear", "T": T, "start": start, "end": end})

    @classmethod
    def cosine(cls, T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> "NoiseSchedule":
        """ᾱ_t ∝ cos²((t/T + s)/(1 + s) · π/2), β ≤ `max_beta` (Nichol & Dhariwal 2021, eq. 17)."""
        u = torch.linspace(0, 1, _positive("T", T) + 1, dtype=torch.float64, device="cpu")
        f = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls((1 - f[1:] / f[:-1]).clamp(max=max_beta),
                   {"name": "cosine", "T": T, "offset": offset, "max_beta": max_beta})

    @classmethod
    def constant(cls, beta: float = 0.008, T: int = 1000) -> "NoiseSchedule":
        """The same β at every t (the paper's latent DPM: β = 0.008)."""
        return cls(torch.full((_positive("T", T),), float(beta), dtype=torch.float64, device="cpu"),
                   {"name": "constant", "beta": beta, "T": T})

    @classmethod
    def from_diffusers(cls, scheduler) -> "NoiseSchedule":
        """The schedule of a diffusers scheduler (any that has `betas`)."""
        config = getattr(scheduler, "config", {})
        if config.get("rescale_betas_zero_snr", False):
            raise ValueError("scheduler has rescale_betas_zero_snr=True, a zero-terminal-SNR schedule: "
                             "noise prediction is undefined at its last step")
        if getattr(scheduler, "betas", None) is None:
            raise ValueError(f"scheduler {type(scheduler).__name__} has no betas; want a discrete-time DDPM/DDIM-family scheduler")
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
        makers = {"linear": cls.linear, "cosine": cls.cosine, "constant": cls.constant}
        if name not in makers:
            raise ValueError(f"schedule {name!r}; want one of {', '.join(makers)}, or a list 'beta'")
        return makers[name](**arguments)

    # ---- tables -----------------------------------------------------------------------------------------------

    @property
    def T(self) -> int:
        """Number of timesteps."""
        return len(self._tables["beta"])

    def __getattr__(self, name: str) -> Tensor:
        tables = self.__dict__.get("_tables", {})
        if name in tables:
            return tables[name].float()
        raise AttributeError(f"NoiseSchedule has no table {name!r}; it has {', '.join(tables)}")

    def __eq__(self, other) -> bool:
        return isinstance(other, NoiseSchedule) and torch.equal(self._tables["beta"], other._tables["beta"])

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        b = self._tables["beta"]
        return f"NoiseSchedule(T={self.T}, beta={b[0]:.3g}…{b[-1]:.3g})"

    def at(self, table: str, t: Tensor, like: Tensor) -> Tensor:
        """Values of a table at t [N], broadcastable against `like` [N, …], in its dtype (float32 at least)."""
        self.check_t(t)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        key = (table, like.device, dtype)
        if key not in self._cache:  # tables travel to each device once
            self._cache[key] = self._tables[table].to(like.device, dtype)
        return expand(self._cache[key][t.to(like.device)], like)

    def prepare(self, device) -> None:
        """Bring all tables to a device now. Else each comes when it is first used, and torch.compile traces a step a second time
        because it changed the schedule."""
        for table in self._tables:
            self.at(table, torch.zeros(1, dtype=torch.int64), torch.empty(1, device=device))

    def check_t(self, t: Tensor) -> None:
        """Raise a ValueError unless t is an integer tensor in 0 … T−1 (values are read on the CPU only: reading them
        would make a GPU wait, or break a compiled graph)."""
        if not torch.is_tensor(t) or t.is_floating_point():
            raise ValueError(f"t is {getattr(t, 'dtype', type(t).__name__)}; want int64 [N]")
        if torch.compiler.is_compiling():
            return
        if t.device.type == "cpu" and t.numel() and not 0 <= int(t.min()) <= int(t.max()) < self.T:
            raise ValueError(f"t runs from {int(t.min())} to {int(t.max())}; want 0 … {self.T - 1}")

    def level(self, t: int) -> tuple[float, float]:
        """(√ᾱ_t, √(1−ᾱ_t)) as Python floats, for one t in −1 … T−1; t = −1 is the clean image: (1, 0)."""
        if t < 0:
            return 1.0, 0.0
        return float(self._tables["sqrt_alpha_bar"][t]), float(self._tables["sqrt_one_minus_alpha_bar"][t])

    def loss_weight(self, name: str = "pdae", gamma: float | None = None, k: float = 1.0) -> Tensor:
        """λ_t [T], float32: the weight of E‖ε − ε̂‖² at each t.

        - ``pdae``: SNR^γ/(1+SNR), γ = 0.1 (the paper's eq. 10)
        - ``simple``: 1
        - ``vlb``: β_t/(α_t(1−ᾱ_t)), the variational bound's, up to the factor 1/2 and with σ² = β_t
        - ``p2``: 1/(k+SNR)^γ, k = 1, γ = 1 (Choi et al. 2022)
        - ``min_snr``: min(SNR, γ)/SNR, γ = 5 (Hang et al. 2023)
        - ``v``: (1+SNR)/SNR, which makes it the error of v (Salimans & Ho 2022)

        `gamma` overrides the scheme's own default; `k` is P2's alone.
        """
        if name not in LOSS_WEIGHTS:
            raise ValueError(f"loss weight {name!r}; want one of {', '.join(LOSS_WEIGHTS)}")
        if gamma is not None and LOSS_WEIGHTS[name] is None:
            raise ValueError(f"gamma={gamma} given, but loss weight {name!r} has no gamma")
        gamma = LOSS_WEIGHTS[name] if gamma is None else gamma
        snr = self._tables["snr"]
        if name == "pdae":
            weight = snr**gamma / (1 + snr)
        elif name == "simple":
            weight = torch.ones_like(snr)
        elif name == "vlb":
            weight = self._tables["beta"] / (self._tables["alpha"] * self._tables["sqrt_one_minus_alpha_bar"] ** 2)
        elif name == "p2":
            weight = 1 / (k + snr) ** gamma
        elif name == "min_snr":
            weight = snr.clamp(max=gamma) / snr
        else:
            weight = (1 + snr) / snr
        return weight.float()

    # ---- the forward process and its posterior ----------------------------------------------------------------

    def add_noise(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε. Shapes [N, …], t int64 [N]."""
        return self.at("sqrt_alpha_bar", t, x_0) * x_0 + self.at("sqrt_one_minus_alpha_bar", t, x_0) * eps

    def predict_x_0(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x̂_0 = (x_t − √(1−ᾱ_t) ε)/√ᾱ_t: `add_noise` solved for x_0."""
        return (x_t - self.at("sqrt_one_minus_alpha_bar", t, x_t) * eps) / self.at("sqrt_alpha_bar", t, x_t)

    def predict_eps(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """ε = (x_t − √ᾱ_t x_0)/√(1−ᾱ_t): `add_noise` solved for ε."""
        return (x_t - self.at("sqrt_alpha_bar", t, x_t) * x_0) / self.at("sqrt_one_minus_alpha_bar", t, x_t)

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """μ̃_t, the mean of q(x_{t−1} | x_t, x_0); its variance is the table `posterior_variance` (β̃_t)."""
        return self.at("posterior_x_0", t, x_t) * x_0 + self.at("posterior_x_t", t, x_t) * x_t

    def model_mean(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """μ_θ = (x_t − β_t/√(1−ᾱ_t) ε)/√α_t, the mean of p(x_{t−1} | x_t) that a noise prediction implies."""
        return (x_t - self.at("model_mean_eps", t, x_t) * eps) / self.at("alpha", t, x_t).sqrt()


def _positive(name: str, value: int) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"{name}={value}; want a whole number of at least 1")
    return int(value)
