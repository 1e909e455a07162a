"""An encoder that starts from a plain autoencoder."""
import pytest
import torch
from training_runs import data

from pdae_lite.applications.warm_start import PlainAutoencoder, warm_encoder
from pdae_lite.networks.encoder import EncoderConfig, LabelEncoder, SemanticEncoder
from pdae_lite.training import TrainConfig

CONFIG = TrainConfig(batch_size=10, lr=3e-3)


def encoder():
    torch.manual_seed(0)
    return SemanticEncoder(EncoderConfig(16, 1, (32, 32), 0, 2, 8))


def rebuilt_error(encoder, steps):
    """Of a plain autoencoder whose decoder alone is trained: what the code holds."""
    torch.manual_seed(1)
    model, x = PlainAutoencoder(encoder), data(20).tensors[0].float() / 127.5 - 1
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.training_loss(x, None, None, None, None, None)
        loss.backward()
        optimizer.step()
    return float(loss)


def test_the_code_says_more_than_a_random_ones(tmp_path):
    warm = warm_encoder(encoder(), data(20), 3000, CONFIG, tmp_path / "encoder.safetensors", progress=False)
    assert rebuilt_error(warm, 100) < 0.9 * rebuilt_error(encoder(), 100)
    again = warm_encoder(encoder(), None, 3000, CONFIG, tmp_path / "encoder.safetensors")  # read, not trained
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), warm.parameters()))


def test_refusals():
    for bad, images in ((encoder(), 0), (LabelEncoder(10, 4), 100)):
        with pytest.raises(ValueError, match="want at least 1, and a SemanticEncoder"):
            warm_encoder(bad, data(20), images, CONFIG)
