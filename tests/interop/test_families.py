"""The families of models that can be the frozen DPM, and what holds for each: the table of book/families.md is checked
here.

`python tests/interop/test_families.py` prints the table as it was found.
"""
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import fixture
from PIL import Image
from safetensors import safe_open
from small_cuts import given, network, noisy
from small_cuts import own_eps as its_eps
from small_pipelines import save, vae
from small_unets import NAMES, UNETS, diffusers, forward, random, scheduler, unet
from torch.utils.data import TensorDataset

from pdae_lite import PDAE, NoiseSchedule, SemanticEncoder, UNet, UNetConfig, as_epsilon, interop, sampling, train
from pdae_lite.checkpoint import save_model
from pdae_lite.commands import main
from pdae_lite.interop.adm import WithClass
from pdae_lite.networks.dpm import to_epsilon
from pdae_lite.networks.encoder import EncoderConfig, LabelEncoder

pytestmark = pytest.mark.filterwarnings(  # of diffusers' own making
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

ROOT = Path(__file__).parents[2]
FLOW, EDM = interop.flow_schedule(), interop.edm_schedule()
SQUARE = ("celebahq", "adm", "gray")  # of those that the command line takes: square images, 1 or 3 channels
T_BATCH = torch.tensor([1, 50])
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Family:
    """`make` gives a PDAE on a DPM; `eps` our ε and the reference's, both [N, C, H, W]; `reference` says what that
    is."""

    reference: str
    make: Callable[[], PDAE]
    eps: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    trained: bool = False  # came with an estimator of its own
    again: Callable[[], Callable] | None = None  # a DPM that no file holds
    # what `pdae train --dpm` calls it, once it is in a folder; maybe with --label
    word: Callable[[Path], str] | None = None


def kept(name):
    def word(folder):
        unet(name).save_pretrained(folder)
        scheduler(name).save_pretrained(folder)
        return f"hf:{folder}"

    return word


def encoder(size, channels, z_dim=4):
    return SemanticEncoder(EncoderConfig(size, channels, (8, 8), None, z_dim=z_dim))


# ---- our own networks ------------------------------------------------------------------------------------------------


def own(prediction):
    torch.manual_seed(0)
    net = UNet(UNetConfig(16, 1, 8, (1, 2), 1, (2,), patch_size=2)).eval()
    for p in net.out.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net, as_epsilon(net, prediction, NoiseSchedule.linear())


def own_eps(prediction):
    net, dpm = own(prediction)
    x, schedule = torch.randn(2, 1, 16, 16), NoiseSchedule.linear()
    return dpm(x, T_BATCH), to_epsilon(net(x, T_BATCH), x, T_BATCH, schedule, prediction)


def saved(make):
    def word(folder):
        save_model(folder / "dpm.safetensors", make())
        return str(folder / "dpm.safetensors")

    return word


def as_adm(make, label=""):
    """Weights in a file, what they don't show in another; `make` gives both."""
    def word(folder):
        state, config = make()
        torch.save(state, folder / "model.pt")
        (folder / "model.json").write_text(json.dumps(config))
        return f"adm:{folder / 'model.pt'}{label}"

    return word


def on_a_path(kind, schedule):
    """Our network, as if it had been trained with flow matching or EDM."""
    return as_epsilon(own("epsilon")[0], kind, schedule)


def on_a_path_eps(kind, schedule):
    """Ours, and the formulas in other words: the path's own point, time and target."""
    net, x = own("epsilon")[0], torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    a, s = (torch.tensor(v, dtype=torch.float64)[:, None, None, None]
            for v in zip(*(schedule.level(int(t)) for t in T_BATCH)))
    if kind == "flow":
        tau, u = s / (a + s), x / (a + s)
        want = u + (1 - tau) * net(u.float(), 1000 * tau.flatten().float())
    else:
        sigma, path = s / a, x / a
        width = (sigma**2 + 0.25).sqrt()
        f = net((path / width).float(), sigma.log().flatten().float() / 4)
        want = (path - 0.25 / width**2 * path - sigma * 0.5 / width * f) / sigma
    return on_a_path(kind, schedule)(x, T_BATCH), want.float()


def black_box():
    """A DPM without trunk and head."""
    net = own("epsilon")[0].requires_grad_(False)
    return lambda x_t, t: net(x_t, t)


# ---- fixtures of other people's code ---------------------------------------------------------------------------------


def arrays(folder):
    with np.load(fixture(folder) / "expected.npz", allow_pickle=False) as f:
        return {k: torch.from_numpy(f[k]) for k in f.files if f[k].ndim}


def released(name):
    return [fixture("official_pdae_tiny") / part for part in name]


def released_dpm():
    return interop.load_released_dpm(*released(["ddpm_checkpoint.pt", "ddpm_config.yml"]))


def released_pdae():
    return interop.load_released_pdae(*released(["checkpoint.pt", "config.yml", "ddpm_config.yml"]))


def released_pdae_eps():
    e = arrays("official_pdae_tiny")
    return torch.cat(released_pdae()(e["x_t"], e["t"], e["z"])), torch.cat([e["eps"], e["gradient"]])


def released_dpm_eps():
    e = arrays("official_pdae_tiny")
    return released_dpm()(e["x_t"], e["t"]), e["eps"]


def adm():
    return interop.load_adm(fixture("adm_tiny") / "model.pt",
                            json.loads((fixture("adm_tiny") / "config.json").read_text()))


def adm_eps():
    e = arrays("adm_tiny")
    return adm()(e["x_t"], e["t"]), e["output"][:, :3]


def diffae_dpm():
    return interop.load_released_diffae_dpm(fixture("diffae_tiny") / "ddpm_last.ckpt")


def diffae_eps():
    with np.load(fixture("diffae_tiny") / "ddpm_expected.npz", allow_pickle=False) as f:
        x_t, t, eps = (torch.from_numpy(f[name]) for name in ("x_t", "t", "eps"))
    return diffae_dpm()[0](x_t, t), eps


def of_a_class():
    """(the network, itself with a class fixed)"""
    torch.manual_seed(0)
    net = UNet(UNetConfig(16, 3, 8, (1, 2), 1, (2,), num_classes=5)).eval()
    for p in net.parameters():
        if not bool(p.any()):
            torch.nn.init.normal_(p, std=0.1)
    return net, WithClass(net, 3)


def of_a_class_eps():
    net, dpm = of_a_class()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return dpm(x, T_BATCH), net(x, T_BATCH, torch.tensor([3, 3]))


# ---- improved-diffusion, whose network diffusers can build too -------------------------------------------------------


def improved_reference():
    """The network of improved-diffusion (strided convolutions between levels) as diffusers builds it."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=6, layers_per_block=1, block_out_channels=(32, 64),
        attention_head_dim=32, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_eps=1e-5,
        attn_norm_num_groups=32, resnet_time_scale_shift="scale_shift", downsample_padding=1, flip_sin_to_cos=True,
        freq_shift=0,
    ).eval().requires_grad_(False)


def improved_state(model):
    """Its weights under improved-diffusion's names."""
    theirs, state = model.state_dict(), {}

    def put(ours, name):
        for part in ("weight", "bias"):
            if f"{name}.{part}" in theirs:  # a block as wide as its input has no conv_shortcut
                state[f"{ours}.{part}"] = theirs[f"{name}.{part}"]

    def res(ours, name):
        for a, b in (("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"),
                     ("out_layers.0", "norm2"),
                     ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")):
            put(f"{ours}.{a}", f"{name}.{b}")

    def attention(ours, name, heads=2):
        put(f"{ours}.norm", f"{name}.group_norm")
        # one head after the other, q, k, v in each
        for part, shape in (("weight", (heads, -1, 64)), ("bias", (heads, -1))):
            qkv = torch.cat([theirs[f"{name}.to_{x}.{part}"].reshape(shape) for x in "qkv"], 1)
            state[f"{ours}.qkv.{part}"] = qkv.reshape(192, 64, 1) if part == "weight" else qkv.reshape(192)
        put(f"{ours}.proj_out", f"{name}.to_out.0")
        state[f"{ours}.proj_out.weight"] = state[f"{ours}.proj_out.weight"][..., None]

    for ours, name in (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"),
                       ("input_blocks.0.0", "conv_in"), ("input_blocks.2.0.op", "down_blocks.0.downsamplers.0.conv"),
                       ("output_blocks.1.2.conv", "up_blocks.0.upsamplers.0.conv"), ("out.0", "conv_norm_out"),
                       ("out.2", "conv_out")):
        put(ours, name)
    for ours, name in (("input_blocks.1.0", "down_blocks.0.resnets.0"), ("input_blocks.3.0", "down_blocks.1.resnets.0"),
                       ("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1"),
                       *((f"output_blocks.{2 * i + j}.0", f"up_blocks.{i}.resnets.{j}") for i in (0, 1)
                         for j in (0, 1))):
        res(ours, name)
    for ours, name in (("input_blocks.3.1", "down_blocks.1.attentions.0"), ("middle_block.1", "mid_block.attentions.0"),
                       ("output_blocks.0.1", "up_blocks.0.attentions.0"),
                       ("output_blocks.1.1", "up_blocks.0.attentions.1")):
        attention(ours, name)
    return state


def improved():
    with tempfile.TemporaryDirectory() as folder:
        torch.save(improved_state(improved_reference()), Path(folder) / "model.pt")
        return interop.load_adm(Path(folder) / "model.pt", {"num_heads": 2, "image_size": 16})


def improved_eps():
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return improved()(x, T_BATCH), forward(improved_reference(), x, T_BATCH)


# ---- diffusers -------------------------------------------------------------------------------------------------------


def from_diffusers(name):
    dpm, schedule = interop.from_diffusers(unet(name), scheduler(name))
    size, channels = UNETS[name]["sample_size"], UNETS[name].get("in_channels", 3)
    return PDAE(dpm, encoder(size, channels) if isinstance(size, int) else LabelEncoder(2, 4), schedule)


def diffusers_eps(name):
    x = random(name, 2)
    return interop.from_diffusers(unet(name))[0](x, T_BATCH), forward(unet(name), x, T_BATCH)


def cut(name, codec=None):
    dpm, schedule = interop.from_diffusers(network(name), **given(name))
    return PDAE(dpm, encoder(8, 4), schedule, codec=codec and interop.codec_from_diffusers(codec()))


def cut_eps(name):
    return interop.from_diffusers(network(name), **given(name))[0](noisy(2), T_BATCH), its_eps(network(name), name,
                                                                                               noisy(2), T_BATCH)


def pipeline(name, label=""):
    def word(folder):
        save(name, folder, sample_size=16)
        return f"hf:{folder / 'pipeline'}{label}"

    return word


def latents_of(codec, label="", **changes):
    """A U-Net and a codec, as a pipeline of diffusers without a class of its own."""
    def word(folder):
        made, index = codec(), {"_class_name": "DiffusionPipeline"}
        parts = {"unet": unet("latent", sample_size=16, **changes), "scheduler": scheduler("latent")}
        for name, part in (parts | {"vqvae" if type(made).__name__ == "VQModel" else "vae": made}).items():
            part.save_pretrained(folder / name)
            index[name] = ["diffusers", type(part).__name__]
        (folder / "model_index.json").write_text(json.dumps(index))
        return f"hf:{folder}{label}"

    return word


CUT = {"sd": "shape of Stable Diffusion 1 and 2, a fixed prompt", "sdxl": "shape of SDXL, a fixed prompt",
       "dit": "DiT, no class", "dit, class": "DiT, a fixed class", "sd3": "shape of Stable Diffusion 3, a fixed prompt",
       "class": "U-Net, a fixed class"}
CONFIGURATIONS = {"celebahq": "shape of `ddpm-celebahq-256`", "adm": "ADM's blocks, learned variance, predicts v",
                  "gray": "1 channel, learned time embedding, predicts x_0", "latent": "latents 4×32×32",
                  "wide": "images of 8×16"}
FAMILIES = {
    "`UNet`": Family("itself", lambda: PDAE(own("epsilon")[1], encoder(16, 1), NoiseSchedule.linear()),
                     lambda: own_eps("epsilon"),
                     word=saved(lambda: own("epsilon")[1])),
    "`UNet` that predicts v":
    Family("its v, converted", lambda: PDAE(own("v")[1], encoder(16, 1), NoiseSchedule.linear()),
           lambda: own_eps("v"), word=saved(lambda: own("v")[1])),
    "`UNet` of flow matching":
    Family("its v = ε − x_0 by formula", lambda: PDAE(on_a_path("flow", FLOW), encoder(16, 1), FLOW),
           lambda: on_a_path_eps("flow", FLOW), word=saved(lambda: on_a_path("flow", FLOW))),
    "`UNet` of EDM": Family("its denoiser by formula", lambda: PDAE(on_a_path("edm", EDM), encoder(16, 1), EDM),
                            lambda: on_a_path_eps("edm", EDM), word=saved(lambda: on_a_path("edm", EDM))),
    "a callable (x_t, t) → ε": Family("itself", lambda: PDAE(black_box(), encoder(16, 1), NoiseSchedule.linear()),
                                      lambda: own_eps("epsilon"), again=black_box),
    "the authors' release: a DPM":
    Family("the release's code", lambda: PDAE(released_dpm(), encoder(64, 3), NoiseSchedule.linear()),
           released_dpm_eps, word=lambda _: "released:" + ",".join(map(str, released(
               ["ddpm_checkpoint.pt", "ddpm_config.yml"])))),
    "the authors' release: a PDAE": Family("the release's code, and its G", released_pdae, released_pdae_eps,
                                           trained=True),
    "Diff-AE's release: a DPM":
    Family("its authors' code", lambda: PDAE(diffae_dpm()[0], encoder(32, 3), diffae_dpm()[1]), diffae_eps,
           word=lambda _: f"diffae:{fixture('diffae_tiny') / 'ddpm_last.ckpt'}"),
    "guided-diffusion": Family("guided-diffusion's code", lambda: PDAE(adm(), encoder(32, 3), NoiseSchedule.linear()),
                               adm_eps,
                               word=lambda _: "adm:" + ",".join(str(fixture("adm_tiny") / name)
                                                                for name in ("model.pt", "config.json"))),
    "guided-diffusion, a fixed class":
    Family("the network, told the class", lambda: PDAE(of_a_class()[1], encoder(16, 3),
                                                       NoiseSchedule.linear()), of_a_class_eps,
           word=as_adm(lambda: (of_a_class()[0].state_dict(), {"num_heads": 1, "image_size": 16}),
                       " --label 3")),
    "improved-diffusion": Family("the same network in diffusers",
                                 lambda: PDAE(improved(), encoder(16, 3), NoiseSchedule.linear()),
                                 improved_eps, word=as_adm(lambda: (improved_state(improved_reference()),
                                                                    {"num_heads": 2, "image_size": 16}))),
    **{f"diffusers: {what}": Family("diffusers' code", functools.partial(from_diffusers, name),
                                    functools.partial(diffusers_eps, name),
                                    word=kept(name) if name in SQUARE else None)
       for name, what in CONFIGURATIONS.items()},
    **{f"diffusers: {what}": Family("diffusers' code", functools.partial(cut, name), functools.partial(cut_eps, name),
                                    word={"class": latents_of(vae, " --label 3", num_class_embeds=5),
                                          "dit, class": pipeline("dit", " --label 3")}.get(name, pipeline(name)))
       for name, what in CUT.items()},
    "diffusers: latents of an `AutoencoderKL`": Family("diffusers' code", functools.partial(cut, "sd", vae),
                                                      functools.partial(cut_eps, "sd"), word=pipeline("sd")),
    "diffusers: latents of a `VQModel`":
    Family("diffusers' code", functools.partial(cut, "sd", functools.partial(vae, "VQModel")),
          functools.partial(cut_eps, "sd"), word=latents_of(functools.partial(vae, "VQModel"))),
}


# ---- the cells: each is computed once, gives its text, and fails if it doesn't hold ----------------------------------


@functools.cache
def subject(family):
    return FAMILIES[family].make()


def some_data(pdae):
    config = pdae.network.config
    if pdae.codec is not None:
        side = config.image_size * pdae.codec.factor
        return torch.rand(4, 3, side, side,
                          generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.tensor([0, 1, 0, 1])
    size = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    x = torch.randn(4, config.in_channels, *size, generator=torch.Generator().manual_seed(0))
    x = 3 * x if pdae.data_range is None else x.clamp(*pdae.data_range)
    return x, torch.tensor([0, 1, 0, 1])


def seen(pdae, x):
    """What its networks see of images: latents, where there is a codec."""
    return x if pdae.codec is None else pdae.codec.encode(x)


def codes(pdae, x, y):
    with torch.no_grad():
        return pdae.encode(y if isinstance(pdae.encoder, LabelEncoder) else x)


@functools.cache
def parity(family):
    with torch.no_grad():
        got, want = FAMILIES[family].eps()
    assert want.abs().max() > 0.1
    if torch.equal(got, want):
        return "equal"
    assert float((got - want).abs().max()) < TOLERANCE
    return "within 1e-4"


@functools.cache
def zero_shift(family):
    pdae = FAMILIES[family].make().eval()
    x, y = some_data(pdae)
    scale = 0.0 if FAMILIES[family].trained else 1.0
    x_T = torch.randn(seen(pdae, x)[:2].shape, generator=torch.Generator().manual_seed(2))
    got = pdae.decode(codes(pdae, x, y)[:2] + 1, x_T, steps=2, scale=scale)
    want = sampling.ddim(pdae.dpm, x_T, pdae.schedule, 2)
    want = want if pdae.codec is None else pdae.codec.decode(want)
    if not torch.equal(got, want):  # torch multiplies slices in another order if the weights are to be trained
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
        return "to rounding"
    return "with the shift at scale 0" if FAMILIES[family].trained else "yes"


@functools.cache
def trains(family):
    pdae = subject(family)
    before = {k: v.clone() for k, v in pdae.state_dict().items()}
    x, y = some_data(pdae)
    train(pdae, TensorDataset(seen(pdae, x), y), steps=3, batch_size=2, lr=1e-2, ema=0.0, progress=False)
    changed = {k.split(".")[0] for k, v in pdae.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"encoder", "estimator"}, changed
    pdae.eval()
    z, t = codes(pdae, x, y), torch.tensor([30, 50, 70, 90])
    with torch.no_grad():
        a, b = (pdae(seen(pdae, x), t, part)[1] for part in (z, z.roll(1, 0)))
    assert bool(a.isfinite().all()) and not torch.equal(a, b)  # z matters
    return "yes"


@functools.cache
def file(family):
    trains(family)
    path = Path(tempfile.mkdtemp()) / "pdae.safetensors"
    subject(family).save(path, {"note": "a note"})
    return path


@functools.cache
def saves(family):
    with safe_open(file(family), framework="pt") as f:  # one file, and no pickle
        assert set(f.keys()) == set(subject(family).state_dict())
    assert not list(file(family).parent.glob("*.pt"))
    return "yes"


@functools.cache
def loads(family):
    given_again = {} if FAMILIES[family].again is None else {"dpm": FAMILIES[family].again()}
    pdae, loaded = subject(family), PDAE.load(file(family), **given_again)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in pdae.state_dict().items())
    assert (loaded.metadata == {"note": "a note"} and loaded.data_range == pdae.data_range
            and loaded.schedule.same_as(pdae.schedule))
    x, y = some_data(pdae)
    x_T = torch.randn(seen(pdae, x)[:1].shape, generator=torch.Generator().manual_seed(2))
    pdae.to(memory_format=torch.contiguous_format)  # training left its weights in channels_last
    a, b = (m.decode(codes(m, x, y)[:1], x_T, steps=1) for m in (pdae, loaded))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    return "yes"


@functools.cache
def command_line(family):
    """`pdae train --dpm …` on a folder of images, and a reconstruction by what it made."""
    if FAMILIES[family].word is None:
        return "–"
    folder = Path(tempfile.mkdtemp())
    (folder / "dpm").mkdir()
    word = FAMILIES[family].word(folder / "dpm")
    (folder / "images").mkdir()
    for i in range(4):
        Image.effect_noise((40, 36), 50 + 10 * i).convert("RGB").save(folder / "images" / f"{i}.png")
    options = ["--steps", "2", "--batch-size", "2", "--precision", "no", "--set", "encoder.z_dim=4"]
    assert main.main(["train", "--dpm", *word.split(), "--data", str(folder / "images"), "--out", str(folder / "run"),
                      *options]) == 0
    model = str(folder / "run" / "model.safetensors")
    out = str(folder / "out.png")
    assert main.main(["reconstruct", str(folder / "images" / "0.png"), "--model", model, "--steps", "2", "--out",
                      out]) == 0
    return "yes"


CELLS = {"ε agrees": parity, "untrained, it is the DPM": zero_shift, "trains": trains, "saves": saves, "loads": loads,
         "command line": command_line}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_holds(family, cell):
    assert CELLS[cell](family)


def table():
    lines = [f"| DPM | ε compared with | {' | '.join(CELLS)} |", "|" + "---|" * (len(CELLS) + 2)]
    return lines + [f"| {family} | {FAMILIES[family].reference} | "
                    f"{' | '.join(check(family) for check in CELLS.values())} |"
                    for family in FAMILIES]


def test_a_page_has_the_table():
    """Every cell was checked in this run, or is now."""
    assert set(CONFIGURATIONS) == set(NAMES)
    pages = [ROOT / "README.md", *(ROOT / "book").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for line in table():
        assert line in text.splitlines(), (f"no page has {line}; python tests/interop/test_families.py prints the "
                                           "whole table")


if __name__ == "__main__":
    print(*table(), sep="\n")
