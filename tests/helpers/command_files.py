"""Files for the command line, as small as they can be: models, codes, pictures, and things that are none of these."""
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig
from pdae_lite.applications.attributes import LinearProbe
from pdae_lite.applications.latent import LatentConfig, LatentDPM, LatentStats
from pdae_lite.checkpoint import save_model
from pdae_lite.networks.encoder import EncoderConfig
from pdae_lite.storage import file_digest

SIDE = 16


def pdae(seed: int = 0, z_dim: int = 4, channels: int = 1) -> PDAE:
    """A PDAE whose every layer has something to say, T = 20."""
    torch.manual_seed(seed)
    unet = UNet(UNetConfig(SIDE, channels, 8, (1, 2), 1, ()))
    model = PDAE(unet, SemanticEncoder(EncoderConfig(SIDE, channels, (8, 8), None, z_dim=z_dim)),
                 NoiseSchedule.linear(20, 0.01, 0.4))
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(0, 0.05)
    return model.eval()


def latent(of: Path | None = None, z_dim: int = 4) -> tuple[LatentDPM, dict]:
    """A latent DPM, and what its file says of the model whose codes it is for."""
    torch.manual_seed(0)
    stats = LatentStats(torch.zeros(z_dim), torch.ones(z_dim))
    return (LatentDPM(LatentConfig(z_dim=z_dim, layers=2, width=8), stats=stats),
            {} if of is None else {"model_sha256": file_digest(of)})


def probe(of: Path | None = None, z_dim: int = 4) -> tuple[LinearProbe, dict]:
    """A probe of "round" and "dark", and what its file says of the model whose codes it is for."""
    z = torch.randn(60, z_dim, generator=torch.Generator().manual_seed(0))
    found = LinearProbe.fit(z, (z[:, :2] > 0).long(), ["round", "dark"], 0.1)
    return found, {} if of is None else {"model": {"name": of.name, "sha256": file_digest(of)}}


def picture(path: Path, size: tuple[int, int] = (20, 18), mode: str = "L") -> None:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 60).convert(mode).save(path)


def fill(folder: Path) -> Path:
    """Everything in one folder: `pdae`, `other` and `broken` (NaN), `dpm`, `latent` and `probe` of pdae, `photos`,
    `classes`, a stack `ct` of int16, and files that are damaged, foreign or empty."""
    for seed, name in enumerate(("pdae", "other", "broken")):
        model = pdae(seed)
        if name == "broken":
            with torch.no_grad():
                for p in (*model.dpm.parameters(), *model.estimator.parameters()):
                    p.fill_(torch.nan)
        model.save(folder / f"{name}.safetensors", {"data": str(folder / "photos")})
    save_model(folder / "dpm.safetensors", pdae().dpm)
    for name, make in (("latent", latent), ("probe", probe)):
        part, facts = make(folder / "pdae.safetensors")
        part.save(folder / f"{name}.safetensors", facts)
        make()[0].save(folder / f"old_{name}.safetensors")  # of an older version, which said nothing of the model
        make(z_dim=3)[0].save(folder / f"narrow_{name}.safetensors")
    for i in range(20):
        picture(folder / "photos" / f"{i}.png")
        picture(folder / "classes" / "ab"[i % 2] / f"{i}.png")
    np.save(folder / "ct.npy", np.random.default_rng(0).integers(-1000, 1500, (12, SIDE, SIDE)).astype(np.int16))
    picture(folder / "one.png")
    picture(folder / "two.jpg", (SIDE, SIDE), "RGB")
    whole = (folder / "pdae.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:len(whole) // 2])
    (folder / "cut.png").write_bytes((folder / "one.png").read_bytes()[:60])
    (folder / "empty").write_bytes(b"")
    (folder / "text.txt").write_text("no model, no image\n")
    (folder / "labels.json").write_text(json.dumps({"labels": [["one.png", 3]]}))
    (folder / "deep.json").write_text("[" * 5000 + "]" * 5000)
    (folder / "settings.yml").write_text("image_size: 16\n")
    return folder
