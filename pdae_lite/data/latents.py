"""A data set through a codec, once: latents in the place of images."""
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..progress import progress_bar
from ..storage import read, tensors_digest, write
from .builtin import to_float
from .items import digest, fingerprint, in_batches


def latents(codec: nn.Module, data, flip: bool = False, cache: Path | None = None, batch_size: int = 8,
            progress: bool = False) -> TensorDataset:
    """x_0 of each image of a data set, ready for ``train(pdae, …)``, with its label if there are any; on the CPU.
    Images that can't be read are left out, label and all.

    Args:
        codec: of the PDAE (`interop.codec_from_diffusers`).
        data: a data set of images, or of (image, label): uint8, or float in [−1, 1].
        flip: the mirrored images after all others, which stands for training's `flip` (latents can't be mirrored).
        cache: a folder for the result, in a file named after the data and the codec, which is read if it is there.
    """
    path = None if cache is None else Path(cache) / f"latents-{_name(codec, data, flip)}.safetensors"
    if path is not None and path.is_file():
        found = read(path)[0]
        return TensorDataset(*(found[name] for name in ("x_0", "labels") if name in found))
    x_0, labels = encoded(lambda x: codec.encode(to_float(x)), data, next(codec.parameters()).device,
                          batch_size, flip, progress)
    found = {"x_0": x_0} | ({} if labels is None else {"labels": labels})
    if path is not None:
        write(path, found, {"images": len(found["x_0"]), "flip": flip})
    return TensorDataset(*found.values())


@torch.no_grad()
def encoded(encode: Callable[[Tensor], Tensor], data, device: torch.device, batch_size: int, flip: bool,
            progress: bool) -> tuple[Tensor, Tensor | None]:
    """What a function makes of the images of a data set on a device, [N, …] on the CPU, and the labels if there are
    any; with `flip` those of all mirrored images behind."""
    if len(data) < 1:
        raise ValueError("data is empty; want at least one image")
    codes, mirrored, labels = [], [], []
    with progress_bar(total=len(data), desc="encode", show=progress) as bar:
        for index, images, y in in_batches(data, batch_size):
            images = images.to(device)
            codes.append(encode(images).cpu())
            if flip:
                mirrored.append(encode(images.flip(-1)).cpu())
            labels += [] if y is None else [y]
            bar.update(len(index))
    return torch.cat(codes + mirrored), torch.cat(labels * (1 + flip)) if labels else None


def _name(codec: nn.Module, data, flip: bool) -> str:
    """A digest of the codec, and of the data: of files by their `fingerprint`, else of each value."""
    weights = tensors_digest({k: v.cpu() for k, v in codec.state_dict().items()})
    known = fingerprint(data)
    images = [] if known is not None else (x.contiguous().cpu().numpy().tobytes() for _, x, _ in in_batches(data, 64))
    return digest(weights, codec.to_config(), flip, len(data), known, *images)[:16]
