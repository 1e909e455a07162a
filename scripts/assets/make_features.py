"""Make the feature networks that ship, and the reference features of fresh faces; measure them and write their cards.

    python scripts/assets/make_features.py digits                 # digits_features.*: some minutes of one core
    python scripts/assets/make_features.py peeps                  # peeps_features.*, for faces of 32×32
    python scripts/assets/make_peeps.py --fresh 10000 fresh.npz   # needs the extra [peeps]
    python scripts/assets/make_features.py reference fresh.npz    # peeps_reference.npz.xz: features of these faces

Larger images are shrunk to the network's size, so these measure models of 64×64, too; --size 64 makes a network that
sees every pixel of them. A new peeps network needs new reference features: give the last command again. Batches,
augmentation and dropout follow from the seed; bf16 rounds differently from CPU to CPU, so another machine gives a
network as good, not the same bits."""
import argparse
import hashlib
import io
import json
import lzma
import platform
import sys
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from cards import file_facts
from features_card import card
from torch import Tensor, nn
from torchmetrics.functional.classification import multilabel_auroc

import pdae_lite
from pdae_lite import counter_rng, data, metrics
from pdae_lite.checkpoint import atomic_path, save_model, write_text
from pdae_lite.metrics.features import POSE, FeatureConfig, FeatureNet, extract, reference
from pdae_lite.storage import PACKED
from pdae_lite.training.batches import affine

SEED, LR = 0, 2e-3
BATCH, STEPS = {"digits": 128, "peeps": 64}, {"digits": 2000, "peeps": 5000}
CONFIGS = {
    "digits": FeatureConfig("digits", tuple("0123456789"), 32, 1, channels=(24, 48, 64, 64), strides=(1, 2, 2, 2)),
    "peeps": FeatureConfig("peeps", (), 32, 3, channels=(32, 48, 64, 64, 96, 96), strides=(1, 2, 1, 1, 2, 2),
                           multi_label=True, pose=True),
}
SIDES = {"peeps": {32: (1, 2, 1, 1, 2, 2), 64: (2, 1, 2, 1, 2, 2)}}  # side of the images -> strides
THUMBNAIL = 4  # pixels a side


# ---- training -----------------------------------------------------------------------------------------------------


def mirror(x: Tensor, labels: Tensor, pose: Tensor, attributes: tuple[str, ...],
           flip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and pose, mirrored where `flip` says so: rotation, shift to the right and the side faced change
    sign."""
    sign = torch.where(flip, -1.0, 1.0)[:, None]
    pose = pose * torch.cat([sign, sign, sign.abs(), sign.abs()], 1)
    side = torch.tensor([name == "facing_left" for name in attributes])
    return torch.where(flip[:, None, None, None], x.flip(-1), x), torch.where(flip[:, None] & side, 1 - labels,
                                                                              labels), pose


def shift(x: Tensor, pose: Tensor, u: Tensor, most: int = 2) -> tuple[Tensor, Tensor]:
    """Images shifted by whole pixels, up to `most` each way, edges repeated, and their poses; u [N, 2] uniform in [0,
    1) decides."""
    by = (u * (2 * most + 1)).long() - most  # right, down
    column, row = ((torch.arange(x.shape[-1]) - by[:, i : i + 1]).clamp(0, x.shape[-1] - 1) for i in (0, 1))
    x = x[torch.arange(len(x))[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
    return x, pose + F.pad(by * 100 / x.shape[-1], (1, 1))


def train(config: FeatureConfig, images: data.Images, steps: int, batch_size: int) -> tuple[FeatureNet, nn.Linear]:
    """A network, and a linear map from its class features to a thumbnail.

    Digits learn their class, under light affine distortion. Faces, mirrored and shifted at random, learn their
    attributes and pose, and the thumbnail: it makes the features know the colours of ground and shirt, which no
    attribute names."""
    torch.manual_seed(SEED)
    net, thumbnail = FeatureNet(config), nn.Linear(config.width, THUMBNAIL**2 * config.in_channels)
    net.to(memory_format=torch.channels_last)
    if config.pose:
        pose = images.pose[:, : len(POSE)]
        centre, spread = pose.mean(0), pose.std(0)
    optimizer = torch.optim.AdamW([*net.parameters(), *thumbnail.parameters()], LR, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    index, start = torch.arange(batch_size), time.time()
    for step in range(steps):
        chosen = (counter_rng.uniform(SEED, step, index, 1, "t")[:, 0] * len(images)).long()
        x, y = images.floats(chosen), images.labels[chosen]
        if config.pose:
            flip = counter_rng.uniform(SEED, step, index, 1, "flip")[:, 0] < 0.5
            x, y, p = mirror(x, y, pose[chosen], config.labels, flip)
            x, p = shift(x, p, counter_rng.uniform(SEED, step, index, 2, "augment"))
        else:
            x = affine(x, counter_rng.uniform(SEED, step, index, 7, "augment"))
        with torch.autocast("cpu", torch.bfloat16):
            h = net.dropout(net.features(x.to(memory_format=torch.channels_last)))
            logits = net.logits(h).float()
            if config.pose:
                turned, small = net.pose_out(h).float(), thumbnail(h).float()
        if config.multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, y.float())
        else:
            loss = F.cross_entropy(logits, y)
        if config.pose:
            loss = loss + 0.2 * F.mse_loss(turned, (p - centre) / spread) + 0.5 * F.mse_loss(small, to_thumbnail(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            print(f"step {step + 1}: loss {loss.item():.4f}, {time.time() - start:.0f} s", flush=True)
    net.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    if config.pose:  # from standardised units to degrees and %
        net.pose_out.weight.mul_(spread[:, None])
        net.pose_out.bias.mul_(spread).add_(centre)
    scale_features(net, thumbnail.requires_grad_(False), extract(net, images).values.std(0))
    return net, thumbnail


def scale_features(net: FeatureNet, thumbnail: nn.Linear, std: Tensor) -> None:
    """Divide the class features by their standard deviations: a ReLU lets the factors through, the layers after take
    them back."""
    std = torch.where(std > 1e-3, std, 1)  # a dead feature stays what it is; the card counts them
    for parameter in (net.squeeze[1].weight, net.squeeze[1].bias):  # of the BatchNorm
        parameter.div_(std)
    for layer in (net.logits, net.pose_out, thumbnail):
        if layer is not None:
            layer.weight.mul_(std)


def to_thumbnail(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, THUMBNAIL).flatten(1)


# ---- measuring ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def quality(net: FeatureNet, thumbnail: nn.Linear, test: data.Images) -> dict:
    """How well the network knows held-out images."""
    x = test.floats()
    logits = torch.cat([net(part) for part in x.split(250)])
    if not net.config.multi_label:
        return {"accuracy": shown(metrics.proportion(logits.argmax(1) == test.labels))}
    # it sums to 1.0000001
    auroc = multilabel_auroc(logits, test.labels, len(test.attributes), average=None).clamp(max=1)
    features, small = extract(net, x).values, to_thumbnail(x)
    rest = (thumbnail(features) - small).square().sum() / (small - small.mean(0)).square().sum()
    turned = torch.cat([net.pose(part) for part in x.split(250)]) - test.pose[:, : len(POSE)]
    return {"auroc": dict(zip(test.attributes, auroc.tolist())), "auroc_mean": float(auroc.mean()),
            "auroc_least": float(auroc.min()),
            "accuracy": dict(zip(test.attributes, ((logits > 0) == (test.labels > 0)).float().mean(0).tolist())),
            "pose_mean_absolute_error": dict(zip(POSE, turned.abs().mean(0).tolist())),
            "thumbnail_variance_explained": 1 - float(rest)}


def sensitivity(net: FeatureNet, x: Tensor, real: metrics.Features) -> dict:
    """Distances from `real` of other real images, as they are and spoilt."""
    g = torch.Generator().manual_seed(SEED)
    spoilt = {
        "as they are": x,
        "noise of σ 0.05 on [0, 1]": (x + 0.1 * torch.randn(x.shape, generator=g)).clamp(-1, 1),
        "blurred, σ 1 pixel": TF.gaussian_blur(x, 7, 1.0),
        "8 grey levels": (((x + 1) * 3.5).round() / 3.5 - 1),
        "each twice, from a half of them": x[: len(x) // 2].repeat(2, 1, 1, 1),
        "averages of two": (x + x.roll(1, 0)) / 2,
    }
    out = {}
    for name, images in spoilt.items():
        f = extract(net, images)
        precision, recall = metrics.precision_recall(f, real[: len(f)])
        out[name] = {"kid": shown(metrics.kid(f, real)), "precision": shown(precision), "recall": shown(recall)}
        if len(real) > 1000:
            out[name]["fid"] = shown(metrics.fid(f, real))
    return out


def shown(e: metrics.Estimate) -> dict:
    return {"value": e.value, "low": e.low, "high": e.high, "n": list(e.n)}


# ---- commands -----------------------------------------------------------------------------------------------------


def make(name: str, size: int) -> None:
    images, test = (data.shipped_images(name, split, size) for split in ("train", "test"))
    config = CONFIGS[name]
    if name == "peeps":
        config = replace(config, labels=images.attributes, image_size=size, strides=SIDES[name][size])
    start = time.time()
    net, thumbnail = train(config, images, STEPS[name], BATCH[name])
    settings = {"data": name, "images": len(images), "steps": STEPS[name], "batch_size": BATCH[name], "lr": LR,
                "seed": SEED, "torch": torch.__version__,
                "command": f"python scripts/assets/make_features.py {name}{f' --size {size}' if size != 32 else ''}"}
    path = data.ASSETS / f"{name}_features{PACKED}"
    save_model(path, net, settings, dtype=torch.float16)
    net = pdae_lite.load(name, kind="features")  # as it ships, rounded
    dead = int((extract(net, images.images[:1000]).values.std(0) < 1e-3).sum())
    out = {"file": file_facts(path), "parameters": sum(p.numel() for p in net.parameters()), "dead_features": dead,
           "config": net.to_config(), "training": settings,
           "minutes": (time.time() - start) / 60, "python": platform.python_version(), "held_out_images": len(test),
           "held_out": quality(net, thumbnail, test)}
    if name == "digits":
        out["sensitivity"] = sensitivity(net, images.floats(slice(500)), reference("digits"))
    finish(name, out)


def make_reference(path: str) -> None:
    """peeps_reference.npz.xz from fresh faces; they must be in none of the splits."""
    with np.load(path) as arrays:
        fresh, labels, attributes = torch.from_numpy(arrays["images"]), arrays["labels"], arrays["attributes"]
    shipped = {image.numpy().tobytes() for split in ("train", "valid", "test") for image in data.peeps(split).images}
    shipped |= {image.numpy().tobytes() for edit in data.EDITS for pair in data.peeps_counterfactuals(edit)
                for image in pair}
    keys = {image.numpy().tobytes() for image in fresh}
    if keys & shipped or len(keys) < len(fresh):
        raise SystemExit(f"{len(keys & shipped)} fresh faces are among the shipped ones, {len(fresh) - len(keys)} are "
                         "there twice")
    net = pdae_lite.load("peeps", kind="features")
    size = net.config.image_size
    buffer = io.BytesIO()
    features = extract(net, data.shrunk(fresh, size), progress=True).values.numpy().astype(np.float16)
    np.savez(buffer, features=features, labels=np.packbits(labels, axis=1), attributes=attributes)
    target = data.ASSETS / "peeps_reference.npz.xz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    out = json.loads((data.ASSETS / "peeps_features.json").read_text())
    real, test = reference("peeps"), data.peeps("test", size)
    digest = hashlib.sha256(fresh.numpy().tobytes()).hexdigest()
    out["reference"] = {"file": file_facts(target), "faces": len(fresh), "sha256_of_pixels": digest,
                        "network": out["file"]["sha256"]}
    out["sensitivity"] = sensitivity(net, test.floats(), real)
    finish("peeps", out)


def finish(name: str, out: dict) -> None:
    write_text(data.ASSETS / f"{name}_features.json", json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    write_text(data.ASSETS / f"{name}_features.md", card(name, out))
    print(json.dumps(out["held_out"]), out["file"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "peeps", "reference"))
    parser.add_argument("fresh", nargs="?", help="with reference: the file that make_peeps.py --fresh wrote")
    parser.add_argument("--size", type=int, choices=(32, 64), default=32,
                        help="of peeps: side of the images (default: %(default)s)")
    args = parser.parse_args()
    if (args.what == "reference") != (args.fresh is not None):
        parser.error("a file of fresh faces goes with reference, and only with it")
    if args.what == "reference":
        make_reference(args.fresh)
    else:
        make(args.what, args.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
