"""What the grant `defenses` tells of an update, for attacks that read its entries as they are."""

from __future__ import annotations

import math

from fedsim.exchange import Observation, UpdateEffects

DROPPED = "The client drops entries of its update, which are taken for zeros here."
COLUMNS = "The client hides columns of the classifier's weight gradient, which are taken for zeros here."
SIGNS = "The client sends signs, which are taken for values here: magnitudes mean nothing."
_SHUFFLED = "The client shuffles patches and gives them away by nothing: some patches may be in wrong places."
_NOISE = "The client adds noise to parts of its update, and it is not known to which: that is not modeled."
_CARRIED = "The client adds what it held back in earlier rounds: the update is not of this round's images alone."


def told_effects(observation: Observation) -> tuple[UpdateEffects, ...]:
    """Return the effects of the client's defenses, in order of application; none where they are not granted."""
    return tuple(defense.effects for defense in observation.defenses or ())


def told_factor(observation: Observation) -> float | None:
    """Return by what the client's defenses multiplied its update, beside clipping; None where that is not known.

    The mean of several clients' updates has no common factor, unless all are one.
    """
    factors = [None if effects.signs else effects.factor for effects in told_effects(observation)]
    if any(factor is None for factor in factors):
        return None
    if observation.update.client < 0 and any(factor != 1 for factor in factors):
        return None
    return math.prod((factor for factor in factors if factor is not None), start=1.0)


def told_cautions(observation: Observation, shuffles: bool = True, entries: bool = True) -> tuple[str, ...]:
    """Return what is known of the client's defenses and not modeled.

    Args:
        observation: what the attack may know.
        shuffles: whether places of patches matter to the attack.
        entries: whether it takes entries as they are, dropped ones and signs too.
    """
    told, found = told_effects(observation), []
    if shuffles and any(effects.shuffles_unseen for effects in told):
        found.append(_SHUFFLED)
    if entries and any(effects.dropped == "entries" for effects in told):
        found.append(DROPPED)
    if entries and any(effects.signs for effects in told):
        found.append(SIGNS)
    if any(effects.partial_noise for effects in told):
        found.append(_NOISE)
    if any(effects.carries_over for effects in told):
        found.append(_CARRIED)
    return tuple(found)
