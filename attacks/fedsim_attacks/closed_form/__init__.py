"""Images in closed form: the linear systems that the first layers leave in an update, and how they are solved."""

from fedsim_attacks.closed_form.april_system import AprilSystem, read_april_system
from fedsim_attacks.closed_form.bilinear import Bilinear, complete_bilinear
from fedsim_attacks.closed_form.completion import SmoothInversion, complete_smoothly
from fedsim_attacks.closed_form.linear import Weights
from fedsim_attacks.closed_form.patch_inversion import excess, invert
from fedsim_attacks.closed_form.patch_system import ROUNDING, PatchSystem, read_patch_system
from fedsim_attacks.closed_form.row_space import RowSpace, assess

__all__ = [
    "AprilSystem",
    "Bilinear",
    "PatchSystem",
    "ROUNDING",
    "RowSpace",
    "SmoothInversion",
    "Weights",
    "assess",
    "complete_bilinear",
    "complete_smoothly",
    "excess",
    "invert",
    "read_april_system",
    "read_patch_system",
]
