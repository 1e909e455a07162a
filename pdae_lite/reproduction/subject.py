"""What the small tables are measured on: the models of one data set, those that there are."""
from dataclasses import dataclass

from ..applications.latent import LatentDPM
from ..autoencoder import load_autoencoder
from ..checkpoint import load, tensors_digest
from ..diffae import DiffAE
from ..metrics.features import FeatureNet
from ..pdae import PDAE

DATA = ("digits", "peeps")
KINDS = ("pdae", "diffae", "latent", "diffae_latent")


@dataclass(frozen=True)
class Subject:
    """The models of a table, those that there are, and the data set that they were trained on."""

    data: str
    net: FeatureNet
    pdae: PDAE | None = None
    diffae: DiffAE | None = None
    latent: LatentDPM | None = None
    diffae_latent: LatentDPM | None = None

    @classmethod
    def open(cls, model: str, latent: str | None = None, name: str | None = None, device="cpu") -> "Subject":
        """Of "digits" or "peeps" all models that ship; of a file its PDAE or Diff-AE, and another file's latent DPM.

        Args:
            name: the data set, if the file of the model doesn't say it.
            device: where the models are put.

        Raises:
            ValueError: a model of other data, or files that don't fit together.
        """
        def ready(part):
            return part.to(device).eval().requires_grad_(False)

        if model in DATA:
            if latent is not None or name not in (None, model):
                raise ValueError(f"model {model} has its own latent DPMs and data; leave both out, or give a file")
            return cls(model, load(model, "features", device), **{kind: ready(load(model, kind)) for kind in KINDS})
        autoencoder = ready(load_autoencoder(model))
        name = name or autoencoder.metadata.get("data")
        if name not in DATA:
            raise ValueError(f"{model} is a model of {name or 'data that it does not name'}; the small tables are of "
                             "digits and peeps (say which by data), which have feature networks")
        found = {"pdae" if isinstance(autoencoder, PDAE) else "diffae": autoencoder}
        if latent is not None:
            dpm = ready(LatentDPM.load(latent))
            if dpm.z_dim != autoencoder.z_dim:
                raise ValueError(f"{latent} samples codes with z_dim={dpm.z_dim}, {model} decodes "
                                 f"z_dim={autoencoder.z_dim}")
            found["latent" if "pdae" in found else "diffae_latent"] = dpm
        return cls(name, load(name, "features", device), **found)

    @property
    def some(self):
        """One of the autoencoders."""
        return self.pdae if self.pdae is not None else self.diffae

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, [C, H, W]."""
        config = self.some.network.config
        return config.in_channels, config.image_size, config.image_size

    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights of each model that takes part."""
        models = {k: getattr(self, k) for k in (*KINDS, "net")}
        return {k: tensors_digest(m.state_dict()) for k, m in models.items() if m is not None}
