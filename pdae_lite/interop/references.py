"""Pre-trained DPMs by one word: what ships, files of ours, and other people's."""
import re
from collections.abc import Callable
from pathlib import Path

import yaml

from ..checkpoint import CheckpointError, load_model, model_file
from ..pdae import PDAE
from ..schedule import NoiseSchedule
from ..storage import file_digest
from . import adm, diffusers_files
from .codec import Codec, codec_from_diffusers
from .diffae_release import load_released_diffae_dpm
from .pdae_release import load_released_dpm, released_schedule
from .weights import read_yaml

MODEL = "name of a shipped model (digits), or a model file"
DPM = """a pre-trained DPM: a file of `pdae pretrain`; the name of a shipped model (digits); hf:FOLDER or hf:HUB/ID, a
UNet2DModel or pipeline of diffusers (a hub id is downloaded if it isn't in the cache); adm:FILE[,CONFIG],
guided-diffusion; released:FILE[,CONFIG], of the PDAE authors; diffae:FILE[,CONFIG], of Diff-AE's. CONFIG is YAML or
JSON (default: the one beside FILE, and for diffae: what FILE says itself)"""
KINDS = ("hf", "adm", "released", "diffae")
TOLD = {"prompt": ("hf",), "label": ("hf", "adm")}  # what a conditional DPM is always told -> kinds that may have one
ADM_SCHEDULE = ("noise_schedule", "diffusion_steps")  # of guided-diffusion's scripts; its networks don't show them
TUPLES = ("attention_resolutions", "channel_mult")


def kind_of(name: str) -> str | None:
    """hf, adm, released or diffae, for a reference that begins with it."""
    kind, colon, rest = name.partition(":")
    return kind if colon and rest and kind in KINDS and not Path(name).is_file() else None


def load_dpm(name: str, settings: tuple[str, ...] | list[str] = (), keep: str = "value", size: int | None = None,
             prompt: str | None = None, label: int | None = None):
    """(dpm, schedule) of a reference; see `DPM`.

    Args:
        settings: "adm.NAME=VALUE" each, arguments of an adm: network that win over those of its CONFIG.
        keep: what a file of a PDAE on it holds: "value", its weights, or "reference", where they are (hf: only).
        size: side of an adm: network's images, if its CONFIG doesn't say it: the weights don't show it.
        prompt, label: what a conditional DPM is told from now on, text (hf:) or the number of a class (hf:, adm:).

    Raises:
        ValueError: a reference or setting that makes no sense.  CheckpointError: a missing, damaged or foreign file.
    """
    kind = kind_of(name)
    if settings and kind != "adm":
        raise ValueError(f"setting {settings[0].partition('=')[0]!r} is for adm:FILE, not for {name}")
    if keep == "reference" and kind != "hf":
        raise ValueError(f"keep='reference' is for hf:FOLDER and hf:HUB/ID, not for {name}")
    told = {what: value for what, value in {"prompt": prompt, "label": label}.items() if value is not None}
    for what in told:
        if kind not in TOLD[what]:
            raise ValueError(f"{what} is for {' and '.join(f'{k}:' for k in TOLD[what])}, not for {name}")
    if kind == "hf":
        return _read(diffusers_files.from_diffusers, name.partition(":")[2], keep, **told)
    if kind == "adm":
        return _from_adm(*_file_and_config(name), settings, size, **told)
    if kind == "released":
        return _from_release(*_file_and_config(name))
    if kind == "diffae":
        path, config = _file_and_config(name)
        return load_released_diffae_dpm(path, None if Path(name.partition(":")[2]).is_file() else config)
    return _own(name)


def load_codec(name: str, keep: str = "value") -> Codec | None:
    """The codec of the pipeline, or of the PDAE, that a reference names; None: it is of images. For after `load_dpm`.
    """
    kind = kind_of(name)
    if kind is None:
        return getattr(load_model(model_file(name)), "codec", None)
    source = name.partition(":")[2]
    has = kind == "hf" and diffusers_files.has_codec(source)
    return _read(codec_from_diffusers, source, keep) if has else None


def image_shape(dpm, codec: Codec | None = None) -> tuple[int, int]:
    """(side, channels) of the images that a network takes, or that its codec does.

    Raises:
        ValueError: it doesn't say, or they aren't square.
    """
    size, channels = dpm.config.image_size, dpm.config.in_channels
    if size is None:
        raise ValueError("the DPM doesn't say the size of its images; add sample_size to its config.json (hf:), or "
                         "give the size (adm:)")
    if not isinstance(size, int) and size[0] != size[1]:
        raise ValueError(f"the DPM takes images of {size[0]}×{size[1]}; want square ones")
    size = size if isinstance(size, int) else size[0]
    return (size, channels) if codec is None else (size * codec.factor, codec.in_channels)


def fingerprint(name: str, model=None) -> dict:
    """What a record says of a model: its name, and a SHA-256 of its file, or of a diffusers model's weights."""
    kind = kind_of(name)
    if kind == "hf":
        source = next(part.source for part in model.modules() if getattr(part, "source", None))
        return {"name": name, "sha256": source.sha256}
    return {"name": name, "sha256": file_digest(model_file(name) if kind is None else _file_and_config(name)[0])}


# ---- each kind ----------------------------------------------------------------------------------------------------


def _own(name: str):
    path = model_file(name)
    model = load_model(path)
    schedule = getattr(model, "schedule", None)
    if isinstance(model, PDAE):
        metadata, model = model.metadata, model.dpm
        model.metadata = metadata
    if not hasattr(model, "trunk"):
        raise CheckpointError(f"{path}: holds a {type(model).__name__}; want a DPM or a PDAE")
    return model, NoiseSchedule.linear() if schedule is None else schedule  # `pdae pretrain` knows no other


def _read(reader: Callable, source: str, keep: str, **told):
    """What a reader of diffusers' files finds in a folder or the hub's cache; what isn't there is fetched from the
    hub."""
    try:
        return reader(source, keep=keep, **told)
    except CheckpointError as e:
        if Path(source).exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", source):  # no hub id
            raise CheckpointError(str(e).replace(", or pass download=True to fetch it", "")) from None
        return reader(source, keep=keep, download=True, **told)


def _from_adm(path: Path, config: Path | None, settings, size: int | None, label: int | None = None):
    arguments = {} if config is None else dict(read_yaml(config, ()))  # JSON is YAML
    for setting in settings:
        key, equals, text = setting.removeprefix("adm.").partition("=")
        if not equals:
            raise ValueError(f"setting {setting!r}; want adm.NAME=VALUE, for example adm.num_heads=4")
        arguments[key.strip()] = _value(key.strip(), text)
    if size is not None:
        arguments.setdefault("image_size", size)
    name, T = (arguments.pop(key, default) for key, default in zip(ADM_SCHEDULE, ("linear", 1000)))
    if name not in ("linear", "cosine") or not isinstance(T, int) or T < 2:
        raise ValueError(f"adm.noise_schedule={name}, adm.diffusion_steps={T}; want linear or cosine, and an integer")
    # As guided-diffusion stretches its linear schedule: β_t · T stays.
    schedule = NoiseSchedule.cosine(T) if name == "cosine" else NoiseSchedule.linear(T, 0.1 / T, 20 / T)
    return adm.load_adm(path, arguments, label), schedule


def _from_release(path: Path, config: Path | None):
    if config is None:
        raise ValueError(f"{path} needs the YAML file that came with it; put it beside it, or write "
                         f"released:{path},CONFIG.yml")
    described = read_yaml(config, ()).get("diffusion_config")
    schedule = released_schedule(described, config) if isinstance(described, dict) else NoiseSchedule.linear()
    return load_released_dpm(path, config), schedule


# ---- files --------------------------------------------------------------------------------------------------------


def _file_and_config(name: str) -> tuple[Path, Path | None]:
    """KIND:FILE[,CONFIG]; without CONFIG the .yml, .yaml or .json with FILE's name, or else the only one beside it."""
    text = name.partition(":")[2]
    first, comma, last = text.rpartition(",")
    path, config = (Path(first), Path(last)) if comma and not Path(text).is_file() else (Path(text), None)
    if config is not None or not path.is_file():
        return path, config
    endings = (".yml", ".yaml", ".json")
    same = [path.with_suffix(ending) for ending in endings if path.with_suffix(ending).is_file()]
    found = same or sorted(p for p in path.parent.iterdir() if p.suffix in endings and p.is_file())
    return path, found[0] if same or len(found) == 1 else None


def _value(name: str, text: str):
    """What a setting says, as YAML reads it: a number, true or false, null, or a word; a tuple, with commas."""
    try:
        if name in TUPLES:
            return tuple(int(part) for part in text.strip("()[] ").split(",") if part.strip())
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        want = "whole numbers separated by commas" if name in TUPLES else "a number, true or false, or a word"
        raise ValueError(f"setting adm.{name}={text}; want {want}") from None
