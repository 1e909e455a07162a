"""From a folder of Stable Diffusion and photos to an edit:

    python examples/stable_diffusion.py STABLE_DIFFUSION PHOTOS OUT.png [STEPS]

PHOTOS has two subfolders: `with` what is to be edited in (a smile, glasses, …), and `without` it. The diffusion model
stays as it is; what is trained is an encoder of its latents, and a copy of its upper half that is told the code. 20,000
steps on a card of 24 GB take a day.
"""
import sys

import torch
from torch.utils.data import TensorDataset
from torchvision.utils import save_image

from pdae_lite import PDAE, SemanticEncoder, best_device, data, interop, train

folder, photos, out = sys.argv[1:4]
steps, device = int(sys.argv[4]) if len(sys.argv) > 4 else 20_000, best_device()

dpm, schedule = interop.from_diffusers(folder, prompt="a photo of a face")  # frozen, and the prompt is part of it
codec = interop.codec_from_diffusers(folder).to(device)
side = dpm.config.image_size  # of latents
encoder = SemanticEncoder.for_images(side, codec.latent_channels)

files = data.folder(photos, side * codec.factor)
images = torch.stack([data.to_float(image) for image in files])
latents = torch.cat([codec.encode(batch.to(device)).cpu() for batch in images.split(4)])  # once, not in every step

pdae = PDAE(dpm, encoder, schedule, codec=codec).to(device)
pdae.estimator.enable_gradient_checkpointing()
train(pdae, TensorDataset(latents), steps=steps, batch_size=8)

z = torch.cat([pdae.encode(batch.to(device)) for batch in images.split(4)])
has = torch.tensor([path.parent.name == "with" for path in files.paths])
direction = z[has].mean(0) - z[~has].mean(0)
some = torch.arange(len(images))[~has][:4]
x_T = pdae.invert(images[some].to(device), z[some], steps=50)
edited = pdae.decode(z[some] + direction, x_T, steps=50)
save_image(torch.cat([images[some], edited.cpu()]) / 2 + 0.5, out, nrow=len(some))
