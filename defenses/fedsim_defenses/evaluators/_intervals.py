"""Shares and means with their 95% intervals, as scores of an evaluator."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor

_NORMAL = 1.959964  # 97.5% quantile of the standard normal distribution


def share(name: str, right: Bool[Tensor, " batch"]) -> dict[str, float]:
    """Return a share with its 95% Wilson interval, as scores.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927.
    """
    count, rate = len(right), float(right.double().mean())
    center = (rate + _NORMAL**2 / (2 * count)) / (1 + _NORMAL**2 / count)
    spread = math.sqrt(rate * (1 - rate) / count + _NORMAL**2 / (4 * count**2)) / (1 + _NORMAL**2 / count)
    return {
        name: rate,
        # Exactly 0 and 1 at the ends, where rounding leaves a trace.
        f"{name}, 95% from": max(0.0, center - _NORMAL * spread) if rate > 0 else 0.0,
        f"{name}, 95% to": min(1.0, center + _NORMAL * spread) if rate < 1 else 1.0,
    }


def mean(name: str, values: Float[Tensor, " batch"]) -> dict[str, float]:
    """Return a mean with its 95% interval, by the normal approximation, as scores; without one for a single value."""
    found, count = float(values.double().mean()), len(values)
    if count < 2:
        return {name: found}
    half = _NORMAL * float(values.double().std()) / math.sqrt(count)
    return {name: found, f"{name}, 95% from": found - half, f"{name}, 95% to": found + half}
