"""The search for the critical stage: every stage as if sampled alone, in fewer steps; stopped and resumed."""
import json
import sys

import critical_stage
import pytest
import torch
from guided_parts import MIXTURE, SCHEDULE, K, noise

from pdae_lite import sampling
from pdae_lite.guidance import guided, staged


class Calls:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser):
        self.denoiser, self.count = denoiser, 0

    def __call__(self, x_t, t):
        self.count += 1
        return self.denoiser(x_t, t)


def mixture():
    y = torch.arange(6) % K
    made = guided(MIXTURE.eps, MIXTURE.log_joint, y, SCHEDULE, 2.0)
    return Calls(MIXTURE.eps), Calls(made), noise(6, dtype=torch.float64)


def test_every_stage_is_what_sampling_stage_by_stage_gives():
    plain, inside, x_T = mixture()
    found = critical_stage.every_stage(plain, inside, x_T, SCHEDULE, lambda images: images, steps=5)
    assert set(found) == {(a, b) for a in range(0, 100, 20) for b in range(20, 101, 20) if a < b} | {(0, 0)}
    # down without guidance; the ends of the stages; the stages
    assert (plain.count, inside.count) == (5 + 10 + 6 + 3 + 1, 15)
    for stage, images in found.items():
        assert torch.equal(images, sampling.ddim(staged(inside, plain, *stage), x_T, SCHEDULE, 5)), stage


def test_some_stages_cost_no_more_than_they_need():
    plain, inside, x_T = mixture()
    assert set(critical_stage.every_stage(plain, inside, x_T, SCHEDULE, len, steps=5, only={(40, 60)})) == {(40, 60)}
    assert (plain.count, inside.count) == (4, 1)
    for stage in ((30, 60), (60, 60), (60, 40)):
        with pytest.raises(ValueError, match=r"want t1 < t2 out of \[0, 20, 40, 60, 80, 100\]"):
            critical_stage.every_stage(plain, inside, x_T, SCHEDULE, len, steps=5, only={stage})


class Fake:
    """In place of all three models: tells the class by the mean of an image."""

    schedule = SCHEDULE

    def __call__(self, x, t=None):
        scores = -(x.mean((1, 2, 3))[:, None] * 30 - torch.arange(10)).square()
        return scores if t is None or x.requires_grad else 0.1 * x

    def state_dict(self):
        return {"w": torch.ones(2)}


def test_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(critical_stage, "load_models", lambda device: (Fake(),) * 3)

    def run(name, *more):
        monkeypatch.setattr(sys, "argv", ["critical_stage.py", "--out", str(tmp_path / name), "--steps", "5", *more])
        assert critical_stage.main() == 0
        return json.loads((tmp_path / name).read_text(encoding="utf-8"))

    at_once, _ = run("a.json", "--samples", "24"), run("b.json", "--samples", "10")
    in_two = run("b.json", "--samples", "24")
    assert in_two["hits"] == at_once["hits"] and in_two["samples"] == 24 and len(in_two["hits"]["40-60"]) == 24
    assert in_two["accuracy"] == {k: round(v.count("1") / 24, 4) for k, v in in_two["hits"].items()}
    assert len(set(in_two["hits"].values())) > 1
    with pytest.raises(SystemExit):
        run("b.json", "--samples", "30", "--scale", "7")
    assert "holds figures of other settings or models" in capsys.readouterr().err
    only = run("c.json", "--samples", "10", "--only", "40-60,0-100")
    assert only["hits"] == {k: at_once["hits"][k][:10] for k in ("0-100", "40-60")}
