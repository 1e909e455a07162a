"""PDAE as a whole: it starts as the DPM, trains only what it should, and refuses what it can't use."""
import pytest
import torch

import pdae_lite
from pdae_lite import checkpoint, sampling
from pdae_lite.checkpoint import CheckpointError, keep_shipped, load_model, save_model, write
from pdae_lite.data import digits
from pdae_lite.losses import noise_error, pdae_loss
from pdae_lite.networks.encoder import EncoderConfig, LabelEncoder, SemanticEncoder
from pdae_lite.networks.unet import UNet, UNetConfig
from pdae_lite.pdae import PDAE
from pdae_lite.schedule import NoiseSchedule

SHAPE = (1, 16, 16)


def make(filled_estimator=False, dropout=0.0, precondition=None):
    """A tiny PDAE on a DPM with random weights in every layer."""
    g = torch.Generator().manual_seed(0)

    def fill(module):
        for p in module.parameters():
            p.data = 0.2 * torch.randn(p.shape, generator=g)

    torch.manual_seed(0)
    dpm = UNet(UNetConfig(16, 1, 8, (1, 2), 1, (2,), dropout=dropout))
    fill(dpm)
    encoder = SemanticEncoder(EncoderConfig(16, 1, (8, 8), 0, 2, 4))
    pdae = PDAE(dpm, encoder, NoiseSchedule.linear(100, 1e-3, 0.2), precondition=precondition, form="paper")
    if filled_estimator:
        fill(pdae.estimator)
        fill(pdae.encoder.encoder[1].proj_out)
    return pdae.eval()


def images(n=3, seed=1):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(n=3, seed=2):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


T_BATCH = torch.tensor([1, 50, 99])


class Calls:
    """Counts the calls of a module."""

    def __init__(self, module):
        self.count = 0
        module.register_forward_hook(lambda *_: setattr(self, "count", self.count + 1))


# ---- zero shift is the DPM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_at_the_start_pdae_is_the_dpm(sampler):
    pdae = make()
    eps, gradient = pdae(noise(), T_BATCH, pdae.encode(images()))
    assert not gradient.any()
    assert torch.equal(eps, pdae.dpm(noise(), T_BATCH))
    ours = pdae.decode(pdae.encode(images()), noise(), 7, sampler=sampler, generator=torch.Generator().manual_seed(5))
    run = getattr(sampling, sampler)
    plain = run(pdae.dpm, noise(), pdae.schedule, 7, generator=torch.Generator().manual_seed(5))
    assert torch.equal(ours, plain) and plain.std() > 0.1
    # and with an estimator that says something, it isn't
    other = make(filled_estimator=True)
    shifted = other.decode(other.encode(images()), noise(), 7, sampler=sampler,
                           generator=torch.Generator().manual_seed(5))
    assert not torch.allclose(shifted, plain, atol=1e-3)


# ---- what trains --------------------------------------------------------------------------------------------------


def test_only_encoder_and_estimator_receive_gradients():
    pdae = make(filled_estimator=True).train()
    pdae_loss(pdae, images(), T_BATCH, noise()).backward()
    assert all(p.grad is None and not p.requires_grad for p in pdae.dpm.parameters())
    for name, p in pdae.trainable().named_parameters():
        assert p.grad is not None and p.grad.any(), name
    assert {id(p) for p in pdae.trainable().parameters()} == {id(p) for p in pdae.parameters() if p.requires_grad}


def test_train_mode_leaves_the_dpm_in_eval_mode():
    pdae = make(filled_estimator=True, dropout=0.5).train()
    assert pdae.training and pdae.estimator.training and pdae.encoder.training
    assert not any(m.training for m in pdae.dpm.modules())
    z = pdae.encode(images())
    (eps_1, gradient_1), (eps_2, gradient_2) = (pdae(noise(), T_BATCH, z) for _ in range(2))
    assert torch.equal(eps_1, eps_2)  # no dropout in the DPM
    assert not torch.equal(gradient_1, gradient_2)  # dropout in the estimator
    assert not any(m.training for m in pdae.eval().modules())


@pytest.mark.parametrize("precondition", [None, "v"])
def test_z_matters_after_20_steps(precondition):
    """Zero-initialised layers hide z at first; after a few steps z gets a gradient and moves the output."""
    pdae = make(precondition=precondition).train()
    optimizer = torch.optim.Adam(pdae.trainable().parameters(), lr=1e-2)

    def gradient_of_z():
        z = pdae.encoder(images()).detach().requires_grad_()
        return torch.autograd.grad(pdae_loss(pdae, images(), T_BATCH, noise(), z=z), z)[0]

    assert not gradient_of_z().any()
    for step in range(20):
        optimizer.zero_grad()
        pdae_loss(pdae, images(), T_BATCH, noise(seed=step)).backward()
        optimizer.step()
    assert float(gradient_of_z().abs().min()) > 0
    pdae.eval()
    z = pdae.encode(images()).detach()
    one, two = (pdae.decode(v, noise(), 5) for v in (z, z.flip(0)))
    assert float((one - two)[[0, 2]].abs().mean()) > 1e-4
    assert torch.allclose(one[1], two[1], atol=1e-5)  # the middle z is the same


# ---- the denoiser -------------------------------------------------------------------------------------------------


def test_denoiser_is_both_forms_of_the_shift():
    pdae, t = make(filled_estimator=True).requires_grad_(False), T_BATCH
    z = pdae.encode(images())
    eps, gradient = pdae(noise(), t, z)
    for shift, c in (("ddpm", pdae.schedule.shift_coefficient[t]), ("ddim", (1 - pdae.schedule.alpha_bar[t]).sqrt())):
        want = eps - c.reshape(3, 1, 1, 1) * gradient
        torch.testing.assert_close(pdae.denoiser(z, shift=shift)(noise(), t), want, rtol=1e-4, atol=1e-5)
    scale = torch.tensor([0.0, 1.0, 2.0])
    want = eps - (scale * pdae.schedule.shift_coefficient[t]).reshape(3, 1, 1, 1) * gradient
    torch.testing.assert_close(pdae.denoiser(z, scale, shift="ddpm")(noise(), t), want, rtol=1e-4, atol=1e-5)


def test_ddpm_mean_is_shifted_by_the_posterior_variance_times_g():
    """Eq. (5) and (7): the mean of x_{t−1} is μ_θ + β̃_t G."""
    pdae = make(filled_estimator=True).requires_grad_(False).double()
    s, x_t, z = pdae.schedule, noise().double(), pdae.encode(images().double())
    eps, gradient = pdae(x_t, T_BATCH, z)
    mean = s.model_mean(x_t, T_BATCH, pdae.denoiser(z, shift="ddpm")(x_t, T_BATCH))
    want = s.model_mean(x_t, T_BATCH, eps) + s.at("posterior_variance", T_BATCH, x_t) * gradient
    torch.testing.assert_close(mean, want, rtol=1e-9, atol=1e-9)
    wrong = s.model_mean(x_t, T_BATCH, pdae.denoiser(z, shift="ddim")(x_t, T_BATCH))
    assert float((wrong - want)[0].abs().max()) > 1e-3


def test_decode_picks_the_form_that_belongs_to_the_sampler():
    pdae = make(filled_estimator=True).requires_grad_(False)
    z, x_T = pdae.encode(images()), noise()
    for sampler, shift in (("ddim", "ddim"), ("ddpm", "ddpm")):
        def seed():
            return torch.Generator().manual_seed(3)
        ours = pdae.decode(z, x_T, 6, sampler=sampler, generator=seed(), clip=False)
        want = getattr(sampling, sampler)(pdae.denoiser(z, shift=shift), x_T, pdae.schedule, 6, generator=seed(),
                                          clip=False)
        assert torch.equal(ours, want)
    consistent = pdae.decode(z, x_T, 6, shift="ddpm")
    assert not torch.allclose(consistent, pdae.decode(z, x_T, 6), atol=1e-4)


def test_the_estimator_is_not_run_where_it_has_no_say():
    pdae = make(filled_estimator=True).requires_grad_(False)
    z, calls = pdae.encode(images()), Calls(pdae.estimator)
    plain = sampling.ddim(pdae.dpm, noise(), pdae.schedule, 10)
    assert torch.equal(pdae.decode(z, noise(), 10, scale=0.0), plain) and calls.count == 0
    assert torch.equal(pdae.decode(z, noise(), 10, off_last=1.0), plain) and calls.count == 0
    evaluated = sampling.time_grid(pdae.schedule, 10)[1:]
    partly = pdae.decode(z, noise(), 10, off_last=0.3)
    assert calls.count == sum(t >= 30 for t in evaluated) == 7
    assert not torch.equal(partly, plain) and not torch.equal(partly, pdae.decode(z, noise(), 10))
    assert calls.count == 17
    # one batch may straddle the border: then each sample keeps to its own side
    mixed = pdae.denoiser(z, off_last=0.5)(noise(), torch.tensor([10, 50, 90]))
    plain, shifted = (pdae.denoiser(z, scale)(noise(), torch.tensor([10, 50, 90])) for scale in (0.0, 1.0))
    assert torch.allclose(mixed[0], plain[0], atol=1e-6) and torch.allclose(mixed[1:], shifted[1:], atol=1e-6)


def test_preconditioned_estimator():
    """precondition="v": G = √SNR(t) · output."""
    plain, scaled = (make(filled_estimator=True, precondition=p).requires_grad_(False) for p in (None, "v"))
    z = plain.encode(images())
    (_, g), (_, g_scaled) = (m(noise(), T_BATCH, z) for m in (plain, scaled))
    torch.testing.assert_close(g_scaled, plain.schedule.snr[T_BATCH].sqrt().reshape(3, 1, 1, 1) * g)


def test_invert_then_decode():
    pdae = make(filled_estimator=True).requires_grad_(False)
    x = images()
    x_T = pdae.invert(x, steps=50)
    z = pdae.encode(x)
    assert torch.equal(x_T, sampling.invert(pdae.denoiser(z), x, pdae.schedule, 50))
    again = pdae.decode(z, x_T, 50, clip=False)
    other = pdae.decode(z, noise(), 50, clip=False)
    assert (again - x).square().mean() < 0.1 * (other - x).square().mean()


def test_random_noise_follows_the_generator():
    pdae = make()
    def seed():
        return torch.Generator().manual_seed(8)
    assert torch.equal(pdae.noise(2, seed()), pdae.noise(2, seed())) and pdae.noise(2, seed()).shape == (2, *SHAPE)
    z = torch.zeros(2, 4)
    assert torch.equal(pdae.decode(z, steps=2, generator=seed()), pdae.decode(z, pdae.noise(2, seed()), 2))


# ---- files ------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    for pdae in (make(filled_estimator=True), make(filled_estimator=True, precondition="v")):
        path = tmp_path / "model.safetensors"
        pdae.save(path, {"note": "tiny"})
        again = PDAE.load(path)
        assert again.metadata == {"note": "tiny"} and again.schedule.same_as(pdae.schedule) and not again.training
        assert again.precondition == pdae.precondition
        z = pdae.encode(images())
        assert torch.equal(again.encode(images()), z)
        assert torch.equal(again.decode(z, noise(), 3), pdae.decode(z, noise(), 3))
        assert all(not p.requires_grad for p in again.dpm.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]  # no temporary file left


def test_int8_halves_a_file_once_more_and_hardly_changes_it(tmp_path):
    model = pdae_lite.load("digits")
    for dtype in (torch.float16, torch.int8):
        save_model(tmp_path / f"{dtype}.safetensors", model, dtype=dtype)
    assert (tmp_path / "torch.int8.safetensors").stat().st_size < 0.53 * (tmp_path
                                                                          / "torch.float16.safetensors").stat().st_size
    again = load_model(tmp_path / "torch.int8.safetensors", expect=PDAE)
    for (name, before), after in zip(model.named_parameters(), again.parameters()):
        bound = before.flatten(1).abs().amax(1) / 254 if before.ndim > 1 else before.abs().amax() / 1000
        change = (after - before).abs().flatten(1 if before.ndim > 1 else 0)
        assert after.dtype == torch.float32 and (change <= bound.unsqueeze(-1) * 1.001).all(), name
    x = digits("test").floats(slice(32))
    errors = [noise_error(lambda v: m.denoiser(m.encode(v), shift="ddpm"), x, m.schedule, [100, 500])
              for m in (model, again)]
    assert float((errors[0] / errors[1] - 1).abs().max()) < 0.01


def test_a_file_may_refer_to_the_dpm_of_a_shipped_model(tmp_path, monkeypatch):
    dpm = pdae_lite.load("digits", "dpm")
    model = PDAE(dpm, LabelEncoder(10, 4), dpm.schedule, form="paper")
    for p in model.estimator.parameters():
        p.data.add_(0.05 * torch.randn(p.shape))
    model.save(tmp_path / "by_value.safetensors")
    keep_shipped(model.dpm, "digits")
    model.save(tmp_path / "refers.safetensors")
    assert (tmp_path / "refers.safetensors").stat().st_size < 0.6 * (tmp_path / "by_value.safetensors").stat().st_size
    again, x_t, t = PDAE.load(tmp_path / "refers.safetensors"), torch.randn(2, 1, 32, 32), torch.tensor([300, 700])
    z = torch.randn(2, 4)
    assert torch.equal(again.denoiser(z)(x_t, t), model.eval().denoiser(z)(x_t, t))
    again.save(tmp_path / "once_more.safetensors")
    assert (tmp_path / "once_more.safetensors").read_bytes() == (tmp_path / "refers.safetensors").read_bytes()
    with pytest.raises(ValueError, match="this DPM is kept by reference to shipped 'peeps', and the weights differ"):
        keep_shipped(model.dpm, "peeps")
    next(dpm.parameters()).data.add_(1)
    monkeypatch.setattr(checkpoint, "load", lambda *_: dpm)
    with pytest.raises(CheckpointError, match=r"refers.safetensors: dpm is kept by reference to shipped 'digits', and "
                                              r"the weights differ"):
        PDAE.load(tmp_path / "refers.safetensors")


def test_bad_files(tmp_path):
    path = tmp_path / "model.safetensors"
    make().save(path)
    whole = path.read_bytes()

    def refuses(message, content=None):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as e:
            PDAE.load(path)
        assert str(path) in str(e.value) and "\n" not in str(e.value)

    refuses("not a complete safetensors file", whole[: len(whole) // 2])
    refuses("not a complete safetensors file", b"")
    refuses("not a complete safetensors file", b"PK\x03\x04 a pickle")
    flipped = bytearray(whole)
    flipped[-5] ^= 1  # one bit of one weight
    refuses("checksum mismatch", bytes(flipped))
    from safetensors.torch import save

    refuses("not a pdae_lite", save({"a": torch.zeros(1)}))
    write(path, {"a": torch.zeros(1)}, {"step": 3})
    refuses("training state")
    from pdae_lite.checkpoint import save_model

    save_model(path, make().dpm)
    refuses("holds a UNet; want a PDAE")
    assert isinstance(load_model(path), UNet)
    path.unlink()
    refuses("no such file")


def test_save_replaces_the_file_or_leaves_it(tmp_path, monkeypatch):
    import os

    path = tmp_path / "model.safetensors"
    make().save(path, {"note": "old"})

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError):
        make().save(path, {"note": "new"})
    assert PDAE.load(path).metadata == {"note": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "message"), [
    ((images() * 127).to(torch.uint8), "x_0 is torch.uint8"),
    (images() * torch.tensor([1.0, float("nan"), 1.0]).reshape(3, 1, 1, 1), "NaN"),
    (images() * 2, r"x_0 runs from .*\[-1, 1\]"),
    (images().expand(3, 3, 16, 16), r"x_0 has shape \[3, 3, 16, 16\]; want float \[N, 1,"),
    (torch.zeros(1, 1, 32, 32), "32×32"),
    (torch.zeros(1, 16, 16), "x_0 has shape"),
])
@pytest.mark.parametrize("method", ["encode", "invert"])
def test_bad_images(x, message, method):
    with pytest.raises(ValueError, match=message) as e:
        getattr(make(), method)(x)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m, z: m(noise(), T_BATCH + 1, z), "t runs from 2 to 100; want 0 … 99"),
    (lambda m, z: m(noise(), T_BATCH - 2, z), "t runs from -1"),
    (lambda m, z: m(noise(), T_BATCH.float(), z), "t is torch.float32"),
    (lambda m, z: m(noise(), T_BATCH, z[:, :3]), r"z has shape \[3, 3\]; want \[N, 4\]"),
    (lambda m, z: m.decode(z[:, :3], noise()), r"z has shape \[3, 3\]; want \[N, 4\]"),
    (lambda m, z: m.decode(z, noise(), steps=0), "steps=0"),
    (lambda m, z: m.decode(z, noise(), steps=101), "steps=101"),
    (lambda m, z: m.decode(z, noise(), steps=2.5), "steps=2.5"),
    (lambda m, z: m.invert(images(), steps=0), "steps=0"),
    (lambda m, z: m.decode(z, noise(), sampler="euler"), "sampler 'euler'"),
    (lambda m, z: m.decode(z, noise(), grid="odd"), "grid 'odd'"),
    (lambda m, z: m.denoiser(z, shift="both"), "shift 'both'"),
    (lambda m, z: m.denoiser(z, off_last=30), "off_last=30"),
    (lambda m, z: m.decode(z, noise().expand(3, 3, 16, 16)), r"x_t has shape \[3, 3"),
])
def test_bad_arguments(call, message):
    pdae = make(filled_estimator=True)
    with pytest.raises(ValueError, match=message) as e:
        call(pdae, torch.zeros(3, 4))
    assert "\n" not in str(e.value)


def test_bad_precondition():
    pdae = make()
    with pytest.raises(ValueError, match="precondition 'x'"):
        PDAE(pdae.dpm, pdae.encoder, pdae.schedule, precondition="x")
