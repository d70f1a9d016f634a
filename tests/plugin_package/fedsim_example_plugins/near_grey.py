"""A prior of an optimization attack: images are near to a gray level."""

from __future__ import annotations

import torch
from fedsim_attacks.matching import Candidate, Knowledge, Penalty


def near_grey(known: Knowledge, *, level: float = 0.5) -> Penalty:
    """Mean squared distance of pixels from a gray level.

    Args:
        known: what the attack knows of the update; unused here.
        level: from 0 to 1.
    """

    def value(candidate: Candidate) -> torch.Tensor:
        return (candidate.pixels - level).square().mean()

    return value
