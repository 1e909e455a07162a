"""Small diffusers models of five shapes, with the schedulers that they were trained with, for the tests."""
import inspect

import pytest
import torch
from torch import nn

from pdae_lite import PDAE, interop
from pdae_lite.losses import pdae_loss

diffusers = pytest.importorskip("diffusers", reason="diffusers isn't installed")

NAMES = ("celebahq", "adm", "gray", "latent", "wide")
SMALL = dict(layers_per_block=1, norm_num_groups=4, attention_head_dim=4)
UNETS = {
    # the shape of google/ddpm-celebahq-256, with fewer levels and channels
    "celebahq": SMALL | dict(sample_size=16, layers_per_block=2, block_out_channels=(8, 8, 16), attention_head_dim=None,
                             down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
                             up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), downsample_padding=0,
                             freq_shift=1, flip_sin_to_cos=False, norm_eps=1e-6),
    # the shape of ADM: time by scale and shift, resampling in residual blocks, a learned variance
    "adm": SMALL | dict(sample_size=16, out_channels=6, block_out_channels=(8, 16),
                        resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet",
                        attn_norm_num_groups=4, dropout=0.1,
                        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
                        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D")),
    "gray": SMALL | dict(sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 8),
                         center_input_sample=True, time_embedding_type="learned", num_train_timesteps=100,
                         down_block_types=("DownBlock2D", "DownBlock2D"),
                         up_block_types=("AttnUpBlock2D", "UpBlock2D"), upsample_type="resnet", add_attention=False),
    "latent": SMALL | dict(sample_size=32, in_channels=4, out_channels=4, block_out_channels=(8, 8, 8, 8),
                           mid_block_scale_factor=1.5, down_block_types=("DownBlock2D",) * 4,
                           up_block_types=("UpBlock2D",) * 4),
    "wide": SMALL | dict(sample_size=(8, 16), block_out_channels=(8, 16), mid_block_type=None, act_fn="gelu",
                         downsample_type="resnet", down_block_types=("AttnDownBlock2D", "DownBlock2D"),
                         up_block_types=("UpBlock2D", "AttnUpBlock2D")),
}
if "mid_block_type" not in inspect.signature(diffusers.UNet2DModel.__init__).parameters:  # added to diffusers later
    del UNETS["wide"]["mid_block_type"]
# What each was trained with: all three predictions, three schedules, data with and without a range.
SCHEDULERS = {"celebahq": {},
              "adm": dict(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", clip_sample_range=1.5),
              "gray": dict(prediction_type="sample"), "latent": dict(beta_schedule="scaled_linear", clip_sample=False),
              "wide": {}}
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
    return PDAE(dpm, Linear(random(name)[0].numel()), schedule,
                dpm.gradient_estimator(4, **options) if options else None, form="paper")


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
