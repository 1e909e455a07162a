"""Pictures in and out of the command line: images read, grids written, each with a record of how it was made."""
import json
from pathlib import Path

from .settings import UsageError


def png(path: str) -> Path:
    """The path of a PNG file to write, or a UsageError."""
    if Path(path).suffix.lower() != ".png":
        raise UsageError(f"--out {path}; want a file name that ends in .png")
    return Path(path)


def write_record(args, out: Path, models: dict, **numbers) -> None:
    """The JSON file beside a picture. The same command on the same machine writes the same bytes."""
    import torch

    from .. import __version__
    from ..checkpoint import write_text

    given = {k: v for k, v in vars(args).items() if k not in ("run", "command")}
    record = {"command": args.command, "arguments": given, "models": models, "numbers": numbers,
              "versions": {"pdae_lite": __version__, "torch": torch.__version__}}
    write_text(out.with_suffix(".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_image(path: str, channels: int, size: int):
    """An image file as float [C, size, size] in [−1, 1]: centre-cropped to a square, resized with antialiasing."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    from ..data.files import flatten

    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with Image.open(path) as opened:
            image = flatten(opened, channels)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        raise UsageError(f"{path}: not a readable image; want PNG, JPEG or another format that Pillow reads") from None
    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    array = torch.from_numpy(np.array(image)).reshape(size, size, channels)
    return array.permute(2, 0, 1).float() / 127.5 - 1


def write_grid(columns, path: Path) -> None:
    """Columns of images [rows, C, H, W] in [−1, 1], the last ones perhaps shorter, as one PNG; free places are white."""
    import torch
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    from ..data.builtin import to_uint8

    columns = [to_uint8(c).cpu() for c in columns if len(c)]
    rows = max(map(len, columns))
    full = [torch.cat([c, c.new_full((rows - len(c), *c.shape[1:]), 255)]) for c in columns]
    grid = make_grid(torch.stack(full, 1).flatten(0, 1), nrow=len(full), padding=2, pad_value=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(grid).save(path)
