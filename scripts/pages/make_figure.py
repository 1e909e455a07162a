"""Draw book/_assets/reconstruction.png, the picture of the README and of the landing page, with the shipped model."""
from pathlib import Path

import torch

import pdae_lite
from pdae_lite import data, sampling, viz

TARGET = Path(__file__).parents[2] / "book" / "_assets" / "reconstruction.png"

if __name__ == "__main__":
    pdae, test = pdae_lite.load("digits"), data.digits("test")
    x_0 = test.floats(torch.tensor([(test.labels == d).nonzero()[5, 0] for d in range(10)]))
    z = pdae.encode(x_0).detach()
    noise = pdae.noise(len(x_0), torch.Generator().manual_seed(1))
    rows = [x_0, sampling.ddim(pdae.dpm, noise, pdae.schedule), pdae.decode(z, noise),
            pdae.decode(z, pdae.invert(x_0, z))]
    figure = viz.image_figure(torch.cat(rows), row_labels=["original", "DPM alone", "32 numbers", "and its noise"],
                              scale=2.2)
    figure.savefig(TARGET, metadata={"Software": None})
