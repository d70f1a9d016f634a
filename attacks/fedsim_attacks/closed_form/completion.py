"""Fill what an update leaves open with the smoothest image that is plausible: what closed-form inversions share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from fedsim.attack import Attack, Need, Recovers
from fedsim.exchange import Images
from fedsim.models import PatchGrid
from fedsim_attacks.closed_form.linear import Completion, Patches
from fedsim_attacks.priors import GREY, Roughness

_OVERSHOOT = 0.03  # root mean square of what leaves [0, 1] before an estimate counts as implausible
RAISE = 30.0  # of the prior, while the pixels are implausible
_LARGEST_RAISE = 1e16

Prior = Callable[[Patches], Patches]


@dataclass(frozen=True, kw_only=True)
class SmoothInversion(Attack):
    """Closed-form inversion of one image, completed smoothly where the update says nothing.

    Args:
        smoothness: expected difference between neighboring pixels in [0, 1], for what the update hides.
        refinements: rounds in which the smooth completion is allowed edges where the last round found some.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images"})
    is_cheap: ClassVar[bool] = True

    smoothness: float = 0.1
    refinements: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.smoothness < 1:
            raise ValueError(f"smoothness: expected a number between 0 and 1, both excluded, got {self.smoothness}.")
        if self.refinements < 0:
            raise ValueError(f"refinements: expected at least 0, got {self.refinements}.")


class SmoothCompletion(NamedTuple):
    """An image, and how it came about.

    Args:
        images: one, in [0, 1].
        raised: factor by which the prior was raised until the pixels were plausible.
        steps: of conjugate gradients, in all.
    """

    images: Images
    raised: float
    steps: int


def complete_smoothly(
    complete: Callable[[float, Prior, Patches | None], Completion],
    grid: PatchGrid,
    smoothness: float,
    refinements: int,
) -> SmoothCompletion:
    """Return the image that a completion gives, with the prior raised until its pixels are plausible.

    Args:
        complete: (factor on the prior's weight, half the gradient of its energy, start) -> patches minus grey.
        grid: how the model cuts images.
        smoothness: expected difference of neighboring pixels.
        refinements: rounds in which the completion is allowed edges where the last round found some.
    """

    def completed(raised: float, prior: Roughness, start: Patches | None) -> Completion:
        return complete(raised, lambda patches: grid.cut(prior.gradient(grid.join(patches[None])))[0], start)

    prior, raised = Roughness.uniform(grid.join(torch.zeros(1, grid.count, grid.values, dtype=torch.float64))), 1.0
    found = completed(raised, prior, None)
    steps = found.steps
    while is_implausible(found.patches, raised):
        raised *= RAISE
        found = completed(raised, prior, found.patches)
        steps += found.steps
    for _ in range(refinements if found.filled else 0):
        prior = Roughness.around_edges(grid.join(found.patches[None]), smoothness)
        found = completed(raised, prior, found.patches)
        steps += found.steps
    return SmoothCompletion(picture(found.patches, grid), raised, steps)


def is_implausible(centered: Patches, raised: float) -> bool:
    """Return whether an estimate leaves the range of pixels, and the prior may be raised further.

    Args:
        centered: patches minus grey.
        raised: factor by which the prior is raised already.
    """
    overshoot = float((centered.abs() - GREY).clamp_min(0).square().mean().sqrt())
    return overshoot > _OVERSHOOT and raised < _LARGEST_RAISE


def picture(centered: Patches, grid: PatchGrid) -> Images:
    """Return the image whose patches, minus grey, these are."""
    return (grid.join(centered[None]) + GREY).clamp(0, 1).float()
