"""A classifier of noisy images, p(y | x_t, t), and its gradient: what classifier guidance needs (eq. 5 and 6)."""
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import counter_rng
from ..checkpoint import Saved
from ..losses import weighted_mean
from ..schedule import NoiseSchedule
from .blocks import check_images, check_labels, group_norm, timestep_embedding, zeroed
from .unet import HalfUNetConfig, input_blocks, middle_block


@dataclass(frozen=True)
class ClassifierConfig(HalfUNetConfig):
    """`unet`: the U-Net whose lower half this is. `num_classes`: how many classes to tell apart."""

    num_classes: int = 10

    def __post_init__(self):
        super().__post_init__()
        if self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes}; want at least 2")


class NoisyClassifier(Saved):
    """p(y | x_t, t): half a U-Net, its features averaged over 4×4 cells, and a linear layer (after ADM's classifiers).

    Call: x_t [N, C, H, W], t -> logits [N, num_classes]. The last layer starts at zero: an untrained classifier says
    1/num_classes everywhere, and its guidance is none."""

    default_weight = "simple"

    def __init__(self, config: ClassifierConfig, schedule: NoiseSchedule):
        super().__init__()
        self.config, self.schedule, self.num_classes = config, schedule, config.num_classes
        unet, width, self.data_range = config.unet, config.unet.embedding_channels, config.unet.data_range
        self.time_embed = nn.Sequential(nn.Linear(unet.base_channels, width), nn.SiLU(), nn.Linear(width, width))
        self.input_blocks, skips = input_blocks(unet)
        self.middle_block = middle_block(unet)
        # Averages over cells, not over the whole image: where a stroke is tells digits apart.
        channels, cells = skips[-1], min(4, unet.image_size // unet.size_multiple)
        self.out = nn.Sequential(group_norm(channels), nn.SiLU(), nn.AdaptiveAvgPool2d(cells), nn.Flatten(),
                                 zeroed(nn.Linear(channels * cells**2, config.num_classes)))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        unet, dtype = self.config.unet, self.time_embed[0].weight.dtype
        check_images(x_t, unet.in_channels, unet.size_multiple, "x_t")
        self.schedule.check_t(t)
        emb = self.time_embed(timestep_embedding(t, unet.base_channels, self.time_embed[0].weight))
        h = F.pixel_unshuffle(x_t.to(dtype), unet.patch_size)
        for block in self.input_blocks:
            h = block(h, emb)
        return self.out(self.middle_block(h, emb))

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t, t) of every class: [N, num_classes]."""
        return _log_softmax(self(x_t, t))

    def training_loss(self, x_0: Tensor, t: Tensor, eps: Tensor, y, schedule, weight) -> Tensor:
        """What `train` minimises: E[λ_t · −log p(y | x_t, t)]. `schedule` is the model's own, whatever is given."""
        if y is None:
            raise ValueError("a classifier needs labels, but the data set has none")
        check_labels(y, self.num_classes, len(x_0))
        logits = self(self.schedule.add_noise(x_0, t, eps), t)
        return weighted_mean(F.cross_entropy(logits.float(), y, reduction="none"), t, self.schedule, weight)

    @torch.no_grad()
    def accuracy(self, x_0: Tensor, y: Tensor, ts, seed: int = 0, batch_size: int = 250) -> Tensor:
        """Share of noisy images whose class it finds, at each t of `ts`: float32 [len(ts)].

        Args:
            x_0: clean images [N, C, H, W] in the data range.
            y: their labels, int64 [N].
            seed: the noise of image i at timestep t depends on (seed, t, i) alone, as in `losses.noise_error`.
        """
        check_images(x_0, self.config.unet.in_channels, 1, "x_0", self.data_range)
        check_labels(y, self.num_classes, len(x_0))
        right = torch.zeros(len(ts), dtype=torch.float64)
        index = torch.arange(len(x_0), device=x_0.device)
        for batch, labels, places in zip(*(v.split(batch_size) for v in (x_0, y, index))):
            for i, t in enumerate(map(int, ts)):
                eps = counter_rng.normal(seed, t, places, batch.shape[1:]).to(batch.dtype)
                right[i] += (self(self.schedule.add_noise(batch, t, eps), t).argmax(1) == labels).sum().cpu()
        return (right / len(x_0)).float()

    def to_config(self) -> dict:
        return {**asdict(self.config), "schedule": self.schedule.to_config()}

    @classmethod
    def from_config(cls, config: dict) -> "NoisyClassifier":
        schedule = NoiseSchedule.from_config(config["schedule"])
        return cls(ClassifierConfig(config["unet"], config["num_classes"]), schedule)


def classifier_gradient(classifier, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """∇_{x_t} log p(y | x_t, t): [N, C, H, W], float32 at least, also where gradients are switched off.

    Args:
        classifier: (x_t, t) -> logits or log-probabilities [N, K], differentiable, each sample on its own.
        y: labels int64 [N] in 0 … K−1.
    """
    # Without autocast: classifiers are sure of themselves on nearly clean images, and gradients of log p tiny there.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x_t.device.type, enabled=False):
        x = x_t.detach().to(torch.promote_types(x_t.dtype, torch.float32)).clone().requires_grad_()
        log_p = _log_softmax(classifier(x, t))
        check_labels(y, log_p.shape[1], len(x))
        return torch.autograd.grad(log_p.gather(1, y.to(x.device).clone()[:, None]).sum(), x)[0]


def _log_softmax(logits: Tensor) -> Tensor:
    if not torch.is_tensor(logits) or logits.ndim != 2:
        came = list(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
        raise ValueError(f"the classifier gives {came}; want logits [N, K]")
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
