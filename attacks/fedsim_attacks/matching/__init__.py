"""Descent on pictures until their gradient is the observed one: the parts that gradient-matching attacks are made of."""

from fedsim_attacks.matching.descent import Descent
from fedsim_attacks.matching.optimizers import Optimizer, Schedule
from fedsim_attacks.matching.parameters import Distance, Polish
from fedsim_attacks.matching.search import frames
from fedsim_attacks.matching.starts import Box

__all__ = ["Box", "Descent", "Distance", "Optimizer", "Polish", "Schedule", "frames"]
