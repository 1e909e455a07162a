"""What the paper published in Tables 1 and 2 (Zhang, Zhao, Lin 2022), and where the files are that its authors released.
`evaluation` computes the tables from the files.
"""
from dataclasses import dataclass
from pathlib import Path

from ..applications.latent import LatentDPM
from ..data import CELEBA64_CROP, lmdb
from ..pdae import PDAE

# ---- what was published -----------------------------------------------------------------------------------------------

# Table 1: the FFHQ 128×128 model on CelebA-HQ, T = 100: SSIM, LPIPS (AlexNet), MSE.
TABLE_1 = {
    "StyleGAN2, W": (0.677, 0.168, 0.016),
    "StyleGAN2, W+": (0.827, 0.114, 0.006),
    "VQ-GAN": (0.782, 0.109, 3.61e-3),
    "VQ-VAE2": (0.947, 0.012, 4.87e-4),
    "NVAE": (0.984, 0.001, 4.85e-5),
    "DDIM, inferred x_T": (0.917, 0.063, 0.002),
    "Diff-AE, random x_T": (0.677, 0.073, 0.007),
    "Diff-AE, inferred x_T": (0.991, 0.011, 6.07e-5),
    "PDAE, random x_T": (0.696, 0.094, 0.005),
    "PDAE, inferred x_T": (0.993, 0.008, 5.48e-5),
    "PDAE, x_T inferred in 1000 steps": (0.994, None, 3.84e-5),  # not the paper's: the README of the release
}
# Table 2: FID of unconditional samples at T = 10, 20, 50, 100.
STEPS = (10, 20, 50, 100)
TABLE_2 = {
    "ffhq128": {"DDIM": (31.87, 20.53, 15.82, 11.95), "Diff-AE": (21.95, 18.10, 13.14, 10.55), "PDAE": (20.16, 17.18, 12.81, 10.31)},
    "horse128": {"DDIM": (25.24, 14.41, 7.98, 5.93), "Diff-AE": (12.66, 9.21, 7.12, 5.27), "PDAE": (11.94, 8.51, 6.83, 5.09)},
    "bedroom128": {"DDIM": (14.07, 9.29, 7.31, 5.88), "Diff-AE": (10.79, 8.42, 6.49, 5.32), "PDAE": (10.05, 7.89, 6.33, 5.47)},
    "celeba64": {"DDIM": (18.89, 13.82, 8.48, 5.94), "Diff-AE": (12.92, 10.18, 7.05, 5.30), "PDAE": (11.84, 9.65, 7.23, 5.19)},
}
TABLE_1_MODEL, TABLE_1_DATA, TABLE_1_STEPS, LONG_INVERSION = "ffhq128", "celebahq", 100, 1000
OFF_LAST = 0.3  # of Table 2: the plain DPM takes the last 30 % of the steps

# ---- the files --------------------------------------------------------------------------------------------------------

LMDBS = {"ffhq128": "ffhq", "horse128": "horse", "bedroom128": "bedroom", "celeba64": "celeba64", "celebahq128": "celebahq"}
LAYOUT = """DIR/pre-trained-dpms/NAME/config.yml, DIR/trained-models/autoencoder/NAME/{config.yml, checkpoint.pt}, and for Table 2
DIR/trained-models/latents/NAME.pt and DIR/trained-models/latent_denoise_fn/NAME/{config.yml, checkpoint.pt}, as the release's
folders are, NAME being ffhq128, horse128, bedroom128 or celeba64; or the files of one model all in DIR: checkpoint.pt, config.yml,
ddpm_config.yml, and for Table 2 latents.pt, latent_checkpoint.pt, latent_config.yml"""


@dataclass(frozen=True)
class ReleasedFiles:
    """The files of one released model; None: not there."""

    name: str
    checkpoint: Path
    config: Path
    ddpm_config: Path
    latent_checkpoint: Path | None = None
    latent_config: Path | None = None
    latents: Path | None = None

    @property
    def has_latent(self) -> bool:
        """Whether all that Table 2 needs is there."""
        return None not in (self.latent_checkpoint, self.latent_config, self.latents)

    def paths(self) -> list[Path]:
        """All files that are there."""
        return [p for p in (self.checkpoint, self.config, self.ddpm_config, self.latent_checkpoint, self.latent_config, self.latents) if p]

    def load(self) -> PDAE:
        """The autoencoder, with the frozen DPM inside."""
        from ..interop.pdae_release import load_released_pdae

        return load_released_pdae(self.checkpoint, self.config, self.ddpm_config).requires_grad_(False)

    def load_latent(self) -> LatentDPM:
        """The latent DPM with the statistics of the codes."""
        from ..interop.pdae_release import load_released_latent

        return load_released_latent(self.latent_checkpoint, self.latent_config, self.latents).requires_grad_(False)


def find_released(root: str | Path, name_of_flat: str = "released") -> dict[str, ReleasedFiles]:
    """The models in a folder, by name. A folder that holds the files of one model directly gives `name_of_flat`.

    Raises:
        FileNotFoundError: no model; says what was looked for.
    """
    root = Path(root)

    def first(*names: str) -> Path | None:
        return next((root / name for name in names if (root / name).is_file()), None)

    if holds_one_model(root):
        latent = [first(f"latent_{name}") for name in ("checkpoint.pt", "config.yml")]
        return {name_of_flat: _files(name_of_flat, first("checkpoint.pt"), first("config.yml"), first("ddpm_config.yml"), *latent,
                                     first("latents.pt"))}
    found = {}
    for name, short in LMDBS.items():
        checkpoint, config = (first(f"trained-models/autoencoder/{name}/{file}") for file in ("checkpoint.pt", "config.yml"))
        if checkpoint:
            latent = [first(*(f"trained-models/latent_denoise_fn/{n}/{file}" for n in (name, short)))
                      for file in ("checkpoint.pt", "config.yml")]
            found[name] = _files(name, checkpoint, config, first(f"pre-trained-dpms/{name}/config.yml"), *latent,
                                 first(*(f"trained-models/latents/{n}.pt" for n in (short, name))))
    if not found:
        raise FileNotFoundError(f"{root} holds no released model; want {LAYOUT}")
    return found


def holds_one_model(root: str | Path) -> bool:
    """Whether the folder holds the files of one model directly."""
    return (Path(root) / "checkpoint.pt").is_file()


def _files(name: str, checkpoint: Path, config: Path | None, ddpm_config: Path | None, *latent: Path | None) -> ReleasedFiles:
    if config is None or ddpm_config is None:
        raise FileNotFoundError(f"{checkpoint} lacks {'its config.yml' if config is None else 'the config.yml of its DPM'}; want {LAYOUT}")
    return ReleasedFiles(name, checkpoint, config, ddpm_config, *latent)


def open_images(root: str | Path, name: str, size: int, channels: int, start: int = 0, stop: int | None = None):
    """The images of an LMDB, uint8 [channels, size, size] each: of the folder `name` in `root`, or `root` itself if that is an
    LMDB. Aligned CelebA (keys None-0000000) is cropped as in the literature."""
    root = Path(root)
    path = root / name if (root / name).exists() else root
    images = lmdb(path, size, channels=channels, start=start, stop=stop)
    images.crop = CELEBA64_CROP if images.prefix == "None" else None
    return images
