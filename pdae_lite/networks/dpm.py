"""What a noise predictor is, and what predicts something else as one: v (Salimans & Ho 2022) and x_0."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..checkpoint import Saved, describe
from ..losses import dpm_loss
from ..schedule import NoiseSchedule

PREDICTIONS = ("epsilon", "v", "x_0")


def to_epsilon(output: Tensor, x_t: Tensor, t: int | Tensor, schedule: NoiseSchedule, prediction: str) -> Tensor:
    """What a network predicts, as ε. With v = √ᾱ ε − √(1−ᾱ) x_0:

        ε = √ᾱ_t v + √(1−ᾱ_t) x_t        from v
        ε = (x_t − √ᾱ_t x_0)/√(1−ᾱ_t)    from x_0
    """
    if prediction == "epsilon":
        return output
    if prediction == "v":
        return schedule.at("sqrt_alpha_bar", t, x_t) * output + schedule.at("sqrt_one_minus_alpha_bar", t, x_t) * x_t
    if prediction == "x_0":
        return schedule.predict_eps(x_t, t, output)
    raise ValueError(f"prediction {prediction!r}; want one of {', '.join(PREDICTIONS)}")


class NoisePredictor(Saved):
    """A DPM: ε_θ(x_t, t) is `head(trunk(x_t, t))`. Some take a condition, as one more argument of the trunk."""

    default_weight = "simple"

    def forward(self, x_t: Tensor, t: Tensor, *condition) -> Tensor:
        return self.head(self.trunk(x_t, t, *condition))

    def convert(self, output: Tensor, features) -> Tensor:
        """What a head on these features predicts, in this network's own language, as ε: here it is ε."""
        return output

    def training_loss(self, x_0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None, schedule: NoiseSchedule,
                      weight) -> Tensor:
        """What `train` minimises: `losses.dpm_loss`, with the labels if the network is class-conditional."""
        conditional = getattr(self.config, "num_classes", None) is not None
        return dpm_loss(self, x_0, t, eps, schedule, weight, y if conditional else None)


class Wrapped(NoisePredictor):
    """A network in another's place: its configuration, data range, trunk, head and estimators are its own."""

    def __init__(self, model: NoisePredictor):
        super().__init__()
        self.model, self.config, self.data_range = model, model.config, model.data_range

    def trunk(self, x_t: Tensor, t: Tensor, *condition):
        """Features of the wrapped network."""
        return self.model.trunk(x_t, t, *condition)

    def head(self, features) -> Tensor:
        """ε [N, C, H, W] from features."""
        return self.convert(self.model.head(features), features)

    def gradient_estimator(self, z_dim: int, **options) -> nn.Module:
        """A fresh gradient estimator on the wrapped network's trunk, with its own `options`."""
        return self.model.gradient_estimator(z_dim, **options)

    def noise_estimator(self, z_dim: int) -> nn.Module:
        """A copy of the wrapped network's head that knows z. It predicts what that does: see `convert`."""
        return self.model.noise_estimator(z_dim)


class AsEpsilon(Wrapped):
    """A DPM that predicts v or x_0, as a DPM that predicts ε: same trunk, and a head that converts.

    A network that predicts v is right about ε for free where t is large: its error enters ε times √ᾱ_t."""

    def __init__(self, model: NoisePredictor, prediction: str, schedule: NoiseSchedule):
        super().__init__(model)
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction {prediction!r}; want one of {', '.join(PREDICTIONS)}")
        self.prediction, self.schedule = prediction, schedule

    def convert(self, output: Tensor, features) -> Tensor:
        """v or x_0, as a head on these features predicts it, as ε."""
        return to_epsilon(output, features.x_t, features.t, self.schedule, self.prediction)

    def to_config(self) -> dict:
        return {"model": describe(self.model), "prediction": self.prediction, "schedule": self.schedule.to_config()}


def as_epsilon(model: NoisePredictor, kind: str, schedule: NoiseSchedule) -> nn.Module:
    """`model` itself if it predicts ε, otherwise wrapped in `AsEpsilon`. `kind`: "epsilon", "v" or "x_0"."""
    return model if kind == "epsilon" else AsEpsilon(model, kind, schedule)


def per_sample(function: Callable) -> Callable:
    """A foreign network or classifier that wants t [N], as one that takes any t."""
    def call(x_t: Tensor, t: int | Tensor, *condition):
        return function(x_t, torch.as_tensor(t, device=x_t.device).expand(len(x_t)), *condition)

    return call
