"""Linear systems in pictures that are known by their products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Field = Tensor  # pictures, or coordinates of pictures


class Solution(NamedTuple):
    """Of a linear system, about, and what it leaves of the right side."""

    step: Field
    left: Field


def conjugate_gradients(
    curve: Callable[[Field], Field],
    right: Field,
    precondition: Callable[[Field], Field],
    products: int,
    solved: float,
) -> Solution:
    """Return about what `curve` takes to `right`; inexact products end it where they mislead.

    Args:
        curve: a symmetric, positive definite map.
        right: side of the system.
        precondition: about the inverse of `curve`.
        products: at most.
        solved: share of the squared norm of the right side, in the preconditioner's metric, that may be left.
    """
    solution, left = torch.zeros_like(right), right.clone()
    eased = precondition(left)
    direction, square = eased, float((left * eased).sum())
    enough = solved * square
    for _ in range(products):
        bent = curve(direction)
        along = float((direction * bent).sum())
        if along <= 0 or square <= enough:
            break
        solution += square / along * direction
        left -= square / along * bent
        eased = precondition(left)
        square, before = float((left * eased).sum()), square
        direction = eased + square / before * direction
    return Solution(solution, left)
