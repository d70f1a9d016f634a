"""Polish: a few large, solved steps from where a descent has ended, instead of many small ones.

`gauss_newton` is Levenberg-Marquardt on the residual of the whole gradient, every tensor in units of its own norm and every
row of the position embedding in units of its own. The Jacobian J is never formed: the step solves
(J^T J + damping + smoothness) v = -J^T residual by conjugate gradients, on products of `residual`; smoothness, total variation
in its reweighted quadratic form, falls with every step that helps. The gradient of the patch projection, G_pe = A^T X with A
the token gradients, is nearly linear in the pictures X and badly conditioned, so it weighs more than other tensors, and
(A A^T + damping)^-1 preconditions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch

from fedsim.exchange import Images
from fedsim.models import patch_grid
from fedsim_attacks.newton.residual import (
    Differences,
    Exact,
    Place,
    Polished,
    Residual,
    adjoint_error,
    norm,
    token_gradients,
)
from fedsim_attacks.priors import Roughness
from fedsim_attacks.solvers import conjugate_gradients
from fedsim_attacks.update import PROJECTION

Polish = Literal["none", "gauss_newton", "closed_form"]
Products = Literal["auto", "differences", "exact"]

_SOLVED = 1e-5  # of the squared norm of the right side
_SMOOTHNESS = 1e-3  # at first
_PATIENCE = 6  # steps that do not help, one after the other, before it gives up; damping grows by 10^6 in these
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
_KINDS: dict[Products, _Kind] = {
    "differences": _Kind(Differences, 40, 1e-4, False),
    "exact": _Kind(Exact, 80, 1e-2, True),
}


def chosen_products(residual: Residual, start: Images, products: Products) -> Products:
    """Return which products solve the steps from a start: `auto` takes differences where these are adjoint enough.

    They are where a picture's gradient bends little along their length, as of untrained models. Of trained ones conjugate
    gradients mislead, and steps stall.
    """
    if products != "auto":
        return products
    place = Differences(residual, start)
    return "differences" if adjoint_error(place, place.backward(place.left)) < _ADJOINT else "exact"


def gauss_newton(
    residual: Residual,
    start: Images,
    confine: Callable[[Images], Images],
    count: int,
    products: Products = "auto",
    most: int | None = None,
) -> Iterator[Polished]:
    """Yield the pictures before and after every step; after one that does not lower the damped objective, those before it.

    It ends early where six steps in a row do not.

    Args:
        residual: to bring to zero.
        start: normalized pictures.
        confine: brings pictures back into the range of pixels.
        count: steps.
        products: with the Jacobian; `auto` chooses at the start.
        most: products in a step; by default what their kind needs.
    """
    kind = _KINDS[chosen_products(residual, start, products)]
    here, damping, smoothness = kind.place(residual, start), kind.damping, _SMOOTHNESS
    whole, failures = norm(residual.goal), 0
    yield Polished(here.images, norm(here.left) / whole)
    for _ in range(count):
        rough = Roughness.around_edges(here.images, _EDGE)
        curve = functools.partial(_curvature, here, rough, damping, smoothness)
        downhill = -here.backward(here.left) - smoothness * rough.gradient(here.images)
        step, left = conjugate_gradients(curve, downhill, _preconditioner(here, damping), most or kind.most, _SOLVED)
        there = kind.place(residual, confine(here.images + step))
        before, after = (
            norm(place.left) ** 2 + smoothness * float((place.images * rough.gradient(place.images)).sum())
            for place in (here, there)
        )
        if after < before:
            predicted = float((step * (downhill + left + damping * step)).sum())
            ease = _eased((before - after) / predicted) if kind.follows else _EASE
            here, damping, smoothness, failures = there, ease * damping, _SHARPEN * smoothness, 0
        else:
            damping, failures = _STIFFEN * damping, failures + 1
        yield Polished(here.images, norm(here.left) / whole)
        if failures == _PATIENCE:
            return


def _eased(ratio: float) -> float:
    """Return the factor of the damping for the share of the predicted gain that a step has brought.

    Source: Nielsen, "Damping parameter in Marquardt's method", Technical University of Denmark, 1999.
    """
    return min(2.0, max(1 / 3, 1 - (2 * ratio - 1) ** 3))


def _curvature(here: Place, rough: Roughness, damping: float, smoothness: float, step: Images) -> Images:
    return here.backward(here.forward(step)) + damping * step + smoothness * rough.gradient(step)


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
