"""What an update says of the gradient behind it: local SGD undone, defenses modeled, and what images would have caused."""

from fedsim_attacks.update.client_gradient import (
    HALFWAY,
    LABELS,
    PATH,
    ClientGradient,
    OneGradient,
    Reading,
    Surrogate,
    model_client,
)
from fedsim_attacks.update.defended import Defended, read_defenses, signal_share, soft_signs
from fedsim_attacks.update.gradient import NO_SCALE, MeanGradient, is_taken_for_one_step, local_steps, mean_gradient
from fedsim_attacks.update.jigsaw import Occlusion, puzzle_names, restore
from fedsim_attacks.update.reordering import rearranged
from fedsim_attacks.update.rounding import recognize
from fedsim_attacks.update.target import Target, open_device, read_target
from fedsim_attacks.update.tensors import POSITIONS, PROJECTION, PROJECTION_BIAS, Gradients, Scalar, TokenGradient
from fedsim_attacks.update.told import COLUMNS, SIGNS, told_cautions, told_effects

__all__ = [
    "COLUMNS",
    "ClientGradient",
    "Defended",
    "Gradients",
    "HALFWAY",
    "LABELS",
    "MeanGradient",
    "NO_SCALE",
    "Occlusion",
    "OneGradient",
    "PATH",
    "POSITIONS",
    "PROJECTION",
    "PROJECTION_BIAS",
    "Reading",
    "SIGNS",
    "Scalar",
    "Surrogate",
    "Target",
    "TokenGradient",
    "is_taken_for_one_step",
    "local_steps",
    "mean_gradient",
    "model_client",
    "open_device",
    "puzzle_names",
    "read_defenses",
    "read_target",
    "rearranged",
    "recognize",
    "restore",
    "signal_share",
    "soft_signs",
    "told_cautions",
    "told_effects",
]
