"""Percentile bootstrap: how far a mean over few examples can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def interval(
    values: Sequence[float], generator: np.random.Generator, level: float = 0.95, resamples: int = 2000
) -> Interval | None:
    """Return a percentile bootstrap interval of the mean, or None for fewer than two values.

    The values are drawn with replacement, as if they were independent. With a handful of examples the interval is too
    narrow; it says how much the examples differ, not more.

    Args:
        values: one score per example.
        generator: the only source of randomness.
        level: coverage, in (0, 1).
        resamples: number of bootstrap samples.

    Raises:
        ValueError: `level` is outside (0, 1), or `resamples` below 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}.")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}.")
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=np.float64)
    means = [data[generator.integers(0, len(data), size=len(data))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
