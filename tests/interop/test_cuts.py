"""Networks of diffusers that are told a prompt or a class: their ε to the last bit, and z in copies of their upper
half."""
import copy

import pytest
import torch
from refusals import refuses
from small_cuts import KINDS, given, network, noisy, own_eps
from small_unets import T_BATCH, Linear, diffusers
from torch import nn

from pdae_lite import PDAE, NoiseSchedule, interop
from pdae_lite.checkpoint import load_model, save_model
from pdae_lite.interop.paths import OnPath
from pdae_lite.losses import pdae_loss

pytestmark = pytest.mark.filterwarnings(  # of diffusers' own making
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:The `local_dir_use_symlinks` argument")


def dpm(name, model=None, **options):
    return interop.from_diffusers(network(name) if model is None else model, **given(name) | options)[0]


def parts(name):
    cut = dpm(name)
    with torch.no_grad():
        return cut, cut.trunk(noisy(), T_BATCH)


def redrawn(estimator, std=0.3):
    """Every weight that starts at zero, drawn."""
    for p in estimator.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=std)
    return estimator


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
def test_same_bits(name, dtype):
    model = network(name).to(dtype)
    cut = dpm(name, model)
    with torch.no_grad():
        for x in (noisy(), noisy(size=16)) if name != "sd3" else (noisy(), torch.cat([noisy()] * 2, 3)):
            assert torch.equal(cut(x, T_BATCH), own_eps(model, name, x.to(dtype), T_BATCH).float())
        assert torch.equal(cut(noisy(), torch.tensor(7)),
                           own_eps(model, name, noisy().to(dtype), torch.full((3,), 7)).float())


@pytest.mark.parametrize("name", KINDS)
def test_what_it_is_told_matters(name):
    told = given(name)
    for key, value in (told or {"label": 0}).items():
        value = {n: w + 1 for n, w in value.items()} if isinstance(value, dict) else value + 1
        assert not torch.equal(dpm(name, **{key: value})(noisy(), T_BATCH), dpm(name)(noisy(), T_BATCH)), key


@pytest.mark.parametrize("name", KINDS)
def test_zero_start_of_both_forms(name):
    cut, features = parts(name)
    z, eps = torch.randn(3, 4), cut.head(features)
    assert torch.equal(cut.noise_estimator(4).eval()(features, z), eps) and eps.abs().max() > 0.01
    assert not bool(cut.gradient_estimator(4)(features, z).any())


@pytest.mark.parametrize("form", ["noise_estimator", "gradient_estimator"])
@pytest.mark.parametrize("name", KINDS)
def test_z_matters_to_every_block_and_each_image_has_its_own(name, form):
    cut, features = parts(name)
    estimator = redrawn(getattr(cut, form)(4).eval())
    z = torch.randn(3, 4, requires_grad=True)
    out = estimator(features, z)
    assert torch.autograd.grad(out[0].sum(), z, retain_graph=True)[0][1:].abs().max() == 0
    out.square().sum().backward()
    assert z.grad.abs().min() > 0
    inside = [part for part in estimator.modules() if hasattr(part, "emb_z_layers")]
    assert len(inside) >= 2 and all(p.grad.abs().max() > 0 for part in inside for p in part.emb_z_layers.parameters())
    torch.testing.assert_close(estimator(features, z[:1]), estimator(features, z[:1].expand(3, -1)))  # one z for all


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
def test_encoder_and_estimator_train_alone(name, dtype):
    cut = dpm(name, network(name).to(dtype))
    pdae = PDAE(cut, Linear(4 * 64), NoiseSchedule.linear(100), cut.gradient_estimator(4))
    before = {k: v.clone() for k, v in pdae.state_dict().items()}
    optimizer = torch.optim.Adam(pdae.trainable().parameters(), lr=1e-2)
    pdae.train()
    for _ in range(4):
        optimizer.zero_grad()
        loss = pdae_loss(pdae, noisy(), T_BATCH, noisy(seed=2))
        loss.backward()
        optimizer.step()
    assert loss.isfinite() and {p.dtype for p in pdae.trainable().parameters()} == {torch.float32}
    changed = {k.split(".")[0] for k, v in pdae.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"encoder", "estimator"} and not pdae.dpm.training
    features = pdae.features(noisy(), T_BATCH)
    a, b = (pdae.estimator.eval()(features, z) for z in torch.randn(2, 3, 4))
    assert not torch.equal(a, b)


def test_labels_are_never_dropped_in_training():
    cut, features = parts("dit, class")
    estimator = cut.noise_estimator(4).train()
    assert all(torch.equal(estimator(features, torch.zeros(3, 4)), cut.head(features)) for _ in range(20))


@pytest.mark.parametrize("name", KINDS)
def test_checkpointing_changes_no_gradient(name):
    cut, features = parts(name)
    estimator, z = redrawn(cut.noise_estimator(4)), torch.randn(3, 4)
    twin = copy.deepcopy(estimator)
    twin.enable_gradient_checkpointing()
    for network_ in (estimator, twin):
        network_(features, z).square().mean().backward()
    for (k, a), b in zip(estimator.named_parameters(), twin.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=k)


@pytest.mark.parametrize("name", KINDS)
def test_saved_and_loaded(name, tmp_path):
    cut = dpm(name)
    pdae = PDAE(cut, Linear(4 * 64), NoiseSchedule.linear(100), cut.gradient_estimator(4))
    save_model(tmp_path / "dpm.safetensors", pdae.dpm)
    loaded = load_model(tmp_path / "dpm.safetensors")
    assert loaded.config == cut.config and loaded.constants == cut.constants
    assert loaded.data_range == cut.data_range == ((-1.0, 1.0) if name == "class" else None)
    torch.testing.assert_close(loaded(noisy(), T_BATCH), cut(noisy(), T_BATCH))


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_one_graph(name):
    cut, features = parts(name)
    estimator = redrawn(cut.noise_estimator(4)).eval()
    torch.compiler.reset()
    z, compiled = torch.randn(3, 4), torch.compile(lambda x, t, z: estimator(cut.trunk(x, t), z), backend="eager",
                                                   fullgraph=True)
    got = compiled(noisy(), T_BATCH, z)
    torch.testing.assert_close(got, estimator(features, z))


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "message"), [
    ("sd", {"prompt_embeds": None}, "conditional on prompt_embeds, and prompt_embeds is missing; give the folder of a "
                                    "pipeline"),
    ("sdxl", {"added_cond_kwargs": None}, "text_embeds is missing"),
    ("sdxl", {"added_cond_kwargs": {"text_embeds": torch.zeros(1, 8)}}, "time_ids is missing"),
    ("sd3", {"pooled_prompt_embeds": None}, "pooled_prompt_embeds is missing"),
    ("class", {"label": None}, "label is missing; give label="),
    ("class", {"label": 5}, "label=5; want 0 … 4"),
    ("dit", {"label": 6}, "label=6; want 0 … 4, or None"),
    ("dit", {"prompt_embeds": torch.zeros(1, 1, 8)}, "prompt_embeds given, but this DiTTransformer2DModel is "
                                                     "conditional on label"),
    ("sd", {"label": 1}, "label given, but this UNet2DConditionModel is conditional on prompt_embeds"),
])
def test_what_it_is_told_is_missing_or_too_much(name, options, message):
    refuses(message, interop.from_diffusers, network(name), **given(name) | options)


@pytest.mark.parametrize(("changes", "message"), [
    (dict(in_channels=9), "in_channels=9, out_channels=4: inpainting, upscaling"),
    (dict(time_cond_proj_dim=16), "time_cond_proj_dim=16: a latent consistency model"),
    (dict(encoder_hid_dim_type="text_proj", encoder_hid_dim=8), "encoder_hid_dim_type='text_proj'"),
    (dict(addition_embed_type="text", addition_embed_type_num_heads=2), "addition_embed_type='text'"),
    (dict(addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2560),
     "SDXL refiner"),
    (dict(class_embed_type="projection", projection_class_embeddings_input_dim=8), "class_embed_type='projection'"),
    (dict(mid_block_type="UNetMidBlock2DSimpleCrossAttn"), "UNetMidBlock2DSimpleCrossAttn"),
])
def test_networks_that_are_no_dpms(changes, message):
    refuses(message, interop.from_diffusers, network("sd", **changes), **given("sd"))


def test_other_models():
    flux = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, attention_head_dim=16,
                                            num_attention_heads=1, joint_attention_dim=8, pooled_projection_dim=8,
                                            axes_dims_rope=(4, 4, 8))
    control = diffusers.ControlNetModel(block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=8,
                                        attention_head_dim=4, down_block_types=("DownBlock2D",) * 2)
    for model, message in [(flux, "model FluxTransformer2DModel is Flux"), (control, "is a ControlNet"),
                           (diffusers.UNet1DModel(), "model UNet1DModel isn't supported")]:
        refuses(message, interop.from_diffusers, model)
    refuses("a DiTTransformer2DModel takes squares", dpm("dit"), torch.zeros(1, 4, 8, 16), torch.tensor([1]))


# ---- other paths -----------------------------------------------------------------------------------------------------


def test_told_time_reaches_every_block():
    """A DiT of flow matching: its blocks embed the time that the path tells, not our index."""
    model, scheduler = network("dit", out_channels=4), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    cut, schedule = interop.from_diffusers(model, scheduler)
    assert isinstance(cut, OnPath) and cut.prediction == "flow"
    with torch.no_grad():
        for t in (torch.tensor([0, 500, 999]), torch.tensor(123)):
            a, s = (torch.tensor(v, dtype=torch.float32) for v in zip(*(schedule.level(int(i)) for i in t.reshape(-1))))
            tau, c = (s / (a + s)).expand(3), (1 / (a + s))[:, None, None, None]
            v = model(c * noisy(), 1000 * tau, class_labels=torch.full((3,), 5)).sample
            torch.testing.assert_close(cut(noisy(), t), c * noisy() + (1 - tau)[:, None, None, None] * v, rtol=1e-5,
                                       atol=1e-5)
        features = cut.trunk(noisy(), torch.tensor([0, 500, 999]))
        known = cut.convert(cut.model.noise_estimator(4).eval()(features, torch.randn(3, 4)), features)
        assert torch.equal(known, cut.head(features))
