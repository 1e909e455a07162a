"""What PDAE and Diff-AE have in common: encode, decode, invert, noise, files."""
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from . import sampling
from .checkpoint import CheckpointError, Saved, load_model, model_file
from .networks.blocks import check_images
from .schedule import NoiseSchedule

SAMPLERS = {"ddim": sampling.ddim, "ddpm": sampling.ddpm, "dpm_solver": sampling.dpm_solver}


class Autoencoder(Saved, ABC):
    """A diffusion autoencoder: an encoder x_0 -> z, and a denoiser that knows z.

    A subclass sets `encoder` (with a `z_dim`) and `schedule`, and gives `network`, the noise predictor whose `config`
    and `data_range` say what images are, and `denoiser`.
    """

    encoder: nn.Module
    schedule: NoiseSchedule

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The noise predictor that says what images are."""

    @abstractmethod
    def denoiser(self, z: Tensor):
        """The noise predictor (x_t, t) -> ε̂ that knows z [N, z_dim]."""

    @property
    def z_dim(self) -> int:
        """Width of z."""
        return self.encoder.z_dim

    @property
    def data_range(self) -> tuple[float, float] | None:
        """Range of the data, the network's own; None: free."""
        return getattr(self.network, "data_range", (-1.0, 1.0))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def encode(self, x_0: Tensor) -> Tensor:
        """z [N, z_dim] of clean images x_0 [N, C, H, W] in the network's data range; or of int64 labels [N], for an encoder
        that embeds labels."""
        if not self._takes_labels:
            self._check_images(x_0, "x_0")
        return self.encoder(x_0)

    @torch.no_grad()
    def decode(self, z: Tensor, x_T: Tensor | None = None, steps: int = 100, sampler: str = "ddim",
               generator: torch.Generator | None = None, denoiser=None, **options) -> Tensor:
        """Images [N, C, H, W] from codes z [N, z_dim].

        Args:
            x_T: the stochastic code; None draws Gaussian noise.
            steps: network evaluations, 1 … T.
            sampler: "ddim", "ddpm" or "dpm_solver".
            denoiser: used in place of ``self.denoiser(z)``.
            options: passed to the sampler (`eta`, `clip`, `grid`, `progress`, `callback`).
        """
        check_sampler(sampler)
        if x_T is None:
            x_T = self.noise(len(z), generator)
        if len(z) not in (1, len(x_T)):
            raise ValueError(f"z holds {len(z)} codes for {len(x_T)} noises x_T; want one each, or one for all")
        if sampler != "dpm_solver":  # which draws nothing
            options["generator"] = generator
        return SAMPLERS[sampler](self.denoiser(z) if denoiser is None else denoiser, x_T, self.schedule, steps, **options)

    @torch.no_grad()
    def invert(self, x_0: Tensor, z: Tensor | None = None, steps: int = 100, denoiser=None, **options) -> Tensor:
        """The stochastic code x_T [N, C, H, W] of images x_0 (eq. 8); z is encoded from x_0 if it isn't given.

        `options` go to `sampling.invert` (`fixed_point`, `grid`, `clip`, `progress`, `callback`).
        """
        self._check_images(x_0, "x_0")
        if denoiser is None:
            denoiser = self.denoiser(self.encode(x_0) if z is None else z)
        return sampling.invert(denoiser, x_0, self.schedule, steps, **options)

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian x_T [n, C, H, W] of the network's image size, drawn on the generator's device (so that a seed gives
        the same noise everywhere) and moved to the model's."""
        size = self.network.config.image_size
        if size is None:
            raise ValueError("the noise predictor doesn't say the size of its images; give x_T")
        shape = (n, self.network.config.in_channels, *((size, size) if isinstance(size, int) else size))
        source = generator.device if generator is not None else self.device
        return torch.randn(shape, device=source, generator=generator).to(next(self.parameters()))

    def training_codes(self, x_0: Tensor, y: Tensor | None) -> Tensor:
        """z of a training batch: of its images, or of its labels if the encoder embeds those."""
        if not self._takes_labels:
            return self.encoder(x_0)
        if y is None:
            raise ValueError("the encoder embeds labels, but the data set has none")
        return self.encoder(y)

    @property
    def _takes_labels(self) -> bool:
        return getattr(self.encoder, "takes_labels", False)

    def _check_images(self, x: Tensor, name: str) -> None:
        check_images(x, self.network.config.in_channels, 1, name, self.data_range)


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
