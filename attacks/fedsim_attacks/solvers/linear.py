"""Linear systems that are known by their products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

_QUIET = 3  # steps that change little, one after the other, after which a solution has settled


class Solution(NamedTuple):
    """Of a linear system, about.

    Args:
        value: the solution.
        left: what it leaves of the right side.
        steps: that it took.
    """

    value: Tensor
    left: Tensor
    steps: int


def conjugate_gradients(
    operator: Callable[[Tensor], Tensor],
    right: Tensor,
    precondition: Callable[[Tensor], Tensor],
    most: int,
    solved: float = 0.0,
    settled: float = 0.0,
    start: Tensor | None = None,
) -> Solution:
    """Return about what `operator` takes to `right`; inexact products end it where they mislead.

    Args:
        operator: a symmetric, positive definite map.
        right: side of the system.
        precondition: about the inverse of `operator`.
        most: steps, each of one product.
        solved: share of the squared norm of the right side, in the preconditioner's metric, that may be left.
        settled: largest change of an entry that counts as none; three steps of such end it.
        start: first guess; zero unless given.
    """
    if start is None:
        value, left = right.new_zeros(right.shape), right.clone()
    else:
        value, left = start.clone(), right - operator(start)
    eased = precondition(left)
    # A preconditioner may return what it is given, which changes in place.
    direction, energy, quiet = eased.clone(), float((left * eased).sum()), 0
    enough = solved * energy
    for step in range(most):
        if energy <= enough or quiet == _QUIET:
            return Solution(value, left, step)
        bent = operator(direction)
        along = float((direction * bent).sum())
        if along <= 0:
            return Solution(value, left, step)
        length = energy / along
        value += length * direction
        left -= length * bent
        if settled:
            quiet = quiet + 1 if abs(length) * float(direction.abs().max()) < settled else 0
        eased = precondition(left)
        energy, before = float((left * eased).sum()), energy
        direction = eased + energy / before * direction
    return Solution(value, left, most)
