"""Gauss-Newton from afar: every step is a whole regularized solution, whose regularization falls with what is left.

With z the coordinates of the pictures in which photographs are white noise (`priors.spectrum`), r(z) what they leave of
the observed gradient and J its Jacobian, the iteratively regularized Gauss-Newton method solves
(J^T J + a) v = -(J^T r + a z), so that directions of which the gradient says little return to grey instead of staying where they happen to be. Here a is four times
|r|^2 over the number of coordinates, which is the variance of noise that would explain what is left. A share of the step is
taken that lowers |r|^2 + a |z|^2.

Source: Kaltenbacher, Neubauer, Scherzer, "Iterative Regularization Methods for Nonlinear Ill-Posed Problems", De Gruyter 2008,
https://doi.org/10.1515/9783110208276, chapter 4, where a falls by a fixed sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from fedsim_attacks.newton.residual import Exact, Polished, Residual, minus, norm
from fedsim_attacks.priors import Spectrum, Waves
from fedsim_attacks.solvers import conjugate_gradients

_CAUTION = 4.0  # times the variance of noise that would explain what is left; less fits sooner, to wrong pictures
_SOLVED = 1e-2  # of the squared norm of the right side
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.03)  # of a step, one after the other
_STIFFEN = 4.0  # factor of a where none of them helps
_PATIENCE = 6  # steps of which none helps, in all


class Tried(NamedTuple):
    """Where the method has come.

    Args:
        waves: coordinates of the pictures.
        polished: the pictures, which may leave the range of pixels, and what they leave.
    """

    waves: Waves
    polished: Polished


def regularized(
    residual: Residual, spectrum: Spectrum, start: Waves, count: int, products: int = 40
) -> Iterator[Tried]:
    """Yield where it starts and where every step leads.

    Args:
        residual: to bring to zero.
        spectrum: of pictures.
        start: coordinates.
        count: steps at most; it ends early where six bring nothing.
        products: of conjugate gradients in a step, at most; more hardly help while half of a step or less is taken.
    """
    waves, here = start, Exact(residual, spectrum.images(start))
    whole, factor, failures = norm(residual.goal), _CAUTION, 0
    yield Tried(waves, Polished(here.images, norm(here.left) / whole))
    for _ in range(count):
        before = norm(here.left) ** 2
        weight = factor * before / waves.numel()
        downhill = -spectrum.slope(here.backward(here.left)) - weight * waves
        curve = functools.partial(_curvature, here, spectrum, weight)
        step = conjugate_gradients(curve, downhill, lambda waves: waves, products, _SOLVED).step
        before += weight * float(waves.square().sum())
        moved = _helpful(residual, spectrum, waves, step, weight, before)
        if moved is None:
            factor, failures = _STIFFEN * factor, failures + 1
        else:
            waves, here = moved, Exact(residual, spectrum.images(moved))
        yield Tried(waves, Polished(here.images, norm(here.left) / whole))
        if failures == _PATIENCE:
            return


def _curvature(here: Exact, spectrum: Spectrum, weight: float, step: Waves) -> Waves:
    ahead = here.forward(spectrum.images(step) - spectrum.grey)
    return spectrum.slope(here.backward(ahead)) + weight * step


def _helpful(
    residual: Residual, spectrum: Spectrum, waves: Waves, step: Waves, weight: float, before: float
) -> Waves | None:
    """Return where the first share of a step leads that lowers the objective; None where none does."""
    for share in _SHARES:
        moved: Waves = waves + share * step
        left = norm(minus(residual.reached(spectrum.images(moved)), residual.goal))
        if left**2 + weight * float(moved.square().sum()) < before:
            return moved
    return None
