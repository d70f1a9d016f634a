"""Levenberg-Marquardt on images: refinement of second order, from where a descent has ended.

The residual is that of the whole gradient, every tensor in units of its own norm and every row of the position embedding in
units of its own. A step solves (J^T J + damping + smoothness) v = -(J^T r + smoothness x); smoothness, total variation in its
reweighted quadratic form, falls with every step that helps. The gradient of the patch projection, G_pe = A^T X with A the token
gradients, is nearly linear in the images X and badly conditioned, so it weighs more than other tensors, and
(A A^T + damping)^-1 preconditions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.exchange import Images
from fedsim.models import patch_grid
from fedsim_attacks.newton.iteration import Damping
from fedsim_attacks.newton.residual import Differences, Exact, Place, Residual, adjoint_error, token_gradients
from fedsim_attacks.priors import Roughness
from fedsim_attacks.solvers import Solution
from fedsim_attacks.update import PROJECTION

ChosenProducts = Literal["differences", "exact"]
Products = Literal["auto", ChosenProducts]

_SMOOTHNESS = 1e-3  # at first
_EASE, _STIFFEN = 0.5, 10.0  # factors of the damping after a step that helped, and after one that did not
_SHARPEN = 0.7  # factor of the smoothness after a step that helped; 0.5 leaves flat directions where they are too soon
_MOST_ROWS = 4096  # of A, above which its eigenvectors would cost more than they save
_FLAT = 1e-6  # of its largest eigenvalue: what the preconditioner adds
_ADJOINT = 1e-2  # relative error; of untrained models it is some thousandths, of trained ones it soon exceeds a tenth
_EDGE = 0.05  # pixel difference at which an edge begins to cost less than its square


class _Kind(NamedTuple):
    """How a step is solved.

    Args:
        place: with its products.
        most: products of conjugate gradients in a step.
        damping: at first.
        follows: whether damping follows how much of the predicted gain a step brings.
    """

    place: Callable[[Residual, Images], Place]
    most: int
    damping: float
    follows: bool


# More products by differences do not solve a step better, since they err, and the gain of a step says little of the damping.
_KINDS: dict[ChosenProducts, _Kind] = {
    "differences": _Kind(Differences, 40, 1e-4, False),
    "exact": _Kind(Exact, 80, 1e-2, True),
}


def chosen_products(residual: Residual, start: Images, products: Products) -> ChosenProducts:
    """Return which products solve the steps from a start: `auto` takes differences where these are adjoint enough.

    They are where an image's gradient bends little along their length, as of untrained models. Of trained ones conjugate
    gradients mislead, and steps stall.
    """
    if products != "auto":
        return products
    place = Differences(residual, start)
    return "differences" if adjoint_error(place, place.backward(place.left)) < _ADJOINT else "exact"


class LevenbergMarquardt(Damping):
    """Damping that follows how the steps go; six steps in a row that do not help end it, while it grows by 10^6.

    Args:
        confine: brings images back into the range of pixels.
        products: with the Jacobian, `differences` or `exact`.
        most: products in a step; by default what their kind needs.
    """

    solved: ClassVar[float] = 1e-5

    def __init__(self, confine: Callable[[Images], Images], products: ChosenProducts, most: int | None = None) -> None:
        kind = _KINDS[products]
        super().__init__(most or kind.most)
        self.kind, self.box = kind, confine
        self.damping, self.smoothness = kind.damping, _SMOOTHNESS
        self.rough: Roughness
        self.inverse: Callable[[Images], Images]

    def place(self, residual: Residual, images: Images) -> Place:
        """Return the images with products of the chosen kind."""
        return self.kind.place(residual, images)

    def settle(self, here: Place, coordinates: Tensor) -> None:
        """Take smoothness anew around the edges of the images."""
        self.rough = Roughness.around_edges(here.images, _EDGE)
        self.inverse = _preconditioner(here, self.damping)

    def energy(self, coordinates: Tensor) -> float:
        """Return how rough the images are."""
        return self.smoothness * float((coordinates * self.rough.gradient(coordinates)).sum())

    def gradient(self, coordinates: Tensor) -> Tensor:
        """Return half the gradient of that."""
        return self.smoothness * self.rough.gradient(coordinates)

    def curved(self, product: Tensor, step: Tensor) -> Tensor:
        """Return (J^T J + damping + smoothness) v."""
        return product + self.damping * step + self.smoothness * self.rough.gradient(step)

    def succeed(self, gain: float, solution: Solution, downhill: Tensor) -> None:
        """Ease the damping, and smooth less."""
        step = solution.value
        predicted = float((step * (downhill + solution.left + self.damping * step)).sum())
        ease = _eased(gain / predicted) if self.kind.follows else _EASE
        self.damping, self.smoothness, self.failures = ease * self.damping, _SHARPEN * self.smoothness, 0

    def fail(self) -> None:
        """Damp more."""
        self.damping, self.failures = _STIFFEN * self.damping, self.failures + 1

    def confine(self, coordinates: Tensor) -> Tensor:
        """Return the images in the range of pixels."""
        return self.box(coordinates)

    def precondition(self, left: Tensor) -> Tensor:
        """Apply the inverse of what the patch projection's gradient contributes."""
        return self.inverse(left)


def _eased(ratio: float) -> float:
    """Return the factor of the damping for the share of the predicted gain that a step has brought.

    Source: Nielsen, "Damping parameter in Marquardt's method", Technical University of Denmark, 1999.
    """
    return min(2.0, max(1 / 3, 1 - (2 * ratio - 1) ** 3))


def _preconditioner(here: Place, damping: float) -> Callable[[Images], Images]:
    """Return the inverse of what the patch projection's gradient contributes to the curvature."""
    residual = here.residual
    place, tokens = residual.target.place(PROJECTION), token_gradients(residual, here.images)
    if place is None or tokens.flatten(0, 1).shape[0] > _MOST_ROWS:
        return lambda images: images
    grid = patch_grid(residual.target.model)
    rows = tokens.flatten(0, 1).double() * float(residual.scales[place])
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    inverse = (vectors / (values.clamp_min(0) + _FLAT * values[-1] + damping)) @ vectors.T

    def apply(images: Images) -> Images:
        patches = grid.cut(images)
        solved = inverse @ patches.flatten(0, 1).double()
        return grid.join(solved.to(images).view_as(patches))

    return apply
