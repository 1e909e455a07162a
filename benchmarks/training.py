"""Images a second of a PDAE's training step, against those of a Diff-AE on the same network and of a plain
implementation.

    python benchmarks/training.py --preset digits --batch-size 16
    python benchmarks/training.py --preset ffhq128 --device cuda --json ffhq128.json

Each runs in the loop that `pdae train` runs. They take turns in one process, so that whatever else the machine does
hits all of them, and ratios are taken within a round. Beside what was measured stands what arithmetic alone predicts.
The README says what is counted.
"""
import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from pdae_lite.commands.settings import UsageError, override
from pdae_lite.diffae import DiffAE
from pdae_lite.networks.encoder import LabelEncoder, UNetEncoder
from pdae_lite.pdae import PDAE
from pdae_lite.presets import PRESETS, LabelConfig, Preset
from pdae_lite.progress import progress_bar
from pdae_lite.training import TrainConfig, train_in_turns

SETTINGS = {"unet": "unet", "encoder": "encoder", "train": "train", "prediction": "prediction", "form": "form",
            "precondition": "precondition"}
# Dense bf16 TFLOP/s by NVIDIA's data sheets; the first name that the card's contains counts.
PEAKS = {"H200 NVL": 835, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312}


class PlainPDAE(PDAE):
    """A PDAE that is frozen by being left out of the optimizer, no more: autograd follows the DPM and computes its
    gradients."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dpm.requires_grad_(True)

    def features(self, x_t, t):
        return self.dpm.trunk(x_t, t)

    def eps(self, features):
        return self.dpm.head(features)


# ---- what is compared ------------------------------------------------------------------------------------------------


def _pdae(preset: Preset, encoder: nn.Module, cls: type = PDAE) -> PDAE:
    return cls(preset.dpm(), encoder, preset.schedule(), precondition=preset.precondition, form=preset.form)


def _diffae(preset: Preset, encoder: nn.Module) -> DiffAE:
    return DiffAE(preset.diffae().network, encoder, preset.schedule())


def _unet_encoder(preset: Preset) -> nn.Module:
    return UNetEncoder.beside(preset.unet, preset.encoder.z_dim)


def pdae_step(trunk: float, head: float, shift: float, encoder: float) -> float:
    """Forward through the frozen trunk and head; forward and backward, which costs two forwards, through the rest."""
    return trunk + head + 3 * shift + 3 * encoder


def whole_step(trunk: float, head: float, shift: float, encoder: float) -> float:
    """Forward and backward through everything."""
    return 3 * (trunk + head + shift + encoder)


@dataclass(frozen=True)
class Variant:
    """`cost`: FLOP for one image in a training step, from those of one forward pass through each part."""

    about: str
    build: Callable[[Preset], nn.Module]
    cost: Callable[..., float]
    plain: bool = False


VARIANTS = {
    "pdae": Variant("PDAE", lambda p: _pdae(p, p.new_encoder()), pdae_step),
    "diffae": Variant("Diff-AE, with PDAE's encoder", lambda p: _diffae(p, p.new_encoder()), whole_step),
    "diffae_unet": Variant("Diff-AE, with its own encoder (half a U-Net)", lambda p: _diffae(p, _unet_encoder(p)),
                           whole_step),
    "pdae_unet": Variant("PDAE, with Diff-AE's encoder", lambda p: _pdae(p, _unet_encoder(p)), pdae_step),
    "pdae_plain": Variant("PDAE, plain: float32, DPM inside autograd", lambda p: _pdae(p, p.new_encoder(), PlainPDAE),
                          whole_step, True),
}


def variants(preset: Preset) -> list[str]:
    """Those that a preset can have: labels have one encoder only."""
    return [name for name in VARIANTS if not (name.endswith("_unet") and isinstance(preset.encoder, LabelConfig))]


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def flops(function: Callable) -> tuple[float, object]:
    """FLOP of a call, and its result: convolutions, matrix products and attention, a multiply-add counted as two."""
    # a fused kernel isn't counted everywhere
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function()
    return float(counter.get_total_flops()), result


def batch(preset: Preset, n: int, device: str) -> tuple[torch.Tensor, ...]:
    """x_0 uint8 [n, C, H, W] of random pixels, and labels int64 [n]."""
    unet, classes = preset.unet, getattr(preset.encoder, "num_classes", 10)
    shape = (n, unet.in_channels, unet.image_size, unet.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device), torch.randint(0, classes, (n,),
                                                                                         device=device)


def parts(preset: Preset, name: str) -> dict[str, float]:
    """FLOP of one forward pass of one image through each part of a model; networks on "meta" have shapes, but no
    numbers."""
    with torch.device("meta"):
        model = VARIANTS[name].build(preset)
        x, y = batch(preset, 1, "meta")
        x, t = x.float(), torch.zeros(1, dtype=torch.int64)
    encoder, z = flops(lambda: model.encoder(y if isinstance(model.encoder, LabelEncoder) else x))
    frozen = isinstance(model, PDAE)
    trunk, features = flops(lambda: model.network.trunk(x, t, *(() if frozen else (z,))))
    # it isn't run
    head = (0.0 if getattr(model, "form", None) == "difference" else flops(lambda: model.network.head(features))[0])
    shift = flops(lambda: model.estimate(features, z))[0] if frozen else 0.0
    return {"trunk": trunk, "head": head, "shift": shift, "encoder": encoder}


def peak(device: torch.device) -> float | None:
    """The card's dense bf16 TFLOP/s; None if unknown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((tflops for card, tflops in PEAKS.items() if card in name), None)


# ---- measuring -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tf32(allowed: bool):
    """Whether float32 products of this block may run in TF32 (CUDA only)."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [s.fp32_precision for s in settings]
    try:
        for s in settings:
            s.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        for s, value in zip(settings, before):
            s.fp32_precision = value


class Run:
    """A training that makes `steps` steps whenever it is its turn. Where memory runs out it starts anew, in twice as
    many micro-batches."""

    def __init__(self, preset: Preset, name: str, config: TrainConfig, device: torch.device):
        self.preset, self.variant, self.config, self.device = preset, VARIANTS[name], config, device
        if self.variant.plain:
            self.config = replace(config, precision="no", channels_last=False, compile=False)
        self.seconds, self.gib = [], None
        self.start()

    def start(self) -> None:
        """Build the model and make the first turn, which compiles, tunes and fills caches, and doesn't count."""
        self.held, before = 0, self._allocated()
        while True:
            try:
                self.turns = self._turns()
                self._go()
                self.held = self._allocated() - before
                return
            except torch.OutOfMemoryError:
                pass  # outside of this block nothing refers to the tensors of the failed step
            self.more_micro_batches()

    def more_micro_batches(self) -> None:
        """Let go of the model, and prepare to start anew with half the memory."""
        images, micro_batches = self.config.batch_size, self.config.accumulate
        if images % (2 * micro_batches):
            raise UsageError(f"{self.variant.about}: out of memory with {images // micro_batches} image(s) at once")
        self.config, self.turns = replace(self.config, accumulate=2 * micro_batches), None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def turn(self) -> None:
        """Make the steps and note the time."""
        others = self._allocated() - self.held
        try:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            self.seconds.append(self._go())
            if self.device.type == "cuda":
                self.gib = max(self.gib or 0.0, (torch.cuda.max_memory_allocated(self.device) - others) / 2**30)
            return
        except torch.OutOfMemoryError:  # beside the others
            pass
        self.more_micro_batches()
        self.start()
        self.turn()

    def _turns(self):
        torch.manual_seed(self.config.seed)
        data = TensorDataset(*batch(self.preset, max(256, self.config.batch_size), "cpu"))
        return train_in_turns(self.variant.build(self.preset), data, self.config, self.preset.schedule())

    def _go(self) -> float:
        with tf32(False) if self.variant.plain else contextlib.nullcontext():
            self._wait()
            start = time.perf_counter()
            next(self.turns)
            self._wait()
            return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0


def measure(preset: Preset, names: list[str], config: TrainConfig, rounds: int, device: torch.device,
            progress: bool = False) -> dict:
    """Let the variants take turns: {"variants": {name: …}, "ratios": {name: PDAE's images a second over this
    one's}}."""
    images = config.log_every * config.batch_size
    bar = progress_bar(total=(1 + rounds) * len(names), desc="turns", show=progress)
    runs = {}
    for name in names:
        runs[name] = Run(preset, name, config, device)
        bar.update()
    for i in range(rounds):
        for name in names if i % 2 else reversed(names):
            runs[name].turn()
            bar.update()
    bar.close()
    top, found = peak(device), {}
    for name, run in runs.items():
        gflop = {k: v / 1e9 for k, v in parts(preset, name).items()}
        step, rates = run.variant.cost(**gflop), [images / s for s in run.seconds]
        rate = statistics.median(rates)
        found[name] = {"about": run.variant.about, "images_per_second": rate, "rates": rates, "gflop_forward": gflop,
                       "gflop_per_image": step, "tflop_per_second": rate * step / 1e3,
                       "share_of_bf16_peak": rate * step / 1e3 / top if top else None, "peak_gib": run.gib,
                       "micro_batch": run.config.batch_size // run.config.accumulate}
    ratios = {}
    for name in names[1:] if names[0] == "pdae" else []:
        each = [b / a for a, b in zip(runs["pdae"].seconds, runs[name].seconds)]
        ratios[name] = {"measured": statistics.median(each), "low": min(each), "high": max(each),
                        "predicted": found[name]["gflop_per_image"] / found["pdae"]["gflop_per_image"]}
    return {"variants": found, "ratios": ratios}


def provenance(device: torch.device) -> dict:
    """What a number must be read with."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True,
                         text=True)
    return {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} "
                                                                                       f"({platform.machine()})",
            "threads": torch.get_num_threads(), "torch": torch.__version__,
            "cuda": torch.version.cuda if device.type == "cuda" else None,
            "python": platform.python_version(), "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "git": git.stdout.strip() or None}


# ---- command line ----------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """The result as text."""
    facts, settings = result["provenance"], result["settings"]
    images = settings["train"]["batch_size"]
    lines = [f"{settings['preset']}, batches of {images}, {settings['rounds']} rounds of {settings['steps']} steps, on "
             f"{facts['device']}, "
             f"{facts['threads']} thread(s), torch {facts['torch']}", ""]
    lines.append(f"{'':46}{'images/s, median (range)':>28}{'GFLOP/image':>13}{'TFLOP/s':>9}{'of peak':>9}{'GiB':>7}")
    for v in result["variants"].values():
        rates = f"{v['images_per_second']:.4g} ({min(v['rates']):.4g} … {max(v['rates']):.4g})"
        share = f"{v['share_of_bf16_peak']:.1%}" if v["share_of_bf16_peak"] is not None else "–"
        memory = f"{v['peak_gib']:.1f}" if v["peak_gib"] is not None else "–"
        split = "" if v["micro_batch"] == images else f"  in micro-batches of {v['micro_batch']}"
        lines.append(
            f"{v['about']:46}{rates:>28}{v['gflop_per_image']:13.4g}{v['tflop_per_second']:9.3g}{share:>9}{memory:>7}{split}")
    if result["ratios"]:
        lines += ["", f"{'PDAE is faster than':46}{'measured (range)':>28}{'arithmetic predicts':>22}"]
    for name, r in result["ratios"].items():
        measured = f"{r['measured']:.2f}× ({r['low']:.2f} … {r['high']:.2f})"
        lines.append(f"{result['variants'][name]['about']:46}{measured:>28}{r['predicted']:21.2f}×")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark; returns what it prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits", metavar="NAME",
                        help=f"one of {', '.join(PRESETS)} (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a step (default: the preset's)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps in a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N",
                        help="turns of each, besides the first, which doesn't count "
                                                                         "(default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                        help="default here: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME",
                        help=f"some of {', '.join(VARIANTS)} (default: all); pdae comes along")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="change a setting of the preset, such as unet.base_channels=64 or train.compile=false")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write the numbers, and what they must be read with, to FILE")
    args = parser.parse_args(argv)
    for name in ("steps", "rounds"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}; want at least 1")
    if args.preset not in PRESETS:
        raise UsageError(f"--preset {args.preset!r}; want one of {', '.join(PRESETS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but this torch finds no GPU")
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    preset = override(PRESETS[args.preset], args.settings, SETTINGS)
    names = variants(preset)
    unknown = set(args.only or ()) - set(names)
    if unknown:
        raise UsageError(f"--only {' '.join(sorted(unknown))}; preset {args.preset} has {', '.join(names)}")
    names = [n for n in names if args.only is None or n in ("pdae", *args.only)]
    config = replace(preset.train, batch_size=args.batch_size or preset.train.batch_size, log_every=args.steps,
                     save_every=10**9, steps=(args.rounds + 2) * args.steps, warmup=0, decay=0.0, tensorboard=False)
    device = torch.device(args.device, torch.cuda.current_device()) if args.device == "cuda" else torch.device("cpu")
    settings = {"preset": args.preset, "set": args.settings, "steps": args.steps, "rounds": args.rounds,
                "train": asdict(config)}
    result = {"provenance": provenance(device), "settings": settings}
    result |= measure(preset, names, config, args.rounds, device, progress=True)
    print(table(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    try:
        main()
    except (UsageError, ValueError) as e:
        sys.exit(f"error: {e}")
