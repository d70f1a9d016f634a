"""Descent on images until their gradient is the observed one: the parts that gradient-matching attacks are made of.

Distances, priors and optimizers of other distributions need what is handed on here, and nothing else.
"""

from fedsim_attacks.matching.attempt import Attempt, Reached, shown_steps, trajectory
from fedsim_attacks.matching.descent import Descent
from fedsim_attacks.matching.distances import DISTANCES, Distance
from fedsim_attacks.matching.knowledge import Knowledge
from fedsim_attacks.matching.multi_start import BLIND, TriedStart, accept
from fedsim_attacks.matching.objective import Candidate
from fedsim_attacks.matching.optimizers import OPTIMIZERS, Optimizer, OptimizerKind, Schedule, Settings
from fedsim_attacks.matching.parameters import Refinement
from fedsim_attacks.matching.priors import PRIORS, Penalty, Prior, PriorWeights, SkippedPriorError
from fedsim_attacks.matching.starts import Box

__all__ = [
    "Attempt",
    "BLIND",
    "Box",
    "Candidate",
    "DISTANCES",
    "Descent",
    "Distance",
    "Knowledge",
    "OPTIMIZERS",
    "Optimizer",
    "OptimizerKind",
    "PRIORS",
    "Penalty",
    "Prior",
    "PriorWeights",
    "Reached",
    "Refinement",
    "Schedule",
    "Settings",
    "SkippedPriorError",
    "TriedStart",
    "accept",
    "shown_steps",
    "trajectory",
]
