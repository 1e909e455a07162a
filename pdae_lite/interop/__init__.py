"""Other people's models in: diffusers' models and schedulers (`diffusers_files`), U-Nets of guided-diffusion and
improved-diffusion (`adm`), the PDAE authors' release (`pdae_release`), and that of Diff-AE's authors (`diffae_release`).
"""
from .adm import load_adm
from .diffae_release import load_released_diffae, load_released_diffae_dpm, stochastic_code
from .diffusers_files import from_diffusers, sample_with
from .pdae_release import CELEBA_ATTRIBUTES, load_released_classifier, load_released_dpm, load_released_latent, load_released_pdae

__all__ = ["CELEBA_ATTRIBUTES", "from_diffusers", "load_adm", "load_released_classifier", "load_released_diffae",
           "load_released_diffae_dpm", "load_released_dpm", "load_released_latent", "load_released_pdae", "sample_with", "stochastic_code"]
