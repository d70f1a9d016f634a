"""Where regularized Newton starts, in coordinates of `priors.spectrum`.

The first is fitted to what the last block has seen of every image (`last_block`), from coarse to fine: the tolerance of the
misfit falls while the images keep the spectrum of photographs. The second is near grey. Further ones are, by turns, smooth
images whose head inputs are near to the client's (`head.nearest`), and such images fitted to what the last block has
seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fedsim.exchange import Images
from fedsim_attacks.newton.last_block import LastBlockFeatures
from fedsim_attacks.priors import Coefficients, Spectrum

_NEAR_GREY = 0.03  # standard deviation of a start, in coordinates in which photographs have about one
_RATE, _BETAS = 0.05, (0.9, 0.99)  # of Adam; the rate falls to zero by a cosine
_TOLERANCES = (
    1.0,
    2e-4,
)  # relative error of an image's vectors that counts as a standard deviation, at first and at last


class StartFeatures(NamedTuple):
    """What a model has seen of a batch's images, image by image.

    Args:
        pictures: how many.
        nearest: draws images whose head inputs are near to the client's; None where its gradient does not show these.
        block: what the last block has seen; None where that is not worked out.
        doubt: why one of these is missing, where that is to be told.
    """

    pictures: int
    nearest: Callable[[torch.Generator], Images] | None
    block: LastBlockFeatures | None
    doubt: str | None


@dataclass(frozen=True, eq=False)
class DCTStarts:
    """Draws starts without end.

    Args:
        seen: what is known of the images.
        spectrum: of images.
        fit_steps: of Adam, for a fitted start.
        generator: draws.
    """

    seen: StartFeatures
    spectrum: Spectrum
    fit_steps: int
    generator: torch.Generator

    def draw(self, show: Callable[[float], None]) -> Iterator[Coefficients]:
        """Yield one start after the other; `show` is told the relative error after every step of a fit."""
        block, nearest = self.seen.block, self.seen.nearest
        if block is not None:
            yield fitted(block, self.spectrum, self._near_grey(), self.fit_steps, show)
        yield self._near_grey()
        if nearest is None:
            while True:
                yield self._near_grey()
        while True:
            drawn = self.spectrum.coefficients(nearest(self.generator))
            yield drawn
            if block is not None:
                yield fitted(block, self.spectrum, drawn, self.fit_steps, show)

    @property
    def _shape(self) -> tuple[int, int, int]:
        channels, height, width = self.spectrum.weights.shape
        return channels, height, width

    def _near_grey(self) -> Coefficients:
        drawn = _NEAR_GREY * torch.randn((self.seen.pictures, *self._shape), generator=self.generator)
        return drawn.to(self.spectrum.grey)


def fitted(
    block: LastBlockFeatures, spectrum: Spectrum, start: Coefficients, steps: int, show: Callable[[float], None]
) -> Coefficients:
    """Return coordinates of images of which the last block sees what it has seen of the client's, about.

    Args:
        block: what it has seen.
        spectrum: of images.
        start: coordinates.
        steps: of Adam.
        show: is told the mean relative error after every step.
    """
    coefficients = start.clone().requires_grad_()
    adam = torch.optim.Adam([coefficients], lr=_RATE, betas=_BETAS)
    first, last = _TOLERANCES
    for step in range(steps):
        adam.param_groups[0]["lr"] = _RATE * (1 + math.cos(math.pi * step / steps)) / 2
        tolerance = first * (last / first) ** (step / steps)
        apart = block.apart(spectrum.images(coefficients))
        (coefficients.grad,) = torch.autograd.grad(
            (apart / tolerance**2).sum() + coefficients.square().sum(), coefficients
        )
        adam.step()
        show(math.sqrt(float(apart.detach().mean())))
    return coefficients.detach()
