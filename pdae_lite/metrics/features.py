"""Feature spaces to measure images in: small networks that ship, and the features of real images to compare with.

Inception's features know photographs, not digits or drawn faces, and its weights would have to be fetched. Every result
names the space it was measured in."""
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..checkpoint import Saved, lists_to_tuples, load
from ..data.builtin import digits, load_arrays, to_float
from ..data.items import in_batches
from ..networks.blocks import check_images
from ..progress import progress_bar
from .intervals import BLOCK

LAYERS = ("class", "shape")
POSE = ("rotate", "right", "down", "scale")  # columns of Faces.pose that a network can tell as numbers


@dataclass(frozen=True)
class FeatureConfig:
    """`channels`: one 3×3 convolution each (the first is 5×5), with BatchNorm and ReLU, halving where `strides` says 2.
    `width`: of the class features. `labels`: what the logits stand for; one is right, any number if `multi_label`."""

    name: str
    labels: tuple[str, ...]
    image_size: int = 32
    in_channels: int = 1
    channels: tuple[int, ...] = (24, 48, 64)
    strides: tuple[int, ...] = (2, 2, 2)
    width: int = 64
    multi_label: bool = False
    pose: bool = False
    dropout: float = 0.2

    def __post_init__(self):
        lists_to_tuples(self)
        if len(self.channels) != len(self.strides) or not self.channels:
            raise ValueError(f"channels has {len(self.channels)} entries, strides {len(self.strides)}; want as many")
        if self.image_size % math.prod(self.strides):
            raise ValueError(f"image_size={self.image_size}; want a multiple of {math.prod(self.strides)}, the "
                             "strides' product")


class FeatureNet(Saved):
    """A small convolutional classifier whose activations are a feature space; `pdae_lite.load("digits", "features")`.

    Two layers serve as features: "class", the penultimate activations [N, width] behind a ReLU, scaled to unit variance
    over the training images, for distances between distributions; and "shape", the last convolutional activations,
    flattened, which still tell two images of one class apart, for the identity of single images."""

    Config = FeatureConfig

    def __init__(self, config: FeatureConfig):
        super().__init__()
        self.config = config
        layers, previous = [], config.in_channels
        for i, (channels, stride) in enumerate(zip(config.channels, config.strides)):
            kernel = 3 if i else 5
            layers.append(nn.Conv2d(previous, channels, kernel, stride, kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            previous = channels
        flat = previous * (config.image_size // math.prod(config.strides)) ** 2
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        # BatchNorm keeps every feature alive: without it a third of them died.
        self.squeeze = nn.Sequential(nn.Linear(flat, config.width, bias=False), nn.BatchNorm1d(config.width), nn.ReLU())
        self.dropout = nn.Dropout(config.dropout)
        self.logits = nn.Linear(config.width, len(config.labels))
        self.pose_out = nn.Linear(config.width, len(POSE)) if config.pose else None

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, labels] of images [N, C, H, W] in [−1, 1]."""
        return self.logits(self.dropout(self.features(x)))

    def pose(self, x: Tensor) -> Tensor:
        """Rotation in degrees, shift right and down in % of the side, scale, as in `data.Faces.pose`: [N, 4]."""
        if self.pose_out is None:
            raise ValueError(f"the network for {self.config.name} was not trained to tell a pose")
        return self.pose_out(self.features(x))

    def features(self, x: Tensor, layer: str = "class") -> Tensor:
        """Activations [N, D] of images [N, C, H, W] in [−1, 1]; D is `width` for "class". Images that are k times as
        large as the network's are shrunk to it: the mean of each k×k pixels."""
        if layer not in LAYERS:
            raise ValueError(f"layer {layer!r}; want 'class' or 'shape'")
        size = self.config.image_size
        check_images(x, self.config.in_channels, 1, "x")
        if x.shape[2] != x.shape[3] or x.shape[2] % size:
            raise ValueError(f"x is {x.shape[2]}×{x.shape[3]}; the network for {self.config.name} takes {size}×{size}, "
                             "or multiples of it")
        if x.shape[2] > size:
            x = nn.functional.avg_pool2d(x, x.shape[2] // size)
        shape = self.convolutions(x)
        return shape if layer == "shape" else self.squeeze(shape)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of some images, with the name of their space, so that two spaces can't be mixed up.

    `values` float [N, D]. `labels`: None, class numbers int64 [N], or int64 [N, A], 0 or 1, a column for each of
    `attributes`. `stratified`: the number of images of each class was fixed, not left to chance."""

    values: Tensor
    space: str = "unnamed features"
    labels: Tensor | None = None
    attributes: tuple[str, ...] = ()
    stratified: bool = False

    def __post_init__(self):
        if self.values.ndim != 2 or not self.values.is_floating_point():
            raise ValueError(f"features are {self.values.dtype} {list(self.values.shape)}; want float [N, D]")
        if not bool(self.values.isfinite().all()):
            raise ValueError("features hold NaN or infinite values")
        if self.labels is not None and len(self.labels) != len(self.values):
            raise ValueError(f"{len(self.labels)} labels for {len(self.values)} features; want one each")
        if self.stratified and (self.labels is None or self.labels.ndim != 1):
            raise ValueError("stratified features want labels [N], one class each")

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index) -> "Features":
        """Some of them: a slice, a list of places or a mask; how many of each class is chance again."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, values=self.values[index], labels=labels, stratified=False)

    def where(self, label: int | str, value: int = 1) -> "Features":
        """Those of one class, or those whose attribute has a value."""
        if self.labels is None:
            raise ValueError("these features carry no labels")
        if not self.attributes:
            return self[self.labels == label]
        if label not in self.attributes:
            raise ValueError(f"attribute {label!r}; want one of {', '.join(self.attributes)}")
        return self[self.labels[:, self.attributes.index(label)] == value]


def as_features(x: Features | Tensor) -> Features:
    """Values [N, D] alone as features of no named space."""
    return x if isinstance(x, Features) else Features(x)


def together(a: Features | Tensor, b: Features | Tensor) -> tuple[Tensor, Tensor, str]:
    """Values of two sets in float64 on the CPU, and the name of their space, or a ValueError: they have two."""
    a, b = as_features(a), as_features(b)
    if a.space != b.space or a.values.shape[1] != b.values.shape[1]:
        widths = a.values.shape[1], b.values.shape[1]
        raise ValueError(f"{a.space} [N, {widths[0]}] against {b.space} [N, {widths[1]}]; want the same feature space")
    return *(x.values.detach().double().cpu() for x in (a, b)), a.space


def in_parts(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """x [n, D] in parts, so that a matrix of part against y [m, D] stays small."""
    return x.split(max(1, BLOCK // len(y)))


@torch.no_grad()
def extract(net: FeatureNet, images, layer: str = "class", batch_size: int = 250, progress: bool = False) -> Features:
    """Features of any number of images, batch by batch, where the network is; float32 on the CPU.

    Args:
        images: uint8 or float in [−1, 1], [N, C, H, W]; or a data set: its labels come along.

    Raises:
        ValueError: images of another size or range, or NaN in them.
    """
    if not (isinstance(images, Dataset) or torch.is_tensor(images) and images.ndim == 4) or len(images) < 1:
        shape = list(getattr(images, "shape", [])) or type(images).__name__
        raise ValueError(f"images is {shape}; want [N, C, H, W], N ≥ 1")
    was_training, device, out, labels = net.training, next(net.parameters()).device, [], []
    net.eval()
    try:
        batches = in_batches(images, batch_size)
        for _, batch, y in progress_bar(batches, total=-(-len(images) // batch_size), show=progress, desc="features"):
            x = to_float(batch.to(device))
            check_images(x, net.config.in_channels, 1, "images", (-1.0, 1.0))
            out.append(net.features(x, layer).float().cpu())
            labels += [] if y is None else [y]
    finally:
        net.train(was_training)
    return Features(torch.cat(out), f"{net.config.name} {layer} features", torch.cat(labels) if labels else None,
                    tuple(getattr(images, "attributes", ())))


def reference(name: str) -> Features:
    """Class features of real images that no model was trained on, with labels: what to measure generated ones against.

    "peeps": 10,000 faces in none of the splits. "digits": the 500 held-out digits, too few for a Fréchet distance."""
    if name == "digits":
        return replace(extract(load("digits", kind="features"), digits("test")), stratified=True)  # 50 of each
    if name != "peeps":
        raise ValueError(f"reference {name!r}; want 'digits' or 'peeps'")
    arrays = load_arrays("peeps_reference.npz.xz")
    attributes = tuple(map(str, arrays["attributes"]))
    labels = torch.from_numpy(np.unpackbits(arrays["labels"], axis=1, count=len(attributes)).astype(np.int64))
    return Features(torch.from_numpy(arrays["features"]).float(), "peeps class features", labels, attributes)
