"""Gauss-Newton on images: steps that are solved for, each held back by a damping.

With r(z) what the images at coordinates z leave of the observed gradient, J its Jacobian and e(z) the energy of a prior, a
step v solves (J^T J + damping) v = -(J^T r + e'(z) / 2) by conjugate gradients, on products with J (`residual`), and the first
of some shares of it is taken that lowers |r|^2 + e. Everything in which methods differ is a `Damping`: the coordinates, the
prior, and how strongly both hold after a step that helped, and after one that did not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

from torch import Tensor

from fedsim.exchange import Images
from fedsim_attacks.newton.residual import Iterate, Place, Residual, minus, norm
from fedsim_attacks.solvers import Solution, conjugate_gradients

_PATIENCE = 6  # failures before it ends


class Damping(ABC):
    """Holds steps back; coordinates are the normalized images themselves unless a method is overruled.

    Args:
        most: products in a step.

    Attributes:
        failures: steps that did not help, of those that count.
    """

    solved: ClassVar[float]  # share of the squared norm of the right side that may be left
    shares: ClassVar[tuple[float, ...]] = (1.0,)  # of a step, tried one after the other

    def __init__(self, most: int) -> None:
        self.most = most
        self.failures = 0

    @abstractmethod
    def place(self, residual: Residual, images: Images) -> Place:
        """Return the images with their products."""

    @abstractmethod
    def settle(self, here: Place, coordinates: Tensor) -> None:
        """Fix prior and damping for a step from here."""

    @abstractmethod
    def energy(self, coordinates: Tensor) -> float:
        """Return the energy of the prior."""

    @abstractmethod
    def gradient(self, coordinates: Tensor) -> Tensor:
        """Return half the gradient of that energy."""

    @abstractmethod
    def curved(self, product: Tensor, step: Tensor) -> Tensor:
        """Return the product of J^T J with a step, damped."""

    @abstractmethod
    def succeed(self, gain: float, solution: Solution, downhill: Tensor) -> None:
        """Adapt to a step that lowered the damped objective by `gain`."""

    @abstractmethod
    def fail(self) -> None:
        """Adapt to a step of which no share helped."""

    def images(self, coordinates: Tensor) -> Images:
        """Return the images at some coordinates."""
        return coordinates

    def ahead(self, step: Tensor) -> Images:
        """Return how a step changes the images."""
        return step

    def back(self, gradient: Images) -> Tensor:
        """Return a gradient in the images as one in the coordinates."""
        return gradient

    def confine(self, coordinates: Tensor) -> Tensor:
        """Return coordinates brought back to where they may be."""
        return coordinates

    def precondition(self, left: Tensor) -> Tensor:
        """Return about the inverse of the damped J^T J, applied."""
        return left


def gauss_newton(residual: Residual, start: Tensor, damping: Damping, count: int) -> Iterator[Iterate]:
    """Yield the start and what every step leads to; after one that does not help, what was before it.

    It ends early after six failures.

    Args:
        residual: to bring to zero.
        start: coordinates.
        damping: holds steps back; of its own for every run, since it keeps its state.
        count: steps at most.
    """
    coordinates, here = start, damping.place(residual, damping.images(start))
    whole = norm(residual.goal)
    yield Iterate(here.images, norm(here.left) / whole, coordinates)
    for _ in range(count):
        damping.settle(here, coordinates)
        downhill = -damping.back(here.backward(here.left)) - damping.gradient(coordinates)
        solution = _solve(here, damping, downhill)
        before = norm(here.left) ** 2 + damping.energy(coordinates)
        for share in damping.shares:
            moved = damping.confine(coordinates + share * solution.value)
            there = damping.place(residual, damping.images(moved))
            after = _left(there, damping) ** 2 + damping.energy(moved)
            if after < before:
                damping.succeed(before - after, solution, downhill)
                coordinates, here = moved, there
                break
        else:
            damping.fail()
        yield Iterate(here.images, norm(here.left) / whole, coordinates)
        if damping.failures == _PATIENCE:
            return


def above_noise(steps: Iterable[Iterate], level: float) -> Iterator[Iterate]:
    """Yield the start, and iterates until one leaves less than the true images leave of a gradient with known noise.

    Args:
        steps: iterates, the start first.
        level: what noise leaves.
    """
    for number, iterate in enumerate(steps):
        if number and iterate.residual < level:
            return
        yield iterate


def _solve(here: Place, damping: Damping, downhill: Tensor) -> Solution:
    def curve(step: Tensor) -> Tensor:
        return damping.curved(damping.back(here.backward(here.forward(damping.ahead(step)))), step)

    return conjugate_gradients(curve, downhill, damping.precondition, damping.most, damping.solved)


def _left(there: Place, damping: Damping) -> float:
    if len(damping.shares) == 1:
        return norm(there.left)
    # Of several shares most are not taken, so that a graph would be made for nothing.
    return norm(minus(there.residual.reached(there.images), there.residual.goal))
