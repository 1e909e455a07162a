"""Where the files are that the paper's authors released, and the images that they measured on."""
from dataclasses import dataclass
from pathlib import Path

from ..applications.latent import LatentDPM
from ..data import CELEBA64_CROP, lmdb
from ..interop.pdae_release import load_released_latent, load_released_pdae
from ..pdae import PDAE

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
        return load_released_pdae(self.checkpoint, self.config, self.ddpm_config).requires_grad_(False)

    def load_latent(self) -> LatentDPM:
        """The latent DPM with the statistics of the codes."""
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
    """The images of an LMDB, uint8 [channels, size, size] each: of the folder `name` in `root`, or `root` itself if
    that is an LMDB. Aligned CelebA (keys None-0000000) is cropped as in the literature."""
    root = Path(root)
    path = root / name if (root / name).exists() else root
    images = lmdb(path, size, channels=channels, start=start, stop=stop)
    images.crop = CELEBA64_CROP if images.prefix == "None" else None
    return images
