"""Small trainings that differ in one thing, side by side: what the chapters on the gap and on the method compare.

    python scripts/results/trials.py       # all of them: some two hours of one CPU core; stopped, it goes on
    python scripts/results/trials.py --only weighting --seeds 0

All on the digits that ship, with the DPM that ships (which `conditional` doesn't use), from the same seeds, in the same
number of steps. Groups:

* `scratch` (eq. 10): λ_t by name; `raw`: G without the library's preconditioning and gradients without clipping, as in
  the paper;
* `weighting`: the same, but all go on for half as many steps from one start, a PDAE trained with the weight `v`: so
  short a run from scratch doesn't get going with every weight;
* `conditional` (Fig. 1): a DPM that is told the class, and one that isn't, from scratch;
* `design` (Section 3.3): G on the DPM's trunk or on a fresh one of its own; the paper's encoder or half a U-Net;
* `rate`: z_dim, with a learned encoder, with principal components, and with the encoder of a plain autoencoder.

Measured on held-out digits: E‖ε − ε̂‖² at each t, of the DPM and of the model; fill and nats from it (`losses`); the
accuracy of a linear probe on z; and, for each step of training, the loss and the norm of the gradient before clipping.
A trial is stored as soon as it is done, in pdae_lite/assets/trials.json. """
import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import pdae_lite
from pdae_lite import data, losses, metrics
from pdae_lite.applications.attributes import LinearProbe, encode_all
from pdae_lite.applications.warm_start import PlainAutoencoder
from pdae_lite.checkpoint import tensors_digest, write_text
from pdae_lite.networks.encoder import UNetEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.presets import DIGITS, Preset
from pdae_lite.reproduction.partial import record_before
from pdae_lite.training import TrainConfig, default_loss, train

TS = [1, 4, 12, 25, 50, *range(100, 1000, 50), 999]
MIDDLE = [i for i, t in enumerate(TS) if 300 <= t <= 600]
WIDE = [i for i, t in enumerate(TS) if t in range(100, 901, 100)]
HELD_OUT = 100
WEIGHTS = ("simple", "vlb", "p2", "min_snr", "pdae", "v")  # v: what the digits' preset trains with
CONFIG = replace(DIGITS.train, batch_size=64, warmup=30, ema=0.99, log_every=25, save_every=10**9)


class FreshTrunk(nn.Module):
    """A gradient estimator that shares nothing with the DPM: a U-Net of the same shape, all of it trained, told z."""

    def __init__(self, config: UNetConfig, z_dim: int):
        super().__init__()
        self.unet = UNet(replace(config, z_dim=z_dim, num_classes=None))

    def forward(self, features, z: Tensor) -> Tensor:
        return self.unet(features.x_t, features.t, z)


class Components(nn.Module):
    """An encoder with nothing to learn: the first z_dim principal components of the training images, each of variance
    1."""

    def __init__(self, x_0: Tensor, z_dim: int):
        super().__init__()
        flat = x_0.flatten(1)
        basis = metrics.principal_components(flat, z_dim)
        self.z_dim = z_dim
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("basis", basis / ((flat - self.mean) @ basis).std(0))

    def forward(self, x_0: Tensor) -> Tensor:
        return (x_0.flatten(1) - self.mean) @ self.basis


@cache
def images(split: str) -> Tensor:
    """All digits of a split."""
    return data.digits(split).floats()


@cache
def dpm() -> nn.Module:
    """The DPM that ships."""
    return pdae_lite.load("digits", "dpm")


@cache
def dpm_error() -> Tensor:
    """E‖ε − ε_θ‖² of it at TS."""
    return losses.noise_error(lambda x: dpm(), images("test")[:HELD_OUT], dpm().schedule, TS)


@dataclass(frozen=True)
class Trial:
    """`build` makes the model after the seed is set; `change` replaces settings of the training."""

    group: str
    name: str
    build: Callable[[TrainConfig], nn.Module]
    change: dict
    seeds: int = 1
    go_on: bool = False  # from the common start


def pdae(preset: Preset = DIGITS, encoder: nn.Module | None = None, estimator: nn.Module | None = None,
         raw: bool = False) -> PDAE:
    """A fresh PDAE on the shipped DPM."""
    return PDAE(dpm(), encoder or preset.new_encoder(), preset.schedule(), estimator, None if raw else "v",
                form="paper")


def with_z(z_dim: int) -> Preset:
    """The preset with z of another width."""
    return replace(DIGITS, encoder=replace(DIGITS.encoder, z_dim=z_dim))


def frozen(encoder: nn.Module) -> nn.Module:
    """An encoder that is trained no more."""
    return encoder.eval().requires_grad_(False)


def plain_encoder(z_dim: int, config: TrainConfig) -> nn.Module:
    """The encoder of a plain autoencoder, trained on as many images as the PDAE on top of it."""
    model = train(PlainAutoencoder(with_z(z_dim).new_encoder()), data.digits(), config, schedule=DIGITS.schedule(),
                  progress=False).model
    return frozen(model.encoder)


def all_trials() -> list[Trial]:
    """Every trial."""
    small = replace(DIGITS, unet=replace(DIGITS.unet, base_channels=32))
    told = replace(small, unet=replace(small.unet, num_classes=10))
    found = [Trial("scratch", w, lambda c: pdae(), {"weight": w}, 2 if w == "v" else 1)
             for w in ("simple", "vlb", "pdae", "v")]
    found += [Trial("scratch", f"{w}, raw", lambda c: pdae(raw=True), {"weight": w, "grad_clip": 1e9})
              for w in ("simple", "pdae", "v")]
    found += [Trial("weighting", w, lambda c: pdae(), {"weight": w, "grad_clip": 1e9}, 3, go_on=True) for w in WEIGHTS]
    found += [Trial("conditional", name, lambda c, p=p: p.dpm(), {}, 3)
              for name, p in (("class", told), ("no class", small))]
    found += [Trial("design", "fresh trunk", lambda c: pdae(estimator=FreshTrunk(DIGITS.unet, DIGITS.encoder.z_dim)),
                    {}, 2),
               Trial("design", "half a U-Net",
                     lambda c: pdae(encoder=UNetEncoder.beside(DIGITS.unet, DIGITS.encoder.z_dim)), {}, 2)]
    found += [Trial("rate", f"learned {z}", lambda c, z=z: pdae(with_z(z)), {}) for z in (8, 128)]
    for z in (8, 32, 128):
        found += [Trial("rate", f"components {z}", lambda c, z=z: pdae(encoder=frozen(Components(images("train"), z))),
                        {}),
                   Trial("rate", f"plain {z}", lambda c, z=z: pdae(encoder=plain_encoder(z, c)), {})]
    return found


@cache
def common_start(seed: int, steps: int) -> tuple[dict, dict]:
    """The weights of a PDAE after `steps` steps with the weight `v`, where the trials of `weighting` go on, and its
    measures."""
    torch.manual_seed(seed)
    model = train(pdae(), data.digits(), replace(CONFIG, steps=steps, seed=seed), progress=False).model
    return model.state_dict(), measure(model)


# ---- one trial ------------------------------------------------------------------------------------------------------


class Watch:
    """The loss of every step, and the norm of its gradient before it is clipped."""

    def __init__(self, model: nn.Module, config: TrainConfig, schedule):
        self.inner, self.losses, self.norms, self.square = default_loss(model, schedule, config), [], [], 0.0
        for p in model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self.add)

    def add(self, p: Tensor) -> None:
        """The hook of one parameter."""
        self.square += float(p.grad.square().sum())

    def __call__(self, *batch) -> Tensor:
        self.norms.append(self.square**0.5)  # of the step before
        value, self.square = self.inner(*batch), 0.0
        self.losses.append(float(value.detach()))
        return value

    def record(self) -> dict:
        """Both, a number for each step."""
        return {"loss": [float(f"{v:.4g}") for v in self.losses],
                "gradient_norm": [float(f"{v:.4g}") for v in (*self.norms[1:], self.square**0.5)]}


@torch.no_grad()
def measure(model: nn.Module) -> dict:
    """Errors per t, and for a PDAE fill, nats, the probe, and the error of its guess at x_0 from z and all but pure
    noise."""
    model.eval()
    x = images("test")[:HELD_OUT]
    if not isinstance(model, PDAE):
        told = model.config.num_classes is not None
        y = data.digits("test").labels[:HELD_OUT]
        made = (lambda _: lambda x_t, t: model(x_t, t, y)) if told else (lambda _: model)
        return {"error": losses.noise_error(made, x, DIGITS.schedule(), TS).tolist()}
    schedule = model.schedule
    error = losses.noise_error(lambda v: model.trained_denoiser(model.encode(v)), x, schedule, TS)
    filled = losses.fill(error, dpm_error())
    out = {"error": error.tolist(), "fill": filled.tolist(), "fill_300_600": float(filled[MIDDLE].mean()),
           "fill_100_900": float(filled[WIDE].mean()),
           "nats": losses.nats(error, dpm_error(), schedule, TS, x[0].numel()),
           "guess_mse": guess_mse(model, x)}
    codes = [encode_all(model, images(split)) for split in ("train", "test")]
    labels = [data.digits(split).labels for split in ("train", "test")]
    probe = LinearProbe.fit(codes[0], labels[0], [str(i) for i in range(10)], l2=1e-3)
    return out | {"probe_accuracy": float(probe.accuracy(codes[1], labels[1]))}


def guess_mse(model: PDAE, x: Tensor, t: int = 900) -> float:
    """Mean square error on [0, 1] of the one-step guess at x_0 from x_t at a t that leaves almost nothing of the image:
    what z alone says of it, as its mean."""
    ts = torch.full((len(x),), t)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = model.schedule.add_noise(x, ts, eps)
    guess = model.schedule.predict_x_0(noisy, ts, model.trained_denoiser(model.encode(x))(noisy, ts)).clamp(-1, 1)
    return float(((guess - x) / 2).square().mean())


def run(trial: Trial, seed: int, config: TrainConfig) -> dict:
    """One training, measured at its end."""
    config = replace(config, seed=seed, **trial.change)
    torch.manual_seed(seed)
    model = trial.build(config)
    start = None
    if trial.go_on:
        weights, start = common_start(seed, config.steps)
        model.load_state_dict(weights)
        config = replace(config, seed=seed + 100, steps=config.steps // 2)  # other batches than those of the start
    watch, clock = Watch(model, config, DIGITS.schedule()), time.process_time()
    train(model, data.digits(), config, schedule=DIGITS.schedule(), loss=watch, progress=False)
    extra = {"start": start} if start else {}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"group": trial.group, "name": trial.name, "seed": seed, "config": trial.change,
            "parameters_trained": trained, **measure(model), **extra, **watch.record(),
            "cpu_seconds": round(time.process_time() - clock)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="trials whose 'group name' contains this (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: all")
    parser.add_argument("--steps", type=int, default=300, help="of 64 images each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=data.ASSETS / "trials.json")
    args = parser.parse_args()
    config = replace(CONFIG, steps=args.steps)
    out = {"command": "python scripts/results/trials.py", "config": asdict(config), "t": TS, "held_out": HELD_OUT,
           "sha256_of_dpm": tensors_digest(dpm().state_dict()), "dpm_error": dpm_error().tolist(),
           "torch": torch.__version__, "python": platform.python_version(), "device": "cpu"}
    try:
        before = record_before(args.out, {k: out[k] for k in ("config", "t", "held_out", "sha256_of_dpm")})
    except ValueError as e:
        parser.error(str(e))
    out["runs"] = before["runs"] if before else []
    done = {(r["group"], r["name"], r["seed"]) for r in out["runs"]}
    for seed in args.seeds or range(3):
        for trial in all_trials():
            if seed >= trial.seeds or (trial.group, trial.name,
                                       seed) in done or (args.only or "") not in f"{trial.group} {trial.name}":
                continue
            out["runs"].append(run(trial, seed, config))
            out["date"] = time.strftime("%Y-%m-%d")
            write_text(args.out, json.dumps(out) + "\n")
            last = out["runs"][-1]
            said = {k: round(last[k], 4) for k in ("fill_300_600", "nats", "probe_accuracy", "guess_mse") if k in last}
            print(trial.group, trial.name, seed, said, f"{last['cpu_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
