"""Codecs of latent diffusion models, diffusers' `AutoencoderKL` and `VQModel`: frozen pairs images -> x_0 -> images."""
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import CheckpointError, Saved, keep_by
from ..networks.blocks import check_images
from .diffusers_dpm import import_diffusers
from .diffusers_files import CODECS, find_config, from_pretrained, source_of

KINDS = ("AutoencoderKL", "VQModel")


class Codec(Saved):
    """x_0 = (h − m)·scale/s of a latent h: the mode of an `AutoencoderKL`'s posterior, or a `VQModel`'s latent before
    quantisation. m and s are its config's `latents_mean` and `latents_std`, or its `shift_factor` and 1.

    It is frozen, in eval mode, and computes in its weights' precision; in float32 where its config says `force_upcast`.
    """

    def __init__(self, codec: nn.Module):
        super().__init__()
        kind, config = type(codec).__name__, codec.config
        if kind not in KINDS:
            raise ValueError(f"codec {kind}; want one of {', '.join(KINDS)}")
        self.codec, self.kind, self.scale = codec.eval().requires_grad_(False), kind, config.scaling_factor
        self.in_channels, self.factor = config.in_channels, 2 ** (len(config.block_out_channels) - 1)
        self.latent_channels = codec.quantize.vq_embed_dim if kind == "VQModel" else config.latent_channels
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        mean = (getattr(config, "shift_factor", None) or 0.0) if mean is None else mean
        for name, value in (("mean", mean), ("std", 1.0 if std is None else std)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """x_0 [N, C', H/f, W/f] of images [N, C, H, W] in [−1, 1]; f is `factor`."""
        check_images(images, self.in_channels, self.factor, "images", (-1.0, 1.0))
        codec, dtype = self._ready()
        with torch.autocast(images.device.type, enabled=False):
            found = codec.encode(images.to(dtype))
            h = found.latents if self.kind == "VQModel" else found.latent_dist.mode()
        return ((h - self.mean.to(h)) * self.scale / self.std.to(h)).to(images.dtype)

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> Tensor:
        """Images [N, C, H, W] in [−1, 1] of x_0."""
        check_images(x_0, self.latent_channels, 1, "x_0")
        codec, dtype = self._ready()
        with torch.autocast(x_0.device.type, enabled=False):
            h = x_0.to(dtype)
            images = codec.decode(h * self.std.to(h) / self.scale + self.mean.to(h)).sample
        return images.clamp(-1, 1).to(x_0.dtype)

    def _ready(self) -> tuple[nn.Module, torch.dtype]:
        dtype = next(self.codec.parameters()).dtype
        if self.codec.config.force_upcast and dtype in (torch.float16, torch.bfloat16):
            self.codec.float()
        return self.codec, next(self.codec.parameters()).dtype

    def to_config(self) -> dict:
        config = {k: v for k, v in self.codec.config.items() if not k.startswith("_")}
        return {"kind": self.kind, "network": json.loads(json.dumps(config))}

    @classmethod
    def from_config(cls, config: dict) -> "Codec":
        return cls(getattr(import_diffusers(), config["kind"]).from_config(config["network"]))


def codec_from_diffusers(codec_or_path, *, keep: str = "value", download: bool = False) -> Codec:
    """The codec of a latent diffusion model, for `PDAE(dpm, encoder, schedule, codec=…)`.

    Args:
        codec_or_path: an `AutoencoderKL` or `VQModel` (used as it is, not copied: it is frozen here); the folder of
            one, or of a pipeline that has one; or a hub id.
        keep, download: as for `from_diffusers`.

    Raises:
        ValueError: a codec of another kind; names it.
        CheckpointError: nothing there, or a damaged file.
    """
    if not isinstance(codec_or_path, (str, os.PathLike)):
        return Codec(codec_or_path)
    path = os.fspath(codec_or_path)
    codec = Codec(_read(path, download))
    codec.codec.source = source_of("codec", path, codec.codec)
    keep_by(codec, keep)
    return codec


def weights(source: str) -> dict[str, Tensor]:
    """The weights of the codec in a folder or the hub's cache: what a file that refers to it leaves out."""
    return _read(source, download=False).state_dict()


def _read(source: str, download: bool) -> nn.Module:
    diffusers = import_diffusers()
    config, folder = find_config(diffusers.AutoencoderKL, source, (*CODECS, ""), download)
    if config is None:
        raise CheckpointError(f"{source} has no codec (vae or vqvae, or config.json); correct the path"
                              + ("" if download or Path(source).is_dir() else ", or pass download=True to fetch it"))
    kind = config.get("_class_name")
    if kind not in KINDS:
        raise ValueError(f"{source}: codec {kind}; want one of {', '.join(KINDS)}")
    return from_pretrained(getattr(diffusers, kind), source, folder, download)
