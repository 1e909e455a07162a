"""What the package computes, as numbers: `compute` gives them, and the stored record says what they were before the
package's files were moved into sub-packages. Only names that a user is given are used, so it runs on both sides of the
move.

To make the record anew, which throws the old comparison away, delete it and run this on a checkout of the earlier code:

    PYTHONPATH=CHECKOUT OMP_NUM_THREADS=1 python tests/safety/record.py

The small networks are random and without a zero. Nearly all runs in float64 and is kept as float32, so that another
order of summation, on another CPU or after an innocent change, stays below the tolerance. What runs in float32 has that
in its key.
"""
import contextlib
import importlib
import json
import pkgutil
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

import pdae_lite

BEFORE = Path(__file__).parent.parent / "data" / "before"
RECORD, MODEL, RUN = BEFORE / "record.npz", BEFORE / "model.safetensors", BEFORE / "run"

SCHEDULE = pdae_lite.NoiseSchedule.linear(50, 1e-3, 0.3)
T = torch.tensor([3, 40])
WEIGHTS = ("pdae", "simple", "vlb", "p2", "min_snr", "v")
TABLES = ("beta", "alpha", "alpha_bar", "alpha_bar_prev", "snr", "sqrt_alpha_bar", "sqrt_one_minus_alpha_bar",
          "posterior_x_0", "posterior_x_t", "posterior_variance", "model_mean_eps", "gap_coefficient",
          "shift_coefficient")


# ---- inputs ---------------------------------------------------------------------------------------------------------


def normal(name, *shape):
    """Gaussian numbers that belong to a name. NumPy's old generator never changes, and multiples of 1/1024 are the same
    on every machine: checksums of weights must be."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.round(np.asarray(values) * 1024) / 1024).float()


def filled(model, fill="", dtype=torch.float64):
    """The model with 0.2·randn in each parameter, by its name; the scales of normalisations are around 1."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            values = (0.2 * normal(fill + name, *p.shape) * 1024).round() / 1024
            p.copy_(1 + values if p.ndim == 1 and name.endswith("weight") else values)
    return model.to(dtype).eval()


def images(dtype=torch.float64):
    """Two images in [−1, 1], and noise for them."""
    return normal("images", 2, 1, 16, 16).to(dtype).clamp(-2, 2) / 2, normal("noise", 2, 1, 16, 16).to(dtype)


def data(floats=False):
    """Twenty images to train on, with labels: uint8, or float64."""
    pixels = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (20, 1, 16, 16)).astype(np.uint8))
    return TensorDataset(pixels.double() / 127.5 - 1 if floats else pixels, torch.arange(20) % 10)


def unet(base_channels=8, channel_mult=(1, 2), attention=(2,), **changes):
    return pdae_lite.UNet(pdae_lite.UNetConfig(16, 1, base_channels, channel_mult, 1, attention, **changes))


def encoder(width=8):
    return pdae_lite.SemanticEncoder(pdae_lite.EncoderConfig(16, 1, (width, width), 0, 2, 4))


def pdae(dtype=torch.float64, precondition=None, prediction="epsilon"):
    dpm = pdae_lite.as_epsilon(unet(), prediction, SCHEDULE)
    return filled(pdae_lite.PDAE(dpm, encoder(), SCHEDULE, precondition=precondition, form="paper"), dtype=dtype)


def classifier(dtype=torch.float64):
    config = pdae_lite.ClassifierConfig(pdae_lite.UNetConfig(16, 1, 8, (1, 2), 1, (2,)))
    return filled(pdae_lite.NoisyClassifier(config, SCHEDULE), dtype=dtype)


def latent(dtype=torch.float64, loss="l1"):
    network = {"z_dim": 4, "layers": 3, "width": 16, "time_channels": 8, "loss": loss}
    config = {"network": network, "schedule": pdae_lite.NoiseSchedule.constant(0.08, 50).to_config()}
    return filled(pdae_lite.LatentDPM.from_config(config), dtype=dtype)


def belm_module():
    """The module had another name before the move. Asked is the package itself: an import would also find the file in
    another checkout, if that is installed in editable mode."""
    names = {module.name for module in pkgutil.iter_modules(pdae_lite.__path__)}
    return importlib.import_module("pdae_lite.belm" if "belm" in names else "pdae_lite.bidirectional")


# ---- the parts of the record ----------------------------------------------------------------------------------------


def schedules():
    """Every table and loss weight of three schedules, and the forward process."""
    all_three = (pdae_lite.NoiseSchedule.linear(10, 1e-3, 0.3), pdae_lite.NoiseSchedule.cosine(10),
                 pdae_lite.NoiseSchedule.constant(0.05, 10))
    out = {f"table/{table}": torch.stack([getattr(s, table) for s in all_three]) for table in TABLES}
    out |= {f"loss_weight/{name}": torch.stack([s.loss_weight(name) for s in all_three]) for name in WEIGHTS}
    x, eps = (v[:, :, ::4] for v in images())
    x_t = SCHEDULE.add_noise(x, T, eps)
    return out | {"add_noise": x_t, "predict_x_0": SCHEDULE.predict_x_0(x_t, T, eps),
                  "predict_eps": SCHEDULE.predict_eps(x_t, T, x.flip(0)),
                  "posterior_mean": SCHEDULE.posterior_mean(x, x_t, T), "model_mean": SCHEDULE.model_mean(x_t, T, eps)}


UNETS = {"plain": {}, "labels": {"num_classes": 10}, "codes": {"z_dim": 4}, "patches": {"patch_size": 2},
         "learned_variance": {"learn_variance": True}, "heads": {"head_channels": 4, "new_attention_order": True},
         "old_style": {"resblock_updown": False, "scale_shift_norm": False},
         "pooled": {"resblock_updown": False, "conv_resample": False}}


@torch.no_grad()
def networks():
    """ε of U-Nets of all kinds, z, ε and G of PDAEs, logits, ε of codes."""
    out, y, z = {}, torch.tensor([7, 2]), normal("z", 2, 4).double()
    x, eps = images()
    x_t = SCHEDULE.add_noise(x, T, eps)
    for name, changes in UNETS.items():
        condition = {"labels": [y], "codes": [z]}.get(name, [])
        out[f"unet/{name}/eps"] = filled(unet(**changes))(x_t, T, *condition)
    for prediction in ("v", "x_0"):
        out[f"unet/predicts_{prediction}/eps"] = filled(pdae_lite.as_epsilon(unet(), prediction, SCHEDULE))(x_t, T)
    models = {"pdae": pdae(), "pdae/v": pdae(precondition="v", prediction="v"), "pdae/float32": pdae(torch.float32)}
    for name, model in models.items():
        dtype = next(model.parameters()).dtype
        code = model.encode(x.to(dtype))
        out[f"{name}/z"] = code
        out |= dict(zip((f"{name}/eps", f"{name}/G"), model(x_t.to(dtype), T, code)))
    code = models["pdae"].encode(x)
    out |= {f"shifted/{shift}": models["pdae"].denoiser(code, shift=shift)(x_t, T) for shift in ("ddim", "ddpm")}
    return out | {"classifier/logits": classifier()(x_t, T), "classifier/log_prob": classifier().log_prob(x_t, T),
                  "classifier/float32/logits": classifier(torch.float32)(x_t.float(), T),
                  "latent/eps": latent()(z, T), "latent/float32/eps": latent(torch.float32)(z.float(), T)}


def losses():
    """What is minimised, its gradient, and what is measured."""
    losses, model, out = pdae_lite.losses, pdae(), {}
    x, eps = images()
    z, z_eps = normal("z", 2, 4).double(), normal("z_eps", 2, 4).double()
    out["pdae_loss"] = torch.stack([losses.pdae_loss(model, x, T, eps, w) for w in WEIGHTS])
    out["float32/pdae_loss"] = losses.pdae_loss(pdae(torch.float32), x.float(), T, eps.float())
    out["pdae_loss/given_z"] = losses.pdae_loss(model, x, T, eps, z=z)
    out["dpm_loss"] = torch.stack([losses.dpm_loss(model.dpm, x, T, eps, SCHEDULE, w) for w in WEIGHTS])
    out["dpm_loss/labels"] = losses.dpm_loss(filled(unet(num_classes=10)), x, T, eps, SCHEDULE, y=torch.tensor([7, 2]))
    out["latent_loss"] = losses.latent_loss(latent(), z, T, z_eps, latent().schedule)
    for name, m in (("pdae", model), ("dpm", model.dpm), ("classifier", classifier()), ("latent", latent(loss="l2"))):
        m.train()
        clean, noise = (z, z_eps) if name == "latent" else (x, eps)
        loss = m.training_loss(clean, T, noise, torch.tensor([7, 2]), SCHEDULE, SCHEDULE.loss_weight("p2"))
        out[f"training_loss/{name}"] = loss
        if name != "dpm":  # which is frozen by now
            loss.backward()
            gradients = {k: p.grad for k, p in m.named_parameters() if p.grad is not None}
            out[f"training_loss/{name}/gradient"] = digest(gradients)
    model.eval()
    ts = [1, 10, 30, 49]

    def of_pdae(x):
        return model.denoiser(model.encode(x), shift="ddpm")

    def of_dpm(x):
        return model.dpm

    out["noise_error"] = losses.noise_error(of_pdae, x, SCHEDULE, ts, seed=3)
    out["noise_error/dpm"] = losses.noise_error(of_dpm, x, SCHEDULE, ts, seed=3)
    out["noise_error/uniform"] = losses.noise_error(of_dpm, x, SCHEDULE, ts, noise="uniform")
    out["posterior_mean_gap"] = losses.posterior_mean_gap(of_dpm, x, SCHEDULE, ts)
    out["fill"] = losses.fill(out["noise_error"], out["noise_error/dpm"])
    out["nats"] = torch.tensor(losses.nats(out["noise_error"], out["noise_error/dpm"], SCHEDULE, ts, 256))
    ideal = pdae_lite.metrics.LinearGaussian(normal("gaussian", 30, 1, 4, 4).double(), 5)
    x_t = normal("gaussian x_t", 2, 1, 4, 4).double()
    return out | {"linear_gaussian/fill": ideal.fill(SCHEDULE, ts),
                  "linear_gaussian/eps": ideal.denoiser(SCHEDULE, x_t / 2)(x_t, T)}


def generator():
    return torch.Generator().manual_seed(5)


def samplers():
    """Every sampler, from the same noise."""
    sampling, out = pdae_lite.sampling, {}
    for grid in ("uniform", "paper", "quadratic", "cubic", [0, 20, 49]):
        name = grid if isinstance(grid, str) else "listed"
        out[f"grid/{name}"] = torch.tensor(sampling.time_grid(SCHEDULE, 7, grid))
    steps = 7
    for dtype in (torch.float32, torch.float64):
        model = pdae(dtype)
        x, x_T = images(dtype)
        z = model.encode(x).detach()
        d, name = model.denoiser(z), "ddim" if dtype == torch.float64 else "ddim/float32"
        out[f"{name}/eta_0"] = sampling.ddim(d, x_T, SCHEDULE, steps)
        out[f"{name}/eta_1"] = sampling.ddim(d, x_T, SCHEDULE, steps, eta=1.0, generator=generator())
    out["ddim/paper_grid"] = sampling.ddim(d, x_T, SCHEDULE, steps, grid="paper")
    out["ddim/quadratic_grid"] = sampling.ddim(d, x_T, SCHEDULE, steps, grid="quadratic")
    out["ddim/listed_grid"] = sampling.ddim(d, x_T, SCHEDULE, grid=[0, 20, 49])
    out["ddim/not_clipped"] = sampling.ddim(d, x_T, SCHEDULE, steps, clip=False)
    out["ddim/dpm_alone"] = sampling.ddim(model.dpm, x_T, SCHEDULE, steps)
    out["ddpm"] = sampling.ddpm(model.denoiser(z, shift="ddpm"), x_T, SCHEDULE, generator=generator())
    out["ddpm/10_steps"] = sampling.ddpm(model.denoiser(z, shift="ddpm"), x_T, SCHEDULE, 10, generator=generator())
    out["dpm_solver"] = sampling.dpm_solver(d, x_T, SCHEDULE, steps)
    out["dpm_solver/correct"] = sampling.dpm_solver(d, x_T, SCHEDULE, steps, correct=True)
    out["dpm_solver/correct_cubic"] = sampling.dpm_solver(d, x_T, SCHEDULE, steps, grid="cubic", correct=True)
    for sampler in ("ddim", "ddpm", "dpm_solver"):
        out[f"decode/{sampler}"] = model.decode(z, x_T, steps, sampler, generator=generator())
    out["decode/scale_of_each"] = model.decode(z, x_T, steps, scale=torch.tensor([0.0, 1.5]))
    out["decode/scale_in_time"] = model.decode(z, x_T, steps, scale=lambda t: 3 * t / 50)
    out["decode/off_last"] = model.decode(z, x_T, steps, off_last=0.3)
    out["decode/drawn_noise"] = model.decode(z, steps=steps, generator=generator())
    path = []
    sampling.ddim(d, x_T, SCHEDULE, steps, callback=lambda t, x: path.append((t, x.mean(), x.std())))
    out["ddim/path"] = torch.tensor(path)
    return out | {"slerp": sampling.slerp(x, x_T, torch.tensor([0.2, 0.7]))}


def inversion():
    """Images to noise, by all ways."""
    model = pdae()
    x, _ = images()
    z = model.encode(x).detach()
    ways = {"order_1": {}, "order_2": {"order": 2}, "fixed_point": {"fixed_point": 2}, "paper_grid": {"grid": "paper"},
            "clipped": {"clip": True}}
    out = {name: pdae_lite.sampling.invert(model.denoiser(z), x, SCHEDULE, 7, **way) for name, way in ways.items()}
    return out | {"of_a_pdae": model.invert(x, steps=7),
                  "of_a_pdae/shift_ddpm": model.invert(x, z, 7, shift="ddpm", fixed_point=1)}


def belm():
    """The two-step integrator, from noise, to a pair, and from the pair."""
    module, model = belm_module(), pdae()
    x, x_T = images()
    d = model.denoiser(model.encode(x).detach())
    pair = module.belm_invert(d, x, SCHEDULE, 7)
    return {"belm": module.belm(d, x_T, SCHEDULE, 7), "belm/from_pair": module.belm(d, pair, SCHEDULE, 7),
            "belm/quadratic_grid": module.belm(d, x_T, SCHEDULE, 7, grid="quadratic"),
            "belm_invert/x_T": pair[0], "belm_invert/before": pair[1]}


def guidance():
    """Denoisers made from denoisers."""
    guidance, model = pdae_lite.guidance, pdae()
    x, eps = images()
    x_t, z, y = SCHEDULE.add_noise(x, T, eps), model.encode(x).detach(), torch.tensor([7, 2])
    d, c = model.denoiser(z), classifier()
    made = {f"guided/{shift}": guidance.guided(model.dpm, c, y, SCHEDULE, 1.5, shift) for shift in ("ddim", "ddpm")}
    made["guided/in_time"] = guidance.guided(d, c, y, SCHEDULE, lambda t: t / 50)
    made["staged"] = guidance.staged(d, model.dpm, 10, 45)
    weight = torch.tensor([0.25, 0.5])
    made |= {f"mixed/{how}": guidance.mixed(model, z, z.flip(0), weight, how) for how in ("z", "gradient")}
    out = {name: denoiser(x_t, T) for name, denoiser in made.items()}
    for name in ("guided/ddim", "staged", "mixed/gradient"):
        out[f"{name}/sample"] = pdae_lite.sampling.ddim(made[name], eps, SCHEDULE, 5)
    return out | {"sweep": guidance.sweep(model, z[:1], eps[:1], [0.0, 1.0, 2.0], steps=5)}


def codes():
    """Codes of a data set, new codes, and images of them."""
    model, dpm = pdae(), latent()
    z_T = normal("z_T", 2, 4).double()
    normalised, stats = pdae_lite.latent.latent_codes(model, data(floats=True), flip=True)
    out = {"normalised": normalised.tensors[0], "labels": normalised.tensors[1], "mean": stats.mean, "std": stats.std}
    out |= {f"sample/{sampler}": dpm.sample(steps=7, z_T=z_T, sampler=sampler, generator=generator())
            for sampler in ("ddim", "ddpm", "dpm_solver")}
    settings = {"steps": 5, "latent_steps": 5, "generator": generator()}
    return out | {"images": pdae_lite.latent.sample_images(model, dpm, 2, **settings)}


# ---- training -------------------------------------------------------------------------------------------------------

SETTINGS = {"batch_size": 8, "lr": 1e-3, "warmup": 3, "ema": 0.9, "seed": 4}


def digest(tensors):
    """Four numbers of each tensor: mean, root mean square, first and last value."""
    rows = []
    for v in tensors.values():
        v = v.detach().double().flatten()
        rows.append(torch.stack([v.mean(), v.square().mean().sqrt(), v[0], v[-1]]))
    return torch.stack(rows).float()


def outcome(result):
    """A run's steps, losses and learning rates, and the weights that it led to."""
    return {"losses": torch.tensor([[h["step"], h["loss"], h["lr"]] for h in result.history], dtype=torch.float64),
            "weights": digest({k: p for k, p in result.model.named_parameters() if p.requires_grad})}


def training():
    """Ten steps of each kind of model. In float64, and then with all that changes the images and the arithmetic."""
    def ten(model, data, **changes):
        settings = {"steps": 10, "log_every": 1, "flip": True, "decay": 0.4} | SETTINGS | changes
        config = pdae_lite.TrainConfig(**settings)
        return outcome(pdae_lite.train(model, data, config, schedule=SCHEDULE, progress=False))

    z, x = TensorDataset(normal("codes", 20, 4).double()), data(floats=True)
    runs = {"pdae": ten(pdae(), x),
            "pdae/v": ten(pdae(precondition="v", prediction="v"), x, weight="v", accumulate=2),
            "dpm": ten(filled(unet()), x, channels_last=False),
            "dpm/labels": ten(filled(unet(num_classes=10, dropout=0.1)), x, weight="min_snr", gamma=3.0),
            "classifier": ten(classifier(), x, weight_decay=0.05),
            "latent": ten(latent(), z, flip=False),
            "pdae/float32": ten(pdae(torch.float32), data(), augment="affine"),
            "pdae/float32/bf16": ten(pdae(torch.float32), data(), precision="bf16")}
    out = {f"{name}/{key}": value for name, result in runs.items() for key, value in result.items()}
    # The optimizer's state in a checkpoint goes by their order.
    return out | {"pdae/names": np.array([k for k, _ in pdae().trainable().named_parameters()])}


# ---- the models that ship -------------------------------------------------------------------------------------------


@torch.no_grad()
def shipped():
    """Each shipped model on a few images."""
    out, schedule, t = {}, pdae_lite.NoiseSchedule.linear(), torch.tensor([100, 700])
    shown = {"digits": pdae_lite.data.digits("test").floats(slice(4)),
             "peeps": pdae_lite.data.peeps("test", size=32).floats(slice(4))}

    def load(name, kind):
        return pdae_lite.load(name, kind).double()

    def thin(x):  # one of sixteen pixels: each of them hangs on the whole image
        return x[..., ::4, 1::4]

    for name, x in shown.items():
        out[f"{name}/float32/z"] = pdae_lite.load(name).encode(x)
        x = x.double()
        out[f"{name}/images"] = x.mean((2, 3))
        x_t = schedule.add_noise(x[:2], t, normal(name, *x[:2].shape))
        x_T = normal(f"{name} x_T", *x[:1].shape).double()
        for kind in ("pdae", "diffae"):
            model = load(name, kind)
            z = model.encode(x)
            out[f"{name}/{kind}/z"] = z
            found = model(x_t, t, z[:2])  # two things of a PDAE, one of a Diff-AE
            for part, v in zip(("eps", "G"), found if kind == "pdae" else [found]):
                out[f"{name}/{kind}/{part}"] = thin(v)
            out[f"{name}/{kind}/decoded"] = thin(model.decode(z[:1], x_T, 3))
            out[f"{name}/{kind}/inverted"] = thin(model.invert(x[:1], z[:1], 3))
            prefix = "" if kind == "pdae" else "diffae_"
            codes = load(name, f"{prefix}latent")
            z_t = normal(f"{name} {kind} z_t", 2, codes.z_dim).double()
            out[f"{name}/{prefix}latent/eps"] = codes(z_t, t)
            out[f"{name}/{prefix}latent/sample"] = codes.sample(steps=3, z_T=z_t)
            out[f"{name}/{prefix}probe/logits"] = load(name, f"{prefix}probe")(z)
        out[f"{name}/dpm/eps"] = thin(load(name, "dpm")(x_t, t))
        out[f"{name}/features/logits"] = load(name, "features")(x)
    y, x_t = torch.tensor([7, 2]), schedule.add_noise(shown["digits"][:2].double(), t, normal("digits", 2, 1, 32, 32))
    out["digits/classifier/logits"] = load("digits", "classifier")(x_t, t)
    out["digits/cond_dpm/eps"] = thin(load("digits", "cond_dpm")(x_t, t, y))
    model = load("digits", "class")
    z = model.encode(y)
    return out | {"digits/class/z": z, "digits/class/G": thin(model(x_t, t, z)[1])}


# ---- files that earlier code wrote ----------------------------------------------------------------------------------


def smallest(fill=""):
    """A PDAE so small that its checkpoints can be kept with the tests."""
    model = pdae_lite.PDAE(unet(4, (1,), ()), encoder(4), SCHEDULE, form="paper")
    filled(model.dpm, dtype=torch.float32)  # the same in any case: a run is resumed on the DPM that it began with
    filled(model.trainable(), fill, torch.float32)
    return model.eval()


@torch.no_grad()
def saved(path):
    """What a saved model says of itself and of images."""
    model = pdae_lite.checkpoint.load_model(path, expect=pdae_lite.PDAE)
    about = json.dumps([model.metadata, model.schedule.to_config(), model.precondition], sort_keys=True)
    x, noise = images(torch.float32)
    out = {"about": np.array(about), "float32/z": model.encode(x)}
    model, x, noise = model.double(), x.double(), noise.double()
    z = model.encode(x)
    eps, gradient = model(SCHEDULE.add_noise(x, T, noise), T, z)
    return out | {"z": z, "eps": eps, "G": gradient, "decoded": model.decode(z, noise, 3)}


class Killed(Exception):
    """In place of the signal."""


def go_on(folder, fill="", killed_at=None):
    """A run of ten steps, in whatever state its folder is. Its checkpoint lies between two log steps."""
    def callback(step, model):
        if step == killed_at:
            raise Killed

    config = pdae_lite.TrainConfig(steps=10, save_every=5, log_every=2, flip=True, augment="affine", decay=0.4,
                                   accumulate=2, **SETTINGS)
    return pdae_lite.train(smallest(fill), data(), config, out=folder, progress=False, callback=callback)


def resumed(folder):
    """The stored run, to its end. It begins with other weights: were the checkpoint not read, all would differ."""
    return {f"float32/{key}": value for key, value in outcome(go_on(folder, fill="other weights, ")).items()}


# ---- all of it ------------------------------------------------------------------------------------------------------

PARTS = {f.__name__: f for f in (schedules, networks, losses, samplers, inversion, belm, guidance, codes, training,
                                 shipped)}


@contextlib.contextmanager
def one_thread():
    """Sums are added up in the same order on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def arrays(name, function, *args):
    """The numbers of one part, each by its full name."""
    with one_thread():
        out = {f"{name}/{key}": v.detach().cpu().numpy() if torch.is_tensor(v) else v
               for key, v in function(*args).items()}
    for key, v in out.items():  # a history stays as it is, and so does what claims to be float32
        if v.dtype == np.float64 and not key.endswith("/losses") and "/float32/" not in key:
            out[key] = v.astype(np.float32)
    return out


def machine():
    """Where float32 is rounded alike."""
    return np.array([torch.__version__.split("+")[0], torch.backends.cpu.get_cpu_capability()])


def compute() -> dict[str, np.ndarray]:
    """All that needs no stored file."""
    return {k: v for name, part in PARTS.items() for k, v in arrays(name, part).items()}


def main():
    if RECORD.exists():
        sys.exit(f"{RECORD} is there already; delete it, if {Path(pdae_lite.__file__).parent} shall be the code before")
    shutil.rmtree(RUN, ignore_errors=True)
    BEFORE.mkdir(parents=True, exist_ok=True)
    smallest().save(MODEL, note="written before the move")
    with contextlib.suppress(Killed), one_thread():
        go_on(RUN, killed_at=6)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(RUN, Path(folder) / "run")
        record = compute() | arrays("saved", saved, MODEL) | arrays("resumed", resumed, copy) | {"machine": machine()}
    np.savez_compressed(RECORD, **record)


if __name__ == "__main__":
    main()
