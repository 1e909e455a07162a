"""Small networks, patterns to tell apart and an ideal mixture, for the tests of classifiers and guidance."""
import torch
from torch.utils.data import TensorDataset

from pdae_lite.data import to_uint8
from pdae_lite.networks.classifier import ClassifierConfig, NoisyClassifier
from pdae_lite.networks.encoder import LabelEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.schedule import NoiseSchedule

SHAPE, K = (1, 8, 8), 3
SCHEDULE = NoiseSchedule.linear(100, 1e-3, 0.2)
T_BATCH, Y = torch.tensor([1, 50, 99]), torch.tensor([2, 0, 1])


def noise(n=3, seed=2, dtype=torch.float32):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def codes(n=3, seed=3):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def filled(module, seed=0):
    """Random weights in every layer, also in those that start at zero."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=g)
    return module.eval()


def classifier(**unet):
    torch.manual_seed(0)
    return NoisyClassifier(ClassifierConfig(UNetConfig(8, 1, 8, (1, 2), 1, (2,), **unet), K), SCHEDULE).eval()


def dpm():
    return filled(UNet(UNetConfig(8, 1, 8, (1, 2), 1, (2,)))).requires_grad_(False)


def untrained():
    """A class-conditional G whose output is zero."""
    torch.manual_seed(0)
    return PDAE(dpm(), LabelEncoder(K, 4), SCHEDULE, form="paper").eval()


def pdae():
    model = untrained().requires_grad_(False)
    filled(model.estimator, 1)
    return model


def at(table, like, t=T_BATCH):
    return SCHEDULE.at(table, t, like).reshape(-1, 1, 1, 1).reshape(-1, 1, 1, 1)


BARS = (torch.arange(8) // 2 % 2 * 2.0 - 1).expand(8, 8)
PATTERNS = torch.stack([BARS, BARS.T, BARS * BARS.T])[:, None]  # [K, 1, 8, 8]: columns, rows, a chessboard


def patterns(n=60):
    """Images of the three patterns, uint8, and labels."""
    y = torch.arange(n) % K
    return TensorDataset(to_uint8(PATTERNS[y]), y)


def similarity(x):
    """[N, K]: the mean product of images [N, 1, 8, 8] with each pattern."""
    return (x[:, None] * PATTERNS).mean((2, 3, 4))


# ---- the ideal denoiser of a Gaussian mixture: every answer in closed form -------------------------------------------


class Mixture:
    """x_0 of class k ~ N(m_k, diag v_k), class k with probability π_k, in float64."""

    def __init__(self):
        g = torch.Generator().manual_seed(7)
        self.pi = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
        self.m = torch.randn(K, 64, generator=g, dtype=torch.float64) / 2
        self.v = torch.rand(K, 64, generator=g, dtype=torch.float64) / 2 + 0.1

    def _noisy(self, x_t, t):
        """x_t of class k ~ N(√ᾱ m_k, diag s_k): its residual and s_k, [N, K, 64]."""
        a = at("sqrt_alpha_bar", x_t, t).flatten(1)[:, None]
        return (x_t.flatten(1)[:, None] - a * self.m,
                a**2 * self.v + at("sqrt_one_minus_alpha_bar", x_t, t).flatten(1)[:, None] ** 2)

    def log_joint(self, x_t, t):
        """log π_k p(x_t | k) up to a constant: [N, K], a classifier that isn't normalised."""
        r, s = self._noisy(x_t, t)
        return self.pi.log() - 0.5 * (r**2 / s + s.log()).sum(2)

    def _expected(self, per_class, x_t, t, y):
        """E[· | x_t, y], or E[· | x_t] for y None, of what is [N, K, 64] given the class."""
        if y is None:
            return (self.log_joint(x_t, t).softmax(1)[:, :, None] * per_class).sum(1).reshape(x_t.shape)
        return per_class[torch.arange(len(y)), y].reshape(x_t.shape)

    def eps(self, x_t, t, y=None):
        r, s = self._noisy(x_t, t)
        return self._expected(at("sqrt_one_minus_alpha_bar", x_t, t).flatten(1)[:, None] * r / s, x_t, t, y)

    def x_0(self, x_t, t, y=None):
        r, s = self._noisy(x_t, t)
        return self._expected(self.m + at("sqrt_alpha_bar", x_t, t).flatten(1)[:, None] * self.v / s * r, x_t, t, y)


MIXTURE = Mixture()


def noisy(n=12, seed=8):
    """x_t, t, y of the mixture, at all noise levels."""
    x = noise(n, seed, torch.float64)
    t, y = torch.arange(n) * 99 // (n - 1), torch.arange(n) % K
    x_0 = (MIXTURE.m[y] + MIXTURE.v[y].sqrt() * noise(n, 9, torch.float64).flatten(1)).reshape(x.shape)
    return SCHEDULE.add_noise(x_0, t, x), t, y
