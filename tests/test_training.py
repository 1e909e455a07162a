"""The training loop: exact resume, kills, damaged checkpoints, bad batches, processes, averages."""
import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from pdae_lite import training
from pdae_lite.checkpoint import load_model, read
from pdae_lite.encoder import EncoderConfig, SemanticEncoder
from pdae_lite.model import PDAE
from pdae_lite.schedule import NoiseSchedule
from pdae_lite.training import TrainConfig, TrainingError, learning_rate, train
from pdae_lite.unet import UNet, UNetConfig

ROOT = Path(__file__).parent.parent
SCHEDULE = NoiseSchedule.linear(50, 1e-3, 0.3)
SETTINGS = dict(steps=20, batch_size=8, lr=1e-3, warmup=3, ema=0.9, flip=True, augment="affine", seed=4, save_every=4, log_every=1,
                progress=False)


def data(n=20):
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randint(0, 256, (n, 1, 16, 16), generator=g, dtype=torch.uint8), torch.arange(n) % 10)


def dpm(base_channels=8):
    torch.manual_seed(0)
    return UNet(UNetConfig(16, 1, base_channels, (1, 2), 1, (2,)))


def pdae():
    torch.manual_seed(0)
    return PDAE(dpm(), SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 4)), SCHEDULE)


def run(out=None, model=None, **changes):
    return train(model or dpm(), data(), schedule=SCHEDULE, out=out, **(SETTINGS | changes))


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of 20 steps: its weights and its history."""
    result = run(tmp_path_factory.mktemp("whole"))
    return weights(result.model), result.history


def assert_is_the_whole_run(result, whole):
    assert same(weights(result.model), whole[0])
    assert [(h["step"], h["loss"]) for h in result.history] == [(h["step"], h["loss"]) for h in whole[1]]
    assert same(weights(load_model(result.path)), whole[0])


# ---- resuming -----------------------------------------------------------------------------------------------------


def test_twelve_steps_and_eight_more_are_twenty(whole, tmp_path):
    first = run(tmp_path, steps=12)
    assert not same(weights(first.model), whole[0])
    assert_is_the_whole_run(run(tmp_path), whole)


def test_an_interrupted_run_goes_on(whole, tmp_path):
    def stop(step, model):
        if step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback=stop)
    assert_is_the_whole_run(run(tmp_path), whole)


def test_a_complete_run_returns_at_once(whole, tmp_path):
    run(tmp_path)

    def never(*_):
        raise AssertionError("trained again")

    assert_is_the_whole_run(run(tmp_path, loss=never), whole)


def test_pdae_resumes_exactly(tmp_path):
    straight = run(model=pdae())
    run(tmp_path, pdae(), steps=7)
    assert same(weights(run(tmp_path, pdae()).model), weights(straight.model))


# Started as a program of its own. It kills itself in the middle of a run: after a given step, or while it is writing
# the checkpoint of that step.
PROGRAM = """
import os, signal, sys
sys.path.insert(0, "tests")
import test_training as t
from pdae_lite import checkpoint, training

out, kill, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
here = 0
def callback(step_now, model):
    global here
    here = step_now
    if kill == "step" and step_now == step:
        os.kill(os.getpid(), signal.SIGKILL)
if kill == "write":
    fsync = os.fsync
    def killing(handle):
        if here == step:
            os.truncate(handle, 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)
    checkpoint.os.fsync = killing
t.run(out, callback=callback)
"""


def start(*args, **env):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, args)], cwd=ROOT, env=os.environ | env,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_twice_and_started_again(whole, tmp_path):
    for kill, step in (("step", 6), ("write", 12)):
        process = start(tmp_path, kill, step)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, output
    # the kill during the writing of step 12 left the checkpoint of step 8 as the newest
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))[-1] == "step_000000008.safetensors"
    process = start(tmp_path, "never", 0)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert same(weights(load_model(tmp_path / "model.safetensors")), whole[0])


def test_damaged_newest_checkpoint(whole, tmp_path, capsys):
    run(tmp_path, steps=12)
    newest = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1]
    with open(newest, "rb+") as f:
        f.truncate(newest.stat().st_size // 2)
    seen = []
    result = run(tmp_path, callback=lambda step, model: seen.append(step))
    assert seen[0] == 9  # from the one before, step 8
    assert_is_the_whole_run(result, whole)
    assert newest.name in "".join(capsys.readouterr())


def test_only_two_checkpoints_are_kept(tmp_path):
    run(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_000000016.safetensors", "step_000000020.safetensors"]


def test_resuming_another_run_is_refused(tmp_path):
    run(tmp_path, steps=4)
    for changes, message in (({"lr": 2e-3}, "lr=0.001, this one has lr=0.002"), ({"seed": 5}, "seed=4"),
                             ({"batch_size": 4}, "batch_size=8")):
        with pytest.raises(TrainingError, match=message) as e:
            run(tmp_path, **changes)
        assert "another --out" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(TrainingError, match="a run with another model; choose another --out"):
        run(tmp_path, dpm(16))
    with pytest.raises(TrainingError, match="a run with another schedule"):
        train(dpm(), data(), schedule=NoiseSchedule.linear(40, 1e-3, 0.3), out=tmp_path, **SETTINGS)
    with pytest.raises(TrainingError, match="a run with another data set"):
        train(dpm(), data(30), schedule=SCHEDULE, out=tmp_path, **SETTINGS)
    run(tmp_path, steps=5, save_every=2, log_every=3)  # these may change


def test_a_pdae_does_not_resume_on_another_dpm(tmp_path):
    run(tmp_path, pdae(), steps=4)
    other = pdae()
    with torch.no_grad():
        other.dpm.time_embed[0].weight.add_(0.1)
    with pytest.raises(TrainingError, match="a run with another frozen DPM"):
        run(tmp_path, other)


def test_a_damaged_header_falls_back_too(tmp_path, whole):
    run(tmp_path, steps=12)
    newest = tmp_path / "checkpoints/step_000000012.safetensors"
    newest.write_bytes(newest.read_bytes().replace(b"sha256", b"sha257", 1))
    assert same(weights(run(tmp_path).model), whole[0])


def test_a_skipped_batch_does_not_count_in_the_loss():
    always_one = iter([1.0, float("nan"), 1.0, float("inf")])

    def loss(model, x_0, t, eps, y):
        return model(x_0, t).mean() * 0 + next(always_one)

    result = train(dpm(), data(), schedule=SCHEDULE, loss=loss, **(SETTINGS | {"steps": 4, "log_every": 4}))
    assert result.history[-1]["loss"] == pytest.approx(1.0) and result.history[-1]["skipped"] == 2


def test_what_cannot_be_saved_is_said_at_the_start(tmp_path):
    class Foreign(UNet):
        pass

    with pytest.raises(ValueError, match="Foreign can't be saved"):
        run(tmp_path, Foreign(dpm().config), steps=10**6)


# ---- bad batches, bad disks -------------------------------------------------------------------------------------------


def failing(*calls):
    """The usual loss, but NaN on the given calls (counted from 1)."""
    usual, count = training.default_loss(dpm(), SCHEDULE, TrainConfig()), [0]

    def loss(*args):
        count[0] += 1
        return usual(*args) * (float("nan") if count[0] in calls else 1.0)

    return loss


def test_a_non_finite_batch_is_skipped_and_reported(capsys):
    steps = {}
    result = run(steps=5, loss=failing(3), callback=lambda step, model: steps.update({step: weights(model)}))
    assert [h.get("skipped", 0) for h in result.history] == [0, 0, 1, 0, 0]
    assert same(steps[2], steps[3]) and not same(steps[1], steps[2]) and not same(steps[3], steps[4])
    assert all(bool(v.isfinite().all()) for v in result.model.state_dict().values())
    assert all(h["loss"] == h["loss"] for h in result.history)
    assert "step 3: 1 non-finite batches skipped" in "".join(capsys.readouterr())


def test_nan_images_are_skipped():
    images = torch.zeros(16, 1, 16, 16)
    images[3] = float("nan")  # one image of 16: every second batch of 8
    result = train(dpm(), TensorDataset(images), schedule=SCHEDULE, **(SETTINGS | {"steps": 8, "log_every": 8}))
    assert result.history[-1]["skipped"] == 4
    assert all(bool(v.isfinite().all()) for v in result.model.state_dict().values())


def test_ten_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(TrainingError, match="10 batches in a row.*lower the learning rate") as e:
        run(tmp_path, loss=failing(*range(3, 13)))
    assert "step 12" in str(e.value) and "\n" not in str(e.value)
    assert run(loss=failing(*range(3, 12))).history[-1]["step"] == 20  # nine are borne


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_output_that_can_not_be_written(number, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    run(tmp_path, steps=4)
    before = sorted((tmp_path / "checkpoints").iterdir())
    monkeypatch.setattr("pdae_lite.checkpoint.os.fsync", fails)
    with pytest.raises(TrainingError, match=f"can't write .*{os.strerror(number)}.*another --out") as e:
        run(tmp_path)
    assert "\n" not in str(e.value)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before  # and no temporary file


def test_output_under_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="can't write .*file"):
        run(tmp_path / "file", steps=2)


# ---- averages, and what is trained -----------------------------------------------------------------------------------


def test_the_result_is_the_average():
    """e ← d e + (1−d) w with d = min(ema, (1+n)/(10+n)), beginning with the weights after the first step."""
    seen = []
    result = run(steps=9, ema=0.5, callback=lambda step, model: seen.append(weights(model)))
    average = seen[0]
    for n, now in enumerate(seen[1:], 1):
        d = min(0.5, (1 + n) / (10 + n))
        average = {k: d * average[k] + (1 - d) * now[k] for k in now}
    for k, v in result.model.state_dict().items():
        torch.testing.assert_close(v, average[k], rtol=1e-5, atol=1e-6)
    assert not same(weights(result.model), seen[-1]) and not result.model.training


def test_buffers_are_not_averaged():
    class Counting(UNet):
        def __init__(self, config):
            super().__init__(config)
            self.register_buffer("calls", torch.zeros(()), persistent=True)

        def forward(self, *args):
            self.calls += 1
            return super().forward(*args)

    torch.manual_seed(0)
    assert float(run(model=Counting(dpm().config), steps=6).model.calls) == 6


def test_the_frozen_dpm_is_in_no_optimizer_and_no_average(tmp_path):
    model = pdae()
    before, trained_before = weights(model.dpm), weights(model.trainable())
    run(tmp_path, model, steps=4)
    assert same(weights(model.dpm), before) and not same(weights(model.trainable()), trained_before)
    tensors, header = read(tmp_path / "checkpoints" / "step_000000004.safetensors")
    groups = {}
    for key in tensors:
        groups.setdefault(key.split(".", 1)[0], []).append(key)
    trainable = set(model.trainable().state_dict())
    assert {k.removeprefix("ema.") for k in groups["ema"]} == {k.removeprefix("model.") for k in groups["model"]} == trainable
    assert sum(k.endswith(".exp_avg") for k in groups["optimizer"]) == len(list(model.trainable().parameters()))
    assert header["step"] == 4 and set(groups) == {"model", "ema", "optimizer"}


def test_seeds(whole):
    assert same(weights(run().model), whole[0])
    assert not same(weights(run(seed=5).model), whole[0])
    state = torch.random.get_rng_state()
    torch.rand(7)
    assert same(weights(run().model), whole[0])  # whatever was drawn before
    torch.random.set_rng_state(state)


def test_micro_batches_are_one_batch():
    one, four = (run(steps=1, lr=1e-3, accumulate=n).history[0]["loss"] for n in (1, 4))
    assert one == pytest.approx(four, rel=1e-5)


def test_learning_rate():
    config = TrainConfig(steps=100, lr=2.0, warmup=10, decay=0.4)
    rates = [learning_rate(config, s) for s in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert rates[10:61] == [2.0] * 51
    assert rates[80] == pytest.approx(1.0) and rates[70] == pytest.approx(1 + 0.5**0.5) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert {learning_rate(TrainConfig(lr=2.0), s) for s in (0, 5, 9999)} == {2.0}
    assert [h["lr"] for h in run(steps=5).history] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 1e-3])


def test_timesteps_are_spread_over_the_batch():
    t = torch.stack([training._timesteps(0, step, torch.arange(10), 10, 50) for step in range(400)])
    assert bool((torch.sort(t // 5, dim=1).values == torch.arange(10)).all())  # one in each tenth
    counts = torch.bincount(t.flatten(), minlength=50)
    assert len(counts) == 50 and float((counts - 80).abs().max()) < 45  # 80 of each expected, standard deviation 8
    parts = [training._timesteps(0, 3, index, 10, 50) for index in torch.arange(10).split(4)]
    assert torch.equal(torch.cat(parts), t[3])


@pytest.mark.parametrize(("changes", "message"), [
    ({"steps": 0}, "steps=0"), ({"batch_size": 0}, "batch_size=0"), ({"precision": "fp8"}, "fp8"), ({"augment": "cutout"}, "cutout"),
    ({"batch_size": 8, "accumulate": 3}, "batch_size=8 doesn't divide"), ({"weight": "p3"}, "p3"),
])
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_missing_schedule_and_empty_data():
    with pytest.raises(ValueError, match="schedule is missing"):
        train(dpm(), data(), **SETTINGS)
    with pytest.raises(ValueError, match="data is empty"):
        train(dpm(), data(0), schedule=SCHEDULE, **SETTINGS)


# ---- two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    """Two gloo processes with 4 images each against one with 8: gradients, weights and what the model says.

    A bias that a GroupNorm of one channel per group removes has gradient zero but for rounding, which Adam scales up to
    whole steps; such values are no part of the model and are left out by the size of their gradient.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = [start(tmp_path / "two", "never", 0, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                       MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true") for rank in (0, 1)]
    outputs = [p.communicate(timeout=180)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    one = run(tmp_path / "one").model
    two = load_model(tmp_path / "two" / "model.safetensors")
    (state_1, _), (state_2, _) = (read(tmp_path / n / "checkpoints" / "step_000000020.safetensors") for n in ("one", "two"))
    compared = 0
    for i, (name, p) in enumerate(one.named_parameters()):
        gradient_1, gradient_2 = (s[f"optimizer.{i}.exp_avg"] for s in (state_1, state_2))  # its running mean
        torch.testing.assert_close(gradient_2, gradient_1, rtol=0, atol=1e-5)
        real = state_1[f"optimizer.{i}.exp_avg_sq"].sqrt() > 1e-7
        compared += int(real.sum())
        torch.testing.assert_close(two.get_parameter(name)[real], p[real], rtol=0, atol=1e-5)
    assert compared > 0.7 * sum(p.numel() for p in one.parameters()), compared
    x, t = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 10, 30, 49])
    torch.testing.assert_close(two(x, t), one(x, t), rtol=0, atol=1e-5)
    assert not same(weights(one), weights(dpm()))
