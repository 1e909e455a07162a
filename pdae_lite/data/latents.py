"""A data set through a codec, once: latents in the place of images."""
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..progress import progress_bar
from ..storage import read, tensors_digest, write
from .builtin import to_float


@torch.no_grad()
def latents(codec: nn.Module, data, flip: bool = False, cache: Path | None = None, batch_size: int = 8,
            progress: bool = False) -> TensorDataset:
    """x_0 of each image of a data set, ready for ``train(pdae, …)``, with its label if there are any; on the CPU.

    Args:
        codec: of the PDAE (`interop.codec_from_diffusers`).
        data: a data set of images, or of (image, label): uint8, or float in [−1, 1].
        flip: the mirrored images after all others, which stands for training's `flip` (latents can't be mirrored).
        cache: a folder for the result, in a file named after the data and the codec, which is read if it is there.
    """
    if len(data) < 1:
        raise ValueError("data is empty; want at least one image")
    path = None if cache is None else Path(cache) / f"latents-{_fingerprint(codec, data, flip)}.safetensors"
    if path is None or not path.is_file():
        found = _encoded(codec, data, flip, batch_size, progress)
        if path is None:
            return TensorDataset(*found.values())
        write(path, found, {"images": len(data), "flip": flip})
    tensors = read(path)[0]
    return TensorDataset(*(tensors[name] for name in ("x_0", "labels") if name in tensors))


def _encoded(codec: nn.Module, data, flip: bool, batch_size: int, progress: bool) -> dict[str, Tensor]:
    device = next(codec.parameters()).device
    codes, mirrored, labels = [], [], []
    for start in progress_bar(range(0, len(data), batch_size), desc="latents", show=progress):
        items = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        pairs = [item if isinstance(item, (tuple, list)) else (item,) for item in items]
        images = to_float(torch.stack([pair[0] for pair in pairs]).to(device))
        codes.append(codec.encode(images).cpu())
        if flip:
            mirrored.append(codec.encode(images.flip(-1)).cpu())
        labels += [torch.as_tensor(pair[1]) for pair in pairs if len(pair) > 1]
    found = {"x_0": torch.cat(codes + mirrored)}
    return found | ({"labels": torch.stack(labels * (2 if flip else 1))} if labels else {})


def _fingerprint(codec: nn.Module, data, flip: bool) -> str:
    """Of the codec's weights and the data: of files their names, sizes and times; of what is in memory every value."""
    digest = hashlib.sha256(tensors_digest({k: v.cpu() for k, v in codec.state_dict().items()}).encode())
    first = data[0][0] if isinstance(data[0], (tuple, list)) else data[0]
    digest.update(f"{len(data)} {tuple(first.shape)} {flip}".encode())
    if hasattr(data, "paths"):
        for path in data.paths:
            digest.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    else:
        for i in range(len(data)):
            image = data[i][0] if isinstance(data[i], (tuple, list)) else data[i]
            digest.update(image.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
