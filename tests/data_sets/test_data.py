"""What ships: the digits and the model made on them."""
import hashlib
import json
import subprocess
import sys

import pytest
import torch

import pdae_lite
from pdae_lite import data, losses
from pdae_lite.checkpoint import shipped_file
from pdae_lite.storage import file_digest


def test_digits_splits():
    train, test = data.digits("train"), data.digits("test")
    assert len(train) == 4500 and len(test) == 500
    assert train.images.dtype == torch.uint8 and train.images.shape[1:] == (1, 32, 32)
    assert train.labels.bincount().tolist() == [450] * 10 and test.labels.bincount().tolist() == [50] * 10
    assert int(train.images[:, :, :2].max()) == 0 and int(train.images[..., -2:].max()) == 0  # padding
    keys = [{image.numpy().tobytes() for image in split.images} for split in (train, test)]
    assert not keys[0] & keys[1]
    image, label = test[3]
    assert torch.equal(image, test.images[3]) and int(label) == int(test.labels[3])


def test_digits_refuses_other_splits():
    with pytest.raises(ValueError, match="split 'valid'; want 'train' or 'test'"):
        data.digits("valid")


def test_the_digits_card_states_the_file():
    packed = (data.ASSETS / "digits.npz.xz").read_bytes()
    assert hashlib.sha256(packed).hexdigest() in (data.ASSETS / "digits.md").read_text()


def test_float_and_uint8_round_trip():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(data.to_uint8(data.to_float(every)), every)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="the images hold NaN or infinity"):
            data.to_uint8(torch.tensor([0.0, bad]))
    assert data.to_float(every).min() == -1 and data.to_float(every).max() == 1


def test_load_lists_what_ships():
    with pytest.raises(ValueError, match="no model 'cats' of kind 'pdae'.*'digits' kind 'pdae'"):
        pdae_lite.load("cats")
    assert {("digits", "pdae"), ("digits", "features"), ("peeps", "features")} <= set(pdae_lite.shipped())
    assert torch.equal(pdae_lite.load("digits", kind="dpm").model.out[0].weight,
                       pdae_lite.load("digits").dpm.model.out[0].weight)


@pytest.mark.parametrize("name, kind",
                         [pair for pair in pdae_lite.shipped() if pair[1] in ("pdae", "difference", "diffae")])
def test_the_shipped_model_is_the_one_on_its_card_and_as_good(name, kind):
    record = json.loads((data.ASSETS / f"{name}_{kind}.json").read_text())
    assert file_digest(shipped_file(name, kind)) == record["file"]["sha256"]
    model, dpm = pdae_lite.load(name, kind), pdae_lite.load(name, "dpm")
    images = data.digits("test") if name == "digits" else data.peeps("test", model.network.config.image_size)
    x, ts = images.floats(slice(0, 100)), [300, 600]
    error = losses.noise_error(lambda x: model.trained_denoiser(model.encode(x)), x, model.schedule, ts)
    fill = losses.fill(error, losses.noise_error(lambda x: dpm, x, model.schedule, ts))
    recorded = torch.tensor([record["fill"]["model"][record["fill"]["t"].index(t)] for t in ts])
    assert (fill - recorded).abs().max() < 0.05  # 100 of the held-out images


@pytest.mark.parametrize("name, kind", [("digits", "flow"), ("peeps", "latents")])
def test_the_dpms_of_other_families_are_those_of_the_record(name, kind):
    whole = json.loads((data.ASSETS / "any_dpm.json").read_text())
    record = whole["models"][f"{name}_{kind}"]
    assert file_digest(shipped_file(name, kind)) == record["file"]["sha256"]
    assert sum(whole["models"][m]["file"]["bytes"] for m in ("digits_flow", "peeps_latents")) < 4 * 2**20
    model = pdae_lite.load(name, kind)
    x = (data.digits("test") if name == "digits" else data.peeps("test", 32)).floats(slice(0, 100))
    x_0, log_snr = x if model.codec is None else model.codec.encode(x), model.schedule.snr.log()
    ts = [int((log_snr - at).abs().argmin()) for at in (-3.0, 0.0, 2.0)]
    both = (lambda x: model.trained_denoiser(model.encoder(x))), lambda x: model.dpm
    errors = [losses.noise_error(denoiser, x_0, model.schedule, ts) for denoiser in both]
    recorded = torch.tensor([record["fill"][whole["log_snr"].index(at)] for at in (-3.0, 0.0, 2.0)])
    assert (losses.fill(*errors) - recorded).abs().max() < 0.05  # int8, and half of the images


def test_assets_stay_within_the_budget():
    sizes = [p.stat().st_size for p in data.ASSETS.rglob("*") if p.is_file()]
    # 60 is wanted: two forms of the digits ship, for as long as `digits` has the paper's form.
    assert max(sizes) < 15 * 2**20 and sum(sizes) < 61 * 2**20


def test_heavy_libraries_load_where_they_are_used():
    code = ("import sys, pdae_lite; heavy = ('matplotlib', 'accelerate', 'torchmetrics', 'diffusers', 'torchvision', "
            "'IPython'); print([m for m in heavy if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
