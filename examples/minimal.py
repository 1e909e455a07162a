"""PDAE in one file of plain PyTorch: a diffusion model (DPM) is trained, frozen, and becomes an autoencoder.

    python examples/minimal.py pdae_lite/assets/digits.npz.xz      # or a .npy or .npz of uint8 images [N, H, W(, C)]

Numbers in brackets are equations of the paper (Zhang, Zhao, Lin 2022, arXiv 2212.12990), at whose size a network has
attention, too, and an EMA of its weights.
"""
import lzma
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# ---- what depends on t alone: t = 0 … T−1, and index −1 is the clean image, where ᾱ = 1 ------------------------------
T, WIDTH = 1000, 32
beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
alpha = 1 - beta
alpha_bar = torch.cat([alpha.cumprod(0), torch.ones(1)])
signal, noise, snr = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), alpha_bar[:T] / (1 - alpha_bar[:T])
beta_tilde = beta * (1 - alpha_bar.roll(1)[:T]) / (1 - alpha_bar[:T])  # β̃_t = β_t (1−ᾱ_{t−1})/(1−ᾱ_t), the Σ_t of (7)
k = alpha.sqrt() * noise[:T] / beta * beta_tilde  # k_t = √α_t √(1−ᾱ_t)/β_t · β̃_t: the shift β̃_t G of (7), as noise
weight = snr**0.1 / (1 + snr)  # λ_t = SNR^γ/(1+SNR) (10), γ = 0.1

def at(table, t, x):  # values at t [N], shaped to multiply x [N, C, H, W]
    return table[t].to(x).reshape(-1, 1, 1, 1)

# ---- the networks ----------------------------------------------------------------------------------------------------
class Block(nn.Module):  # a residual block that is told t, and z if it has a z_dim
    def __init__(self, z_dim=None):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
        self.norm, self.last = nn.GroupNorm(8, WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.of_t, self.of_z = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(z_dim, 2 * WIDTH) if z_dim else None

    def forward(self, x, emb, z=None):
        t_s, t_b = self.of_t(emb)[:, :, None, None].chunk(2, 1)
        z_s, z_b = (0, 0) if z is None else self.of_z(z)[:, :, None, None].chunk(2, 1)
        h = (1 + z_s) * ((1 + t_s) * self.norm(self.first(x)) + t_b) + z_b  # AdaGN (9)
        return x + self.last(F.silu(h))

class Head(nn.Module):  # features to an image: the DPM's head gives ε_θ, and one with z is the gradient estimator G_ψ
    def __init__(self, channels, z_dim=None):
        super().__init__()
        self.coarse, self.fine, self.out = Block(z_dim), Block(z_dim), nn.Conv2d(WIDTH, 4 * channels, 3, padding=1)
        nn.init.zeros_(self.out.weight), nn.init.zeros_(self.out.bias)  # G = 0 at first: PDAE begins as the DPM

    def forward(self, features, z=None):
        emb, fine, coarse = features
        h = fine + F.interpolate(self.coarse(coarse, emb, z), scale_factor=2)
        return F.pixel_shuffle(self.out(F.silu(self.fine(h, emb, z))), 2)

class DPM(nn.Module):  # ε_θ(x_t, t) = head(trunk(x_t, t)); the gradient estimator shares the trunk
    def __init__(self, channels):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.first, self.fine = nn.Conv2d(channels, WIDTH, 3, 2, 1), Block()
        self.down, self.coarse = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), Block()
        self.head = Head(channels)

    def trunk(self, x_t, t):
        angles = t.reshape(-1, 1) * 1e-4 ** torch.linspace(0, 1, WIDTH // 2)
        emb = self.time(torch.cat([angles.cos(), angles.sin()], 1))
        fine = self.fine(self.first(x_t), emb)
        return emb, fine, self.coarse(self.down(fine), emb)

def make_encoder(channels, side, z_dim):  # z = E_φ(x_0)
    return nn.Sequential(nn.Conv2d(channels, WIDTH, 3, 2, 1), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.SiLU(),
                         nn.Flatten(), nn.Linear(WIDTH * (side // 4) ** 2, z_dim))

# ---- the method ------------------------------------------------------------------------------------------------------
def loss(dpm, x_0, t, eps, estimator=None, encoder=None):
    features = dpm.trunk(at(signal, t, x_0) * x_0 + at(noise, t, x_0) * eps, t)  # x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε
    if estimator is None:
        return (eps - dpm.head(features)).square().mean()  # of a DPM: E‖ε − ε_θ‖²
    error = eps - dpm.head(features) + at(k, t, x_0) * estimator(features, encoder(x_0))
    return (at(weight, t, x_0) * error.square()).mean()  # of PDAE: E[λ_t ‖ε − ε_θ + k_t G‖²], after (7)

def shifted(dpm, estimator, z):
    def eps_hat(x_t, t):
        features = dpm.trunk(x_t, t)
        return dpm.head(features) - at(noise, t, x_t) * estimator(features, z)  # ε̂ = ε_θ − √(1−ᾱ_t) G (6)
    return eps_hat

@torch.no_grad()
def ddim(eps_hat, x, times):  # downwards, from x_T, it draws (4); upwards, from x_0, it infers x_T (8)
    for t, t_next in zip(times[:-1], times[1:]):
        eps = eps_hat(x, torch.full((len(x),), max(t, 0)))
        x = signal[t_next] * ((x - noise[t] * eps) / signal[t]) + noise[t_next] * eps
    return x

def train(parameters, objective, images, steps, batch=32):
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    for _ in range(steps):
        x_0 = images[torch.randint(len(images), (batch,))]
        value = objective(x_0, torch.randint(T, (batch,)), torch.randn_like(x_0))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

def main(images, steps=1500, z_dim=32):
    channels, side = images.shape[1:3]
    dpm, encoder, estimator = DPM(channels), make_encoder(channels, side, z_dim), Head(channels, z_dim)
    train(dpm.parameters(), lambda *batch: loss(dpm, *batch), images, steps)
    dpm.requires_grad_(False)  # frozen from here on: PDAE starts from a DPM that has been trained
    train([*estimator.parameters(), *encoder.parameters()], lambda *b: loss(dpm, *b, estimator, encoder), images, steps)
    x_0, x_T, up = images[:64], torch.randn_like(images[:64]), [-1, *range(19, T, 20)]
    plain, with_z = (lambda x_t, t: dpm.head(dpm.trunk(x_t, t))), shifted(dpm, estimator, encoder(x_0))
    for name, eps_hat, start in (("the DPM alone, from random x_T", plain, x_T), ("z and the same x_T", with_z, x_T),
                                 ("z and the x_T that it infers", with_z, ddim(with_z, x_0, up))):
        print(f"{name}: mean squared error {(ddim(eps_hat, start, up[::-1]) - x_0).square().mean():.4f}")

if __name__ == "__main__":
    data = np.kron(np.random.rand(2000, 4, 4), np.full((7, 7), 255.0))  # without a file: patchwork
    if len(sys.argv) > 1:
        data = np.load(lzma.open(sys.argv[1]) if sys.argv[1].endswith(".xz") else sys.argv[1])
    array = torch.from_numpy(data if isinstance(data, np.ndarray) else data[data.files[0]]).float() / 127.5 - 1
    main(array[:, None] if array.ndim == 3 else array.permute(0, 3, 1, 2))
