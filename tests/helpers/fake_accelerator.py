"""Backward passes on an accelerator that isn't there, each tensor fake: run as a program by tests/test_fake_cuda.py.

Autograd's engine asks a device's guard for its streams. CUDA's guard asks the driver, and a fake cuda:0 ends there,
whether by `backward`, `torch.func.grad` or the joint graph of AOTAutograd. A backend written in Python has a guard that
wants no driver; it stays registered until the process ends, and `torch.accelerator` would find it: so this is a process
of its own.
"""
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, as_epsilon
from pdae_lite.diffae import DiffAE
from pdae_lite.networks.classifier import ClassifierConfig, NoisyClassifier
from pdae_lite.networks.encoder import EncoderConfig

_setup_privateuseone_for_python_backend("nowhere")
DEVICE = torch.device("nowhere:0")
UNET = UNetConfig(16, 1, 8, (1, 2), 1, (2,))


def encoder():
    return SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 4))


def step(model, x, y=None) -> None:
    """A training step: the loss, its gradients, the optimizer, on DEVICE throughout."""
    schedule = model.schedule
    t = torch.randint(0, schedule.T, (len(x),), device=DEVICE)
    weight = schedule.loss_weight(model.default_weight)
    loss = model.train().training_loss(x, t, torch.randn_like(x), y, schedule, weight)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    loss.mean().backward()
    assert loss.device == DEVICE and trained and {p.grad.device for p in trained} == {DEVICE}
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    assert {v.device for state in optimizer.state.values() for k, v in state.items() if k != "step"} == {DEVICE}
    model.eval()


def main() -> None:
    schedule = NoiseSchedule.linear(100, 1e-3, 0.2).to(DEVICE)
    x, y = torch.rand(4, 1, 16, 16), torch.arange(4)
    assert x.device == DEVICE
    for form in ("difference", "paper"):
        pdae = PDAE(as_epsilon(UNet(UNET), "v", schedule), encoder(), schedule, form=form)
        step(pdae, x)
        assert all(p.grad is None for p in pdae.dpm.parameters())
    diffae = DiffAE(UNet(UNetConfig(16, 1, 8, (1, 2), 1, (2,), z_dim=4)), encoder(), schedule)
    step(diffae, x)
    classifier = NoisyClassifier(ClassifierConfig(UNET, 10), schedule)
    step(classifier, x, y)


if __name__ == "__main__":
    with FakeTensorMode(), DEVICE:
        main()
