"""Percentile bootstrap: how far a mean over few examples can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_BLOCK = 1_000_000  # indices drawn at once, so that memory does not grow with the number of values


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
    rows = max(1, _BLOCK // len(data))
    blocks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = np.concatenate([data[generator.integers(0, len(data), (n, len(data)))].mean(axis=1) for n in blocks])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
