"""What is stored of the trials, and of the options of the training step: whole, and comes out again."""
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import trials

from pdae_lite import losses
from pdae_lite.checkpoint import tensors_digest
from pdae_lite.data import ASSETS
from pdae_lite.presets import PRESETS

ROOT = Path(__file__).parents[2]
STORED = json.loads((ASSETS / "trials.json").read_text(encoding="utf-8"))
RUNS = {(r["group"], r["name"], r["seed"]): r for r in STORED["runs"]}
OPTIONS = json.loads((ASSETS / "training_options.json").read_text(encoding="utf-8"))


def test_the_trials_are_whole():
    """Every trial for each of its seeds, and the measures of every weight belong to its errors."""
    steps = STORED["config"]["steps"]
    seeds = {seed for group, _, seed in RUNS if group == "weighting"}
    assert {(t.group, t.name, seed) for t in trials.all_trials() for seed in range(t.seeds)} <= set(RUNS)
    wanted = {key for key in RUNS if key[0] in ("weighting", "scratch")}
    for key in wanted:
        r, lengths = RUNS[key], steps // 2 if key[0] == "weighting" else steps
        assert len(r["loss"]) == len(r["gradient_norm"]) == lengths, key
        assert all(map(math.isfinite, (*r["loss"], *r["gradient_norm"], *r["error"], r["nats"]))), key
        fill = [1 - e / d for e, d in zip(r["error"], STORED["dpm_error"])]
        assert r["fill"] == pytest.approx(fill, abs=1e-3), key
        assert r["fill_300_600"] == pytest.approx(sum(fill[i] for i in trials.MIDDLE) / len(trials.MIDDLE), abs=1e-3)
        assert 0 <= r["probe_accuracy"] <= 1 and r["parameters_trained"] == 3_092_912
    for seed in seeds:  # all weights go on from one start
        assert len({json.dumps(RUNS["weighting", w, seed]["start"]) for w in trials.WEIGHTS}) == 1


def test_the_dpm_of_the_trials_is_the_one_that_ships():
    assert tensors_digest(dict(trials.dpm().state_dict())) == STORED["sha256_of_dpm"]
    some = [trials.TS.index(t) for t in (300, 700)]
    error = losses.noise_error(lambda x: trials.dpm(), trials.images("test")[:STORED["held_out"]],
                               trials.dpm().schedule,
                               [trials.TS[i] for i in some])
    assert error.tolist() == pytest.approx([STORED["dpm_error"][i] for i in some], rel=0.01)


@pytest.mark.parametrize("name", ["pdae", "simple, raw"])
def test_the_first_steps_come_out_again(name, monkeypatch):
    """bf16 rounds differently from one CPU to the next, hence the tolerance."""
    monkeypatch.setattr(trials, "measure", lambda model: {})
    trial = next(t for t in trials.all_trials() if (t.group, t.name) == ("scratch", name))
    config = replace(trials.CONFIG, steps=2, warmup=STORED["config"]["warmup"])
    found, stored = trials.run(trial, 0, config), RUNS["scratch", name, 0]
    assert found["loss"] == pytest.approx(stored["loss"][:2], rel=0.03)
    assert found["gradient_norm"] == pytest.approx(stored["gradient_norm"][:2], rel=0.1)


def test_the_options_are_whole_and_their_arithmetic_is_right(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("options_benchmark", ROOT / "benchmarks" / "options.py")
    options = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(options)
    assert set(OPTIONS["options"]) == set(options.OPTIONS)
    preset = PRESETS[OPTIONS["preset"]]
    cost = {name: options.training.VARIANTS[v[1]].cost(**options.parts(preset, v[1])) / 1e9
            for name, v in options.OPTIONS.items()}
    for name, o in OPTIONS["options"].items():
        s = o["times_slower"]
        assert (o["gflop_per_image"] == pytest.approx(cost[name])
                and s["by_arithmetic"] == pytest.approx(cost[name] / cost["preset"]))
        ratios = sorted(b / a for a, b in zip(OPTIONS["options"]["preset"]["seconds"], o["seconds"]))
        assert len(ratios) == OPTIONS["rounds"]
        assert (s["low"], s["measured"], s["high"]) == pytest.approx((ratios[0], ratios[len(ratios) // 2], ratios[-1]),
                                                                     rel=0.01)
