"""What natural images look like before an update is seen."""

from fedsim_attacks.priors.batch_norm import load_prior
from fedsim_attacks.priors.color_edges import ColorEdges
from fedsim_attacks.priors.natural import GREY, Roughness, length, natural_noise, patch_differences, total_variation
from fedsim_attacks.priors.networks import has_efficientnet_lite0
from fedsim_attacks.priors.spectrum import Coefficients, Spectrum

__all__ = [
    "Coefficients",
    "ColorEdges",
    "GREY",
    "Roughness",
    "Spectrum",
    "has_efficientnet_lite0",
    "length",
    "load_prior",
    "natural_noise",
    "patch_differences",
    "total_variation",
]
