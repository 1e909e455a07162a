"""A DPM of flow matching, and one of latents, and PDAE on each, beside PDAE on variance-preserving DPMs of pixels.

    python scripts/results/any_dpm.py --runs runs/any_dpm    # an hour of one core; a run that was stopped goes on

Digits: two DPMs that differ in their path alone, from the same images; a PDAE on each. Faces, at 32×32: an
AutoencoderKL whose latents are 4×8×8, a UNet2DModel of them, both left as a diffusers pipeline in the folder
`pipeline`; and, by the command line's own `--dpm hf:`, a PDAE on it, beside a PDAE on the DPM of pixels that ships.
Measured on held-out images: the fill at equal steps of log-SNR; errors from z and the same random x_T; what the codec
alone loses. Writes any_dpm.json and the weights of load("digits", "flow") and load("peeps", "latents") in
pdae_lite/assets. """
import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F

import pdae_lite
from pdae_lite import data, interop, losses
from pdae_lite.checkpoint import save_model, write_text
from pdae_lite.commands.main import main as command
from pdae_lite.data import ASSETS
from pdae_lite.data.latents import latents
from pdae_lite.presets import DIGITS
from pdae_lite.storage import PACKED, file_digest
from pdae_lite.training import TrainConfig, train

LOG_SNR = [x / 2 for x in range(-16, 17)]
IMAGES = 200  # held out
# Two small networks, so that their files may ship.
UNET = replace(DIGITS.unet, base_channels=24, channel_mult=(1, 1, 2))
ENCODER = replace(DIGITS.encoder, channels=(32, 64, 64))
DPM = replace(DIGITS.pretrain, steps=2000, batch_size=64, warmup=100, log_every=100)
ON_DIGITS = replace(DPM, steps=1500)
KL = TrainConfig(steps=1800, batch_size=64, lr=2e-3, warmup=100, decay=0.6, ema=0.998, flip=True, save_every=250,
                 log_every=100)
OF_LATENTS = replace(KL, steps=6000, lr=1e-3, weight="v", flip=False, precision="bf16")
ON_FACES = ["--steps", "1000", "--batch-size", "64", "--log-every", "100", "--set", "train.warmup=100",
            "--set", "train.ema=0.998", "--set", "encoder.z_dim=64"]


def digits(path: str, runs: Path) -> None:
    """A DPM of digits on one path, and a PDAE on it; each a call that returns at once where it was done before."""
    preset = replace(DIGITS, unet=UNET, encoder=ENCODER, prediction=path, pretrain=DPM)
    torch.manual_seed(0)
    dpm = train(preset.dpm(), data.digits(), replace(DPM, weight=path), schedule=preset.schedule(),
                out=runs / f"{path}_dpm", progress=False).model
    torch.manual_seed(0)
    train(preset.pdae(dpm), data.digits(), replace(ON_DIGITS, weight=path), out=runs / f"{path}_pdae", progress=False)


def kl_loss(codec, x_0, t, eps, y):
    """L1 and a touch of KL; the training loop's noise isn't needed."""
    posterior = codec.codec.encode(x_0).latent_dist
    return F.l1_loss(codec.codec.decode(posterior.sample()).sample, x_0) + 1e-5 * posterior.kl().mean() / x_0[0].numel()


def pipeline(runs: Path, faces) -> Path:
    """An AutoencoderKL and a UNet2DModel of its latents, as a folder of diffusers."""
    folder, three = runs / "pipeline", ("DownEncoderBlock2D",) * 3
    torch.manual_seed(0)
    kl = diffusers.AutoencoderKL(down_block_types=three, up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4,
                                 block_out_channels=(16, 32, 48), norm_num_groups=8, sample_size=32,
                                 mid_block_add_attention=False)
    codec = interop.codec_from_diffusers(kl)
    kl.requires_grad_(True)
    train(codec, faces, KL, loss=kl_loss, schedule=pdae_lite.NoiseSchedule.linear(), out=runs / "codec", progress=False)
    with torch.no_grad():  # as Stable Diffusion's: latents of deviation 1
        spread = kl.encode(faces.floats(slice(0, 1000))).latent_dist.mode().std()
    kl.register_to_config(scaling_factor=round(1 / float(spread), 4))
    codec = interop.codec_from_diffusers(kl)
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(48, 64),
                                 down_block_types=("DownBlock2D", "AttnDownBlock2D"), layers_per_block=1,
                                 up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=16,
                                 norm_num_groups=16)
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                                        prediction_type="v_prediction", clip_sample=False)
    dpm, schedule = interop.from_diffusers(unet, scheduler)
    known = latents(codec, faces, flip=True, cache=runs)
    train(dpm, known, OF_LATENTS, schedule=schedule, out=runs / "latent_dpm", progress=False)
    index = {"_class_name": "DiffusionPipeline"}
    for name, part in {"vae": kl, "unet": unet, "scheduler": scheduler}.items():
        part.save_pretrained(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    write_text(folder / "model_index.json", json.dumps(index))
    return folder


@torch.no_grad()
def fills(pdae, x_0: torch.Tensor) -> list[float]:
    """At each of LOG_SNR, of x_0 as the network sees it."""
    log_snr = torch.from_numpy(pdae.schedule.float64["snr"]).log()
    ts = [int((log_snr - at).abs().argmin()) for at in LOG_SNR]
    with_z, without = (losses.noise_error(d, x_0, pdae.schedule, ts)
                       for d in (lambda x: pdae.trained_denoiser(pdae.encoder(x)), lambda x: pdae.dpm))
    return losses.fill(with_z, without).tolist()


def measured(file: Path, images: torch.Tensor) -> dict:
    """Fill, and errors on [0, 1] from z and random x_T, of a PDAE's file; what its codec alone loses."""
    pdae = pdae_lite.PDAE.load(file)
    found = fills(pdae, images if pdae.codec is None else pdae.codec.encode(images))
    x_T = pdae.noise(len(images), torch.Generator().manual_seed(0))
    rebuilt = {"z": pdae.decode(pdae.encode(images), x_T, steps=25)}
    if pdae.codec is not None:
        rebuilt["codec"] = pdae.codec.decode(pdae.codec.encode(images))
    mse = {name: round(float(((x - images) / 2).square().mean()), 6) for name, x in rebuilt.items()}
    return {"fill": [round(f, 4) for f in found], "mean_fill": round(sum(found) / len(found), 4), "z_dim": pdae.z_dim,
            "mse_random_x_T": mse["z"], "mse_codec": mse.get("codec"), "images_seen": pdae.metadata["images_seen"],
            "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in pdae.named_children()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/any_dpm"))
    runs, start = parser.parse_args().runs, time.perf_counter()
    for path in ("v", "flow"):
        digits(path, runs)
    faces, test = (data.shipped_images("peeps", split, 32) for split in ("train", "test"))
    folder = pipeline(runs, faces)
    for name, dpm, channels in (("latents", f"hf:{folder}", "64,96"), ("pixels", "peeps", "64,128,128")):
        out = ["--out", str(runs / f"{name}_pdae"), "--set", f"encoder.channels={channels}"]
        if command(["train", "--dpm", dpm, "--data", "peeps", "--preset", "peeps", *ON_FACES, *out]):
            raise SystemExit(1)
    digit, face = (images.floats(slice(0, IMAGES)) for images in (data.digits("test"), test))
    made = {"digits_vp": ("v", digit), "digits_flow": ("flow", digit), "peeps_latents": ("latents", face),
            "peeps_pixels": ("pixels", face)}
    seen = dict(zip(made, [DPM.steps * DPM.batch_size] * 2 + [OF_LATENTS.steps * OF_LATENTS.batch_size]))
    found = {name: measured(runs / f"{run}_pdae" / "model.safetensors", x) | {"dpm_images_seen": seen.get(name)}
             for name, (run, x) in made.items()}
    for name in ("digits_flow", "peeps_latents"):
        pdae = pdae_lite.PDAE.load(runs / f"{made[name][0]}_pdae" / "model.safetensors")
        file = ASSETS / f"{name}{PACKED}"
        save_model(file, pdae, {k: v for k, v in pdae.metadata.items() if k != "dpm"}, torch.int8)
        found[name]["file"] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    write_text(ASSETS / "any_dpm.json", json.dumps({
        "command": "python scripts/results/any_dpm.py", "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__,
        "diffusers": diffusers.__version__, "python": platform.python_version(), "device": "cpu", "seed": 0,
        "images": IMAGES, "log_snr": LOG_SNR, "models": found}, indent=1))
    print(json.dumps(found, indent=1), f"{(time.perf_counter() - start) / 60:.1f} minutes")
