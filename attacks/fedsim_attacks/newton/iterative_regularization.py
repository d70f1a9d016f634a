"""The iteratively regularized Gauss-Newton method: every step is a whole solution, regularized the less, the less is left.

With z the DCT coefficients in which photographs are white noise (`priors.spectrum`), r(z) what they leave of the observed
gradient and J its Jacobian, it solves (J^T J + a) v = -(J^T r + a z), so that directions of which the gradient says little
return to grey instead of staying where they happen to be. Here a is four times |r|^2 over the number of coefficients, which is
the variance of noise that would explain what is left. A share of the step is taken that lowers |r|^2 + a |z|^2.

Source: Kaltenbacher, Neubauer, Scherzer, "Iterative Regularization Methods for Nonlinear Ill-Posed Problems", De Gruyter 2008,
https://doi.org/10.1515/9783110208276, chapter 4, where a falls by a fixed sequence.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fedsim.exchange import Images
from fedsim_attacks.newton.iteration import Damping
from fedsim_attacks.newton.residual import Exact, Place, Residual, norm
from fedsim_attacks.priors import Spectrum
from fedsim_attacks.solvers import Solution

_CAUTION = 4.0  # times the variance of noise that would explain what is left; less fits sooner, to wrong images
_STIFFEN = 4.0  # factor of a where no share of a step helps


class IterativeRegularization(Damping):
    """Damping by a prior of white noise in DCT coefficients; six steps that do not help, in all, end it.

    Args:
        spectrum: of images.
        most: products in a step; more hardly help while half of a step or less is taken.
    """

    solved: ClassVar[float] = 1e-2
    shares: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.25, 0.1, 0.03)

    def __init__(self, spectrum: Spectrum, most: int = 40) -> None:
        super().__init__(most)
        self.spectrum = spectrum
        self.factor, self.weight = _CAUTION, 0.0

    def place(self, residual: Residual, images: Images) -> Place:
        """Return the images with exact products."""
        return Exact(residual, images)

    def settle(self, here: Place, coordinates: Tensor) -> None:
        """Fix a."""
        self.weight = self.factor * norm(here.left) ** 2 / coordinates.numel()

    def energy(self, coordinates: Tensor) -> float:
        """Return a |z|^2."""
        return self.weight * float(coordinates.square().sum())

    def gradient(self, coordinates: Tensor) -> Tensor:
        """Return a z."""
        return self.weight * coordinates

    def curved(self, product: Tensor, step: Tensor) -> Tensor:
        """Return (J^T J + a) v."""
        return product + self.weight * step

    def succeed(self, gain: float, solution: Solution, downhill: Tensor) -> None:
        """Leave the factor of a as it is."""

    def fail(self) -> None:
        """Regularize more."""
        self.factor, self.failures = _STIFFEN * self.factor, self.failures + 1

    def images(self, coordinates: Tensor) -> Images:
        """Return the images of DCT coefficients."""
        return self.spectrum.images(coordinates)

    def ahead(self, step: Tensor) -> Images:
        """Return how a step changes the images."""
        return self.spectrum.images(step) - self.spectrum.grey

    def back(self, gradient: Images) -> Tensor:
        """Return a gradient in the images as one in their DCT coefficients."""
        return self.spectrum.coefficient_gradient(gradient)
