"""diffusers models as DPMs: their ε to the last bit, and z in copies of their upper half; their schedulers as
samplers."""
import pytest
import torch
from small_unets import NAMES, T_BATCH, T, diffusers, fit, forward, make, random, scheduler, unet
from torch import nn

from pdae_lite import NoiseSchedule, interop, sampling
from pdae_lite.losses import pdae_loss
from pdae_lite.networks.blocks import zeroed

pytestmark = pytest.mark.filterwarnings(  # of diffusers' own making
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:The `local_dir_use_symlinks` argument")

# ---- the DPM is diffusers' own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_same_bits(name, dtype):
    model = unet(name).to(dtype)
    dpm, _ = interop.from_diffusers(model)  # predicts ε: no conversion
    with torch.no_grad():
        for x in (random(name), torch.cat([random(name)] * 2, 3)):  # and twice as wide
            assert torch.equal(dpm(x, T_BATCH), forward(model, x.to(dtype), T_BATCH).float())
        x = random(name).to(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)
        assert torch.equal(dpm(x, T_BATCH), forward(model, x.to(dtype), T_BATCH).float())


@pytest.mark.parametrize("name", NAMES)
def test_zero_shift_is_diffusers_ddim(name):
    """On diffusers' grid, T//N apart, with its offset; x̂_0 clipped, and ε derived from it anew."""
    pdae, theirs = make(name), scheduler(name, steps_offset=1)
    theirs.set_timesteps(8)
    x = random(name)
    z = pdae.encoder(x)
    got = pdae.decode(z, x, grid=theirs.timesteps.tolist())
    with torch.no_grad():
        for t in theirs.timesteps:
            output = forward(unet(name), x, t)
            x = theirs.step(output, t, x, use_clipped_model_output=theirs.config.clip_sample).prev_sample
    assert x.abs().max() > 0.3
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)  # diffusers keeps ᾱ in float32


def test_zero_shift_is_the_pipeline():
    pdae, theirs = make(), scheduler("celebahq")
    pipeline = diffusers.DDIMPipeline(unet("celebahq"), theirs)
    pipeline.set_progress_bar_config(disable=True)
    want = pipeline(2, torch.Generator().manual_seed(3), num_inference_steps=5, use_clipped_model_output=True,
                    output_type="np").images
    x_T = pdae.noise(2, torch.Generator().manual_seed(3))
    got = pdae.decode(torch.zeros(2, 4), x_T, grid=[0, 20, 40, 60, 80])
    torch.testing.assert_close(got.permute(0, 2, 3, 1) / 2 + 0.5, torch.from_numpy(want), rtol=1e-4, atol=1e-4)


def test_what_the_scheduler_says():
    for name in NAMES:
        dpm, schedule = interop.from_diffusers(unet(name), scheduler(name))
        assert torch.allclose(schedule.alpha_bar, scheduler(name).alphas_cumprod, rtol=1e-4, atol=0)
        assert dpm.data_range == {"adm": (-1.5, 1.5), "latent": None}.get(name, (-1.0, 1.0))
        assert getattr(dpm, "prediction", "epsilon") == {"adm": "v", "gray": "x_0"}.get(name, "epsilon")
    dpm, schedule = interop.from_diffusers(unet("gray"))
    assert schedule.same_as(NoiseSchedule.linear()) and dpm.data_range == (-1.0, 1.0)
    with pytest.raises(ValueError, match="zero-terminal-SNR"):
        interop.from_diffusers(unet("gray"), scheduler("gray", rescale_betas_zero_snr=True))
    # a scheduler that has no such setting as clip_sample says nothing of the data's range
    for scheduler_, want in [(diffusers.EulerDiscreteScheduler(), (-1.0, 1.0)),
                             (diffusers.PNDMScheduler(), (-1.0, 1.0)),
                             (diffusers.DDIMScheduler(clip_sample=False), None),
                             (diffusers.DDPMScheduler(clip_sample_range=2.0), (-2.0, 2.0))]:
        assert interop.from_diffusers(unet("gray"), scheduler_)[0].data_range == want


@pytest.mark.parametrize(("changes", "message"), [
    (dict(down_block_types=("SkipDownBlock2D",) * 2), "SkipDownBlock2D"),
    (dict(down_block_types=("AttnSkipDownBlock2D",) * 2), "AttnSkipDownBlock2D"),
    (dict(up_block_types=("SkipUpBlock2D", "UpBlock2D")), "SkipUpBlock2D"),
    (dict(up_block_types=("AttnUpBlock2D", "AttnSkipUpBlock2D")), "AttnSkipUpBlock2D"),
    (dict(time_embedding_type="fourier"), "time_embedding_type='fourier'"),
    (dict(time_embedding_type="fourier"), r"NCSN\+\+"),
    (dict(num_class_embeds=10), "conditional on label, and label is missing; give label="),
    (dict(class_embed_type="timestep"), "label is missing"),
    (dict(class_embed_type="identity"), "class_embed_type='identity'"),
    (dict(out_channels=4), "in_channels=1, out_channels=4"),
])
def test_unsupported(changes, message):
    groups = dict(block_out_channels=(32, 32), norm_num_groups=8)  # skip blocks want many channels
    with pytest.raises(ValueError, match=message) as e:
        interop.from_diffusers(unet("gray", **groups | changes))
    assert "\n" not in str(e.value)


def test_refuses_what_is_no_unet_and_wrong_inputs():
    with pytest.raises(ValueError, match="model Linear isn't supported; want a network of diffusers"):
        interop.from_diffusers(nn.Linear(1, 1))
    dpm, _ = interop.from_diffusers(unet("celebahq"))
    for x in (torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 14, 16)):  # channels; three levels want multiples of 4
        with pytest.raises(ValueError, match="x_t has shape"):
            dpm(x, T_BATCH[:1])
    with pytest.raises(ValueError, match=r"z has shape \[1, 3\]; want \[N, 4\]"):
        dpm.gradient_estimator(4)(dpm.trunk(torch.zeros(1, 3, 16, 16), T_BATCH[:1]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="init 'zero'"):
        dpm.gradient_estimator(4, init="zero")


# ---- the gradient estimator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_copies_compute_what_the_dpm_computes(name):
    """Without z, and with the DPM's output convolution in the place of the zero one, the estimator gives ε: each copy
    is faithful."""
    model = unet(name)
    dpm, _ = interop.from_diffusers(model)
    estimator = dpm.gradient_estimator(4).eval()
    features, z = dpm.trunk(random(name), T_BATCH), torch.randn(3, 4)
    assert not bool(estimator(features, z).any())
    for part in estimator.modules():
        if hasattr(part, "emb_z_layers"):
            zeroed(part.emb_z_layers[1])
    channels = dpm.config.in_channels
    estimator.conv_out.weight.data = model.conv_out.weight.data[:channels]
    estimator.conv_out.bias.data = model.conv_out.bias.data[:channels]
    torch.testing.assert_close(estimator(features, z), dpm.head(features), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["celebahq", "adm"])
def test_z_enters_as_in_equation_9(name):
    """With constant z_s, z_b, (1+z_s)·AdaGN(h, t)+z_b is the block itself with other affine weights after its norm."""
    block = unet(name).up_blocks[0].resnets[0]
    shifted = interop.from_diffusers(unet(name))[0].gradient_estimator(4).eval().up_blocks[0].resnets[0]
    z_s, z_b = torch.randn(2, block.out_channels, generator=torch.Generator().manual_seed(0))
    shifted.emb_z_layers[1].weight.data.zero_()
    shifted.emb_z_layers[1].bias.data = torch.cat([z_s, z_b])
    x, emb = torch.randn(2, block.in_channels, 4, 4), torch.randn(2, block.time_emb_proj.in_features)
    with torch.no_grad():
        got = shifted(x, (emb, torch.randn(2, block.time_emb_proj.in_features)))
        if name == "celebahq":
            block.norm2.weight.mul_(1 + z_s)
            block.norm2.bias.mul_(1 + z_s).add_(z_b)
        else:  # scale and shift of the time embedding
            block.time_emb_proj.weight.mul_((1 + z_s).repeat(2)[:, None])
            block.time_emb_proj.bias.mul_((1 + z_s).repeat(2)).add_(torch.cat([z_s, z_b]))
        want = block(x, emb)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), ("adm", {"init": "random"})])
def test_a_few_steps_train_estimator_and_encoder_alone(name, options):
    pdae, x_0 = make(name, **options), random(name).clamp(-1, 1)
    assert not bool(pdae(x_0, T_BATCH, torch.ones(3, 4))[1].any())
    before = {k: v.clone() for k, v in pdae.state_dict().items()}
    fit(pdae, x_0)
    for k, v in pdae.state_dict().items():
        trained = k.startswith(("encoder.", "estimator."))
        assert torch.equal(v, before[k]) != trained, k
    assert all(p.grad is None for p in pdae.dpm.parameters()) and not pdae.dpm.training
    features, z = pdae.features(x_0, T_BATCH), pdae.encode(x_0)
    with torch.no_grad():
        a, b = pdae.gradient(features, z), pdae.gradient(features, z.roll(1, 0))
    assert (a - b).abs().mean() > 1e-3 * a.abs().mean() > 0  # z matters


def test_weights_of_the_dpm_or_random_ones():
    dpm, _ = interop.from_diffusers(unet("celebahq"))
    own = dpm.unet.up_blocks[0].resnets[0].conv1.weight
    copied, fresh = (dpm.gradient_estimator(4, init=init).up_blocks[0].resnets[0].block.conv1.weight
                     for init in ("dpm", "random"))
    assert torch.equal(copied, own) and copied is not own and not torch.equal(fresh, own)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name):
    pdae, x_0 = make(name), random(name).clamp(-1, 1)
    eps = torch.randn(x_0.shape)
    fit(pdae, x_0)
    want = pdae_loss(pdae, x_0, T_BATCH, eps)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = pdae_loss(pdae, x_0, T_BATCH, eps)
    pdae.dpm.to(torch.bfloat16)  # a frozen DPM at half the memory; what is trained stays in float32
    mixed = pdae_loss(pdae, x_0, T_BATCH, eps)
    mixed.backward()
    assert all(p.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in pdae.trainable().parameters())
    whole = pdae_loss(pdae.to(torch.bfloat16), x_0, T_BATCH, eps, z=pdae.encoder(x_0.bfloat16()))
    fresh = interop.from_diffusers(unet(name).to(torch.bfloat16))[0].gradient_estimator(4)
    assert {p.dtype for p in fresh.parameters()} == {torch.float32}
    for value in (under_autocast, mixed, whole):
        assert value != want and abs(value.item() / want.item() - 1) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_compiles_in_one_graph(name):
    pdae, x_0 = make(name), random(name).clamp(-1, 1)
    fit(pdae, x_0)
    t, eps, weight = T_BATCH, torch.randn(x_0.shape), pdae.schedule.loss_weight()
    torch.compiler.reset()
    compiled = torch.compile(pdae_loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(pdae, x_0, t, eps, weight), pdae_loss(pdae, x_0, t, eps, weight))


# ---- diffusers' schedulers on our denoisers --------------------------------------------------------------------------


def denoiser(pdae, x_0):
    return pdae.denoiser(pdae.encode(x_0))


@pytest.fixture(scope="module")
def fitted():
    return fit(make(), random("celebahq").clamp(-1, 1))


@pytest.mark.parametrize("clip", [True, False])
def test_their_ddim_is_ours(fitted, clip):
    shifted, x_T = denoiser(fitted, random("celebahq").clamp(-1, 1)), random("celebahq", seed=2)
    theirs = scheduler("celebahq", clip_sample=clip, beta_schedule="scaled_linear", prediction_type="v_prediction",
                       steps_offset=3)
    got = interop.sample_with(theirs, shifted, x_T, fitted.schedule, 10, use_clipped_model_output=clip)
    want = sampling.ddim(shifted, x_T, fitted.schedule, grid=range(3, T, 10), clip=clip)
    assert (want - sampling.ddim(fitted.dpm, x_T, fitted.schedule, grid=range(3, T, 10), clip=clip)).abs().max() > 1e-2
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert theirs.config.prediction_type == "v_prediction" and theirs.num_inference_steps is None  # it isn't changed


def test_euler_is_ddim(fitted):
    """Euler's method in σ = √(1−ᾱ)/√ᾱ, on x_t/√ᾱ: the same steps, but for another scale of x_T and of the network's
    input."""
    shifted, x_T = denoiser(fitted, random("celebahq").clamp(-1, 1)), random("celebahq", seed=2)
    got = interop.sample_with(diffusers.EulerDiscreteScheduler(timestep_spacing="leading"), shifted, x_T,
                              fitted.schedule, 10)
    want = sampling.ddim(shifted, x_T, fitted.schedule, grid=range(0, T, 10), clip=False)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "options"), [
    ("DPMSolverMultistepScheduler", {}), ("UniPCMultistepScheduler", {"disable_corrector": list(range(20))})])
def test_their_solvers_of_order_1_are_ddim(fitted, kind, options):
    shifted, x_T = denoiser(fitted, random("celebahq").clamp(-1, 1)), random("celebahq", seed=2)
    theirs = getattr(diffusers, kind)(solver_order=1, timestep_spacing="trailing", **options)
    got = interop.sample_with(theirs, shifted, x_T, fitted.schedule, 20)
    want = sampling.ddim(shifted, x_T, fitted.schedule, grid=range(4, T, 5), clip=False)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_their_dpm_solver_is_ours(fitted):
    shifted, x_T = denoiser(fitted, random("celebahq").clamp(-1, 1)), random("celebahq", seed=2)
    theirs = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing")
    got = interop.sample_with(theirs, shifted, x_T, fitted.schedule, 20)
    want = sampling.dpm_solver(shifted, x_T, fitted.schedule, grid=range(4, T, 5), clip=False)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    ours = sampling.ddim(shifted, x_T, fitted.schedule, grid=range(4, T, 5), clip=False)
    assert (got - ours).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "options"),
                         [("UniPCMultistepScheduler", {}), ("DPMSolverMultistepScheduler", {"solver_order": 3})])
def test_other_solvers_find_the_same_image(kind, options):
    """On unit Gaussian data ε = √(1−ᾱ) x_t is exact and x_0 = x_T: closer to it than DDIM is, at the same cost."""
    schedule, x_T = NoiseSchedule.linear(), random("celebahq", seed=2)

    def gaussian(x, t):
        return schedule.at("sqrt_one_minus_alpha_bar", t, x) * x

    got = interop.sample_with(getattr(diffusers, kind)(timestep_spacing="trailing", **options), gaussian, x_T, schedule,
                              20)
    ddim = sampling.ddim(gaussian, x_T, schedule, 20, clip=False)
    assert (got - x_T).abs().max() < 0.5 * (ddim - x_T).abs().max()


def test_schedulers_that_draw_and_that_do_not_fit(fitted):
    x_T, options = random("celebahq"), dict(schedule=fitted.schedule, steps=5)
    ancestral = scheduler("celebahq", "DDPMScheduler")
    a, b, c = (interop.sample_with(ancestral, fitted.dpm, x_T, generator=torch.Generator().manual_seed(seed), **options)
               for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and bool(a.isfinite().all())
    with pytest.raises(ValueError, match="EulerDiscreteScheduler evaluates at t = .*; want whole numbers"):
        interop.sample_with(diffusers.EulerDiscreteScheduler(), fitted.dpm, x_T, **options)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler takes no betas"):
        interop.sample_with(diffusers.FlowMatchEulerDiscreteScheduler(), fitted.dpm, x_T, **options)
    with pytest.raises(ValueError, match="variance_type='learned_range', but a denoiser gives no variance"):
        interop.sample_with(diffusers.DDPMScheduler(variance_type="learned_range"), fitted.dpm, x_T, **options)
    plain, rescaled = (interop.sample_with(diffusers.DDIMScheduler(rescale_betas_zero_snr=zero), fitted.dpm, x_T,
                                           **options)
                       for zero in (False, True))
    assert torch.equal(plain, rescaled)  # the schedule's betas are used, whatever it would make of its own
