"""Images as weighted DCT coefficients: coordinates in which photographs, before anything is known of them, are white noise.

The basis is cosines along both sides, each of brightness or of one of two color contrasts; a coefficient's weight falls with
its frequency as in photographs. In these coordinates steps go where images vary: broad changes are cheap, and fine ones dear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.exchange import Images, Normalization
from fedsim_attacks.priors.natural import GREY

Coefficients = Float[Tensor, "batch channel height width"]

_CONTRAST = 0.25  # root mean square of a drawn image around grey, over pixels, in brightness and colors together
_COLORS = (  # brightness and two contrasts, and shares of the variance of photographs that they have
    ((1.0, 1.0, 1.0), 2.6),
    ((1.0, 0.0, -1.0), 0.3),
    ((1.0, -2.0, 1.0), 0.1),
)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A Gaussian distribution of images.

    Source: Field, "Relations between the statistics of natural images and the response properties of cortical cells",
    JOSA A 1987, for the spectrum; cosines instead of the Fourier transform's waves, which join opposite edges.

    Args:
        grey: its mean, normalized.
        scale: normalized units of one unit of a pixel, by channel.
        weights: standard deviation of each coefficient, in pixels.
        colors: brightness and contrasts, orthonormal, one a row.
        rows: cosines along the height, orthonormal, one a row.
        columns: the same along the width.
    """

    grey: Float[Tensor, "1 channel 1 1"]
    scale: Float[Tensor, "channel 1 1"]
    weights: Float[Tensor, "channel height width"]
    colors: Float[Tensor, "channel channel"]
    rows: Float[Tensor, "height height"]
    columns: Float[Tensor, "width width"]

    @staticmethod
    def of(shape: tuple[int, int, int], normalization: Normalization, device: torch.device) -> Spectrum:
        """Return the distribution of images of a shape: channels, height, width."""
        channels, height, width = shape
        black, grey, white = (normalization.normalize(torch.full((1, channels, 1, 1), v)) for v in (0.0, GREY, 1.0))
        if channels == len(_COLORS):
            colors = torch.tensor([color for color, _ in _COLORS])
            shares = torch.tensor([share for _, share in _COLORS])
        else:
            colors, shares = torch.eye(channels), torch.ones(channels)
        squares = torch.arange(height)[:, None].square() + torch.arange(width)[None].square()
        power = shares[:, None, None] / (1.0 + squares)
        weights = _CONTRAST * (power * (channels * height * width / power.sum())).sqrt()
        found = (
            grey,
            (white - black)[0],
            weights,
            colors / colors.norm(dim=1, keepdim=True),
            _cosines(height),
            _cosines(width),
        )
        return Spectrum(*(part.to(device) for part in found))

    def images(self, coefficients: Coefficients) -> Images:
        """Return normalized images; white noise becomes draws of the distribution."""
        mixed = torch.einsum("bkij,kc,ih,jw->bchw", self.weights * coefficients, self.colors, self.rows, self.columns)
        return self.grey + self.scale * mixed

    def coefficient_gradient(self, gradient: Images) -> Coefficients:
        """Return a gradient in normalized images as one in their coefficients."""
        found: Coefficients = self.weights * self._split(self.scale * gradient)
        return found

    def coefficients(self, images: Images) -> Coefficients:
        """Return the coordinates of normalized images."""
        found: Coefficients = self._split((images - self.grey) / self.scale) / self.weights
        return found

    def _split(self, images: Images) -> Coefficients:
        return torch.einsum("bchw,kc,ih,jw->bkij", images, self.colors, self.rows, self.columns)


def _cosines(count: int) -> Float[Tensor, "count count"]:
    """Return the orthonormal cosine transform (DCT-II), one cosine a row."""
    places = torch.arange(count) + 0.5
    rows = torch.cos(math.pi / count * torch.arange(count)[:, None] * places) * math.sqrt(2 / count)
    rows[0] /= 2**0.5
    return rows
