"""The `pdae` command: a table of commands. The module of one is imported when it is run, or its help asked for."""
import argparse
import os
import shlex
import signal
import sys
import threading
import warnings
from contextlib import contextmanager
from importlib import import_module

from ..warning import PDAEWarning

COMMANDS = {  # name -> (its module, where add_NAME adds its options to a parser; what it does)
    "pretrain": ("train", "train a diffusion model (the DPM)"),
    "train": ("train", "train a PDAE on a frozen DPM, a Diff-AE, or a classifier of noisy images"),
    "latent": ("train", "train a latent DPM, which draws new codes"),
    "reconstruct": ("pictures", "encode images and rebuild them"),
    "interpolate": ("pictures", "images between two images"),
    "edit": ("pictures", "give images more or less of an attribute"),
    "sample": ("pictures", "draw new images"),
    "probe": ("pictures", "fit linear probes of attributes, for edit"),
    "doctor": ("doctor", "what is right or wrong with a trained model"),
    "evaluate": ("evaluate", "measure reconstructions; the paper's tables, in small or from its authors' files"),
    "export": ("export", "write a PDAE as ONNX graphs, for other runtimes"),
    "presets": ("about", "list the presets, or the settings of one"),
    "info": ("about", "what a model file holds"),
}
EXAMPLES = """examples:
  pdae pretrain --data digits --out runs/dpm
  pdae train --dpm runs/dpm/model.safetensors --data digits --out runs/pdae
  pdae pretrain --data my_photos --size 64 --set unet.base_channels=48 --out runs/photos
  pdae train --dpm hf:google/ddpm-celebahq-256 --data my_photos --out runs/mine
  pdae presets peeps
  pdae reconstruct photo.png drawing.png --model digits --out rebuilt.png
  pdae interpolate one.png other.png --model digits --out between.png
  pdae probe --model digits --data digits --out probe.safetensors
  pdae edit one.png --model digits --probe probe.safetensors --attribute 8 --out edited.png
  pdae sample --model digits --plain --out samples.png
  pdae doctor runs/pdae/model.safetensors
  pdae evaluate --model digits --count 200 --json digits.json
  pdae export digits --onnx digits_onnx
  pdae info runs/pdae/model.safetensors

A run that was stopped goes on when the same command is given again. Several GPUs:
  torchrun --nproc_per_node 4 -m pdae_lite pretrain --data lmdb:ffhq256.lmdb --preset ffhq128 --out runs/ffhq"""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a command as Ctrl-C does."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, and whose help says every default."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}; `{self.prog} --help` says more\n")


class Formatter(argparse.HelpFormatter):
    """Help with the defaults that there are."""

    def _get_help_string(self, action):
        plain = action.default in (None, argparse.SUPPRESS, []) or action.default is False or "(default" in action.help
        return action.help if plain else f"{action.help} (default: %(default)s)"


def main(argv: list[str] | None = None) -> int:
    """Run a command: 0; or 2 after one line on standard error; 130 after Ctrl-C, 143 after SIGTERM."""
    words = sys.argv[1:] if argv is None else [*argv]
    name = words[0] if words and words[0] in COMMANDS else ""
    who = f"pdae {name}".rstrip()
    with _surroundings(who):
        try:
            _run(name, words)
            sys.stdout.flush()  # now, while what goes wrong can be said
            return 0
        except SystemExit as e:  # after --help, or a complaint of the parser
            return e.code
        except KeyboardInterrupt as e:
            print(f"\n{who}: stopped{f'; {e}' if str(e) else ''}", file=sys.stderr)
            return 143 if isinstance(e, Terminated) else 130
        except Exception as e:
            if not _familiar(e):
                raise
            print(f"{who}: {' '.join(str(e).split()) or type(e).__name__}", file=sys.stderr)
            return 2


def _run(name: str, words: list[str]) -> None:
    parser = Parser(prog="pdae", description="Turn a pre-trained diffusion model into an autoencoder.", epilog=EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for each, (module, what) in COMMANDS.items():
        command = commands.add_parser(each, help=what, formatter_class=Formatter)
        if each == name:
            getattr(import_module(f".{module}", __package__), f"add_{name}")(command)
    args = parser.parse_args(words)
    if not name:
        parser.print_help()
        return
    args.line = shlex.join(["pdae", *words])
    args.run(args)


def _familiar(e: Exception) -> bool:
    """Whether an exception tells the user something. (Of imports, only an extra's can be missing.)"""
    if isinstance(e, RuntimeError):
        return type(e).__name__ == "TrainingError" or "memory" in str(e)
    return isinstance(e, (ValueError, OSError, ImportError, MemoryError))


@contextmanager
def _surroundings(who: str):
    """What a command meets: closed streams, poor encodings, SIGTERM, and the library's warnings, a line each."""
    if None in (sys.stdin, sys.stdout, sys.stderr):  # closed: the next file would take the number, and C's messages
        while os.open(os.devnull, os.O_RDWR) < 3:
            pass
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")

    def show(message, category, *rest):
        if issubclass(category, PDAEWarning):
            print(f"{who}: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            usual(message, category, *rest)

    def terminate(*_):
        raise Terminated

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main_thread else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PDAEWarning)
            usual, warnings.showwarning = warnings.showwarning, show
            yield
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
