"""What docstrings promise and no other test asks for: numbers, dtypes and ranges, one rule for all; draws, grids,
averages, files."""
import functools
import threading
import warnings

import pytest
import torch
from guided_parts import SCHEDULE, T_BATCH, codes, filled, noise
from guided_parts import pdae as labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from torch.utils.data import TensorDataset

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, metrics, sampling
from pdae_lite.applications.latent import latent_codes
from pdae_lite.counter_rng import PerSample
from pdae_lite.data import sources
from pdae_lite.guidance import batch_map
from pdae_lite.losses import nats, noise_error
from pdae_lite.metrics.intervals import bootstrap, jackknife_variance
from pdae_lite.networks.blocks import check_range
from pdae_lite.networks.encoder import EncoderConfig
from pdae_lite.pdae import scale_at
from pdae_lite.storage import atomic_path, read, to_float32, to_int8, write, write_text
from pdae_lite.training import TrainConfig
from pdae_lite.training.batches import Batches, epoch_order
from pdae_lite.training.resume import Average
from pdae_lite.warning import PDAEWarning

FEW = settings(derandomize=True, deadline=None, max_examples=40)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@functools.cache
def small():
    encoder = SemanticEncoder(EncoderConfig(8, 1, (8, 8), None, z_dim=4))
    return filled(PDAE(UNet(UNetConfig(8, 1, 8, (1, 2), 1, ())), encoder, NoiseSchedule.linear(20, 0.01, 0.4))).eval()


# ---- what data may be ------------------------------------------------------------------------------------------------


def taken(model, x):
    """Which of training, encoding, codes and metrics take images x, and which warn."""
    out = {}
    for name, use in {"train": lambda: Batches(TensorDataset(x), TrainConfig(batch_size=2), torch.device("cpu"),
                                               [torch.arange(2)], 0,
                                               model.data_range),
                      "codes": lambda: latent_codes(model, x), "encode": lambda: model.encode(x),
                      "mse": lambda: metrics.mse(x, x)}.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                use()
                out[name] = "warns" if any("nothing is negative" in str(w.message) for w in said) else "takes"
            except ValueError as e:
                assert "\n" not in str(e)
                out[name] = "refuses"
    return out


@FEW
@given(st.sampled_from([*FLOATS, torch.uint8, torch.int16, torch.int64, torch.bool]), st.floats(-3, 3),
       st.floats(0.01, 3),
       st.sampled_from([None, None, torch.nan, torch.inf]))
def test_training_encoding_and_metrics_take_the_same_data(dtype, low, width, bad):
    model = small()
    x = torch.linspace(low, low + width, 8 * 64).reshape(8, 1, 8, 8).to(dtype)
    if not dtype.is_floating_point:
        x = torch.linspace(0, 255, 8 * 64).reshape(8, 1, 8, 8).to(dtype)
        # what can be scaled is, where the data come from outside
        floats = ("takes" if dtype == torch.uint8 else "refuses")
        assert taken(model, x) == {"train": floats, "codes": floats, "encode": "refuses", "mse": "refuses"}
        return
    if bad is not None:
        x[3, 0, 2, 2] = bad
        assert (taken(model, x) | {"train": ""} == {"train": "", "codes": "refuses", "encode": "refuses",
                                                    "mse": "refuses"})
        return  # a batch with NaN is for the training loop to skip and report
    within = -1.1 <= float(x.min()) and float(x.max()) <= 1.1
    verdict = "refuses" if not within else "warns" if 0 <= float(x.min()) < float(x.max()) <= 1 else "takes"
    assert set(taken(model, x).values()) == {verdict}


def test_one_image_may_be_bright_eight_may_not():
    bright = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_range(bright[:7], (-1.0, 1.0))
        check_range(bright, (0.0, 1.0))
        check_range(bright * 1e6, None)
    with pytest.warns(PDAEWarning, match="nothing is negative"):
        check_range(bright, (-1.0, 1.0))


NUMBERS = ("steps", "batch_size", "accumulate", "lr", "weight_decay", "warmup", "decay", "grad_clip", "ema", "gamma",
           "seed", "save_every", "log_every", "workers")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.sampled_from(NUMBERS),
       st.floats() | st.integers(-3, 3) | st.integers(-2**70, 2**70) | st.sampled_from(["1", True, [1]]))
def test_a_number_of_training_is_in_its_range_or_refused_by_name(name, value):
    try:
        config = TrainConfig(**{name: value})
    except ValueError as e:
        assert f"{name}=" in str(e) and "\n" not in str(e)
    else:
        kept = getattr(config, name)
        assert isinstance(kept, (int, float)) and not isinstance(kept, bool) and abs(kept) < float("inf")
        assert name == "gamma" or kept >= 0


# ---- t, grids, draws -------------------------------------------------------------------------------------------------


@FEW
@given(st.integers(2, 300), st.data())
def test_every_grid_is_increasing_within_its_ends(T, data):
    schedule = NoiseSchedule.linear(T, 1e-4, 0.02)
    steps = data.draw(st.integers(1, T))
    for grid in ("uniform", "paper", "quadratic", "cubic"):
        points = sampling.time_grid(schedule, steps, grid)
        assert points == sorted(set(points)) and points[-1] == T - 1 and points[0] == (0 if grid == "paper" else -1)
        assert len(points) <= steps + 1 and (grid == "paper" or len(points) == steps + 1)
    for bad in (0, -1, T + 1, 1.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="steps="):
            sampling.time_grid(schedule, bad)


@FEW
@given(st.integers(0, 99), st.sampled_from([torch.float32, torch.float64]))
def test_noise_is_added_and_solved_for(t, dtype):
    x_0, eps = noise(dtype=dtype), noise(seed=5, dtype=dtype)
    x_t = SCHEDULE.add_noise(x_0, t, eps)
    near = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(SCHEDULE.predict_x_0(x_t, t, eps), x_0, **near)
    torch.testing.assert_close(SCHEDULE.predict_eps(x_t, t, x_0), eps, **near)
    assert SCHEDULE.at("alpha_bar", t, x_0).dtype == dtype
    for wrong in (-1, 100, 1.0, True, torch.tensor([1.0]), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="t (is|runs from)"):
            SCHEDULE.at("alpha_bar", wrong, x_0)


@pytest.mark.parametrize("eta", [-0.1, float("nan"), float("inf")])
def test_an_eta_that_means_nothing_is_refused(eta):
    refuses("eta=", sampling.ddim, lambda x, t: x, noise(), SCHEDULE, 3, eta)


@FEW
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.integers(0, 2**62), st.randoms())
def test_noise_belongs_to_samples_not_to_batches(index, seed, random):
    order = random.sample(range(len(index)), len(index))
    a, b = PerSample(seed, torch.tensor(index)), PerSample(seed, torch.tensor(index)[order])
    first, second = a.randn((len(index), 2, 3)), a.randn((len(index), 2, 3))
    assert (torch.equal(first[order], b.randn((len(index), 2, 3))) and not torch.equal(first, second)
            and first.dtype == torch.float32)


@FEW
@given(st.integers(1, 40), st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_an_epoch_goes_through_all(n, seed, epoch):
    assert sorted(epoch_order(seed, epoch, n).tolist()) == list(range(n))
    assert torch.equal(epoch_order(seed, epoch, n), epoch_order(seed, epoch, n))
    assert n < 9 or not torch.equal(epoch_order(seed, epoch, n), epoch_order(seed, epoch + 1, n))


@FEW
@given(st.floats(0, 1), st.integers(0, 10**6))
def test_slerp_keeps_lengths_and_ends(w, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(3, 1, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    mixed = sampling.slerp(a, b, w)
    length = (1 - w) * a.flatten(1).norm(dim=1) + w * b.flatten(1).norm(dim=1)
    torch.testing.assert_close(mixed.flatten(1).norm(dim=1), length)
    torch.testing.assert_close(sampling.slerp(a, b, torch.tensor([0.0, 1.0, w]))[:2], torch.stack([a[0], b[1]]))
    torch.testing.assert_close(sampling.slerp(a, a, w), a)
    torch.testing.assert_close(sampling.slerp(a, -a, w), (1 - 2 * w) * a)


def test_scales_are_numbers_one_a_sample_or_functions_of_t():
    x = noise()
    interval, ramp = (lambda t: 2.0 * ((t >= 30) & (t < 70))), (lambda t: 3 * t / 100)
    assert [scale_at(interval, t, x) for t in (29, 30, 69, 70)] == [0, 2, 2, 0] and scale_at(ramp, 50, x) == 1.5
    assert scale_at(ramp, T_BATCH, x).tolist() == pytest.approx([0.03, 1.5, 2.97])
    assert scale_at(torch.tensor([1.0, 0.5, 2.0]), 5, x, 6).tolist() == [0, 0, 0]
    assert scale_at(1.0, T_BATCH, x, 50).tolist() == [0, 1, 1]
    refuses("scale has 2 values for 3 images", scale_at, torch.tensor([1.0, 2.0]), 5, x)
    parts = (x, (torch.zeros(1, 4), torch.zeros(3, 2)), None, torch.tensor(5))
    doubled = batch_map(parts, 3, lambda part: torch.cat([part, part]))
    assert ([len(doubled[0]), len(doubled[1][0]), len(doubled[1][1])] == [6, 1, 6] and doubled[2] is None
            and int(doubled[3]) == 5)


# ---- measuring -------------------------------------------------------------------------------------------------------


def test_errors_depend_on_the_image_and_t_alone():
    x, model = noise(7, dtype=torch.float32).clamp(-1, 1), small()
    whole = noise_error(lambda x: model.dpm, x, SCHEDULE, [1, 50], seed=4)
    torch.testing.assert_close(noise_error(lambda x: model.dpm, x, SCHEDULE, [50], seed=4, batch_size=2), whole[1:],
                               rtol=1e-5, atol=1e-6)
    first = noise_error(lambda x: model.dpm, x[:1], SCHEDULE, [1, 50], seed=4)
    rest = torch.stack([noise_error(lambda x: model.dpm, x[: i + 1], SCHEDULE, [1, 50], seed=4) * (i + 1)
                        for i in range(1, 7)])
    torch.testing.assert_close((first + (rest[0] - first) + (rest[-1] - rest[0])) / 7, whole, rtol=1e-5, atol=1e-6)


def test_nats_interpolate_and_extend():
    line = torch.linspace(0.1, 0.9, 99)
    every = nats(line / 2, line, SCHEDULE, range(1, 100), 64)
    assert nats(line[[0, 40, 98]] / 2, line[[0, 40, 98]], SCHEDULE, [1, 41, 99], 64) == pytest.approx(every, rel=1e-5)
    flat = torch.full((2,), 0.3)
    assert nats(flat / 2, flat, SCHEDULE, [40, 50], 64) == pytest.approx(nats(flat / 2, flat, SCHEDULE, [1, 99], 64),
                                                                         rel=1e-6)
    for ts in ([0, 5], [5], [5, 5], [9, 5]):
        refuses("ts is", nats, flat[: len(ts)], flat[: len(ts)], SCHEDULE, ts, 64)


@FEW
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_intervals_by_formula(values):
    x = torch.tensor(values, dtype=torch.float64)
    left_out = [(x.sum() - v) / (len(x) - 1) for v in x]
    assert jackknife_variance(torch.stack(left_out)) == pytest.approx(float(x.var() / len(x)), rel=1e-6, abs=1e-9)
    e = bootstrap(lambda a: a.mean(-1), 50, None, x)
    assert (e == bootstrap(lambda a: a.mean(-1), 50, None, x) and min(values) - 1e-9 <= e.low <= e.high <= max(values)
            + 1e-9)
    assert (e - e).value == 0 and not (e - e).excludes(0) and float(e) == e.value


# ---- weights and files -----------------------------------------------------------------------------------------------


@FEW
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 10**6), st.floats(-6, 6))
def test_int8_errs_by_1_254th_of_a_row_s_largest(rows, columns, seed, power):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10**power
    stored = to_int8({"w": w, "b": w[0], "n": torch.tensor([3])})
    assert stored["w"].dtype == torch.int8 and stored["n"].dtype == torch.int64
    back = to_float32(stored)
    assert set(back) == {"w", "b", "n"}
    assert bool(((back["w"] - w).abs() <= w.abs().amax(1, keepdim=True) / 254 * 1.001 + 1e-12).all())


@FEW
@given(st.integers(0, 12), st.floats(0, 0.9999))
def test_the_average_s_decay(n, decay):
    module = torch.nn.Linear(2, 1, bias=False)
    average, want = Average(module, decay), module.weight.detach().clone()
    for i, weight in enumerate(torch.randn(n, 1, 2, generator=torch.Generator().manual_seed(n))):
        d = min(decay, (1 + i) / (10 + i)) if i else 0.0
        want = d * want + (1 - d) * weight
        module.weight.data.copy_(weight)
        average.update(module)
    average.copy_to(module)
    torch.testing.assert_close(module.weight.detach(), want, rtol=1e-5, atol=1e-6)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "a" / "x.txt"
    write_text(path, "old é \udce9")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "old é \\udce9" and list(path.parent.iterdir()) == [path]
    for name in ("one", "two"):
        write(tmp_path / name, {"b": torch.ones(2), "a": torch.zeros(3)}, {"z": 1, "y": [None, "ü"]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    tensors, header = read(tmp_path / "one")
    assert header == {"z": 1, "y": [None, "ü"]} and tensors["a"].tolist() == [0, 0, 0]


def test_sources_say_what_they_have(tmp_path):
    names = "digits", "peeps", "torchvision:mnist", "x", "lmdb:x", "classes:digits"
    assert [sources.has_test(name) for name in names] == [True] * 3 + [False] * 3
    assert sources.count_classes(sources.open_source("digits", 32, 1)) == 10
    refuses("the data have no labels", sources.count_classes, TensorDataset(torch.zeros(3, 1, 8, 8)))


# ---- shared models ---------------------------------------------------------------------------------------------------


def test_threads_share_a_model():
    """Whatever is kept in a model is written as one value: threads on one model draw what each draws alone."""
    model, out = small(), {}
    fixed = labelled()

    def work(i):
        z, x_T = codes(3, i), noise(3, seed=i)
        out[i] = torch.cat([model.decode(z, x_T, 2 + i), model.invert(x_T.clamp(-1, 1), z, 2 + i),
                            fixed.decode(z, x_T, 2 + i)])

    for i in range(6):
        work(i)
    alone, out = out, {}
    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(out[i], alone[i], atol=1e-5) for i in range(6)) and len(out) == 6
    refuses("the encoder embeds labels, but the data set has none", fixed.training_codes, noise(), None)
    assert model.image_range == model.data_range == (-1.0, 1.0)
