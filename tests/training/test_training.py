"""The training loop: every model, precision, memory and speed; averages, and what is trained."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset, TensorDataset
from training_runs import SCHEDULE, SETTINGS, data, dpm, filled, pdae, run, same, weights

from pdae_lite import training
from pdae_lite.applications.latent import LatentConfig, LatentDPM
from pdae_lite.checkpoint import read
from pdae_lite.diffae import DiffAE
from pdae_lite.networks.classifier import ClassifierConfig, NoisyClassifier
from pdae_lite.networks.dpm import as_epsilon
from pdae_lite.networks.encoder import EncoderConfig, LabelEncoder, SemanticEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.schedule import NoiseSchedule
from pdae_lite.training import TrainConfig, batches, learning_rate, train


def diffae():
    torch.manual_seed(0)
    return DiffAE(dpm(z_dim=4), SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 4)), SCHEDULE)


def conditional_estimator():
    torch.manual_seed(0)
    return PDAE(dpm(), LabelEncoder(10, 4), SCHEDULE, form="paper")


def classifier():
    torch.manual_seed(0)
    return NoisyClassifier(ClassifierConfig(UNetConfig(16, 1, 8, (1, 2), 1, (2,))), SCHEDULE)


def latent():
    torch.manual_seed(0)
    return LatentDPM(LatentConfig(z_dim=4, layers=3, width=16, time_channels=8), SCHEDULE)


MODELS = {"DPM": dpm, "class-conditional DPM": lambda: dpm(num_classes=10), "PDAE": pdae,
          "class-conditional G": conditional_estimator,
          "Diff-AE": diffae, "latent DPM": latent, "noisy classifier": classifier}


def fit(kind, out=None, n=20, **changes):
    """Train any of them, on images or on codes."""
    model, images = MODELS[kind](), data(n)
    if kind == "latent DPM":
        images = TensorDataset(torch.randn(n, 4, generator=torch.Generator().manual_seed(0)))
        changes = {"flip": False, "augment": None} | changes
    return train(model, images, schedule=SCHEDULE, out=out, **(SETTINGS | {"steps": 4, "save_every": 2} | changes))


# ---- one loop for all models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_trains_and_resumes_exactly(kind, tmp_path):
    start, straight = weights(MODELS[kind]()), weights(fit(kind).model)
    changed = {k for k, v in straight.items() if not torch.equal(v, start[k])}
    trained = {k for k, p in MODELS[kind]().named_parameters() if p.requires_grad}
    assert changed <= trained and len(changed) > len(trained) / 2
    fit(kind, tmp_path, steps=2)
    assert same(weights(fit(kind, tmp_path).model), straight)


class Items(Dataset):
    """Images that are read one by one."""

    def __init__(self, tensors):
        self.all = tensors

    def __len__(self):
        return len(self.all[0])

    def __getitem__(self, i):
        return self.all[0][i], int(self.all[1][i])


@pytest.mark.parametrize("workers", [0, 2])
def test_images_from_workers_are_those_from_memory(workers, tmp_path):
    result = [train(dpm(), d, schedule=SCHEDULE, out=out,
                    **(SETTINGS | {"steps": 6, "workers": workers, "accumulate": 2}))
              for d, out in ((data(), None), (Items(data().tensors), tmp_path))]
    assert same(*(weights(r.model) for r in result))


def test_data_live_on_the_device_if_they_fit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 8000))
    assert [batches._fits(torch.zeros(n, dtype=torch.uint8), torch.device("cuda")) for n in (999, 1001)] == [True,
                                                                                                             False]
    assert batches._fits(torch.zeros(10**6, dtype=torch.uint8), torch.device("cpu"))


def test_a_loader_for_a_gpu_has_pinned_memory_and_workers(monkeypatch):
    given = {}
    monkeypatch.setattr(batches, "DataLoader", lambda data, **options: given.update(options) or [])
    batches.Batches(Items(data().tensors), TrainConfig(batch_size=8, workers=3), torch.device("cuda"),
                    [torch.arange(8)])
    assert given["pin_memory"] and given["num_workers"] == 3
    asked = [next(given["batch_sampler"]) for _ in range(5)]
    assert [position for b in asked for _, position in b] == list(range(40))
    first = [[i for i, _ in b] for b in asked]
    # two epochs of 20
    assert ([len(b) for b in first] == [8] * 5 and sorted(sum(first, [])) == sorted(2 * list(range(20))))
    assert sorted(sum(first, [])[:20]) == list(range(20))


def test_only_images_are_flipped():
    with pytest.raises(ValueError, match=r"flip=True.*data have shape \[8, 4\]"):
        fit("latent DPM", flip=True)


# ---- precision -------------------------------------------------------------------------------------------------------


def test_bf16_where_it_pays_and_float32_where_it_matters(monkeypatch, tmp_path):
    model, seen = pdae(), {"normalised": set(), "convolved": set(), "losses": set(), "noisy": set()}
    usual_norm, usual_noise = F.group_norm, type(SCHEDULE).add_noise

    def group_norm(x, *args):
        seen["normalised"].add(x.dtype)
        return usual_norm(x, *args)

    def add_noise(self, *args):
        x_t = usual_noise(self, *args)
        seen["noisy"].add(x_t.dtype)
        return x_t

    def loss(*args):
        value = usual_loss(*args)
        seen["losses"].add(value.dtype)
        return value

    usual_loss = training.default_loss(model, SCHEDULE, TrainConfig())
    monkeypatch.setattr(F, "group_norm", group_norm)
    monkeypatch.setattr(type(SCHEDULE), "add_noise", add_noise)
    for m in model.modules():
        if isinstance(m, (nn.Conv2d, nn.Conv1d, nn.Linear)):
            m.register_forward_hook(lambda m, inputs, output: seen["convolved"].add(output.dtype))
    run(tmp_path, model, steps=2, precision="bf16", loss=loss)
    assert seen == {"convolved": {torch.bfloat16}} | dict.fromkeys(("normalised", "losses", "noisy"), {torch.float32})
    state, _ = read(tmp_path / "checkpoints" / "step_000000002.safetensors")
    assert {v.dtype for v in state.values()} == {torch.float32}  # weights, their average, Adam's moments


@pytest.mark.parametrize("channels_last", [True, False])
def test_convolutions_see_channels_last(channels_last):
    model, seen = pdae(), []
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_pre_hook(lambda m, inputs: seen.append(
                all(v.is_contiguous(memory_format=torch.channels_last) for v in (inputs[0], m.weight))))
    run(model=model, steps=1, channels_last=channels_last)
    assert len(seen) > 40 and all(seen) == channels_last


def test_compiled_the_step_is_one_graph(monkeypatch):
    """torch.compile traces model and loss, once, without a break (here without generating code, which takes a
    minute)."""
    compile_, calls = torch.compile, []

    def compiled(module, **options):
        calls.append(options)
        return compile_(module, backend="eager", fullgraph=True, **options)

    def fresh():  # schedules too, which keep what they have brought to a device
        torch.manual_seed(0)
        schedule = NoiseSchedule.linear(50, 1e-3, 0.3)
        return PDAE(as_epsilon(dpm(), "v", NoiseSchedule.linear(50, 1e-3, 0.3)), pdae().encoder, schedule,
                    precondition="v")

    settings = SETTINGS | {"steps": 3, "precision": "bf16"}
    straight = train(fresh(), data(), **settings)
    monkeypatch.setattr(torch, "compile", compiled)
    torch._dynamo.utils.counters.clear()
    result = train(fresh(), data(), **settings, compile=True)
    assert calls == [{"dynamic": False}] and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert same(weights(result.model), weights(straight.model))


# ---- nothing waits ---------------------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Counts copies between devices. Values of a tensor on the device "meta" can't be read at all: asking raises an
    error."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.to.device) and to is not None:
            self.count += torch.device(to) != args[0].device
        if func is torch.ops.aten.copy_.default:
            self.count += args[0].device != args[1].device
        return func(*args, **kwargs)


def steps_on_meta(monkeypatch, steps=3, **changes):
    """Train where no value can be read, as if on a GPU with the fused Adam; the copies of each step but the first."""
    class Enough(Exception):
        pass

    class Adam(AdamW):
        def __init__(self, *args, fused, **kwargs):
            super().__init__(*args, **kwargs)
            self.defaults["fused"] = True
            counts.clear()

        def step(self):
            assert self.found_inf.device.type == "meta"
            counts.append(copies.count)
            if len(counts) == steps:
                raise Enough

    counts, copies = [], Copies()
    monkeypatch.setattr("accelerate.Accelerator.device", torch.device("meta"))
    monkeypatch.setattr(torch.optim, "AdamW", Adam)
    with copies, pytest.raises(Enough):
        fit(n=1000, **{"steps": 100, "log_every": 100, "save_every": 100} | changes)
    return [b - a for a, b in zip(counts, counts[1:])]


@pytest.mark.parametrize("kind", ["PDAE", "class-conditional G", "Diff-AE", "latent DPM", "noisy classifier"])
def test_between_log_steps_nothing_is_read_from_the_device_and_nothing_copied_to_it(kind, monkeypatch):
    assert steps_on_meta(monkeypatch, kind=kind) == [0, 0]


def test_reads_and_copies_would_be_seen(monkeypatch):
    def copies(model, x_0, t, eps, y):
        return torch.ones(50).to(t.device)[t].mean() * model(x_0, t).mean()

    def reads(model, x_0, t, eps, y):
        return model(x_0, t).mean() * float(x_0.mean())

    assert steps_on_meta(monkeypatch, kind="latent DPM", loss=copies) == [1, 1]
    with pytest.raises(RuntimeError, match="meta"):
        steps_on_meta(monkeypatch, kind="latent DPM", loss=reads)
    with pytest.raises(RuntimeError, match="meta"):
        steps_on_meta(monkeypatch, kind="latent DPM", log_every=2)


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


def test_what_is_frozen_stays_out():
    model = dpm()
    model.time_embed.requires_grad_(False)
    before = weights(model)
    after = weights(run(model=model, steps=3, weight_decay=0.1).model)
    assert (all(torch.equal(after[k], before[k]) for k in before if k.startswith("time_embed"))
            and not same(after, before))


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


def test_the_frozen_dpm_never_builds_a_graph():
    model, seen = pdae(), []
    outputs = []
    for name in ("features", "eps"):
        def watched(*args, method=getattr(model, name)):
            with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x) or x, lambda x: x):
                outputs.append(method(*args))
            return outputs[-1]

        setattr(model, name, watched)
    run(model=model, steps=2)
    assert len(outputs) == 4 and not seen
    assert not any(v.requires_grad for o in outputs for v in ([o] if torch.is_tensor(o) else [o.emb, o.h, *o.skips]))
    assert all(p.grad is None and not p.requires_grad for p in model.dpm.parameters())


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
    assert {k.removeprefix("ema.") for k in groups["ema"]} == {k.removeprefix("model.")
                                                               for k in groups["model"]} == trainable
    assert sum(k.endswith(".exp_avg") for k in groups["optimizer"]) == len(list(model.trainable().parameters()))
    assert header["step"] == 4 and set(groups) == {"model", "ema", "optimizer"}


def test_a_seed_is_a_run():
    def seeded(seed):
        model = pdae(dropout=0.1)
        torch.rand(seed)  # whatever was drawn before
        return weights(run(model=model, seed=seed, steps=5).model)

    first = seeded(4)
    assert same(seeded(4), first) and not same(seeded(5), first)


def test_micro_batches_are_one_batch(tmp_path):
    losses, gradients = [], []
    for n in (1, 4):
        losses.append(run(tmp_path / str(n), filled(pdae()), steps=1, accumulate=n, grad_clip=1e9).history[0]["loss"])
        state, _ = read(tmp_path / str(n) / "checkpoints" / "step_000000001.safetensors")
        # Adam's running mean is (1 − β₁) g
        gradients.append({k: v / 0.1 for k, v in state.items() if k.endswith(".exp_avg")})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for k, v in gradients[0].items():
        torch.testing.assert_close(gradients[1][k], v, rtol=0, atol=1e-5)


def test_learning_rate():
    config = TrainConfig(steps=100, lr=2.0, warmup=10, decay=0.4)
    rates = [learning_rate(config, s) for s in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert rates[10:61] == [2.0] * 51
    assert (rates[80] == pytest.approx(1.0) and rates[70] == pytest.approx(1 + 0.5**0.5)
            and rates[100] == pytest.approx(0, abs=1e-12))
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert {learning_rate(TrainConfig(lr=2.0), s) for s in (0, 5, 9999)} == {2.0}
    assert [h["lr"] for h in run(steps=5).history] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 1e-3])


def test_timesteps_are_spread_over_the_batch():
    t = torch.stack([training.loop._timesteps(0, step, torch.arange(10), 10, 50) for step in range(400)])
    assert bool((torch.sort(t // 5, dim=1).values == torch.arange(10)).all())  # one in each tenth
    counts = torch.bincount(t.flatten(), minlength=50)
    assert len(counts) == 50 and float((counts - 80).abs().max()) < 45  # 80 of each expected, standard deviation 8
    parts = [training.loop._timesteps(0, 3, index, 10, 50) for index in torch.arange(10).split(4)]
    assert torch.equal(torch.cat(parts), t[3])


@pytest.mark.parametrize(("changes", "message"), [
    ({"steps": 0}, "steps=0"), ({"batch_size": 0}, "batch_size=0"), ({"precision": "fp8"}, "fp8"),
    ({"augment": "cutout"}, "cutout"),
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


@pytest.mark.parametrize("name, value",
                         [("grad_clip", -1.0), ("grad_clip", float("nan")), ("ema", 1.5), ("ema", -0.1), ("decay", 2.0),
                          ("warmup", -1), ("lr", float("inf")), ("lr", -1.0), ("seed", -1), ("workers", -2),
                          ("weight_decay", -0.1), ("gamma", float("nan")), ("steps", 0), ("batch_size", 2.5)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("clip", [0, None])
def test_no_clipping_trains_all_the_same(clip):
    free, clipped = (train(dpm(), data(20), schedule=SCHEDULE, steps=2, batch_size=4, lr=1e-2, grad_clip=c,
                           progress=False).model
                     for c in (clip, 1e9))
    for a, b in zip(free.parameters(), clipped.parameters()):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(free.parameters(), dpm().parameters()))


def test_the_callers_random_state_stays_and_callbacks_see_eval_mode():
    model, seen = dpm(), []
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    train(model, data(20), schedule=SCHEDULE, steps=3, batch_size=4, log_every=1, progress=False,
          callback=lambda step, model: seen.append(model.training))
    assert torch.equal(torch.rand(3), want) and seen == [False] * 3
