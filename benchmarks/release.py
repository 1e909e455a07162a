"""The library beside the structure of the authors' release, on the same weights: a training step, and a decode (DDIM, the release's grid).

    python benchmarks/release.py --preset celeba64           # the paper's 64×64 network: some minutes of a CPU core
    python benchmarks/release.py --preset digits --json digits.json

The release has no licence, so none of its code is here: this is written from the paper and from the names in its checkpoints. Its
structure: float32 and NCHW throughout, nothing compiled; t and the tables' values tensors [N] in each step; attention by two products
over strided q, k, v; both heads run in every evaluation; Adam that isn't fused, and an average kept parameter by parameter. A test holds
it to the outputs of the release's own code (tests/data/official_pdae_tiny).

All take turns in one process, one thread, and processor time counts; ratios are taken within a round.
"""
import argparse
import copy
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import provenance

from pdae_lite.networks.unet import UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.presets import PRESETS
from pdae_lite.training import train_in_turns


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


class Block(nn.Module):
    """A residual block, told t and, in the second head, z (eq. 9)."""

    def __init__(self, channels: int, out: int, width: int, told_z: bool, dropout: float, resample: str | None = None):
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * out))
        if told_z:
            self.emb_z_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * out))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, emb: Tensor, emb_z: Tensor | None) -> Tensor:
        h = self.in_layers[:2](x)
        if self.resample == "up":
            h, x = (F.interpolate(v, scale_factor=2, mode="nearest") for v in (h, x))
        elif self.resample == "down":
            h, x = (F.avg_pool2d(v, 2) for v in (h, x))
        h = self.out_layers[0](self.in_layers[2](h))
        for layers, told in ((self.emb_layers, emb), (getattr(self, "emb_z_layers", None), emb_z)):
            if layers is not None:
                scale, shift = layers(told)[:, :, None, None].chunk(2, 1)
                h = h * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](h)


class Attention(nn.Module):
    """Softmax of q kᵀ, times v. `contiguous`: q, k and v are copied so that torch's fused kernel takes them."""

    contiguous = False

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, norm(channels)
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, *spatial = x.shape
        flat = x.reshape(n, c, -1)
        q, k, v = self.qkv(self.norm(flat)).reshape(n * self.heads, 3 * c // self.heads, -1).chunk(3, 1)  # each [N·heads, d, L]
        if self.contiguous:
            a = F.scaled_dot_product_attention(*(y.transpose(1, 2).contiguous()[:, None] for y in (q, k, v)))[:, 0].transpose(1, 2)
        else:
            scale = (c // self.heads) ** -0.25
            a = torch.einsum("nts,ncs->nct", torch.einsum("nct,ncs->nts", q * scale, k * scale).softmax(-1), v)
        return (flat + self.proj_out(a.reshape(n, c, -1))).reshape(n, c, *spatial)


class Several(nn.Sequential):
    def forward(self, x: Tensor, emb: Tensor, emb_z: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x, emb, emb_z) if isinstance(layer, Block) else layer(x)
        return x


class Decoder(nn.Module):
    """The frozen DPM and the second head as one network: (x_t, t, z) -> (ε_θ, G). Names as in the release's checkpoints."""

    def __init__(self, c: UNetConfig, z_dim: int):
        super().__init__()
        base, width, mults = c.base_channels, 4 * c.base_channels, [int(m) for m in c.channel_mult]
        levels = len(mults)
        self.base, self.patch = base, c.patch_size  # the release's patch is 1

        def block(a, b, z=False, resample=None):
            return Block(a, b, width, z, c.dropout, resample)

        self.time_embed = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))
        self.label_emb = nn.Linear(z_dim, width)
        channels = base * mults[0]
        blocks, skips = [Several(nn.Conv2d(c.in_channels * c.patch_size**2, channels, 3, padding=1))], [channels]
        for level, mult in enumerate(mults):
            for _ in range(c.num_res_blocks):
                attention = [Attention(base * mult, c.num_heads)] * (2**level in c.attention_downsampling)
                blocks.append(Several(block(channels, base * mult), *attention))
                channels = base * mult
                skips.append(channels)
            if level < levels - 1:
                blocks.append(Several(block(channels, channels, resample="down")))
                skips.append(channels)
        self.input_blocks = nn.ModuleList(blocks)
        for name, z in (("", False), ("shift_", True)):
            width_now, left, outs = channels, list(skips), []
            middle = Several(block(channels, channels, z), Attention(channels, c.num_heads), block(channels, channels, z))
            for level in reversed(range(levels)):
                for i in range(c.num_res_blocks + 1):
                    to = base * mults[level]
                    layers = [block(width_now + left.pop(), to, z)]
                    layers += [Attention(to, c.num_heads)] * (2**level in c.attention_downsampling)
                    width_now = to
                    if level and i == c.num_res_blocks:
                        layers.append(block(to, to, z, "up"))
                    outs.append(Several(*layers))
            to = c.in_channels if c.patch_size == 1 else 16 * c.patch_size**2
            out = [norm(width_now), nn.SiLU(), nn.Conv2d(width_now, to, 3, padding=1)]
            if c.patch_size > 1:
                out += [nn.PixelShuffle(c.patch_size), nn.SiLU(), nn.Conv2d(16, c.in_channels, 3, padding=1, bias=False)]
            self.add_module(f"{name}middle_block", middle)
            self.add_module(f"{name}output_blocks", nn.ModuleList(outs))
            self.add_module(f"{name}out", nn.Sequential(*out))

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        frequencies = torch.exp(-math.log(10000) * torch.arange(self.base // 2, dtype=torch.float32) / (self.base // 2))
        angles = t[:, None].float() * frequencies
        emb, emb_z = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1)), self.label_emb(z)
        h, skips = F.pixel_unshuffle(x_t, self.patch), []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        outputs = []
        for name, code in (("", None), ("shift_", emb_z)):
            y = getattr(self, f"{name}middle_block")(h, emb, code)
            for block, skip in zip(getattr(self, f"{name}output_blocks"), skips[::-1]):
                y = block(torch.cat([y, skip], 1), emb, code)
            outputs.append(getattr(self, f"{name}out")(y))
        return outputs[0], outputs[1]


class Release:
    """Encoder, decoder and tables, as the release puts them together. Made of a PDAE in the paper's form, whose weights it takes."""

    def __init__(self, pdae: PDAE, contiguous: bool = False):
        self.encoder = copy.deepcopy(pdae.encoder)
        for i, layer in enumerate(self.encoder.encoder):
            if hasattr(layer, "qkv"):
                plain = Attention(layer.qkv.in_channels, layer.num_heads)
                plain.load_state_dict(layer.state_dict())
                self.encoder.encoder[i] = plain
        self.decoder = Decoder(pdae.dpm.config, pdae.z_dim)
        self.decoder.load_state_dict(pdae.dpm.state_dict() | pdae.estimator.state_dict())
        self.encoder.eval(), self.decoder.eval()
        for name, p in self.decoder.named_parameters():
            p.requires_grad_(name.startswith(("shift_", "label_emb")))
        for m in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(m, Attention):
                m.contiguous = contiguous
        schedule = pdae.schedule
        self.alpha_bar, self.k, self.weight = schedule.alpha_bar.clone(), schedule.shift_coefficient.clone(), schedule.loss_weight("pdae")

    def loss(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Section 3.2's, on t [N]."""
        a, k, weight = (table[t][:, None, None, None] for table in (self.alpha_bar, self.k, self.weight))
        eps, gradient = self.decoder(a.sqrt() * x_0 + (1 - a).sqrt() * noise, t, self.encoder(x_0))
        return (weight * (noise - eps + k * gradient).square()).mean()

    @torch.no_grad()
    def decode(self, z: Tensor, x_T: Tensor, steps: int) -> Tensor:
        """DDIM down the release's grid, x̂_0 clamped in every step."""
        x, grid = x_T, torch.linspace(0, len(self.alpha_bar) - 1, steps + 1).long().tolist()
        for now, then in zip(grid[:0:-1], grid[-2::-1]):
            t = torch.full((len(x),), now)
            a, a_then = (self.alpha_bar[i][:, None, None, None] for i in (t, torch.full_like(t, then)))
            eps, gradient = self.decoder(x, t, z)
            eps = eps - (1 - a).sqrt() * gradient
            x_0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
            eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
            x = a_then.sqrt() * x_0 + (1 - a_then).sqrt() * eps
        return x

    def steps(self, images: Tensor) -> Iterator[float]:
        """Training steps, as the release makes them."""
        self.encoder.train(), self.decoder.train()
        parameters = [p for p in (*self.encoder.parameters(), *self.decoder.parameters()) if p.requires_grad]
        average, optimizer = [p.detach().clone() for p in parameters], torch.optim.Adam(parameters, lr=1e-4)
        while True:
            optimizer.zero_grad()
            loss = self.loss(images, torch.randint(len(self.alpha_bar), (len(images),)), torch.randn_like(images))
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for mean, p in zip(average, parameters):
                    mean.mul_(0.9999).add_(p, alpha=1e-4)
            yield loss.item()


# ---- side by side -----------------------------------------------------------------------------------------------------


def filled(model: nn.Module) -> nn.Module:
    """Small random numbers in place of zeros, so that every layer works."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if not bool(p.any()):
                p.normal_(0, 0.02)
    return model


def library_steps(pdae: PDAE, preset, images: Tensor, precision: str) -> Iterator[float]:
    """Training steps by the library's own loop."""
    config = replace(preset.train, batch_size=len(images), precision=precision, compile=False, workers=0, steps=10**6, log_every=1,
                     save_every=10**9, augment=None, flip=False, weight="pdae")
    for result in train_in_turns(pdae, TensorDataset(images), config):
        yield result.history[-1]["loss"]


def variants(preset, n: int) -> tuple[dict[str, Callable], dict[str, Iterator]]:
    """(decodes, training steps) by name: a call of `decodes[name](steps)` decodes n codes, `next(training[name])` makes a step."""
    paper = filled(preset.pdae(preset.dpm())).eval()
    difference = filled(PDAE(paper.dpm, copy.deepcopy(paper.encoder), paper.schedule, form="difference")).eval()
    releases = {"release's structure": Release(paper), "the same, contiguous q, k, v": Release(paper, True)}
    images = paper.noise(n).clamp(-1, 1)
    z, x_T = paper.encode(images), paper.noise(n)
    t = torch.full((n,), 500)
    with torch.no_grad():  # they are the same function
        for mine, its in zip(paper(x_T, t, z), releases["release's structure"].decoder(x_T, t, z)):
            torch.testing.assert_close(mine, its, rtol=1e-2, atol=1e-3 * float(its.abs().max()))
    decodes = {name: lambda steps, r=r: r.decode(z, x_T, steps) for name, r in releases.items()}
    training = {name: r.steps(images) for name, r in releases.items()}
    for form, model in (("paper's form", paper), ("difference form", difference)):
        for name, dtype, precision in ((f"library, {form}", None, "no"), (f"library, {form}, bf16", torch.bfloat16, "bf16")):
            decodes[name] = lambda steps, m=model, d=dtype: m.decode(z, x_T, steps, grid="paper", dtype=d)
            training[name] = library_steps(copy.deepcopy(model), preset, images, precision)
    return decodes, training


def in_turns(work: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each, round by round; the first doesn't count."""
    seconds = {name: [] for name in work}
    for i in range(rounds + 1):
        for name in work if i % 2 else reversed(work):
            start = time.process_time()
            work[name]()
            seconds[name].append(time.process_time() - start)
    return {name: times[1:] for name, times in seconds.items()}


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict]:
    """How many times as fast as the first of them, within rounds: median and range."""
    first = next(iter(seconds))
    out = {}
    for name, times in seconds.items():
        each = [a / b for a, b in zip(seconds[first], times)]
        out[name] = {"seconds": statistics.median(times), "times_as_fast": statistics.median(each), "low": min(each), "high": max(each)}
    return out


def main(argv: list[str] | None = None) -> dict:
    """Run it; returns what it writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="celeba64", choices=("celeba64", "digits"), help="whose network (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="of a decode (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each that count (default: %(default)s)")
    parser.add_argument("--only", choices=("decode", "step"), help="default: both")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)  # processor time of several threads would be their sum
    preset = replace(PRESETS[args.preset], form="paper", precondition=None, prediction="epsilon")  # all that the release knows
    decodes, training = variants(preset, args.batch_size)
    result = {"command": f"python benchmarks/release.py --preset {args.preset} --batch-size {args.batch_size} --steps {args.steps} "
                         f"--rounds {args.rounds}", "provenance": provenance(torch.device("cpu"))}
    for name, work in (("decode", {k: lambda f=f: f(args.steps) for k, f in decodes.items()}),
                       ("step", {k: lambda s=s: next(s) for k, s in training.items()})):
        if args.only in (None, name):
            result[name] = ratios(in_turns(work, args.rounds))
            for k, v in result[name].items():
                print(f"{name:8s}{k:34s}{v['seconds']:8.2f} s  {v['times_as_fast']:.2f}× ({v['low']:.2f} … {v['high']:.2f})", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
