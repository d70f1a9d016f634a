"""How likely luck alone gives a score, and how many scores luck may give among many.

An attack that learns nothing from updates still scores a little above a blind guess now and then, and among many rounds the
worst one is the luckiest. So a leak in one of k rounds counts only where it stays significant after Holm's correction for k
attempts.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SIGNIFICANCE = 0.05
"""Family-wise error rate: the probability that luck alone makes a client look leaky."""

JOINT_SIGNIFICANCE = 0.01
"""Error rate of the second look at a client's attempts: whether too many are beyond a blind guess, though none is by itself."""

_PRIOR_ATTEMPTS = 8


def binomial(hits: float, examples: int, chance: float) -> float:
    """Return the probability that blind guesses hit at least as often.

    Args:
        hits: guesses that were right; a fraction is rounded down.
        examples: number of guesses.
        chance: probability that a blind guess is right, in [0, 1].
    """
    from scipy.stats import binom  # takes a second to import

    return float(binom.sf(math.floor(hits + 1e-9) - 1, examples, min(max(chance, 0.0), 1.0)))


def highest(hits: float, examples: int) -> float:
    """Return the largest share of right guesses that so few right ones leave possible, at `SIGNIFICANCE` (Clopper-Pearson).

    Args:
        hits: guesses that were right; a fraction is rounded up.
        examples: number of guesses, at least one.
    """
    from scipy.stats import beta  # takes a second to import

    right = math.ceil(hits - 1e-9)
    return 1.0 if right >= examples else float(beta.ppf(1 - SIGNIFICANCE, right + 1, examples - right))


@dataclass(frozen=True)
class BlindSkills:
    """Skills of one attack on other clients' updates, of which it can learn nothing.

    Args:
        ascending: the skills.
        center: their median; zero where that is no better than a blind guess.
        squares: sum of the squares of how far those above the center are beyond it.
    """

    ascending: tuple[float, ...]
    center: float
    squares: float

    @classmethod
    def of(cls, skills: Iterable[float]) -> BlindSkills:
        """Return these skills, made ready to be compared with many others."""
        ascending = tuple(sorted(skills))
        center = max(0.0, statistics.median(ascending)) if ascending else 0.0
        return cls(ascending, center, sum((max(0.0, skill - center) ** 2 for skill in ascending), 0.0))

    def beyond(self, threshold: float) -> int:
        """Return how many skills are at a threshold or beyond it."""
        return len(self.ascending) - bisect_left(self.ascending, threshold)


def exceedance(skills: Sequence[float], blind: BlindSkills, scale: float) -> list[float]:
    """Return the probability that an attack which learns nothing reaches each skill: one-sided Student t tests.

    What such attacks reach is estimated from attempts known to be blind, those on another client's update: around their median,
    where that is beyond a blind guess, they scatter as these do together with `_PRIOR_ATTEMPTS` attempts of scatter `scale`,
    below which it never falls. A blind attempt far below says nothing about how far above luck reaches; so only those above
    count, as half of a symmetric distribution.

    Args:
        skills: distances beyond the best blind control that looks at no update.
        blind: the same distances of the same attack on other clients' updates.
        scale: standard deviation assumed before any blind attempt is seen.
    """
    from scipy.stats import t  # takes a second to import

    seen = len(blind.ascending)
    freedom = _PRIOR_ATTEMPTS + seen / 2
    scatter = max(scale, math.sqrt((_PRIOR_ATTEMPTS * scale**2 + blind.squares) / freedom))
    # The center is an estimate itself where it is not the blind guess.
    scatter *= math.sqrt(1 + 1 / seen) if blind.center else 1.0
    found: list[float] = t.sf((np.asarray(skills) - blind.center) / scatter, freedom).tolist()
    return found


def holm(probabilities: Sequence[float], level: float = SIGNIFICANCE) -> tuple[bool, ...]:
    """Return which of several tests stay significant when all of them are looked at.

    Args:
        probabilities: p-values.
        level: family-wise error rate.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979.
    """
    kept = [False] * len(probabilities)
    for rank, index in enumerate(sorted(range(len(probabilities)), key=probabilities.__getitem__)):
        if probabilities[index] > level / (len(probabilities) - rank):
            break
        kept[index] = True
    return tuple(kept)
