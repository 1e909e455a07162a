"""What PDAE and Diff-AE have in common: encode, decode, invert, noise, files."""
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from . import sampling
from .checkpoint import CheckpointError, Saved, load_model, model_file
from .hub import Hub
from .networks.blocks import check_images
from .schedule import NoiseSchedule

SAMPLERS: dict[str, Any] = {"ddim": sampling.ddim, "ddpm": sampling.ddpm, "dpm_solver": sampling.dpm_solver}


class Autoencoder(Hub, Saved, ABC):
    """A diffusion autoencoder: an encoder x_0 -> z, and a denoiser that knows z."""

    encoder: Any
    schedule: NoiseSchedule
    codec: Any  # set by each: a value here would hide the module
    denoiser_options: tuple[str, ...] = ()  # what `denoiser` takes beside z

    @property
    @abstractmethod
    def network(self) -> Saved:
        """The noise predictor whose `config` and `data_range` say what images are."""

    @abstractmethod
    def denoiser(self, z: Tensor):
        """The noise predictor (x_t, t) -> ε̂ that knows z [N, z_dim]."""

    def trained_denoiser(self, z: Tensor):
        """The denoiser in the form that was trained, whose error `losses.fill` is made of."""
        return self.denoiser(z)

    def sampler_options(self, sampler: str) -> dict:
        """What `denoiser` is told for a sampler unless `decode` is told otherwise."""
        return {}

    @property
    def z_dim(self) -> int:
        """Width of z."""
        return self.encoder.z_dim

    @property
    def data_range(self) -> tuple[float, float] | None:
        """Range of the data, the network's own; None: free."""
        return getattr(self.network, "data_range", (-1.0, 1.0))

    @property
    def image_range(self) -> tuple[float, float] | None:
        """Range of the images that `encode` takes and `decode` gives: the codec's if there is one, else `data_range`.
        """
        return self.data_range if self.codec is None else (-1.0, 1.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """z [N, z_dim] of images [N, C, H, W] in `image_range`, or of labels int64 [N] for an encoder that embeds
        those. Never part of a graph: training calls `encoder`."""
        return self.encoder(images if getattr(self.encoder, "takes_labels", False) else self._x_0(images))

    @torch.no_grad()
    def decode(self, z: Tensor, x_T: Tensor | None = None, steps: int = 100, sampler: str = "ddim", *,
               generator: torch.Generator | None = None, dtype: torch.dtype | None = None, **options) -> Tensor:
        """Images [N, C, H, W] from codes z [N, z_dim].

        Args:
            x_T: the stochastic code; None draws Gaussian noise.
            steps: network evaluations, 1 … T.
            sampler: "ddim", "ddpm" or "dpm_solver".
            generator: of all that is drawn.
            dtype: torch.bfloat16 runs the networks in it, by autocast; None: as they are.
            options: of the denoiser (a PDAE's `scale`, `off_last`, `shift`), or of the sampler (`eta`, `clip`, …).
        """
        check_sampler(sampler)
        if x_T is None:
            x_T = self.noise(len(z), generator)
        if len(z) not in (1, len(x_T)):
            raise ValueError(f"z holds {len(z)} codes for {len(x_T)} noises x_T; want one each, or one for all")
        given = {name: options.pop(name) for name in self.denoiser_options if name in options}
        denoiser = self.denoiser(z, **self.sampler_options(sampler) | given)
        with torch.autocast(x_T.device.type, dtype, enabled=dtype is not None):
            x_0 = SAMPLERS[sampler](denoiser, x_T, self.schedule, steps, generator=generator, **options)
        return x_0 if self.codec is None else self.codec.decode(x_0)

    @torch.no_grad()
    def invert(self, images: Tensor, z: Tensor | None = None, steps: int = 100, **options) -> Tensor:
        """The stochastic code x_T [N, C, H, W] of images (eq. 8); z is encoded from them if it isn't given. `options`
        go to the denoiser, as in `decode`, or to `sampling.invert` (`fixed_point`, `order`, `grid`, `clip`, …)."""
        x_0 = self._x_0(images)
        z = self.encoder(x_0) if z is None else z
        given = {name: options.pop(name) for name in self.denoiser_options if name in options}
        return sampling.invert(self.denoiser(z, **given), x_0, self.schedule, steps, **options)

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian x_T [n, C, H, W] of the network's size, float32 (float64 for a float64 model); see `sampling.randn`.
        """
        size = self.network.config.image_size
        if size is None:
            raise ValueError("the noise predictor doesn't say the size of its images; give x_T")
        shape = (n, self.network.config.in_channels, *((size, size) if isinstance(size, int) else size))
        dtype = torch.promote_types(torch.float32, next(self.parameters()).dtype)
        return sampling.randn(shape, self.device, generator).to(dtype)

    def training_codes(self, x_0: Tensor, y: Tensor | None) -> Tensor:
        """z of a training batch: of its images, or of its labels if the encoder embeds those."""
        if not getattr(self.encoder, "takes_labels", False):
            return self.encoder(x_0)
        if y is None:
            raise ValueError("the encoder embeds labels, but the data set has none")
        return self.encoder(y)

    def _x_0(self, images: Tensor) -> Tensor:
        """Images as the network sees clean data: checked, and through the codec if there is one."""
        if self.codec is not None:
            return self.codec.encode(images)
        check_images(images, self.network.config.in_channels, 1, "x_0", self.data_range)
        return images


def load_autoencoder(name: str) -> Autoencoder:
    """The PDAE or Diff-AE of a file, or a shipped one by its name, such as digits.

    Raises:
        CheckpointError: a file that can't be read, or one of another model.
    """
    path = model_file(name)
    model = load_model(path)
    if not isinstance(model, Autoencoder):
        raise CheckpointError(f"{path}: holds a {type(model).__name__}; want a PDAE or a DiffAE")
    return model


def check_sampler(name: str) -> None:
    """Raise a ValueError unless there is a sampler of this name."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r}; want one of {', '.join(SAMPLERS)}")
