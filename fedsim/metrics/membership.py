"""How often the image that was trained on is told from one that was not."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from fedsim.metrics.unavailable import MetricUnavailableError

COIN = 0.5
"""What a blind guess reaches."""


def hits(found: Float[Tensor, " pair"], firsts: Bool[Tensor, " true_pair"] | None) -> tuple[float, ...]:
    """Return 1 for each pair in which the right image was chosen, 0 for the wrong one, and a half for no choice.

    This is the game of membership inference with two candidates, in which a coin decides which of them was trained on: Yeom,
    Giacomelli, Fredrikson, Jha. "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting". CSF 2018.

    Args:
        found: how much more the first image of each pair looks trained on than the second; pairs beyond the last are no choice.
        firsts: whether the first image was.

    Raises:
        MetricUnavailableError: no candidates were granted.
    """
    if firsts is None or not len(firsts):
        raise MetricUnavailableError("no candidates were granted")
    chosen = [*found.tolist(), *[0.0] * len(firsts)]
    return tuple(
        COIN if choice == 0 else float((choice > 0) == is_first)
        for choice, is_first in zip(chosen, firsts.tolist(), strict=False)
    )
