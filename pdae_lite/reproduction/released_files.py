"""Where the files are that the paper's authors released, and the images that they measured on."""
from dataclasses import dataclass
from pathlib import Path

from ..applications.latent import LatentDPM
from ..data import CELEBA64_CROP, lmdb
from ..interop.pdae_release import load_released_latent, load_released_pdae
from ..pdae import PDAE

LMDBS = {"ffhq128": "ffhq", "horse128": "horse", "bedroom128": "bedroom", "celeba64": "celeba64",
         "celebahq128": "celebahq"}
LAYOUT = """DIR/pre-trained-dpms/NAME/config.yml, DIR/trained-models/autoencoder/NAME/{config.yml, checkpoint.pt}, and
for Table 2 DIR/trained-models/latents/NAME.pt and DIR/trained-models/latent_denoise_fn/NAME/{config.yml,
checkpoint.pt}, as the release's folders are, NAME being ffhq128, horse128, bedroom128 or celeba64; or the files of one
model all in DIR: checkpoint.pt, config.yml, ddpm_config.yml, and for Table 2 latents.pt, latent_checkpoint.pt,
latent_config.yml"""
FLAT = {"checkpoint": "checkpoint.pt", "config": "config.yml", "ddpm_config": "ddpm_config.yml",
        "latent_checkpoint": "latent_checkpoint.pt", "latent_config": "latent_config.yml", "latents": "latents.pt"}
FOLDERS = {"checkpoint": "trained-models/autoencoder/{}/checkpoint.pt",
           "config": "trained-models/autoencoder/{}/config.yml", "ddpm_config": "pre-trained-dpms/{}/config.yml",
           "latent_checkpoint": "trained-models/latent_denoise_fn/{}/checkpoint.pt",
           "latent_config": "trained-models/latent_denoise_fn/{}/config.yml", "latents": "trained-models/latents/{}.pt"}


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
        return [path for path in (getattr(self, part) for part in FLAT) if path]

    def load(self) -> PDAE:
        """The autoencoder, with the frozen DPM inside."""
        return load_released_pdae(self.checkpoint, self.config, self.ddpm_config).requires_grad_(False)

    def load_latent(self) -> LatentDPM:
        """The latent DPM with the statistics of the codes."""
        return load_released_latent(self.latent_checkpoint, self.latent_config, self.latents).requires_grad_(False)


def find_released(root: str | Path, name_of_flat: str = "released") -> dict[str, ReleasedFiles]:
    """The models in a folder, by name. A folder that holds the files of one model directly gives `name_of_flat`.

    Raises:
        FileNotFoundError: no model, or one without its configuration; says what was looked for.
    """
    wanted = {name: (FOLDERS, (name, short)) for name, short in LMDBS.items()}
    wanted = {name_of_flat: (FLAT, ("",))} if holds_one_model(root) else wanted
    found = {}
    for name, (places, names) in wanted.items():
        candidates = {part: [Path(root) / place.format(n) for n in names] for part, place in places.items()}
        files = {part: next((p for p in paths if p.is_file()), None) for part, paths in candidates.items()}
        if files["checkpoint"]:
            for part, what in (("config", "its config.yml"), ("ddpm_config", "the config.yml of its DPM")):
                if files[part] is None:
                    raise FileNotFoundError(f"{files['checkpoint']} lacks {what}; want {LAYOUT}")
            found[name] = ReleasedFiles(name, **files)
    if not found:
        raise FileNotFoundError(f"{root} holds no released model; want {LAYOUT}")
    return found


def holds_one_model(root: str | Path) -> bool:
    """Whether the folder holds the files of one model directly."""
    return (Path(root) / "checkpoint.pt").is_file()


def open_images(root: str | Path, name: str, size: int, channels: int, start: int = 0, stop: int | None = None):
    """The images of an LMDB, uint8 [channels, size, size] each: of the folder `name` in `root`, or `root` itself if
    that is an LMDB. Aligned CelebA (keys None-0000000) is cropped as in the literature."""
    path = Path(root) / name if (Path(root) / name).exists() else Path(root)
    images = lmdb(path, size, channels=channels, start=start, stop=stop)
    images.crop = CELEBA64_CROP if images.prefix == "None" else None
    return images
