"""Fill what an update leaves open with the smoothest picture that is plausible."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from fedsim.exchange import Images
from fedsim.models import PatchGrid
from fedsim_attacks._closed_form import Completion, Patches
from fedsim_attacks._priors import Roughness

GREY = 0.5

_OVERSHOOT = 0.03  # root mean square of what leaves [0, 1] before an estimate counts as implausible
_RAISE, _LARGEST_RAISE = 30.0, 1e16

Prior = Callable[[Patches], Patches]


class Filling(NamedTuple):
    """A picture, and how it came about.

    Args:
        images: one, in [0, 1].
        raised: factor by which the prior was raised until the pixels were plausible.
        steps: of conjugate gradients, in all.
    """

    images: Images
    raised: float
    steps: int


def fill(
    complete: Callable[[float, Prior, Patches | None], Completion],
    grid: PatchGrid,
    smoothness: float,
    refinements: int,
) -> Filling:
    """Return the picture that a completion gives, with the prior raised until its pixels are plausible.

    Args:
        complete: (factor on the prior's weight, half the gradient of its energy, start) -> patches minus grey.
        grid: how the model cuts pictures.
        smoothness: expected difference of neighboring pixels.
        refinements: rounds in which the filling is allowed edges where the last round found some.
    """

    def completed(raised: float, prior: Roughness, start: Patches | None) -> Completion:
        return complete(raised, lambda patches: grid.cut(prior.gradient(grid.join(patches[None])))[0], start)

    prior, raised = Roughness.uniform(grid.join(torch.zeros(1, grid.count, grid.values, dtype=torch.float64))), 1.0
    found = completed(raised, prior, None)
    steps = found.steps
    while _overshoot(found.patches) > _OVERSHOOT and raised < _LARGEST_RAISE:
        raised *= _RAISE
        found = completed(raised, prior, found.patches)
        steps += found.steps
    for _ in range(refinements if found.filled else 0):
        prior = Roughness.around_edges(grid.join(found.patches[None]), smoothness)
        found = completed(raised, prior, found.patches)
        steps += found.steps
    return Filling((grid.join(found.patches[None]) + GREY).clamp(0, 1).float(), raised, steps)


def _overshoot(centered: Patches) -> float:
    return float((centered.abs() - GREY).clamp_min(0).square().mean().sqrt())
