"""Tiny trainings for the tests, and a server that has everything imported and forks processes which train, so that
killing one costs a fork and not an import of torch."""
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from pdae_lite.networks.encoder import EncoderConfig, SemanticEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.schedule import NoiseSchedule
from pdae_lite.training import TrainingError, train

SCHEDULE = NoiseSchedule.linear(50, 1e-3, 0.3)
SETTINGS = dict(steps=20, batch_size=8, lr=1e-3, warmup=3, ema=0.9, flip=True, augment="affine", seed=4, save_every=4,
                log_every=1, progress=False)


def data(n=20):
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randint(0, 256, (n, 1, 16, 16), generator=g, dtype=torch.uint8), torch.arange(n) % 10)


def dpm(base_channels=8, **changes):
    torch.manual_seed(0)
    return UNet(UNetConfig(16, 1, base_channels, (1, 2), 1, (2,), **changes))


def pdae(**changes):
    torch.manual_seed(0)
    return PDAE(dpm(**changes), SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 4)), SCHEDULE, form="paper")


def filled(model):
    """The model with no parameter at zero, so that each has a gradient in the first step."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return model


def run(out=None, model=None, **changes):
    return train(model or dpm(), data(), schedule=SCHEDULE, out=out, **(SETTINGS | changes))


def run_float64(out=None, **changes):
    """Weights, data and loss in float64, on 10 images of random numbers."""
    def loss(model, x_0, t, eps, y):
        return (eps.double() - model(SCHEDULE.add_noise(x_0, t, eps.double()), t)).square().mean()

    images = torch.rand(10, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    return train(dpm().double(), TensorDataset(images), schedule=SCHEDULE, out=out, loss=loss,
                 **(SETTINGS | {"augment": None} | changes))


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# ---- processes that may be killed ------------------------------------------------------------------------------------

RUNS = {"dpm": run, "float64": run_float64, "pdae": lambda out, **changes: run(out, pdae(dropout=0.1), **changes),
        "filled": lambda out, **changes: run(out, filled(pdae()), **changes)}
REFUSED, FAILED, NOT_ALLOWED = 3, 4, 5  # exit codes


class ForkServer:
    """A process of one thread with torch and accelerate imported. Use it as a context manager."""

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def train(self, *jobs, kill_after=None):
        """Train all jobs at once, each in a process of its own: [exit code, what it said, seconds] for each.

        A job: `run`, a name in RUNS; `out`; `changes` of its settings; `env`; `aim`: a moment to die at, [name, n] for
        `kill_at`;
        `tmpfs`: options of a small file system to put at `out`. `kill_after`: seconds until all are killed.
        """
        print(json.dumps({"jobs": jobs, "kill_after": kill_after}, default=str), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def kill_at(name, nth):
    """SIGKILL this process when it calls a function for the n-th time: "mkstemp", "fsync", "replace" or "unlink"; or
    "half_written": "fsync", when half of what is to be synced has been lost."""
    module, function = {"mkstemp": (tempfile, "mkstemp"), "half_written": (os, "fsync")}.get(name, (os, name))
    original, calls = getattr(module, function), 0

    def killing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == nth:
            if name == "half_written":
                os.truncate(args[0], os.fstat(args[0]).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, function, killing)


def mount_tmpfs(folder, options):
    """Put a file system at `folder` that only this process sees: `options` "ro", or such as "size=64k". Exits if it may
    not."""
    libc = ctypes.CDLL(None, use_errno=True)
    CLONE_NEWNS, MS_RDONLY, MS_REC, MS_PRIVATE = 0x20000, 1, 0x4000, 1 << 18
    Path(folder).mkdir(parents=True, exist_ok=True)
    mount = (b"none", str(folder).encode(), b"tmpfs",
             *((MS_RDONLY, None) if options == "ro" else (0, options.encode())))
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) or libc.mount(*mount):
        os._exit(NOT_ALLOWED)


def do(job, log):
    """Do a job and leave; never returns."""
    code = FAILED
    with open(log, "w", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            os.environ.update(job.get("env", {}))
            if "tmpfs" in job:
                mount_tmpfs(job["out"], job["tmpfs"])
            if "aim" in job:
                kill_at(*job["aim"])
            RUNS[job["run"]](job["out"], **job.get("changes", {}))
            code = 0
        except TrainingError as e:
            print(e)
            code = REFUSED
        except BaseException:
            traceback.print_exc()
    os._exit(code)


def serve(folder):
    """Read orders from stdin, one in a line; answer each in one line."""
    from accelerate.state import PartialState

    torch.set_num_threads(1)
    run(f"{folder}/first", steps=1)  # so that everything is imported
    PartialState._reset_state()
    for line in sys.stdin:
        order, running, done, killed = json.loads(line), {}, {}, False
        start = time.perf_counter()
        for i, job in enumerate(order["jobs"]):
            log = Path(folder, str(i))
            log.write_text("")
            pid = os.fork()
            if pid == 0:
                do(job, log)
            running[pid] = log
        while len(done) < len(running):
            seconds = time.perf_counter() - start
            if order["kill_after"] is not None and seconds > order["kill_after"] and not killed:
                for pid in running.keys() - done.keys():
                    os.kill(pid, signal.SIGKILL)
                killed = True
            for pid in running.keys() - done.keys():
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    done[pid] = [os.waitstatus_to_exitcode(status), running[pid].read_text(), seconds]
            time.sleep(0.002)
        print(json.dumps([done[pid] for pid in running]), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        serve(folder)
