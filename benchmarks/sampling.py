"""Quality of sampling and of inversion against what they cost, for a PDAE that ships: the paper's protocol and ours in
one run.

    python benchmarks/sampling.py --data digits
    python benchmarks/sampling.py --data peeps --device cuda --dtype bf16 --compile --json peeps_gpu.json

Cost is counted in evaluations of the network, in GFLOP (with the estimator an evaluation costs more than without) and
in seconds. The README says what each number means. Each row goes to the JSON file as soon as it is measured; a run that
was stopped goes on with
`--more`, and `--only` measures some sections anew.
"""
import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from sampling_report import table
from torch import Tensor
from training import flops, provenance

import pdae_lite
from pdae_lite import data, losses, metrics, sampling
from pdae_lite.belm import belm, belm_invert
from pdae_lite.checkpoint import tensors_digest, write_text
from pdae_lite.commands.settings import UsageError
from pdae_lite.evaluation.checks import noise_statistics, pick
from pdae_lite.guidance import mixed
from pdae_lite.metrics.features import Features, extract
from pdae_lite.progress import progress_bar
from pdae_lite.reproduction.partial import record_before
from pdae_lite.speed import accelerate


@dataclass(frozen=True)
class Counts:
    """`images`: held-out ones, rebuilt from random and from inferred x_T. `kid`: drawn for each distance of
    distributions.
    `small_t`: images of each noise error at small t. `fewer`: divides all numbers of steps, for a quick look."""

    images: int = 8
    kid: int = 100
    small_t: int = 50
    batch: int = 16
    rounds: int = 9
    fewer: int = 1


QUICK = Counts(images=3, kid=4, small_t=4, rounds=3, fewer=20)


@dataclass(frozen=True)
class Scheme:
    """A sampler and its settings; `paper`: of the paper's protocol; `correct`: see `sampling.dpm_solver`."""

    sampler: str
    steps: int
    grid: str = "uniform"
    paper: bool = False
    correct: bool = False

    def __str__(self) -> str:
        names = {"ddim": "DDIM", "dpm_solver": "DPM-Solver++"}
        return f"{names[self.sampler]} {self.steps}, {self.grid} grid{', corrected' if self.correct else ''}"


PAPER = [Scheme("ddim", n, "paper", True) for n in (10, 20, 50, 100)]
OURS = [Scheme("ddim", n) for n in (10, 15, 100)] + [Scheme("dpm_solver", n) for n in (10, 15, 20)] + [
    Scheme("dpm_solver", n, grid, correct=correct)
    for grid, correct in (("quadratic", False), ("cubic", False), ("cubic", True))
    for n in (6, 8, 10, 12, 15, 20)]
FAST = Scheme("dpm_solver", 10, "quadratic")  # for what compares denoisers, not samplers
DRAWN = [PAPER[-1], PAPER[0], FAST, Scheme("dpm_solver", 15, "cubic")]  # the first is what the others are compared with


class Bench:
    """A model, its data, and a meter on each of its parts: the images that go through, and the seconds."""

    def __init__(self, name: str, path: Path | None, counts: Counts, device: torch.device, dtype: torch.dtype | None,
                 compile: bool):
        self.name, self.counts, self.device = name, counts, device
        self.model = (pdae_lite.load(name) if path is None else pdae_lite.PDAE.load(path)).to(device)
        self.net = pdae_lite.load(name, kind="features").to(device)
        size = self.net.config.image_size
        if self.model.dpm.config.image_size != size:
            raise UsageError(f"the model draws {self.model.dpm.config.image_size}×…, the feature network takes "
                             f"{size}×{size}")
        self.schedule = self.model.schedule
        self.test = data.shipped_images(name, "test", size)
        self.latent = None if path is not None else pdae_lite.load(name, kind="latent").to(device)
        self.sha256 = {part: tensors_digest(m.state_dict())
                       for part, m in (("pdae", self.model), ("latent", self.latent), ("features", self.net))
                       if m is not None}
        self.gflop = self._gflop()
        if dtype is not None or compile:
            self.model = accelerate(self.model, dtype, compile)
        self.passed = dict.fromkeys(self.gflop, 0)
        for part, owner, method in (("trunk", self.model.dpm, "trunk"), ("head", self.model.dpm, "head"),
                                    ("shift", self.model, "estimate")):
            setattr(owner, method, self._metered(part, getattr(owner, method)))
        self.x = self.test.floats(slice(counts.images)).to(device)
        self.z = self.model.encode(self.x).detach()
        self.x_T = self.model.noise(len(self.x), torch.Generator().manual_seed(0))

    @torch.no_grad()
    def _gflop(self) -> dict[str, float]:
        """GFLOP of one image through each part."""
        x, t = self.test.floats(slice(1)).to(self.device), torch.zeros(1, dtype=torch.int64, device=self.device)
        trunk, features = flops(lambda: self.model.features(x, t))
        head, shift = (flops(run)[0] for run in (lambda: self.model.eps(features),
                                                 lambda: self.model.estimate(features, self.model.encoder(x))))
        encoder = flops(lambda: self.model.encoder(x))[0]
        return {"trunk": trunk / 1e9, "head": head / 1e9, "shift": (shift - encoder) / 1e9}

    def _metered(self, part: str, function: Callable) -> Callable:
        def run(first, *rest):
            self.passed[part] += len(first if torch.is_tensor(first) else first[0])  # heads get features, x_t first
            return function(first, *rest)
        return run

    def cost(self, run: Callable, n: int) -> tuple[object, dict]:
        """The result of a call, and what it cost for each of n images."""
        self.passed.update(dict.fromkeys(self.passed, 0))
        self._wait()
        start = self._clock()
        result = run()
        self._wait()
        seconds = self._clock() - start
        each = {part: count / n for part, count in self.passed.items()}
        return result, {"evaluations": each["trunk"], "shifted": each["shift"], "seconds": seconds / n,
                        "gflop": sum(each[part] * g for part, g in self.gflop.items())}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _clock(self) -> float:
        # On a CPU, seconds of processor time, which other programs on the machine don't lengthen; with one thread it is
        # wall-clock.
        return (time.process_time() if self.device.type == "cpu"
                and torch.get_num_threads() == 1 else time.perf_counter())

    def steps(self, n: int) -> int:
        return max(3, n // self.counts.fewer)

    def sample(self, scheme: Scheme, denoiser, x_T: Tensor, clip: bool = True) -> Tensor:
        options = {"clip": clip, "grid": scheme.grid} | ({"correct": True} if scheme.correct else {})
        return getattr(sampling, scheme.sampler)(denoiser, x_T, self.schedule, self.steps(scheme.steps), **options)

    def by_batch(self, function: Callable, *tensors: Tensor) -> Tensor:
        return torch.cat([function(*parts) for parts in zip(*(x.split(self.counts.batch) for x in tensors))])

    def features(self, images: Tensor, layer: str):
        return extract(self.net, images, layer)


def likeness(b: Bench, images: Tensor, originals: Tensor, name: str = "") -> dict:
    """How far images are from others, pair by pair. Clamped, since the paper's grid ends short of the clean image."""
    images = images.clamp(-1, 1)
    return {f"mse{name}": metrics.mean(metrics.mse(images, originals)).to_dict(),
            f"ssim{name}": metrics.mean(metrics.ssim(images, originals)).to_dict(),
            f"features{name}": metrics.mean(
                metrics.feature_distance(b.features(images, "shape"), b.features(originals, "shape"))).to_dict()}


def change(values: Tensor, before: Tensor) -> dict:
    """The mean of paired differences [N]."""
    return metrics.mean(values - before).to_dict()


def kid_change(images: Features, base: Features, real: Features) -> dict:
    """The KID of some images minus that of others that were made from the same codes and noise, one by one, for these
    real images."""
    return metrics.kid_difference(images, base, real, real_varies=False).to_dict()


def _noise(x_T: Tensor) -> dict:
    """`noise_statistics`, and the mean over pixels of the variance over images: 1 for noise, less where images share
    something."""
    return noise_statistics(x_T) | {"pixel_variance": float(x_T.double().var(0).mean())}


def edits(b: Bench, edited: Tensor) -> dict:
    """Of images, each from the x_T of one original and the z of the one before it: how far they are from the latter,
    and the share of them that are nearer to it than to the former."""
    e, own, other = (b.features(v.clamp(-1, 1), "class") for v in (edited, b.x, b.x.roll(1, 0)))
    far = metrics.feature_distance(e, other)
    return {"edit_to_z": metrics.mean(far).to_dict(),
            "follows_z": metrics.proportion(far < metrics.feature_distance(e, own)).to_dict()}


# ---- the sections: they yield rows, and return what else there is. `each` leaves out what was measured before. -------


def random_x_T(b: Bench, each: Callable) -> Iterator[dict]:
    """From one and the same noise: the distance to the solution with 1000 steps."""
    made, solution = b.model.denoiser(b.z), Scheme("ddim", 1000)
    reference, cost = b.cost(lambda: b.sample(solution, made, b.x_T), len(b.x))
    for scheme in each([solution, *PAPER, *OURS]):
        if scheme == solution:
            yield {"name": str(scheme)} | asdict(scheme) | cost | likeness(b, reference, b.x, "_to_x_0")
            continue
        images, cost = b.cost(lambda s=scheme: b.sample(s, made, b.x_T), len(b.x))
        yield {"name": str(scheme)} | asdict(scheme) | cost | likeness(b, images, reference) | likeness(b, images, b.x,
                                                                                                        "_to_x_0")


def inferred_x_T(b: Bench, each: Callable) -> Iterator[dict]:
    """There and back: the error, how Gaussian x_T is, and whether an image decoded with another one's z follows that
    z."""
    s, own, other = b.schedule, b.model.denoiser(b.z), b.model.denoiser(b.z.roll(1, 0))

    def plain(up, down, invert={}, **decode):
        up, down = b.steps(up), b.steps(down)
        return (lambda d: sampling.invert(d, b.x, s, up, **invert)), (lambda d, x_T: sampling.ddim(d, x_T, s, down,
                                                                                                   **decode))

    def fixed(n, iterations, grid):
        return plain(n, n, {"fixed_point": iterations, "grid": grid}, grid=grid, clip=False)

    def second(n, grid, clip=False):
        n = b.steps(n)
        return ((lambda d: sampling.invert(d, b.x, s, n, order=2, grid=grid)),
                (lambda d, x_T: sampling.dpm_solver(d, x_T, s, n, grid=grid, clip=clip)))

    def exact(n, grid):
        n = b.steps(n)
        return (lambda d: belm_invert(d, b.x, s, n, grid=grid)), (lambda d, x_T: belm(d, x_T, s, n, grid=grid))

    released = {"grid": "paper", "clip": True}
    ways = {"paper: invert 1000, decode 100": (*plain(1000, 100, released, **released), own),
            "DDIM 100 + 100": (*plain(100, 100, clip=False), own), "DDIM 30 + 30": (*plain(30, 30, clip=False), own),
            "fixed point, 15 times 3 + 15, uniform grid": (*fixed(15, 2, "uniform"), own),
            "fixed point, 15 times 3 + 15, quadratic grid": (*fixed(15, 2, "quadratic"), own),
            "fixed point, 10 times 5 + 10, cubic grid": (*fixed(10, 4, "cubic"), own),
            "second order 30 + 30, uniform grid": (*second(30, "uniform"), own),
            "second order 30 + 30, quadratic grid": (*second(30, "quadratic"), own),
            "the same, clamped on the way down": (*second(30, "quadratic", clip=True), own),
            "BELM 30 + 30, uniform grid": (*exact(30, "uniform"), own),
            "BELM 30 + 30, quadratic grid": (*exact(30, "quadratic"), own),
            "BELM 30 + 30, quadratic grid, without z": (*exact(30, "quadratic"), b.model.dpm)}
    for name in each(ways):
        invert, decode, denoiser = ways[name]
        x_T, up = b.cost(lambda: invert(denoiser), len(b.x))
        images, down = b.cost(lambda: decode(denoiser, x_T), len(b.x))
        cost = {key: up[key] + down[key] for key in up}
        noise = _noise(x_T if torch.is_tensor(x_T) else x_T[0])
        row = {"name": name, "paper": name.startswith("paper")} | cost | likeness(b, images, b.x) | {"noise": noise}
        yield row | (edits(b, decode(other, x_T)) if denoiser is own else {})
    chance = [_noise(torch.randn(b.x.shape, generator=torch.Generator().manual_seed(seed))) for seed in range(20)]
    ranges = {k: [min(c[k] for c in chance), max(c[k] for c in chance)] for k in chance[0]}
    # what an edit can be that owes x_T nothing
    return {"gaussian_noise": ranges, "random_x_T": edits(b, b.sample(FAST, other, b.x_T))}


def shift_forms(b: Bench, each: Callable) -> Iterator[dict]:
    """√(1−ᾱ_t) against k_t: the error of ε̂ at small t, and images, each with the change from the former to the
    latter."""
    ts = [t for t in (0, 1, 2, 4, 7, 12, 20, 40, 100) if t < b.schedule.T]
    x = b.test.floats(slice(b.counts.small_t)).to(b.device)
    out = {"t": ts, "error_dpm": losses.noise_error(lambda v: b.model.dpm, x, b.schedule, ts).tolist()}
    before = {}
    for form in ("ddim", "ddpm"):
        errors = losses.noise_error(lambda v, f=form: b.model.denoiser(b.model.encode(v), shift=f), x, b.schedule, ts)
        out[f"error_{form}"] = errors.tolist()
        made = b.model.denoiser(b.z, shift=form)
        x_T = sampling.invert(made, b.x, b.schedule, b.steps(15), grid="quadratic", fixed_point=2)
        pair = belm_invert(made, b.x, b.schedule, b.steps(30), grid="quadratic")
        images = {str(scheme): (b.sample(scheme, made, b.x_T), {}) for scheme in (PAPER[2], FAST)}
        images["inferred x_T, fixed point, 15 times 3 + 15, quadratic grid"] = (
            sampling.ddim(made, x_T, b.schedule, b.steps(15), grid="quadratic", clip=False), {"noise": _noise(x_T)})
        images["inferred x_T, BELM 30, quadratic grid"] = (None, {"noise": _noise(pair[0])})
        for name, (image, more) in images.items():
            row = {"form": form, "name": name} | more
            if image is not None:
                error = metrics.mse(image.clamp(-1, 1), b.x)
                row |= likeness(b, image, b.x) | ({"mse_change": change(error, before[name])} if name in before else {})
                before.setdefault(name, error)
            yield row
    return out


INTERVALS: dict[str, Callable[[Tensor], Tensor]] = {
    "always": lambda u: 1.0 + 0 * u, "off below 0.1": lambda u: 1.0 * (u >= 0.1),
    "off below 0.3 (paper)": lambda u: 1.0 * (u >= 0.3),
    "off below 0.5": lambda u: 1.0 * (u >= 0.5), "off above 0.7": lambda u: 1.0 * (u < 0.7),
    "off above 0.9": lambda u: 1.0 * (u < 0.9),
    "0.3 to 0.7 only": lambda u: 1.0 * ((u >= 0.3) & (u < 0.7)), "ramp 2u": lambda u: 2 * u,
    "ramp 2(1 − u)": lambda u: 2 * (1 - u)}


def intervals(b: Bench, each: Callable) -> Iterator[dict]:
    """The scale of the shift as a function of u = t/T: what rebuilt images, edits and new images need. New ones are
    drawn from codes of the latent DPM; another model than one that ships has none, and codes of held-out images stand
    in."""
    z, x_T, x = _drawn_from(b)
    new = z if b.latent is None else b.latent.sample(len(z), generator=torch.Generator().manual_seed(3)).to(b.device)
    edit_T = sampling.invert(b.model.denoiser(b.z), b.x, b.schedule, b.steps(30), grid="quadratic", order=2)
    originals, real = b.features(x, "class"), metrics.reference(b.name)

    def make(name, codes, noise):
        scale = INTERVALS[name]
        return b.by_batch(lambda c, v: b.sample(FAST, b.model.denoiser(c, lambda t: scale(t / b.schedule.T)), v), codes,
                          noise)

    base = None
    for name in each(INTERVALS):
        if base is None and name != "always":  # whose row was measured before, but its images are needed
            base = [b.features(make("always", codes, x_T).clamp(-1, 1), "class") for codes in (z, new)]
        images, cost = b.cost(lambda n=name: make(n, z, x_T), len(x))
        drawn_new = b.features(make(name, new, x_T).clamp(-1, 1), "class")
        features = b.features(images.clamp(-1, 1), "class")
        base = [features, drawn_new] if base is None else base
        yield {"name": name} | cost | likeness(b, images, x) | {
            "nearest_is_own": metrics.nearest_is_own(features, originals).to_dict(),
            "kid": metrics.kid(features, real).to_dict(), "kid_change": kid_change(features, base[0], real),
            "kid_new": metrics.kid(drawn_new, real).to_dict(), "kid_new_change": kid_change(drawn_new, base[1], real),
        } | edits(b, make(name, b.z.roll(1, 0), edit_T))
    return {"sampler": str(FAST), "space": real.space,
            "new_from": "codes of held-out images" if b.latent is None else "the latent DPM"}


def drawn(b: Bench, each: Callable) -> Iterator[dict]:
    """The distance to the distribution of the data, of images from true codes and random x_T."""
    z, x_T, _ = _drawn_from(b)
    real, base = metrics.reference(b.name), None
    for scheme in each(DRAWN):
        images, cost = b.cost(lambda s=scheme: b.by_batch(lambda c, v: b.sample(s, b.model.denoiser(c), v), z, x_T),
                              len(z))
        features = b.features(images.clamp(-1, 1), "class")
        base = features if base is None else base
        yield {"name": str(scheme)} | asdict(scheme) | cost | {"kid": metrics.kid(features, real).to_dict(),
                                                               "kid_change": kid_change(features, base, real)}
    return {"space": real.space}


def _drawn_from(b: Bench) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of held-out images, as an ideal latent DPM would draw them; random x_T; the images."""
    x = pick(b.test, min(b.counts.kid, len(b.test)), seed=1).to(b.device)
    return b.model.encode(x).detach(), b.model.noise(len(x), torch.Generator().manual_seed(2)), x


def mixing(b: Bench, each: Callable) -> Iterator[dict]:
    """Mixing two gradients with trunk and ε_θ shared, against two whole evaluations: measured, and what arithmetic
    allows."""
    n = min(b.counts.batch, len(b.x))
    x, z_a, t = b.x_T[:n], b.z[:n], torch.full((n,), b.schedule.T // 2, device=b.device)
    z_b = z_a.roll(1, 0)
    shared, alone = mixed(b.model, z_a, z_b, 0.3, "gradient"), [b.model.denoiser(z) for z in (z_a, z_b)]

    def twice(x, t):
        return torch.lerp(alone[0](x, t), alone[1](x, t), 0.3)

    with torch.no_grad():
        torch.testing.assert_close(shared(x, t), twice(x, t), rtol=1e-2, atol=1e-2)
        pairs = []
        for _ in each(range(b.counts.rounds)):  # in turns, so that whatever else the machine does hits both
            pairs.append([b.cost(lambda r=run: r(x, t), n)[1] for run in (twice, shared)])
    ratios = [two["seconds"] / one["seconds"] for two, one in pairs]
    allowed = pairs[0][0]["gflop"] / pairs[0][1]["gflop"]
    yield from ()
    return {"speed_up": statistics.median(ratios), "range": [min(ratios), max(ratios)], "allowed": allowed,
            "share": statistics.median(ratios) / allowed, "images": n}


SECTIONS = {"random_x_T": random_x_T, "inferred_x_T": inferred_x_T, "shift": shift_forms, "intervals": intervals,
            "drawn": drawn, "mixing": mixing}
WHOLE = {"shift", "drawn"}  # whose rows are compared with one another, so that none can be left out


def measure(b: Bench, name: str, old: list[dict], save: Callable[[dict], None]) -> dict:
    """One section. Rows of `old` are kept, those of another name measured; what there is is saved after each row."""
    rows, order = {} if name in WHOLE else {r["name"]: r for r in old}, []

    def each(items):
        order.extend(map(str, items))
        return progress_bar([i for i in items if str(i) not in rows], desc=name, show=sys.stderr.isatty())

    section = SECTIONS[name](b, each)
    while True:
        try:
            row = next(section)
        except StopIteration as end:
            rest = end.value or {}
            break
        rows[row.get("form", "") + row["name"]] = row
        save({"rows": list(rows.values())})
    found = [rows[i] for i in order if i in rows] or list(rows.values())
    return ({"rows": found} if found else {}) | rest


# ---- command line ----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> dict:
    """Run the benchmark; returns what it prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "peeps"), default="digits")
    parser.add_argument("--model", type=Path, metavar="FILE", help="another PDAE than the one that ships")
    parser.add_argument("--images", type=int, metavar="N", help="held-out images that are rebuilt (default: "
                                                                f"{Counts.images})")
    parser.add_argument("--kid", type=int, metavar="N", help=f"images drawn for each KID (default: {Counts.kid})")
    parser.add_argument("--quick", action="store_true", help="a few images and steps, to see that it runs; the numbers "
                                                             "mean nothing")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--more", action="store_true", help="keep the rows that the file has, and measure what it "
                                                            "lacks")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32", help="precision of the networks")
    parser.add_argument("--compile", action="store_true", help="compile them; on CUDA, record CUDA graphs")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="default: the package's assets/sampling_DATA.json; with --quick: none")
    args = parser.parse_args(argv)
    counts = QUICK if args.quick else Counts()
    for name in ("images", "kid"):
        value = getattr(args, name)
        if value is not None:
            if value < 3:
                raise UsageError(f"--{name} {value}; want 3 or more")
            counts = replace(counts, **{name: value})
    path = (args.json or (None if args.quick else Path(pdae_lite.__file__).parent / "assets"
                          / f"sampling_{args.data}.json"))
    dtype = torch.bfloat16 if args.dtype == "bf16" else None
    b = Bench(args.data, args.model, counts, torch.device(args.device), dtype, args.compile)
    given = shlex.join(sys.argv[1:] if argv is None else argv)
    result = {"data": args.data, "command": f"python benchmarks/sampling.py {given}".strip(), "counts": asdict(counts),
              "dtype": args.dtype, "compile": args.compile,
              "seeds": {"x_T": 0, "images of KID": 1, "x_T of KID": 2, "new codes": 3},
              "provenance": provenance(b.device), "sha256_of_weights": b.sha256, "gflop": b.gflop}
    if args.only or args.more:
        same = ("data", "counts", "gflop", "dtype", "compile", "sha256_of_weights")
        result |= record_before(path, {k: result[k] for k in same}) or {}
    for name in args.only or SECTIONS:
        old = result.pop(name, {}) if args.more else {}
        if "date" in old and not args.only:
            result[name] = old
            continue

        def save(section, name=name):
            result[name] = section
            if path is not None:
                write_text(path, json.dumps(result, indent=1) + "\n")

        torch.manual_seed(0)
        section = measure(b, name, old.get("rows", []), save)
        save(section | {"command": f"python benchmarks/sampling.py {given}".strip(),
                        "date": datetime.now(timezone.utc).isoformat(timespec="seconds")})
    print(table(result))
    return result


if __name__ == "__main__":
    try:
        main()
    except ValueError as e:
        sys.exit(f"error: {e}")
