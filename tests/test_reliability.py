"""Runs that are killed, disks that are full, files that are damaged, batches that are bad, processes that share the
work."""
import errno
import json
import os
import random
import shutil
import signal
import socket

import pytest
import torch
from torch.utils.data import TensorDataset
from training_runs import NOT_ALLOWED, REFUSED, SCHEDULE, SETTINGS, ForkServer, data, dpm, pdae, run, same, weights

from pdae_lite import training
from pdae_lite.checkpoint import CheckpointError, load_model, read, write
from pdae_lite.networks.unet import UNet
from pdae_lite.training import TrainConfig, TrainingError, train
from pdae_lite.warning import PDAEWarning


@pytest.fixture(scope="module")
def server():
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run of 20 steps: its weights and its history."""
    result = run(tmp_path_factory.mktemp("whole"))
    return weights(result.model), result.history


def curve(history):
    return [(h["step"], h["loss"], h["lr"]) for h in history]


def assert_is_the_whole_run(result, whole):
    assert same(weights(result.model), whole[0])
    assert curve(result.history) == curve(whole[1])
    assert same(weights(load_model(result.path)), whole[0])


def checkpoints(out):
    return sorted((out / "checkpoints").glob("step_*.safetensors"))


# ---- kills -----------------------------------------------------------------------------------------------------------


def test_kill_9_at_any_moment(server, tmp_path):
    """The same command until it ends: a PDAE with dropout, two micro-batches, and log steps that are not save steps."""
    def start(out, **how):
        job = {"run": "pdae", "out": out, "changes": {"steps": 16, "save_every": 2, "log_every": 3, "accumulate": 2}}
        aim = {"aim": how.pop("aim")} if "aim" in how else {}
        (code, text, seconds), = server.train(job | aim, **how)
        assert code in (0, -signal.SIGKILL), text
        return code, seconds

    def result(out):
        return (out / "model.safetensors").read_bytes(), curve(json.loads((out / "history.json").read_text()))

    code, seconds = start(tmp_path / "whole")
    assert code == 0
    expected = result(tmp_path / "whole")

    out, saved = tmp_path / "out", []
    # while a checkpoint is written
    for aim in ("mkstemp", 2), ("half_written", 2), ("fsync", 2), ("replace", 1), ("unlink", 2):
        assert start(out, aim=aim)[0] != 0, aim
        saved.append(checkpoints(out)[-1].name[-14:-12])
    assert saved == ["02", "04", "06", "06", "08"]
    assert sum(p.suffix == ".tmp" for p in (out / "checkpoints").iterdir()) == 0
    rng, kills = random.Random(0), 0
    while kills < 10:
        if start(out, kill_after=rng.uniform(0, seconds))[0]:
            kills += 1
        else:  # it came to its end before
            assert result(out) == expected
            shutil.rmtree(out)
    assert start(out)[0] == 0
    assert result(out) == expected
    assert sorted(p.name for p in out.iterdir()) == ["checkpoints", "history.json", "model.safetensors"]


def test_killed_while_the_result_is_written(server, tmp_path):
    job = {"run": "dpm", "out": tmp_path, "changes": {"steps": 4}}
    for aim, left in (("half_written", 2), set()), (("half_written", 2), {"model.safetensors"}):
        assert server.train(job | {"aim": aim})[0][0] == -signal.SIGKILL
        assert {p.name for p in tmp_path.glob("[!.]*")} == left | {"checkpoints"}
    assert server.train(job)[0][0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "history.json", "model.safetensors"]


def test_an_interrupted_run_goes_on(whole, tmp_path):
    def stop(step, model):
        if step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callback=stop)
    assert_is_the_whole_run(run(tmp_path), whole)


# ---- resuming --------------------------------------------------------------------------------------------------------


def test_twelve_steps_and_eight_more_are_twenty(whole, tmp_path):
    first = run(tmp_path, steps=12)
    assert not same(weights(first.model), whole[0])
    assert_is_the_whole_run(run(tmp_path), whole)
    # only two are kept
    assert [p.name for p in checkpoints(tmp_path)] == ["step_000000016.safetensors", "step_000000020.safetensors"]


def test_a_complete_run_returns_at_once(whole, tmp_path):
    run(tmp_path)

    def never(*_):
        raise AssertionError("trained again")

    assert_is_the_whole_run(run(tmp_path, loss=never), whole)


def test_counts_go_on_between_log_steps(tmp_path):
    """Saved at steps 2, 4, …, logged at 5: the loss of five steps, two of them bad, though the run began anew at step
    4."""
    def some_bad(first):
        return failing(*(n for n in (2 - first, 3 - first) if n > 0))

    settings = {"steps": 5, "log_every": 5, "save_every": 2}
    straight = run(loss=some_bad(0), **settings).history
    # its last checkpoint goes:
    run(tmp_path, loss=some_bad(0), **settings | {"steps": 4, "log_every": 10**6, "save_every": 3})
    checkpoints(tmp_path)[-1].unlink()
    assert [p.name[-14:-12] for p in checkpoints(tmp_path)] == ["03"]
    resumed = run(tmp_path, loss=some_bad(3), **settings).history
    assert curve(resumed) == curve(straight) and resumed[0]["skipped"] == straight[0]["skipped"] == 2


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
        train(dpm(), data(), schedule=type(SCHEDULE).linear(40, 1e-3, 0.3), out=tmp_path, **SETTINGS)
    with pytest.raises(TrainingError, match="a run with another data set"):
        train(dpm(), data(30), schedule=SCHEDULE, out=tmp_path, **SETTINGS)
    other = data()
    # as many images, but others: say, the codes of another autoencoder
    other.tensors[0].copy_(other.tensors[0].roll(1, 0))
    with pytest.raises(TrainingError, match="a run with another data set"):
        train(dpm(), other, schedule=SCHEDULE, out=tmp_path, **SETTINGS)
    run(tmp_path, steps=5, save_every=2, log_every=3)  # these may change


def test_a_pdae_does_not_resume_on_another_dpm(tmp_path):
    run(tmp_path, pdae(), steps=4)
    other = pdae()
    with torch.no_grad():
        other.dpm.time_embed[0].weight.add_(0.1)
    with pytest.raises(TrainingError, match="a run with another frozen DPM"):
        run(tmp_path, other)


# ---- damaged checkpoints ---------------------------------------------------------------------------------------------


def test_a_file_cut_or_changed_at_any_byte_is_refused_by_name(tmp_path):
    path, tensors, header = tmp_path / "file.safetensors", {"a": torch.arange(5.0), "b": torch.ones(2, 3)}, {"step": 7}
    write(path, tensors, header)
    good = path.read_bytes()
    for n in range(len(good)):
        path.write_bytes(good[:n])
        with pytest.raises(CheckpointError, match="file.safetensors") as e:
            read(path)
        assert "\n" not in str(e.value)
        path.write_bytes(good[:n] + bytes([good[n] ^ 1]) + good[n + 1:])
        with pytest.raises(CheckpointError, match="file.safetensors"):
            read(path)
    path.write_bytes(good)
    assert read(path)[1] == header and same(read(path)[0], tensors)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, tmp_path):
    run(tmp_path, steps=12)
    before, newest = checkpoints(tmp_path)
    good, rng = newest.read_bytes(), random.Random(0)
    cuts = [0, 1, 8, 9, len(good) - 1] + [rng.randrange(len(good)) for _ in range(10)]
    for damaged in [good[:n] for n in cuts] + [good.replace(b"sha256", b"sha257", 1)]:
        newest.write_bytes(damaged)
        with pytest.warns(PDAEWarning) as said:
            assert run(tmp_path, steps=8).history[-1]["step"] == 8  # where the one before is; nothing left to do
        assert len(said) == 1 and f"{newest.name}: " in str(said[0].message)
    seen = []
    result = run(tmp_path, callback=lambda step, model: seen.append(step))
    assert seen[0] == 9
    assert_is_the_whole_run(result, whole)


def test_nothing_but_damaged_checkpoints(whole, tmp_path):
    run(tmp_path, steps=8)
    for path in checkpoints(tmp_path):
        os.truncate(path, 100)
    with pytest.warns(PDAEWarning) as said:
        assert_is_the_whole_run(run(tmp_path), whole)
    newest, oldest = (str(warning.message) for warning in said)
    assert "step_000000008.safetensors" in newest and "trying the checkpoint before it" in newest
    assert "step_000000004.safetensors" in oldest and "starting anew" in oldest


# ---- bad disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tmpfs", "message"),
                         [("size=1200k", "No space left on device"), ("ro", "Read-only file system")])
def test_a_small_or_read_only_file_system(server, tmp_path, tmpfs, message):
    """1200 kB hold one checkpoint of 919 kB."""
    (code, text, _), = server.train({"run": "dpm", "out": tmp_path / "small", "tmpfs": tmpfs})
    if code == NOT_ALLOWED:
        pytest.skip("this user may not mount a file system")
    assert code == REFUSED and text.count("\n") == 1, text
    assert text.startswith(f"can't write {tmp_path}") and message in text and "another --out" in text


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


def test_what_cannot_be_saved_is_said_at_the_start(tmp_path):
    class Foreign(UNet):
        pass

    with pytest.raises(ValueError, match="Foreign can't be saved"):
        run(tmp_path, Foreign(dpm().config), steps=10**6)


# ---- bad batches -----------------------------------------------------------------------------------------------------


def failing(*calls):
    """The usual loss, but NaN on the given calls (counted from 1)."""
    usual, count = training.default_loss(dpm(), SCHEDULE, TrainConfig()), [0]

    def loss(*args):
        count[0] += 1
        return usual(*args) * (float("nan") if count[0] in calls else 1.0)

    return loss


def test_a_non_finite_batch_is_skipped_and_reported():
    steps = {}
    with pytest.warns(PDAEWarning, match="step 3: 1 non-finite batches skipped"):
        result = run(steps=5, loss=failing(3), callback=lambda step, model: steps.update({step: weights(model)}))
    assert [h.get("skipped", 0) for h in result.history] == [0, 0, 1, 0, 0]
    assert same(steps[2], steps[3]) and not same(steps[1], steps[2]) and not same(steps[3], steps[4])
    assert all(bool(v.isfinite().all()) for v in result.model.state_dict().values())
    assert all(h["loss"] == h["loss"] for h in result.history)


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


def test_a_skipped_batch_does_not_count_in_the_loss():
    always_one = iter([1.0, float("nan"), 1.0, float("inf")])

    def loss(model, x_0, t, eps, y):
        return model(x_0, t).mean() * 0 + next(always_one)

    result = train(dpm(), data(), schedule=SCHEDULE, loss=loss, **(SETTINGS | {"steps": 4, "log_every": 4}))
    assert result.history[-1]["loss"] == pytest.approx(1.0) and result.history[-1]["skipped"] == 2


# ---- two processes ---------------------------------------------------------------------------------------------------


def both(server, job):
    """The job in one process, and in two that share each batch: the last checkpoints of both, and both histories."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    one, two = (job | {"out": job["out"] / name} for name in ("one", "two"))
    ranks = [two | {"env": {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}}
             for rank in (0, 1)]
    for code, text, _ in server.train(one) + server.train(*ranks):
        assert code == 0, text
    states = [read(checkpoints(j["out"])[-1])[0] for j in (one, two)]
    return *states, *(json.loads((j["out"] / "history.json").read_text()) for j in (one, two))


def test_two_processes_have_the_gradients_of_one_with_the_doubled_batch(server, tmp_path):
    """In float32, 4 images each against 8. After one step Adam's running mean is the gradient times 1 − β₁."""
    one, two, history_1, history_2 = both(server,
                                          {"run": "filled", "out": tmp_path, "changes": {"steps": 1, "grad_clip": 1e9}})
    gradients = {k: (one[k] / 0.1, two[k] / 0.1) for k in one if k.endswith(".exp_avg")}
    assert sum(float(a.abs().max()) > 1e-3 for a, _ in gradients.values()) > len(gradients) / 2
    for a, b in gradients.values():
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
    assert history_2[0]["loss"] == pytest.approx(history_1[0]["loss"], rel=1e-6)  # of all images, not of one process's


def test_two_processes_have_the_weights_of_one_after_fifty_steps_of_adam(server, tmp_path):
    """In float64: in float32, where a gradient is nothing but rounding (a bias before a GroupNorm), Adam scales it up
    to whole steps."""
    job = {"run": "float64", "out": tmp_path, "changes": {"steps": 50, "save_every": 50}}
    one, two, history_1, history_2 = both(server, job)
    start, moved = dpm().state_dict(), 0
    for k in (k for k in one if k.startswith(("model.", "ema."))):
        assert one[k].dtype == torch.float64
        torch.testing.assert_close(two[k], one[k], rtol=0, atol=1e-8)
        moved = max(moved, float((one[k] - start[k.split(".", 2)[2]]).abs().max()))
    assert moved > 1e-2
    assert [h["loss"] for h in history_2] == pytest.approx([h["loss"] for h in history_1], rel=1e-6)
