"""The noisy classifier: its gradient against finite differences, its loss, training and files."""
import pytest
import torch
from guided_parts import PATTERNS, SCHEDULE, T_BATCH, K, Y, at, classifier, dpm, filled, noise, patterns

from pdae_lite import sampling
from pdae_lite.checkpoint import CheckpointError, save_model
from pdae_lite.guidance import guided
from pdae_lite.networks.classifier import NoisyClassifier, classifier_gradient
from pdae_lite.pdae import PDAE
from pdae_lite.training import train


@pytest.mark.parametrize("unet",
                         [{}, {"patch_size": 2}, {"resblock_updown": False, "conv_resample": False,
                                                  "scale_shift_norm": False}])
def test_the_gradient_is_that_of_finite_differences(unet):
    model = filled(classifier(**unet)).double()
    x = noise(dtype=torch.float64)
    gradient = classifier_gradient(model, x, T_BATCH, Y)
    for seed in range(3):
        v, h = noise(seed=10 + seed, dtype=torch.float64), 1e-5

        def log_p(step):
            return model.log_prob(x + step * v, T_BATCH).gather(1, Y[:, None])[:, 0]

        want = (log_p(h) - log_p(-h)) / (2 * h)
        torch.testing.assert_close((gradient * v).flatten(1).sum(1), want, rtol=1e-6, atol=1e-8)
    assert gradient.shape == x.shape and float(gradient.abs().flatten(1).amax(1).min()) > 1e-4


def test_the_gradient_where_gradients_are_off():
    model = filled(classifier())
    want = classifier_gradient(model, noise(), T_BATCH, Y)
    assert want.dtype == torch.float32 and not want.requires_grad
    for switch in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)):
        with switch():
            assert torch.equal(classifier_gradient(model, noise() + 0, T_BATCH + 0, Y + 0), want)
    half = classifier_gradient(model, noise().half(), T_BATCH, Y)  # computed in float32
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, classifier_gradient(model, noise().half().float(), T_BATCH, Y), rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    alone = classifier_gradient(model, noise()[1:2], T_BATCH[1:2], Y[1:2])  # samples don't see each other
    torch.testing.assert_close(alone, want[1:2])


def test_an_untrained_classifier_says_nothing():
    model = classifier()
    torch.testing.assert_close(model.log_prob(noise(), T_BATCH).exp(), torch.full((3, K), 1 / K))
    assert torch.equal(guided(dpm(), model, Y, SCHEDULE, 3.0)(noise(), T_BATCH), dpm()(noise(), T_BATCH))


def test_training_loss_is_the_weighted_cross_entropy():
    model, weight = filled(classifier()), torch.rand(100, generator=torch.Generator().manual_seed(5))
    x_0, eps = noise(seed=4).clamp(-1, 1), noise()
    log_p = model.log_prob(SCHEDULE.add_noise(x_0, T_BATCH, eps), T_BATCH)
    want = -sum(weight[t] * log_p[i, y] for i, (t, y) in enumerate(zip(T_BATCH, Y))) / 3
    torch.testing.assert_close(model.training_loss(x_0, T_BATCH, eps, Y, SCHEDULE, weight), want)
    for y, message in ((None, "the data set has none"), (Y[:, None].repeat(1, 2), r"y is int64 \[3, 2\]; want int64 "
                                                                                  r"\[3\]")):
        with pytest.raises(ValueError, match=message):
            model.training_loss(x_0, T_BATCH, eps, y, SCHEDULE, weight)


def test_train_save_and_load(tmp_path):
    data = patterns()
    x_0, y = PATTERNS[data.tensors[1]], data.tensors[1]
    result = train(classifier(), data, steps=40, batch_size=24, lr=1e-2, ema=0.9, out=tmp_path, progress=False)
    model = result.model
    accuracy = model.accuracy(x_0, y, [0, 10, 99])
    assert accuracy[:2].tolist() == [1, 1] and 0.1 < float(accuracy[2]) < 0.8, accuracy  # noise hides the class
    assert torch.equal(accuracy, model.accuracy(x_0, y, [0, 10, 99], batch_size=7))
    again = NoisyClassifier.load(result.path)
    assert (again.config == model.config and again.schedule.same_as(SCHEDULE)
            and again.metadata["training"]["steps"] == 40)
    assert not again.training
    # one is channels_last
    torch.testing.assert_close(again(noise(), T_BATCH), model(noise(), T_BATCH), rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "own.safetensors", {"note": "bars"})
    assert NoisyClassifier.load(tmp_path / "own.safetensors").metadata == {"note": "bars"}
    save_model(tmp_path / "half.safetensors", model, dtype=torch.float16)
    again = NoisyClassifier.load(tmp_path / "half.safetensors")
    torch.testing.assert_close(again(noise(), T_BATCH), model(noise(), T_BATCH), rtol=0.02, atol=0.02)
    with pytest.raises(CheckpointError, match="holds a NoisyClassifier; want a PDAE"):
        PDAE.load(result.path)
    # guidance by it makes it see the class that was asked for
    def white(x_t, t):  # the DPM of white noise
        return x_t * at("sqrt_one_minus_alpha_bar", x_t, t)
    seen = [model.accuracy(sampling.ddim(guided(white, model, y, SCHEDULE, scale), noise(60), SCHEDULE, 20), y, [0])
            for scale in (0.0, 3.0)]
    assert float(seen[0]) < 0.5 and float(seen[1]) > 0.9, seen
