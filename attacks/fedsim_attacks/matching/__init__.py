"""Descent on pictures until their gradient is the observed one: the parts that gradient-matching attacks are made of."""

from fedsim_attacks.matching.attempt import Attempt, Reached, shown_steps, trajectory
from fedsim_attacks.matching.descent import Descent
from fedsim_attacks.matching.multi_start import BLIND, Trial, accept
from fedsim_attacks.matching.optimizers import Optimizer, Schedule
from fedsim_attacks.matching.parameters import Distance, Polish
from fedsim_attacks.matching.starts import Box

__all__ = [
    "Attempt",
    "BLIND",
    "Box",
    "Descent",
    "Distance",
    "Optimizer",
    "Polish",
    "Reached",
    "Schedule",
    "Trial",
    "accept",
    "shown_steps",
    "trajectory",
]
