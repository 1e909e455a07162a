"""U-Net, estimator and encoder: names, parts, variants, and refusals."""
import dataclasses
import json
import math

import pytest
import torch

from pdae_lite.checkpoint import build, describe
from pdae_lite.networks.blocks import attend
from pdae_lite.networks.encoder import EncoderConfig, SemanticEncoder, UNetEncoder, UNetEncoderConfig
from pdae_lite.networks.unet import AttentionBlock, ResBlock, UNet, UNetConfig, _run_head, timestep_embedding

TINY = UNetConfig(image_size=16, in_channels=1, base_channels=8, channel_mult=(1, 2), num_res_blocks=1,
                  attention_downsampling=(2,))


def filled(module, seed=0):
    """The module with every parameter random, zero-initialised ones too."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=g)
    return module.eval()


def unet(seed=0, **changes):
    return filled(UNet(dataclasses.replace(TINY, **changes)), seed)


def batch(n=2, channels=1, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=g), torch.tensor([3, 700, 41, 0][:n])


def test_trunk_and_head_are_the_network():
    model, (x, t) = unet(), batch()
    out = model(x, t)
    assert out.shape == x.shape and out.std() > 0.01
    assert torch.equal(model.head(model.trunk(x, t)), out)
    assert not torch.allclose(model(x, t + 50), out)  # it sees t


def test_timestep_embedding():
    t = torch.tensor([0, 7])
    want = [[math.cos(7 * 10000 ** (-i / 4)) for i in range(4)] + [math.sin(7 * 10000 ** (-i / 4)) for i in range(4)]]
    torch.testing.assert_close(timestep_embedding(t, 8, torch.zeros(1))[1:], torch.tensor(want), rtol=1e-5, atol=1e-6)
    assert timestep_embedding(t, 8, torch.zeros(1))[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert timestep_embedding(t, 9, torch.zeros(1)).shape == (2, 9)


def test_state_dict_names():
    names = set(UNet(TINY).state_dict())
    for want in ("time_embed.0.weight", "time_embed.2.bias", "input_blocks.0.0.weight",
                 "input_blocks.1.0.in_layers.0.weight", "input_blocks.1.0.in_layers.2.weight",
                 "input_blocks.1.0.emb_layers.1.weight", "input_blocks.1.0.out_layers.3.weight",
                 "input_blocks.3.0.skip_connection.weight", "input_blocks.3.1.qkv.weight",
                 "input_blocks.3.1.proj_out.bias", "input_blocks.3.1.norm.weight", "middle_block.0.in_layers.2.bias",
                 "middle_block.1.qkv.weight", "middle_block.2.out_layers.0.weight",
                 "output_blocks.0.0.in_layers.2.weight", "output_blocks.1.2.in_layers.2.weight",
                 "out.0.weight", "out.2.bias"):
        assert want in names
    assert {n.split(".")[0] for n in names} == {"time_embed", "input_blocks", "middle_block", "output_blocks", "out"}
    estimator = set(UNet(TINY).gradient_estimator(4).state_dict())
    assert {n.split(".")[0] for n in estimator} == {"label_emb", "shift_middle_block", "shift_output_blocks",
                                                    "shift_out"}
    assert "shift_middle_block.0.emb_z_layers.1.weight" in estimator
    # but for z, the estimator's head is the DPM's
    assert {n.removeprefix("shift_") for n in estimator if "emb_z" not in n and n.startswith("shift_")} == {
        n for n in names if n.split(".")[0] in ("middle_block", "output_blocks", "out")}


@pytest.mark.parametrize("length", [64, 256, 257])
def test_short_attention_in_bf16_is_the_same(length):
    """What is written out for a CPU gives what the kernel gives in float32, with its gradients, to bf16's rounding."""
    torch.manual_seed(0)
    whole = [torch.randn(2, 2, length, 16, requires_grad=True) for _ in range(3)]
    half = [x.detach().to(torch.bfloat16).requires_grad_() for x in whole]
    want = torch.nn.functional.scaled_dot_product_attention(*whole)
    with torch.autocast("cpu", torch.bfloat16):
        got = attend(*half)
    assert got.dtype == torch.bfloat16 and torch.allclose(got.float(), want, atol=0.02)
    weight = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad((want * weight).sum(), whole), torch.autograd.grad((got * weight).sum(), half)):
        assert float((a - b.float()).norm() / a.norm()) < 0.02



@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_against_loops(new_order, heads):
    """Both orders of the qkv channels, written out: softmax(q·k/√d) v for each image, head and position."""
    c, d = 8, 8 // heads
    block = filled(AttentionBlock(c, heads, new_order=new_order))
    x = torch.randn(2, c, 3, 2, generator=torch.Generator().manual_seed(1))
    got = block(x)
    qkv = block.qkv(block.norm(x.reshape(2, c, 6)))
    a = torch.zeros(2, c, 6)
    for n in range(2):
        for h in range(heads):
            if new_order:  # all q, all k, all v
                q, k, v = (qkv[n, part * c + h * d : part * c + (h + 1) * d] for part in range(3))
            else:  # head by head: its q, k, v
                q, k, v = (qkv[n, h * 3 * d + part * d : h * 3 * d + (part + 1) * d] for part in range(3))
            for i in range(6):
                weight = torch.softmax(torch.stack([(q[:, i] * k[:, j]).sum() for j in range(6)]) / math.sqrt(d), 0)
                a[n, h * d : (h + 1) * d, i] = sum(weight[j] * v[:, j] for j in range(6))
    torch.testing.assert_close(got, x + block.proj_out(a).reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_qkv_orders_differ_with_several_heads_only():
    x, t = batch()
    for heads, same in ((1, True), (2, False)):
        outputs = [unet(num_heads=heads, new_attention_order=new)(x, t) for new in (False, True)]
        assert torch.allclose(*outputs, atol=1e-5) is same


def test_head_width_overrides_head_count():
    assert AttentionBlock(32, num_heads=1, head_channels=8).num_heads == 4
    with pytest.raises(ValueError, match="heads"):
        AttentionBlock(32, num_heads=5)


def test_adagn_is_equation_9():
    """z_s (t_s GroupNorm(h) + t_b) + z_b, each scale 1 + its projection."""
    block = filled(ResBlock(8, 8, 12, z_channels=12))
    g = torch.Generator().manual_seed(2)
    x, emb, z = torch.randn(2, 8, 4, 4, generator=g), torch.randn(2, 12, generator=g), torch.randn(2, 12, generator=g)
    silu = torch.nn.functional.silu
    t_s, t_b = block.emb_layers[1](silu(emb)).chunk(2, 1)
    z_s, z_b = block.emb_z_layers[1](silu(z)).chunk(2, 1)
    h = block.out_layers[0](block.in_layers(x))
    h = (1 + z_s[..., None, None]) * ((1 + t_s[..., None, None]) * h + t_b[..., None, None]) + z_b[..., None, None]
    torch.testing.assert_close(block(x, emb, z), x + block.out_layers[3](silu(h)))


def test_learned_variance_is_dropped():
    model, (x, t) = unet(learn_variance=True), batch()
    raw = _run_head(model.trunk(x, t), model.middle_block, model.output_blocks, model.out)
    assert raw.shape == (2, 2, 16, 16)
    assert torch.equal(model(x, t), raw[:, :1])
    # the estimator predicts C channels all the same
    assert filled(model.gradient_estimator(4))(model.trunk(x, t), torch.zeros(2, 4)).shape == x.shape


def test_patch_size():
    model, (x, t) = unet(patch_size=2), batch()
    features = model.trunk(x, t)
    assert features.skips[0].shape[-1] == 8 and features.h.shape[-1] == 4
    assert model(x, t).shape == x.shape
    assert not UNet(dataclasses.replace(TINY, patch_size=2)).eval()(x, t).any()  # starts at zero, like the others


def test_classes():
    model, (x, t) = unet(num_classes=10), batch()
    one, two = model(x, t, torch.tensor([1, 1])), model(x, t, torch.tensor([1, 2]))
    assert torch.allclose(one[0], two[0], atol=1e-6) and not torch.allclose(one[1], two[1], atol=1e-3)
    with pytest.raises(ValueError, match="y=missing"):
        model(x, t)
    with pytest.raises(ValueError, match="y=given"):
        unet()(x, t, torch.tensor([1, 1]))


@pytest.mark.parametrize("changes", [{"resblock_updown": False}, {"resblock_updown": False, "conv_resample": False},
                                     {"scale_shift_norm": False}, {"num_res_blocks": 2, "channel_mult": (1, 2, 2)}])
def test_variants(changes):
    model, (x, t) = unet(**changes), batch()
    out = model(x, t)
    assert out.shape == x.shape and bool(out.isfinite().all())
    gradient = filled(model.gradient_estimator(4))(model.trunk(x, t), torch.randn(2, 4))
    assert gradient.shape == x.shape and gradient.std() > 0


def test_conv_resampling_has_guided_diffusions_names():
    names = set(unet(resblock_updown=False).state_dict())
    assert "input_blocks.2.0.op.weight" in names and "output_blocks.1.2.conv.weight" in names
    assert not any(".op." in n or ".conv." in n for n in unet(resblock_updown=False, conv_resample=False).state_dict())


def test_additive_embedding_halves_the_projection():
    assert unet(scale_shift_norm=False).input_blocks[1][0].emb_layers[1].out_features == 8
    assert unet().input_blocks[1][0].emb_layers[1].out_features == 16


@pytest.mark.parametrize(("config", "lowest"), [
    (UNetConfig(), (8, 512)),
    (UNetConfig(image_size=128, base_channels=128, channel_mult=(1, 1, 2, 3, 4), attention_downsampling=(8,)),
     (8, 512)),
    (UNetConfig(image_size=64, base_channels=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3,
                attention_downsampling=(2, 4, 8),
                head_channels=64, new_attention_order=True, learn_variance=True, num_classes=1000), (8, 768)),
])
def test_full_size_shapes(config, lowest):
    with torch.device("meta"):  # shapes only
        model = UNet(config)
        x, t = torch.empty(2, 3, config.image_size, config.image_size), torch.zeros(2, dtype=torch.int64)
        features = model.trunk(x, t, *([t] if config.num_classes else []))
        assert features.h.shape == (2, lowest[1], lowest[0], lowest[0])
        assert model.head(features).shape == x.shape
        assert model.gradient_estimator(512)(features, torch.empty(2, 512)).shape == x.shape


@pytest.mark.parametrize(("size", "channels", "attention"),
                         [(64, (64, 128, 128, 128), 1), (128, (64, 128, 256, 256, 256), 2)])
def test_encoder_of_the_paper(size, channels, attention):
    with torch.device("meta"):
        encoder = SemanticEncoder.for_images(size, 3)
        assert (encoder.config.channels, encoder.config.attention_after, encoder.z_dim) == (channels, attention, 512)
        assert encoder.encoder[-1].in_features == channels[-1] * 16
    with torch.device("meta"):
        attended = [i for i, layer in enumerate(encoder.encoder) if isinstance(layer, AttentionBlock)]
    assert len(attended) == 1 and encoder.encoder[attended[0]].num_heads == 4


def test_encoder_of_diffae():
    """Half a U-Net that isn't told t, down to 4×4, one width more often than the U-Net beside it (Diff-AE's
    settings)."""
    for size, mult, want in ((128, (1, 1, 2, 3, 4), (1, 1, 2, 3, 4, 4)), (64, (1, 2, 4, 8), (1, 2, 4, 8, 8)),
                             (16, (1, 2, 2), (1, 2, 2))):
        with torch.device("meta"):
            encoder = UNetEncoder.beside(UNetConfig(image_size=size, channel_mult=mult, num_classes=3), 8)
            assert encoder.config.unet.channel_mult == want and encoder.z_dim == 8
            h = torch.empty(1, 3, size, size)
            for block in encoder.input_blocks:
                h = block(h, None)
            assert h.shape[2:] == (4, 4) and encoder(torch.empty(2, 3, size, size)).shape == (2, 8)
    names = set(encoder.state_dict())
    assert ({n.split(".")[0] for n in names} == {"input_blocks", "middle_block", "out"}
            and not any("emb" in n for n in names))


def test_encoder_of_diffae_sees_the_image_and_survives_a_file():
    encoder, (x, _) = filled(UNetEncoder.beside(dataclasses.replace(TINY, patch_size=2), 4)), batch()
    z = encoder(x)
    assert z.shape == (2, 4) and not torch.allclose(z[0], z[1])
    torch.testing.assert_close(encoder(x[1:]), z[1:], rtol=1e-5, atol=1e-5)  # threads share a batch of one differently
    again = build(json.loads(json.dumps(describe(encoder))))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(x), z)
    with pytest.raises(ValueError, match="x_0 is 32×32; this encoder takes 16×16"):
        encoder(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="unet has z_dim=4"):
        UNetEncoderConfig(dataclasses.replace(TINY, z_dim=4))


def test_a_residual_block_without_t_is_one_that_ignores_it():
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    told, untold = filled(ResBlock(8, 16, 6)), ResBlock(8, 16, None).eval()
    for p in told.emb_layers.parameters():
        p.data.zero_()
    untold.load_state_dict({k: v for k, v in told.state_dict().items() if "emb" not in k})
    assert torch.equal(untold(x, None), told(x, emb))


def test_config_round_trip():
    for model in (unet(), unet(learn_variance=True, data_range=None), SemanticEncoder.for_images(16, 1, 4)):
        again = type(model).from_config(model.to_config())
        assert again.config == model.config
        again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(("x", "message"), [
    (torch.zeros(2, 3, 16, 16), r"x_t has shape \[2, 3, 16, 16\].*\[N, 1, H, W\]"),
    (torch.zeros(2, 1, 15, 16), "multiples of 2"),
    (torch.zeros(1, 16, 16), "x_t has shape"),
    (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), "x_t is torch.uint8"),
    (None, "x_t is NoneType"),
])
def test_bad_input(x, message):
    with pytest.raises(ValueError, match=message) as e:
        unet()(x, torch.tensor([1, 1]))
    assert "\n" not in str(e.value)


def test_bad_configs():
    with pytest.raises(ValueError, match="image_size=30"):
        UNetConfig(image_size=30)
    with pytest.raises(ValueError, match="image_size=20"):
        EncoderConfig(image_size=20)
    with pytest.raises(ValueError, match="size=6"):
        SemanticEncoder.for_images(6, 1)
    with pytest.raises(ValueError, match="16×16"):
        SemanticEncoder.for_images(16, 1)(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"z has shape \[2, 5\]; want \[N, 4\]"):
        model, (x, t) = unet(), batch()
        model.gradient_estimator(4)(model.trunk(x, t), torch.zeros(2, 5))
