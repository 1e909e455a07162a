"""Other people's models in: diffusers' networks, pipelines and schedulers (`diffusers_files`), their codecs (`codec`)
and other paths than ours (`paths`); U-Nets of guided-diffusion and improved-diffusion (`adm`); the releases of PDAE's
authors (`pdae_release`) and of Diff-AE's (`diffae_release`)."""
from .adm import load_adm
from .codec import codec_from_diffusers
from .diffae_release import load_released_diffae, load_released_diffae_dpm, stochastic_code
from .diffusers_files import from_diffusers
from .diffusers_schedulers import sample_with
from .paths import as_epsilon, edm_schedule, flow_schedule
from .pdae_release import (
    CELEBA_ATTRIBUTES,
    load_released_classifier,
    load_released_dpm,
    load_released_latent,
    load_released_pdae,
)

__all__ = ["CELEBA_ATTRIBUTES", "as_epsilon", "codec_from_diffusers", "edm_schedule", "flow_schedule", "from_diffusers",
           "load_adm", "load_released_classifier", "load_released_diffae", "load_released_diffae_dpm",
           "load_released_dpm", "load_released_latent", "load_released_pdae", "sample_with", "stochastic_code"]
