"""Whole numbers of a given sum near to expected ones: label counts out of estimates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

ClassVector = Float[Tensor, " class"]
Covariance = Float[Tensor, "class class"]

_MOST_SWAPS = 1000


class Bounds(NamedTuple):
    """What whole numbers lie between, both ends allowed."""

    least: ClassVector
    most: ClassVector

    def allow(self, total: int) -> bool:
        """Return whether some numbers within the bounds have the sum."""
        ordered = bool((self.least <= self.most).all())
        return ordered and float(self.least.sum()) <= total <= float(self.most.sum())


def nearest_whole(
    expected: ClassVector, precision: Covariance, bounds: Bounds, total: int
) -> tuple[ClassVector, float]:
    """Return whole numbers near to expected ones in a metric, and how likely they are all right.

    A descent that moves one from a number to another, from the largest remainders; the likelihood is that against all
    such moves, if `precision` is that of a normal distribution.

    Args:
        expected: the numbers to round.
        precision: the metric.
        bounds: of the numbers; they allow the sum.
        total: the sum.
    """
    whole = _within(expected, bounds, total)
    for _ in range(_MOST_SWAPS):
        costs = _swap_costs(whole, expected, precision, bounds)
        best = int(costs.argmin())
        if not costs.flatten()[best] < 0:
            break
        whole = whole.clone()
        whole[best // len(whole)] -= 1
        whole[best % len(whole)] += 1
    return whole, 1 / (1 + float((-costs / 2).exp().sum()))


def _within(expected: Tensor, bounds: Bounds, total: int) -> Tensor:
    """Return whole numbers within the bounds: their least, and the rest by largest remainders."""
    whole = bounds.least.clone()
    while (rest := round(total - float(whole.sum()))) > 0:
        free = whole < bounds.most
        share = largest_remainder((expected - whole)[free], rest)
        whole[free] = torch.minimum(whole[free] + share, bounds.most[free])
    return whole


def _swap_costs(whole: Tensor, expected: Tensor, precision: Tensor, bounds: Bounds) -> Tensor:
    """Return what moving one from the number of the row to that of the column adds to the squared distance."""
    slope, own = 2 * precision @ (whole - expected), precision.diagonal()
    costs = slope[None] - slope[:, None] + own[:, None] + own[None] - 2 * precision
    allowed = (whole > bounds.least)[:, None] & (whole < bounds.most)[None]
    return costs.masked_fill(~allowed | torch.eye(len(whole), dtype=torch.bool), torch.inf)


def largest_remainder(expected: ClassVector, total: int) -> ClassVector:
    """Return whole numbers of at least 0 that sum to `total`: rounded down, and the largest remainders up."""
    projected = onto_simplex(expected, total)
    whole = projected.floor()
    rest = round(total - float(whole.sum()))
    whole[(projected - whole).topk(rest).indices] += 1
    return whole


def onto_simplex(values: ClassVector, total: int) -> ClassVector:
    """Return the nearest point with entries of at least 0 that sum to `total`."""
    # The same number added to all changes nothing, and large numbers would leave no digits for the sum.
    values = values - values.max()
    descending = values.sort(descending=True).values
    excess = (descending.cumsum(0) - total) / torch.arange(1, len(values) + 1, dtype=values.dtype)
    return (values - excess[int((descending >= excess).nonzero()[-1])]).clamp_min(0)
