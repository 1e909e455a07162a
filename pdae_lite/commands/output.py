"""What commands write: tables on the screen, pictures, JSON; each place is looked at before the work begins."""
import json
import tempfile
import warnings
from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from .. import __version__
from ..checkpoint import model_file, shipped, shipped_file
from ..data import to_uint8
from ..storage import atomic_path, file_digest, write_text
from ..warning import PDAEWarning
from .settings import UsageError

OURS = ({"command", "versions"}, {"attributes", "model"}, {"findings", "file"})  # what JSON of a command has
INPUTS = ("file", "images", "model", "dpm", "latent", "probe", "data", "train", "inception")


# ---- on the screen ------------------------------------------------------------------------------------------------


def table(head, lines, left: tuple[int, ...] = (0,)) -> str:
    """Aligned columns: those in `left` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *lines)]

    def aligned(line) -> str:
        return "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()

    return "\n".join(map(aligned, (head, *lines)))


def shown(value) -> str:
    """A number; an estimate as records have it, {"value", "low", "high"}, with its interval; or – for None."""
    if value is None:
        return "–"
    numbers = [value["value"], value["low"], value["high"]] if isinstance(value, dict) else [value]
    first, *interval = [f"{v:.2e}" if abs(numbers[0]) < 1e-3 else f"{v:.4g}" for v in numbers]
    return f"{first} [{', '.join(interval)}]" if interval else first


# ---- places -------------------------------------------------------------------------------------------------------


def place(args, path: str | Path, ending: str = "", option: str = "--out") -> Path:
    """A file that a command will write.

    Raises:
        UsageError: another ending, an input of the command, JSON that no command wrote, or no place to write.
    """
    path = Path(path)
    if ending and path.suffix.lower() != ending:
        raise UsageError(f"{option} {path}; want a file name that ends in {ending}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path} is a {'folder' if path.is_dir() else 'device'}; want a file")
    if any(path.exists() and path.samefile(given) for given in _inputs(args)):
        raise UsageError(f"{option} {path} would overwrite what the command reads; choose another name")
    if path.is_file() and (option == "--json" or path.suffix == ".json") and not _ours(path, args.command):
        raise UsageError(f"{option}: {path} exists, and no command wrote it; choose another name")
    try:
        folder = next(p for p in path.absolute().parents if p.exists())
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", suffix=".tmp"):  # as `atomic_path` will
            return path
    except OSError as e:
        raise UsageError(f"{option} {path} can't be written ({e.strerror})") from None


def place_with_record(args, path: str, ending: str) -> Path:
    """The same for a file with a .json beside it, without which a model file isn't overwritten."""
    path = place(args, path, ending)
    record = place(args, path.with_suffix(".json"))
    if ending == ".safetensors" and path.exists() and not record.exists():
        raise UsageError(f"--out: {path} exists, and {args.command} didn't write it; choose another name")
    return path


def _inputs(args):
    """Files and folders that the arguments name, as they are and after a KIND: in front of them."""
    for name in INPUTS:
        given = getattr(args, name, None) or ()
        for text in [given] if isinstance(given, str) else given:
            after = text.partition(":")[2]
            yield from (p for p in map(Path, (text, model_file(text), after, *after.split(","))) if p.is_file())


def _ours(path: Path, command: str) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    if isinstance(content, list):  # the history of a run, which goes on
        runs = command in ("pretrain", "train", "latent")
        return runs and all(isinstance(entry, dict) and "step" in entry for entry in content)
    return isinstance(content, dict) and any(keys <= content.keys() for keys in OURS)


def check_partner(args, kind: str, file: Path, metadata: dict) -> None:
    """That a latent DPM or a probe is for the codes of args.model, by the SHA-256 in its file. What ships together is.

    Raises:
        UsageError: it is for those of another model, and --force wasn't given.
    """
    if (args.model, kind) in shipped() and file == shipped_file(args.model, kind):
        return
    own, made_for = file_digest(model_file(args.model)), metadata.get("model_sha256")
    for key in ("model", "codes"):  # of probes: by the command, and those that ship
        if isinstance(metadata.get(key), dict):
            made_for = made_for or metadata[key].get("sha256")
    if made_for is None:
        warnings.warn(f"{file} doesn't say which model's codes it is for; {args.model}'s are assumed", PDAEWarning)
    elif made_for != own and not args.force:
        raise UsageError(f"{file} is for the codes of another model than {args.model} (SHA-256 {str(made_for)[:12]}… "
                         f"for {own[:12]}…); make another {kind}, or add --force")


def whole(model, name: str):
    """A model whose every weight is a number: pictures may come out of another that don't show what is wrong.

    Raises:
        UsageError: one that holds NaN or infinity.
    """
    for part, value in model.state_dict().items():
        if not value.isfinite().all():
            raise UsageError(f"{name}: {part} holds NaN or infinity; `pdae doctor` looks a model over")
    return model


# ---- files --------------------------------------------------------------------------------------------------------


def write_json(path: str | Path, content: dict) -> None:
    """A JSON file."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_record(args, out: Path, models: dict, **numbers) -> None:
    """The JSON file beside a picture. The same command on the same machine writes the same bytes."""
    given = {k: v for k, v in vars(args).items() if k not in ("run", "command", "line")}
    versions = {"pdae_lite": __version__, "torch": torch.__version__}
    write_json(out.with_suffix(".json"), {"command": args.command, "arguments": given, "models": models,
                                          "numbers": numbers, "versions": versions})


def write_grid(columns, path: Path) -> None:
    """Columns of images [rows, C, H, W] in [−1, 1], some perhaps shorter, as one PNG; free places are white."""
    columns = [pixels(c) for c in columns if len(c)]
    rows = max(map(len, columns))
    full = [torch.cat([c, c.new_full((rows - len(c), *c.shape[1:]), 255)]) for c in columns]
    write_png(make_grid(torch.stack(full, 1).flatten(0, 1), nrow=len(full), padding=2, pad_value=255), path)


def write_png(image, path: Path) -> None:
    """One image, uint8 [C, H, W]."""
    with atomic_path(path) as temporary:
        to_pil_image(image).save(temporary, "PNG")


def pixels(images):
    """Images in [−1, 1] as uint8, on the CPU."""
    return to_uint8(images).cpu()
