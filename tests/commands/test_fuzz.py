"""Any command with any options on any files ends with 0, or with 2 and one line that says why; and no file that was there changes.

The cases are drawn from the parsers themselves, so that an option that is added is tried, too. They are the same in every run.
"""
import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import command_files
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pdae_lite.commands import main

CASES, PROCESSES = 520, 20
LEFT_OUT = {"compile", "help"}  # minutes of compiling

# Values by the name of an option, good ones and bad ones.
MODELS = (["pdae.safetensors"] * 3 + ["other.safetensors", "dpm.safetensors", "broken.safetensors"],
          ["latent.safetensors", "probe.safetensors", "cut.safetensors", "nowhere", "photos", "text.txt", "empty", "one.png", "", "adm:",
           "hf:photos", "hf:./no/where", "adm:text.txt", "adm:cut.safetensors,deep.json", "adm:pdae.safetensors,settings.yml",
           "released:text.txt", "released:pdae.safetensors,settings.yml", "released:empty,labels.json", "\udce9", "a\0b", "x" * 300])
LATENTS = (["latent.safetensors"] * 2 + ["old_latent.safetensors"], ["narrow_latent.safetensors", *MODELS[1]])
PROBES = (["probe.safetensors"] * 2 + ["old_probe.safetensors"], ["narrow_probe.safetensors", *MODELS[1]])
DATA = (["photos", "classes:classes", "classes"], ["classes:photos", "nowhere", "empty", "", ".", "classes:", "lmdb:photos", "lmdb:text.txt",
                                                   "lmdb:", "torchvision:", "torchvision:svhn", "torchvision:mnist:nowhere", "digits", "\udce9"])
IMAGES = (["one.png", "two.jpg", "photos/3.png"], ["cut.png", "text.txt", "empty", "nowhere.png", "photos", "", "\udce9.png", "labels.json"])
PNG = (["x.png", "new/x.PNG"], ["labels.png", "one.png", "photos/0.png", "text.txt/x.png", "photos", "x.gif", "", "a\0.png", "\udce9.png",
                                f"{'x' * 252}.png", "/dev/null", "/nowhere/at/all.png"])
JSON = (["x.json", "new/x.json"], ["labels.json", "deep.json", "pdae.safetensors", "text.txt", "photos", "", "\udce9.json", "/dev/null"])
INTEGERS = (["1", "2", "3", "12"], ["0", "-1", "19", "99999999999", "1" * 400, "many", "1e3", "1.5", "", "nan", "٣", "0x10"])
NUMBERS = (["0.1", "0.5", "1"], ["0", "-1", "nan", "inf", "-inf", "1e30", "1e-30", "1e999", "much", ""])
NAMES = (["train.lr", "train.flip", "train.augment", "train.seed", "train.ema", "train.grad_clip", "train.weight", "train.gamma", "train.warmup",
          "train.decay", "train.accumulate", "train.workers", "lmdb.start", "lmdb.crop", "encoder.z_dim", "encoder.channels", "latent.layers",
          "latent.width", "unet.channel_mult", "unet.base_channels", "unet.dropout", "unet.data_range", "unet.num_heads", "prediction",
          "precondition", "adm.num_heads"], ["train", "train.", ".", "", "unet.unet", "latent.z_dim"])
VALUES = ["1", "2", "8", "0", "-1", "0.5", "nan", "none", "true", "affine", "8,8", "1,2", "v", "x", "", "min_snr", "3", "-8,8", "1" * 30]
POOLS = {"model": MODELS, "file": MODELS, "dpm": MODELS, "latent": LATENTS, "probe": PROBES, "data": DATA, "train": DATA, "images": IMAGES,
         "json": JSON, "onnx": (["graphs", "new/graphs"], ["text.txt", "photos", "", "/dev/null", "\udce9"]),
         "each": (["each"], ["text.txt", "photos", "", "new/each", "/dev/null"]), "inception": ([], ["text.txt", "nowhere"]),
         "attribute": (["dark", "round"], ["tall", "", "\udce9"]), "keep": (["round"], ["dark", "tall"]), "released": ([], ["photos", "nowhere"]),
         "preset": (["digits", "peeps"], ["dogs", ""]), "name": (["digits", "ffhq128"], ["dogs", ""]), "steps": (["2"] * 6, ["2,3", "1000", "x"]),
         "checks": (["rebuilds", "fill,z"], ["hair", "", ","]), "device": (["cpu"], ["cuda", "cuda:9", "meta", "abacus", ""]),
         "size": (["16", "32"], ["20", "0", "-1", "many", "8"]), "weight": (["v", "simple"], ["heavy", ""]), "set": ([], ["cats", "celeba64"])}


def options(command: str) -> list[argparse.Action]:
    """What a command takes, as its parser says."""
    parser = main.Parser(prog=f"pdae {command}")
    getattr(import_module(f"pdae_lite.commands.{main.COMMANDS[command][0]}"), f"add_{command}")(parser)
    return [a for a in parser._actions if a.dest not in LEFT_OUT]


def parsed(kind):
    """What a type of the command line makes of a number that it takes."""
    for text in ("3", "20", "0.5"):
        try:
            return kind(text)
        except argparse.ArgumentTypeError:
            continue
    return "[0-9]"


def values(action: argparse.Action, command: str):
    """A strategy for one value: mostly a good one."""
    if action.dest == "settings":
        pool = [(f"{n}={v}") for n in NAMES[0] for v in VALUES], [f"{n}={v}" for n in NAMES[1] for v in VALUES[:2]] + NAMES[0]
    elif action.dest == "out":
        folder = (["run"] * 3, ["text.txt", "photos", "", "/dev/null", "\udce9", "a\0b", "/proc/nowhere"])
        pool = {"probe": (["x.safetensors"], ["pdae.safetensors", "x.png", "dpm.safetensors", "labels.safetensors"]),
                "pretrain": folder, "train": folder, "latent": folder}.get(command, PNG)
    elif action.choices is not None:
        pool = [str(c) for c in action.choices], ["other", ""]
    else:
        whole = "[0-9]" if action.type is None else parsed(action.type)
        pool = POOLS.get(action.dest) or (INTEGERS if isinstance(whole, int) else NUMBERS if isinstance(whole, float) else INTEGERS)
    good, bad = pool
    return st.sampled_from(bad) if not good else st.one_of(*[st.sampled_from(good)] * 5, st.sampled_from(bad))


@st.composite
def cases(draw) -> list[str]:
    """A command line."""
    command = draw(st.sampled_from([*main.COMMANDS, "sample", "edit", "reconstruct", "evaluate"]))
    named, placed = [], []
    for action in options(command):
        if action.option_strings and not action.required and draw(st.integers(0, 9)) > 2 and action.dest not in ("steps", "count"):
            continue
        count = {None: 1, "+": draw(st.integers(1, 2)), "?": draw(st.integers(0, 1)), 0: 0}.get(action.nargs, action.nargs)
        words = [draw(values(action, command)) for _ in range(count)]
        if action.option_strings:
            named += [draw(st.sampled_from(action.option_strings)), *words]
        else:
            placed += words
    argv = [command, *placed, *named]
    for _ in range(max(0, draw(st.integers(0, 12)) - 10)):  # now and then a word too many, or too few
        place = draw(st.integers(0, len(argv) - 1))
        argv[place:place + 1] = draw(st.sampled_from([[], ["--nonsense"], ["--"], [argv[place], "x"], ["-n"]]))
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


def check(argv: list[str], code: int, err: str) -> None:
    """0; or 2, and one line, after those of warnings."""
    lines = err.splitlines()
    assert code in (0, 2), (argv, code, err)
    assert "Traceback" not in err and (code == 0 or lines), (argv, err)
    if code == 2:
        assert all(line.startswith("pdae") for line in lines) and len(lines) <= 3, (argv, err)
        assert len(lines) == 1 or all("doesn't say which" in line or "can't be read" in line for line in lines[:-1]), (argv, err)


def restore(folder, before: dict) -> None:
    for p in sorted(set(folder.rglob("*")) - before.keys(), reverse=True):
        shutil.rmtree(p) if p.is_dir() else p.unlink()


seen: list[tuple[list[str], int]] = []


def test_any_command_line_in_one_process(here):
    before = contents(here)

    @settings(max_examples=CASES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(cases())
    def each(argv):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main.main(argv)
        seen.append((argv, code))
        check(argv, code, err.getvalue())
        restore(here, before)

    each()
    assert contents(here) == before  # nothing was written over
    assert len(seen) >= 500 and 0.05 < sum(code == 0 for _, code in seen) / len(seen) < 0.8
    assert {argv[0] for argv, code in seen if argv and code == 0} >= set(main.COMMANDS)


def test_some_of_them_as_processes(here):
    """The same code, and nothing that a process adds to the line."""
    def run(case):
        argv, code = case
        done = subprocess.run([sys.executable, "-m", "pdae_lite", *map(os.fsencode, argv)], capture_output=True, timeout=120)
        check(argv, done.returncode, done.stderr.decode(errors="replace"))
        assert done.returncode == code, (argv, code, done)

    fit = [c for c in seen if c[0] and not any("\0" in word for word in c[0])]
    chosen = fit[::len(fit) // PROCESSES][:PROCESSES]
    assert len(chosen) == PROCESSES
    with ThreadPoolExecutor(max(1, min(4, len(os.sched_getaffinity(0))))) as pool:
        list(pool.map(run, chosen))


assert torch  # imported with everything else before the clock runs
