"""What an image looks like, learned from an estimate of that image: how its neighboring pixels differ in color."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fedsim_attacks.priors.natural import GREY_PULL, Field

_FREEDOM = 3.0  # of Student's t: differences in photographs have heavier tails than a normal distribution
_FITTING_STEPS = 20
_LEAST_DIFFERENCE = 1e-4  # pixels; standard deviation that no direction of color falls below


class ColorEdges(NamedTuple):
    """Squared color differences of neighboring pixels, weighted by a fit of Student's t: a quadratic image prior.

    Most images vary in brightness far more than in hue, and in few places; the fit finds both, so that noise of any hue
    and between edges is told from the image.

    Args:
        precision: of a difference, over channels.
        vertical: weight of each vertical pair, small on edges.
        horizontal: weight of each horizontal pair.
        pull: to zero.
    """

    precision: Float[Tensor, "channel channel"]
    vertical: Float[Tensor, "above width"]
    horizontal: Float[Tensor, "height left"]
    pull: float

    @staticmethod
    def fitted(images: Field, scale: float, guessed: Bool[Tensor, "height width"] | None = None) -> ColorEdges:
        """Return the prior under which the differences of one image are likely, by expectation maximization.

        Args:
            images: current estimate, a batch of one.
            scale: the energy is in units of its squared inverse.
            guessed: pixels that the estimate only guesses; they take no part, and get the mean weight of the others.
        """
        vertical, horizontal = _differences(images)
        channels = images.shape[1]
        pairs = torch.cat([vertical[0].reshape(channels, -1), horizontal[0].reshape(channels, -1)], dim=1)
        if guessed is None:
            guessed = torch.zeros(images.shape[2:], dtype=torch.bool)
        ends = (guessed[1:] | guessed[:-1]).flatten(), (guessed[:, 1:] | guessed[:, :-1]).flatten()
        known = ~torch.cat(ends)
        floor = _LEAST_DIFFERENCE**2 * torch.eye(channels, dtype=images.dtype)
        seen = pairs[:, known]
        covariance = seen @ seen.T / max(1, seen.shape[1]) + floor
        for _ in range(_FITTING_STEPS):
            fitting = (_FREEDOM + channels) / (_FREEDOM + (torch.linalg.solve(covariance, seen) * seen).sum(0))
            covariance = (fitting * seen) @ seen.T / max(1, seen.shape[1]) + floor
        weights = torch.ones_like(pairs[0])
        if len(fitting):
            weights = weights * fitting.mean()
            weights[known] = fitting
        above = vertical[0, 0]
        return ColorEdges(
            scale**2 * torch.linalg.inv(covariance),
            weights[: above.numel()].view_as(above),
            weights[above.numel() :].view_as(horizontal[0, 0]),
            GREY_PULL,
        )

    def gradient(self, images: Field) -> Field:
        """Return half the gradient of the prior's energy: a linear map of `images`."""
        vertical, horizontal = _differences(images)
        vertical = torch.einsum("cd,bdhw->bchw", self.precision, vertical) * self.vertical
        horizontal = torch.einsum("cd,bdhw->bchw", self.precision, horizontal) * self.horizontal
        result = self.pull * images
        result[..., 1:, :] += vertical
        result[..., :-1, :] -= vertical
        result[..., 1:] += horizontal
        result[..., :-1] -= horizontal
        return result


def _differences(images: Field) -> tuple[Tensor, Tensor]:
    return images[..., 1:, :] - images[..., :-1, :], images[..., 1:] - images[..., :-1]
