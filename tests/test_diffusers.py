"""diffusers models as DPMs: their ε to the last bit, z in copies of their upper half, files by value and by reference."""
import inspect
import socket
import sys

import pytest
import torch
from torch import nn

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, data, interop, sampling, train
from pdae_lite.checkpoint import CheckpointError, load_model, read, save_model
from pdae_lite.losses import pdae_loss

diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed")

pytestmark = pytest.mark.filterwarnings(  # of diffusers' own making
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning", "ignore:The `local_dir_use_symlinks` argument")

NAMES = ("celebahq", "adm", "gray", "latent", "wide")
SMALL = dict(layers_per_block=1, norm_num_groups=4, attention_head_dim=4)
UNETS = {
    # the shape of google/ddpm-celebahq-256, with fewer levels and channels
    "celebahq": SMALL | dict(sample_size=16, layers_per_block=2, block_out_channels=(8, 8, 16), attention_head_dim=None,
                             down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
                             up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), downsample_padding=0, freq_shift=1,
                             flip_sin_to_cos=False, norm_eps=1e-6),
    # the shape of ADM: time by scale and shift, resampling in residual blocks, a learned variance
    "adm": SMALL | dict(sample_size=16, out_channels=6, block_out_channels=(8, 16), resnet_time_scale_shift="scale_shift",
                        downsample_type="resnet", upsample_type="resnet", attn_norm_num_groups=4, dropout=0.1,
                        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
                        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D")),
    "gray": SMALL | dict(sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 8), center_input_sample=True,
                         time_embedding_type="learned", num_train_timesteps=100, down_block_types=("DownBlock2D", "DownBlock2D"),
                         up_block_types=("AttnUpBlock2D", "UpBlock2D"), upsample_type="resnet", add_attention=False),
    "latent": SMALL | dict(sample_size=32, in_channels=4, out_channels=4, block_out_channels=(8, 8, 8, 8), mid_block_scale_factor=1.5,
                           down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4),
    "wide": SMALL | dict(sample_size=(8, 16), block_out_channels=(8, 16), mid_block_type=None, act_fn="gelu", downsample_type="resnet",
                         down_block_types=("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D")),
}
if "mid_block_type" not in inspect.signature(diffusers.UNet2DModel.__init__).parameters:  # added to diffusers later
    del UNETS["wide"]["mid_block_type"]
# What each was trained with: all three predictions, three schedules, data with and without a range.
SCHEDULERS = {"celebahq": {}, "adm": dict(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", clip_sample_range=1.5),
              "gray": dict(prediction_type="sample"), "latent": dict(beta_schedule="scaled_linear", clip_sample=False), "wide": {}}
T = 100
T_BATCH = torch.tensor([1, 50, 99])


def unet(name, **changes):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**UNETS[name] | changes).eval()


def scheduler(name, kind="DDIMScheduler", **changes):
    return getattr(diffusers, kind)(num_train_timesteps=T, beta_end=0.2, **SCHEDULERS[name] | changes)


def random(name, n=3, seed=1):
    size = UNETS[name]["sample_size"]
    shape = (n, UNETS[name].get("in_channels", 3), *((size, size) if isinstance(size, int) else size))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """An encoder for images of any shape."""

    def __init__(self, features, z_dim=4):
        super().__init__()
        self.z_dim, self.linear = z_dim, nn.Linear(features, z_dim)

    def forward(self, x_0):
        return self.linear(x_0.flatten(1))


def make(name="celebahq", **options):
    dpm, schedule = interop.from_diffusers(unet(name), scheduler(name))
    torch.manual_seed(1)
    return PDAE(dpm, Linear(random(name)[0].numel()), schedule, dpm.gradient_estimator(4, **options))


def fit(pdae, x_0, steps=5):
    optimizer = torch.optim.Adam(pdae.trainable().parameters(), lr=1e-2)
    pdae.train()
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        t = torch.randint(1, T, (len(x_0),), generator=g)
        optimizer.zero_grad()
        pdae_loss(pdae, x_0, t, torch.randn(x_0.shape, generator=g)).backward()
        optimizer.step()
    return pdae.eval()


def forward(model, x, t):
    """diffusers' own forward, without the variance."""
    return model(x, t).sample[:, : x.shape[1]]


# ---- the DPM is diffusers' own ----------------------------------------------------------------------------------------


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
    want = pipeline(2, torch.Generator().manual_seed(3), num_inference_steps=5, use_clipped_model_output=True, output_type="np").images
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
    assert schedule == NoiseSchedule.linear() and dpm.data_range == (-1.0, 1.0)
    with pytest.raises(ValueError, match="zero-terminal-SNR"):
        interop.from_diffusers(unet("gray"), scheduler("gray", rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="prediction_type='flow_prediction'"):
        interop.from_diffusers(unet("gray"), diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"))


@pytest.mark.parametrize(("changes", "message"), [
    (dict(down_block_types=("SkipDownBlock2D",) * 2), "SkipDownBlock2D"),
    (dict(down_block_types=("AttnSkipDownBlock2D",) * 2), "AttnSkipDownBlock2D"),
    (dict(up_block_types=("SkipUpBlock2D", "UpBlock2D")), "SkipUpBlock2D"),
    (dict(up_block_types=("AttnUpBlock2D", "AttnSkipUpBlock2D")), "AttnSkipUpBlock2D"),
    (dict(time_embedding_type="fourier"), "time_embedding_type='fourier'"),
    (dict(num_class_embeds=10), "num_class_embeds=10"),
    (dict(class_embed_type="timestep"), "class_embed_type='timestep'"),
    (dict(out_channels=4), "in_channels=1, out_channels=4"),
])
def test_unsupported(changes, message):
    groups = dict(block_out_channels=(32, 32), norm_num_groups=8)  # skip blocks want many channels
    with pytest.raises(ValueError, match=message) as e:
        interop.from_diffusers(unet("gray", **groups | changes))
    assert "\n" not in str(e.value)


def test_refuses_what_is_no_unet_and_wrong_inputs():
    with pytest.raises(ValueError, match="model Linear; want a UNet2DModel"):
        interop.from_diffusers(nn.Linear(1, 1))
    dpm, _ = interop.from_diffusers(unet("celebahq"))
    for x in (torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 14, 16)):  # channels; three levels want multiples of 4
        with pytest.raises(ValueError, match="x_t has shape"):
            dpm(x, T_BATCH[:1])
    with pytest.raises(ValueError, match=r"z has shape \[1, 3\]; want \[N, 4\]"):
        dpm.gradient_estimator(4)(dpm.trunk(torch.zeros(1, 3, 16, 16), T_BATCH[:1]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="init 'zero'"):
        dpm.gradient_estimator(4, init="zero")


# ---- the gradient estimator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_copies_compute_what_the_dpm_computes(name):
    """With the DPM's output convolution in the place of the zero one, the estimator gives ε: every copy is faithful."""
    model = unet(name)
    dpm, _ = interop.from_diffusers(model)
    estimator = dpm.gradient_estimator(4).eval()
    features, z = dpm.trunk(random(name), T_BATCH), torch.randn(3, 4)
    assert not bool(estimator(features, z).any())
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
    copied, fresh = (dpm.gradient_estimator(4, init=init).up_blocks[0].resnets[0].block.conv1.weight for init in ("dpm", "random"))
    assert torch.equal(copied, own) and copied is not own and not torch.equal(fresh, own)


def test_bfloat16():
    pdae, x_0 = make(), random("celebahq").clamp(-1, 1)
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
    fresh = interop.from_diffusers(unet("celebahq").to(torch.bfloat16))[0].gradient_estimator(4)
    assert {p.dtype for p in fresh.parameters()} == {torch.float32}
    for value in (under_autocast, mixed, whole):
        assert value != want and abs(value.item() / want.item() - 1) < 0.05


def test_compiles_in_one_graph():
    pdae, x_0 = make("wide"), random("wide")
    fit(pdae, x_0)
    t, eps, weight = T_BATCH, torch.randn(x_0.shape), pdae.schedule.loss_weight()
    compiled = torch.compile(pdae_loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(pdae, x_0, t, eps, weight), pdae_loss(pdae, x_0, t, eps, weight))


# ---- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def pipeline(tmp_path):
    """The folder of a pipeline."""
    diffusers.DDIMPipeline(unet("celebahq"), scheduler("celebahq")).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_folders(tmp_path, pipeline, no_network):
    x = random("celebahq")
    want = interop.from_diffusers(unet("celebahq"), scheduler("celebahq"))
    unet("celebahq").save_pretrained(tmp_path / "model")
    flat = tmp_path / "flat"  # the layout of google/ddpm-celebahq-256
    unet("celebahq").save_pretrained(flat)
    scheduler("celebahq", "DDPMScheduler").save_pretrained(flat)
    for path in (pipeline, str(pipeline), pipeline / "unet", flat, tmp_path / "model"):
        dpm, schedule = interop.from_diffusers(path)
        assert not dpm.training and torch.equal(dpm(x, T_BATCH), want[0](x, T_BATCH))
        assert schedule == (NoiseSchedule.linear() if path == tmp_path / "model" else want[1])
    assert interop.from_diffusers(tmp_path / "model", scheduler("celebahq"))[1] == want[1]
    for name in ("adm", "gray", "latent"):
        diffusers.DDIMPipeline(unet(name), scheduler(name, "DDPMScheduler")).save_pretrained(tmp_path / name)
        found, want = interop.from_diffusers(tmp_path / name), interop.from_diffusers(unet(name), scheduler(name))
        assert torch.equal(found[0](random(name), T_BATCH), want[0](random(name), T_BATCH))
        assert found[0].data_range == want[0].data_range and found[1] == want[1]


def test_damaged_folders(tmp_path, pipeline):
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for damage, message in [(whole[:1000], "the weights can't be read"), (None, "the weights can't be read")]:
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(CheckpointError, match=message) as e:
            interop.from_diffusers(pipeline)
        assert "\n" not in str(e.value) and str(pipeline) in str(e.value)
        path.write_bytes(whole)
    attention = ("AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    for changes, message in [(dict(add_attention=False), r"don't fit config.json \(mid_block.attentions"),  # too many, too few
                             (dict(down_block_types=attention), r"don't fit config.json \(down_blocks.0.attentions"),
                             (dict(layers_per_block=1), "the weights can't be read .*up_blocks.0.resnets")]:
        unet("celebahq", **changes).save_config(pipeline / "unet")
        with pytest.raises(CheckpointError, match=message):
            interop.from_diffusers(pipeline)
    (pipeline / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a valid JSON"):
        interop.from_diffusers(pipeline)
    with pytest.raises(CheckpointError, match="has no UNet2DModel"):
        interop.from_diffusers(tmp_path)


def test_hub_ids_stay_off_the_network(pipeline, no_network, monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match="nobody/nothing is neither a folder nor a model in the hub's cache.*download=True") as e:
        interop.from_diffusers("nobody/nothing")
    assert "\n" not in str(e.value)
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    snapshot = cache / "models--somebody--faces" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    pipeline.rename(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    dpm, schedule = interop.from_diffusers("somebody/faces", keep="reference")
    assert torch.equal(dpm(random("celebahq"), T_BATCH), unet("celebahq")(random("celebahq"), T_BATCH).sample) and schedule.T == T
    pdae = PDAE(dpm, SemanticEncoder.for_images(16, 3, z_dim=4), schedule)
    pdae.save(tmp_path / "pdae.safetensors")
    assert same(weights(PDAE.load(tmp_path / "pdae.safetensors")), weights(pdae))

    asked = []

    def load_config(path, local_files_only, **_):
        asked.append((path, local_files_only))
        raise OSError("gone")

    monkeypatch.setattr(diffusers.UNet2DModel, "load_config", load_config)
    with pytest.raises(CheckpointError, match="somebody/other is neither a folder nor a model of the hub"):
        interop.from_diffusers("somebody/other", download=True)
    assert set(asked) == {("somebody/other", False)}


@pytest.mark.parametrize("name", ["celebahq", "adm", "gray", "latent"])
def test_by_value(name, tmp_path, no_network, monkeypatch):
    dpm, schedule = interop.from_diffusers(unet(name), scheduler(name))
    pdae = PDAE(dpm, SemanticEncoder.for_images(UNETS[name]["sample_size"], random(name).shape[1], z_dim=4), schedule)
    fit(pdae, random(name).clamp(-1, 1))
    path = tmp_path / "pdae.safetensors"
    pdae.save(path, note="a note")
    loaded = PDAE.load(path)
    assert same(weights(loaded), weights(pdae)) and loaded.metadata == {"note": "a note"} and loaded.data_range == pdae.data_range
    z = pdae.encode(random(name).clamp(-1, 1))
    assert torch.equal(loaded.decode(z, random(name), steps=3), pdae.decode(z, random(name), steps=3))
    assert torch.equal(loaded.noise(1, torch.Generator().manual_seed(0)), pdae.noise(1, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="keep 'reference' is for a DPM that"):
        pdae.save(path, dpm="reference")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'pdae_lite\[diffusers\]'") as e:
        PDAE.load(path)
    assert "\n" not in str(e.value)


def test_a_dpm_alone_by_value(tmp_path):
    dpm, _ = interop.from_diffusers(unet("wide"))
    save_model(tmp_path / "dpm.safetensors", dpm)
    loaded = load_model(tmp_path / "dpm.safetensors")
    assert same(weights(loaded), weights(dpm)) and loaded.config == dpm.config and loaded.config.image_size == (8, 16)


def test_by_reference(tmp_path, pipeline, no_network):
    dpm, schedule = interop.from_diffusers(pipeline)
    pdae = PDAE(dpm, SemanticEncoder.for_images(16, 3, z_dim=4), schedule)
    fit(pdae, random("celebahq").clamp(-1, 1))
    path, by_value = tmp_path / "pdae.safetensors", tmp_path / "by_value.safetensors"
    pdae.save(by_value)
    pdae.save(path, dpm="reference")
    assert any(k.startswith("dpm.") for k in read(by_value)[0]) and not any(k.startswith("dpm.") for k in read(path)[0])
    loaded = PDAE.load(path)
    assert same(weights(loaded), weights(pdae)) and same(weights(PDAE.load(by_value)), weights(pdae))
    again = tmp_path / "again.safetensors"
    loaded.save(again)  # still by reference
    assert again.read_bytes() == path.read_bytes()

    with torch.no_grad():  # no longer what the folder holds
        loaded.dpm.unet.conv_in.bias += 1
    with pytest.raises(ValueError, match="weights aren't those of .* any more"):
        loaded.save(again)
    loaded.save(again, dpm="value")
    assert same(weights(PDAE.load(again)), weights(loaded))

    other = unet("celebahq")
    with torch.no_grad():
        other.conv_in.bias += 1
    moved = pipeline.with_name("moved")
    for change, message in [
        (lambda: other.save_pretrained(pipeline / "unet"), r"holds another one now \(SHA-256 [0-9a-f]{12}…, want [0-9a-f]{12}…"),
        (lambda: unet("celebahq", freq_shift=0).save_pretrained(pipeline / "unet"), r"another one now \(freq_shift differs"),
        (lambda: pipeline.rename(moved), "can't be read: .*pipeline is neither a folder"),
    ]:
        change()
        with pytest.raises(CheckpointError, match=message) as e:
            PDAE.load(path)
        assert "\n" not in str(e.value) and str(e.value).startswith(str(path))
    with pytest.raises(ValueError, match="keep 'later'"):
        interop.from_diffusers(moved, keep="later")


def test_train_on_a_folder_of_images(tmp_path, pipeline):
    from PIL import Image

    (tmp_path / "images").mkdir()
    g = torch.Generator().manual_seed(0)
    for i in range(6):
        pixels = torch.randint(0, 256, (20, 24, 3), generator=g, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{i}.png")
    dpm, schedule = interop.from_diffusers(pipeline, keep="reference")
    pdae = PDAE(dpm, SemanticEncoder.for_images(16, 3, z_dim=4), schedule)
    before = weights(pdae)
    settings = dict(batch_size=4, log_every=2, save_every=2, progress=False, ema=0.5, out=tmp_path / "run")
    images = data.folder(tmp_path / "images", 16)
    train(pdae, images, steps=4, **settings)
    result = train(pdae, images, steps=6, **settings)  # goes on
    assert [entry["step"] for entry in result.history] == [2, 4, 6]
    changed = {k.split(".")[0] for k, v in weights(pdae).items() if not torch.equal(v, before[k])}
    assert changed == {"encoder", "estimator"}
    loaded = PDAE.load(tmp_path / "run" / "model.safetensors")
    assert same(weights(loaded), weights(pdae)) and loaded.dpm.keep == "reference"
    x_0, x_T = data.to_float(images[0][None]), random("celebahq", 1)
    got, want = (model.decode(model.encode(x_0), x_T, steps=2) for model in (loaded, pdae))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # training left its weights in channels_last


def test_a_dpm_can_be_trained_on():
    dpm, schedule = interop.from_diffusers(unet("gray"), scheduler("gray"))
    images = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = weights(dpm)
    train(dpm, data.Images(images, torch.zeros(8)), schedule=schedule, steps=2, batch_size=4, progress=False)
    assert not same(weights(dpm), before)


# ---- diffusers' schedulers on our denoisers -----------------------------------------------------------------------------


def denoiser(pdae, x_0):
    return pdae.denoiser(pdae.encode(x_0))


@pytest.fixture(scope="module")
def fitted():
    return fit(make(), random("celebahq").clamp(-1, 1))


@pytest.mark.parametrize("clip", [True, False])
def test_their_ddim_is_ours(fitted, clip):
    shifted, x_T = denoiser(fitted, random("celebahq").clamp(-1, 1)), random("celebahq", seed=2)
    theirs = scheduler("celebahq", clip_sample=clip, beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=3)
    got = interop.sample_with(theirs, shifted, x_T, fitted.schedule, 10, use_clipped_model_output=clip)
    want = sampling.ddim(shifted, x_T, fitted.schedule, grid=range(3, T, 10), clip=clip)
    assert (want - sampling.ddim(fitted.dpm, x_T, fitted.schedule, grid=range(3, T, 10), clip=clip)).abs().max() > 1e-2
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert theirs.config.prediction_type == "v_prediction" and theirs.num_inference_steps is None  # it isn't changed


def test_their_dpm_solver_is_ours(fitted):
    shifted, x_T = denoiser(fitted, random("celebahq").clamp(-1, 1)), random("celebahq", seed=2)
    theirs = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing")
    got = interop.sample_with(theirs, shifted, x_T, fitted.schedule, 20)
    want = sampling.dpm_solver(shifted, x_T, fitted.schedule, grid=range(4, T, 5), clip=False)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    ours = sampling.ddim(shifted, x_T, fitted.schedule, grid=range(4, T, 5), clip=False)
    assert (got - ours).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "options"), [("UniPCMultistepScheduler", {}), ("DPMSolverMultistepScheduler", {"solver_order": 3})])
def test_other_solvers_find_the_same_image(kind, options):
    """On unit Gaussian data ε = √(1−ᾱ) x_t is exact and x_0 = x_T: closer to it than DDIM is, at the same cost."""
    schedule, x_T = NoiseSchedule.linear(), random("celebahq", seed=2)

    def gaussian(x, t):
        return schedule.at("sqrt_one_minus_alpha_bar", t, x) * x

    got = interop.sample_with(getattr(diffusers, kind)(timestep_spacing="trailing", **options), gaussian, x_T, schedule, 20)
    ddim = sampling.ddim(gaussian, x_T, schedule, 20, clip=False)
    print((got - x_T).abs().max(), (ddim - x_T).abs().max())
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
