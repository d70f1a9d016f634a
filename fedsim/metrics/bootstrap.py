"""BCa bootstrap: how far a mean over few examples can be trusted."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

_BLOCK = 1_000_000  # indices drawn at once, so that memory does not grow with the number of values
_MOST = 1_000  # values; the jackknife of BCa is quadratic in them, and what it corrects shrinks with their square root


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def _mean(values: NDArray[np.float64], axis: int = -1) -> Any:
    # Sorted, so that the same values in another order have the same sum: BCa counts the means below that of the sample.
    return np.sort(values, axis=axis).mean(axis=axis)


def interval(
    values: Sequence[float], generator: np.random.Generator, level: float = 0.95, resamples: int = 2000
) -> Interval | None:
    """Return a bootstrap interval of the mean, or None for fewer than two values.

    It is bias-corrected and accelerated (BCa). For more than 1,000 values, and where BCa has no value because the values
    differ by so little that their squares vanish, it is the percentile interval of the resamples. Equal values have an
    interval of no width.

    The values are drawn with replacement, as if they were independent. With a handful of examples the interval is too
    narrow; it says how much the examples differ, not more.

    Args:
        values: one score per example.
        generator: the only source of randomness.
        level: coverage, in (0, 1).
        resamples: number of bootstrap samples.

    Raises:
        ValueError: `level` is outside (0, 1), or `resamples` below 1.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 14.3.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}.")
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}.")
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=np.float64)
    if data.min() == data.max():
        return Interval(float(data[0]), float(data[0]))
    draw = functools.partial(
        bootstrap, (data,), confidence_level=level, batch=max(1, _BLOCK // len(data)), rng=generator
    )
    if len(data) > _MOST:
        return _bounds(draw(np.mean, n_resamples=resamples, method="percentile"))
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        corrected = draw(_mean, n_resamples=resamples, method="BCa")
    if np.isfinite(corrected.confidence_interval).all():
        return _bounds(corrected)
    return _bounds(draw(_mean, n_resamples=0, bootstrap_result=corrected, method="percentile"))


def _bounds(found: Any) -> Interval:
    return Interval(*map(float, found.confidence_interval))
