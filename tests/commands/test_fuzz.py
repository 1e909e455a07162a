"""Any command with any options on any files ends with 0, or with 2 and one line that says why; and no file that was
there changes.

The cases are drawn from the parsers themselves, so that an option that is added is tried, too. Hypothesis goes through
their numbers only, each case is drawn by its own: what hypothesis draws depends on which modules were imported before.
"""
import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from random import Random

import command_files
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pdae_lite.commands import main

CASES, PROCESSES = 520, 20
ONNX = find_spec("onnx") and find_spec("onnxruntime")
LEFT_OUT = {"compile", "help"}  # minutes of compiling
SLOW = ["doctor", "export", "presets"]  # seconds each
OFTEN = [name for name in main.COMMANDS if name not in SLOW] * 3 + SLOW + ["sample", "edit", "reconstruct", "train"]

# Values by the name of an option: good ones, which fit each other or are made to by `fitting`; and bad ones.
MODELS = (["pdae.safetensors"] * 3 + ["other.safetensors"],
          ["broken.safetensors", "dpm.safetensors", "latent.safetensors", "probe.safetensors", "cut.safetensors",
           "nowhere", "photos", "text.txt", "empty", "one.png", "", "adm:", "hf:photos", "hf:./no/where",
           "adm:text.txt", "adm:cut.safetensors,deep.json",
           "adm:pdae.safetensors,settings.yml", "released:text.txt", "released:pdae.safetensors,settings.yml",
           "released:empty,labels.json", "\udce9", "a\0b", "x" * 300])
DPMS = ["dpm.safetensors", *MODELS[0]], MODELS[1]
LATENTS = ["latent.safetensors", "old_latent.safetensors"], ["narrow_latent.safetensors", *MODELS[1]]
PROBES = ["probe.safetensors", "old_probe.safetensors"], ["narrow_probe.safetensors", *MODELS[1]]
DATA = (["photos", "classes:classes", "classes", "ct.npy"],
        ["classes:photos", "nowhere", "empty", "", ".", "classes:", "lmdb:photos",
                                                   "lmdb:text.txt", "lmdb:", "torchvision:", "torchvision:svhn",
                                                   "torchvision:mnist:nowhere", "digits", "stack:text.txt", "\udce9"])
IMAGES = ["one.png", "two.jpg", "photos/3.png"], ["cut.png", "text.txt", "empty", "nowhere.png", "photos", "",
                                                  "\udce9.png", "labels.json"]
PNG = (["x.png", "new/x.PNG"],
       ["labels.png", "one.png", "photos/0.png", "text.txt/x.png", "photos", "x.gif", "", "a\0.png", "\udce9.png",
        f"{'x' * 252}.png", "/dev/null"])
FOLDER = ["run"], ["text.txt", "photos", "", "/dev/null", "\udce9", "a\0b", "text.txt/run"]
PROBE = ["x.safetensors"], ["pdae.safetensors", "x.png", "dpm.safetensors", "labels.safetensors"]
JSON = (["x.json", "new/x.json"],
        ["labels.json", "deep.json", "pdae.safetensors", "text.txt", "photos", "", "\udce9.json", "/dev/null"])
INTEGERS = (["1", "2", "3", "12"],
            ["0", "-1", "19", "99999999999", "1" * 400, "many", "1e3", "1.5", "", "nan", "٣", "0x10"])
NUMBERS = (["0.1", "0.5", "1"], ["0", "-1", "nan", "inf", "-inf", "1e30", "1e-30", "1e999", "much", ""])
NAMES = ["train.lr", "train.flip", "train.augment", "train.seed", "train.ema", "train.grad_clip", "train.weight",
         "train.gamma", "train.warmup", "train.decay", "train.accumulate", "train.workers", "lmdb.start", "lmdb.crop",
         "encoder.z_dim", "encoder.channels", "latent.layers", "latent.width", "unet.channel_mult",
         "unet.base_channels", "unet.dropout", "unet.data_range", "unet.num_heads", "prediction", "precondition",
         "adm.num_heads", "train", "train.", ".", "", "unet.unet"]
VALUES = ["1", "2", "8", "0", "-1", "0.5", "nan", "none", "true", "affine", "8,8", "1,2", "v", "x", "", "min_snr", "3",
          "-8,8", "1" * 30]
SETTINGS = (["train.lr=1e-3", "train.flip=true", "train.augment=affine", "train.ema=0.9", "train.grad_clip=none",
             "train.warmup=3", "train.decay=0.5", "train.accumulate=2"],
            [f"{n}={v}" for n in NAMES for v in VALUES] + NAMES)
POOLS = {"model": MODELS, "file": DPMS, "dpm": DPMS, "latent": LATENTS, "probe": PROBES, "data": DATA, "train": DATA,
         "images": IMAGES, "json": JSON,
         "page": (["page", "new/page"], ["text.txt", "photos", "", "/dev/null", "\udce9"]),
         "onnx": (["graphs", "new/graphs"], ["text.txt", "photos", "", "/dev/null", "\udce9"]), "settings": SETTINGS,
         "each": (["each"], ["text.txt", "photos", "", "new/each", "/dev/null"]),
         "inception": (["nowhere"], ["text.txt"]), "attribute": (["dark"], ["tall", "", "\udce9"]),
         "keep": (["round"], ["dark", "tall"]),
         "released": (["photos"], ["nowhere"]), "preset": (["digits"], ["peeps", "dogs", ""]),
         "name": (["digits", "peeps64"], ["dogs", ""]), "steps": (["2", "3"], ["2,3", "1001", "x"]),
         "checks": (["rebuilds", "fill,z"], ["hair", "", ","]),
         "device": (["cpu"], ["cuda", "cuda:9", "meta", "abacus", ""]),
         "size": (["16"], ["32", "20", "0", "-1", "many", "8"]), "weight": (["v", "simple"], ["heavy", ""]),
         "set": (["ffhq"], ["cats", "celeba64"]), "count": (["10", "12"], INTEGERS[1])}
PAPER = ("table", "samples", "lpips", "latent", "force", "dtype", "protocol", "released", "set", "long_inversion",
         "inception")
TINY = ["unet.base_channels=8", "unet.channel_mult=1,2"]


def options(command: str) -> list[argparse.Action]:
    """What a command takes, as its parser says."""
    parser = main.Parser(prog=f"pdae {command}")
    getattr(import_module(f"pdae_lite.commands.{main.COMMANDS[command][0]}"), f"add_{command}")(parser)
    return [a for a in parser._actions if a.dest not in LEFT_OUT]


def is_decimal(kind) -> bool:
    """Whether a type of the command line makes decimal numbers of its words."""
    for text in ("3", "20", "0.5"):
        with contextlib.suppress(argparse.ArgumentTypeError):
            return kind is not None and isinstance(kind(text), float)
    return False


def pool(action: argparse.Action, command: str) -> tuple[list[str], list[str]]:
    """Good and bad values of an option."""
    if action.dest == "out":
        return {"probe": PROBE, "pretrain": FOLDER, "train": FOLDER, "latent": FOLDER}.get(command, PNG)
    if action.choices is not None:
        return [str(c) for c in action.choices], ["other", ""]
    return POOLS.get(action.dest) or (NUMBERS if is_decimal(action.type) else INTEGERS)


def fitting(command: str, given: dict[str, list[str]]) -> dict[str, list[str]]:
    """Good values, each by the name of its option, made to fit each other: a command that does its work."""
    need, leave = {}, ["download", "prompt", "label"]
    if command in ("pretrain", "train", "latent"):
        method = given.get("method", ["pdae"])[0] if command == "train" else command
        need["size"] = ["16"]
        if "labels" in given or method == "classifier":
            need["data"] = ["classes:classes"]
            leave += ["warm_encoder"]
        if method == "classifier":
            leave += ["labels", "weight", "warm_encoder"]
        if method == "latent":
            leave += ["weight"]
        if method == "pdae":
            need["dpm"] = given.get("dpm", ["dpm.safetensors"])
            leave += ["dpm_by"]
        else:
            leave += ["dpm_by", *(["dpm"] if method != "pretrain" or "labels" in given else [])]
        if method in ("pretrain", "diffae", "classifier"):
            need["settings"] = TINY
    elif command == "sample":
        if "plain" in given:
            leave += ["latent", "off_last", "force"]
        else:
            need |= {"latent": given.get("latent", ["latent.safetensors"]), "force": []}
    elif command == "edit":
        need |= {"probe": given.get("probe", ["probe.safetensors"]), "force": []}
    elif command == "probe":
        need["data"] = ["classes:classes"]
    elif command == "export":
        need |= {"file": ["pdae.safetensors"], "onnx": given.get("onnx", ["graphs"])}
        leave += ["page", "data", "probe", "force"]
    elif command in ("doctor", "evaluate"):
        need |= {"data": ["classes:classes"], "file" if command == "doctor" else "model": ["pdae.safetensors"]}
        leave += PAPER if command == "evaluate" else ["train"]
    return {dest: words for dest, words in (given | need).items() if dest not in leave}


def case(number: int) -> list[str]:
    """A command line. Every other one is made to do its work."""
    random = Random(number)
    command, whole = OFTEN[number % len(OFTEN)], number // len(OFTEN) % 2 == 0
    actions, given = options(command), {}
    for action in actions:
        if action.required or not action.option_strings or action.dest in ("steps", "count") or random.random() < 0.25:
            count = {None: 1, "+": random.randint(1, 2), "?": random.random() < 0.8,
                     0: 0}.get(action.nargs, action.nargs)
            values = pool(action, command)
            given[action.dest] = [random.choice(values[not whole and random.random() < 0.25]) for _ in range(count)]
            if action.dest == "value_range" and (whole or random.random() < 0.5):
                given[action.dest] = random.choice([["-160", "240"], ["0", "1"], ["20", "80.5"]])
    if whole or random.random() < 0.5:  # else: each value good, perhaps, but not together
        given = fitting(command, given)
    argv, named = [command], []
    for action in actions:
        for words in [] if action.dest not in given else [given[action.dest]]:
            if not action.option_strings:
                argv += words
            else:
                for part in [[w] for w in words] if action.dest in ("settings", "keep") else [words]:
                    named += [random.choice(action.option_strings), *part]
    argv += named
    if not whole and random.random() < 0.15:  # a word too many, or too few
        place = random.randrange(len(argv))
        argv[place:place + 1] = random.choice([[], ["--nonsense"], ["--"], [argv[place], "x"], ["-n"]])
    return limited(argv)


def limited(argv: list[str]) -> list[str]:
    """Nothing that takes minutes, or fetches things."""
    if "--download" in argv:
        argv = [a for a in argv if not a.startswith("torchvision:m")]
    if "--table" in argv or "--protocol" in argv:
        argv = [a for a in argv if a != "--lpips"]
    if argv[:1] in (["pretrain"], ["train"], ["latent"]):
        argv += ["--steps", "1", "--batch-size", "2"]
    return argv


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The files, in the working directory."""
    folder = command_files.fill(tmp_path_factory.mktemp("files"))
    (folder / "run").mkdir()
    before, silent = os.getcwd(), os.environ.get("TQDM_DISABLE")
    os.chdir(folder)
    os.environ["TQDM_DISABLE"] = "1"
    yield folder
    os.chdir(before)
    os.environ.pop("TQDM_DISABLE") if silent is None else os.environ.update(TQDM_DISABLE=silent)


def contents(folder) -> dict:
    return {p: None if p.is_dir() else p.read_bytes() for p in folder.rglob("*")}


TOLD = "doesn't say which", "don't say which", "can't be read", "are taken to be"  # of what goes before an error


def check(argv: list[str], code: int, err: str) -> None:
    """0; or 2, and one line, after those of warnings."""
    lines = err.splitlines()
    assert code in (0, 2), (argv, code, err)
    assert "Traceback" not in err and (code == 0 or lines), (argv, err)
    if code == 2:
        assert all(line.startswith("pdae") for line in lines) and len(lines) <= 3, (argv, err)
        assert all(any(word in line for word in TOLD) for line in lines[:-1]), (argv, err)


def restore(folder, before: dict) -> None:
    for p in sorted(set(folder.rglob("*")) - before.keys(), reverse=True):
        shutil.rmtree(p) if p.is_dir() else p.unlink()


seen: list[tuple[list[str], int]] = []


def test_any_command_line_in_one_process(here):
    before = contents(here)

    @settings(max_examples=CASES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(range(CASES)))
    def each(number):
        argv = case(number)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main(argv)
        seen.append((argv, code))
        check(argv, code, err.getvalue())
        restore(here, before)

    each()
    assert contents(here) == before  # nothing was written over
    succeeded = Counter(argv[0] for argv, code in seen if argv and code == 0)
    assert len(seen) == CASES and 0.2 < succeeded.total() / CASES < 0.8
    assert all(succeeded[name] >= 2 for name in main.COMMANDS if name != "export" or ONNX), succeeded


def test_some_of_them_as_processes(here, tmp_path):
    """The same code, and nothing that a process adds to the line."""
    def run(case):
        argv, code = case
        own = shutil.copytree(here, tmp_path / str(seen.index(case)))
        done = subprocess.run([sys.executable, "-m", "pdae_lite", *map(os.fsencode, argv)], cwd=own,
                              capture_output=True, timeout=300)
        check(argv, done.returncode, done.stderr.decode(errors="replace"))
        assert done.returncode == code, (argv, code, done)

    fit = [c for c in seen if c[0] and not any("\0" in word for word in c[0])]
    chosen = fit[::len(fit) // PROCESSES][:PROCESSES]
    assert len(chosen) == PROCESSES
    with ThreadPoolExecutor(max(1, min(4, len(os.sched_getaffinity(0))))) as pool:
        list(pool.map(run, chosen))


assert torch  # imported with everything else before the clock runs
