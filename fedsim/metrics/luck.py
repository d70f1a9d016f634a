"""How likely luck alone gives a score, and how many scores luck may give among many.

An attack that learns nothing from updates still scores a little above a blind guess now and then, and among many rounds the
worst one is the luckiest. So a leak in one of k rounds counts only where it stays significant after Holm's correction for k
attempts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

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


def exceedance(skill: float, blind_skills: Sequence[float], scale: float) -> float:
    """Return the probability that an attack which learns nothing reaches this skill: one-sided Student t test.

    What such attacks reach is estimated from attempts known to be blind, those on another client's update: around their median,
    where that is beyond a blind guess, they scatter as these do together with `_PRIOR_ATTEMPTS` attempts of scatter `scale`,
    below which it never falls. A blind attempt far below says nothing about how far above luck reaches; so only those above
    count, as half of a symmetric distribution.

    Args:
        skill: distance beyond the best blind control that looks at no update.
        blind_skills: the same distances of the same attack on other clients' updates.
        scale: standard deviation assumed before any blind attempt is seen.
    """
    from scipy.stats import t  # takes a second to import

    center = max(0.0, statistics.median(blind_skills)) if blind_skills else 0.0
    freedom = _PRIOR_ATTEMPTS + len(blind_skills) / 2
    squares = _PRIOR_ATTEMPTS * scale**2 + sum(max(0.0, blind - center) ** 2 for blind in blind_skills)
    scatter = max(scale, math.sqrt(squares / freedom))
    # The center is an estimate itself where it is not the blind guess.
    scatter *= math.sqrt(1 + 1 / len(blind_skills)) if center else 1.0
    return float(t.sf((skill - center) / scatter, freedom))


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
