"""Fixed points of maps that need not contract, by Anderson's mixing of the last few iterates.

Anderson. "Iterative Procedures for Nonlinear Integral Equations". Journal of the ACM 12 (1965).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MEMORY = 6
_RIDGE = 1e-12  # of the mixing weights, beside the largest diagonal entry of their system


def fixed_point(function: Callable[[Tensor], Tensor], start: Tensor, rounds: int, tolerance: float) -> Tensor:
    """Return x with function(x) close to x: the iterate that changes least.

    Args:
        function: of a tensor, to one of the same shape.
        start: first guess.
        rounds: evaluations at most.
        tolerance: root mean square change at which it ends.
    """
    at, best, least = start, start, float("inf")
    images: list[Tensor] = []
    changes: list[Tensor] = []
    for _ in range(rounds):
        image = function(at)
        change = (image - at).flatten()
        size = float(change.square().mean().sqrt())
        if size < least:
            best, least = image, size
        if size < tolerance:
            break
        images, changes = [*images, image][-_MEMORY:], [*changes, change][-_MEMORY:]
        at = _mixed(images, changes)
    return best


def _mixed(images: list[Tensor], changes: list[Tensor]) -> Tensor:
    """Return the images mixed, with weights that sum to one, so that their changes cancel best."""
    steps = torch.stack(changes)
    system = steps @ steps.T
    system = system + _RIDGE * system.diagonal().max() * torch.eye(len(system), dtype=system.dtype)
    weights = torch.linalg.solve(system, torch.ones(len(system), dtype=system.dtype))
    weights = weights / weights.sum()
    return torch.einsum("i,i...->...", weights, torch.stack(images))
