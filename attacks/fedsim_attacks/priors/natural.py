"""What natural images look like before anything is known about them: smoothness, and noise with their spectrum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.exchange import Images

Field = Float[Tensor, "batch channel height width"]

GREY = 0.5
GREY_PULL = 0.03  # weight of squared distance to grey beside squared neighbor differences; fitted to photographs
_EDGE_FLOOR = 0.02  # pixel difference below which a neighbor pair counts as smooth


def total_variation(images: Images) -> Float[Tensor, ""]:
    """Return the mean absolute difference of vertical neighbors plus that of horizontal neighbors."""
    vertical = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    horizontal = (images[..., 1:] - images[..., :-1]).abs().mean()
    return vertical + horizontal


def patch_differences(images: Images, patch: int) -> Float[Tensor, ""]:
    """Return the root mean square difference of pixels on either side of a border of patches: mean over borders and images.

    Source: Hatamizadeh et al., "GradViT", CVPR 2022, R_patch, which sums the norms.

    Args:
        images: those of one patch a side have no border inside, and give 0.
        patch: side of a patch in pixels.
    """
    across = images[..., patch::patch, :] - images[..., patch - 1 : -1 : patch, :]
    along = images[..., patch::patch] - images[..., patch - 1 : -1 : patch]
    both = [part.square().mean(axes) for part, axes in ((across, (1, 3)), (along, (1, 2))) if part.numel()]
    if not both:
        return 0 * images.sum()
    # sqrt has no finite derivative at zero, where two flat patches meet.
    return torch.cat(both, 1).clamp_min(torch.finfo(images.dtype).tiny).sqrt().mean()


def length(images: Images) -> Float[Tensor, ""]:
    """Return the root mean square of each image, mean over images."""
    square = images.square().mean((1, 2, 3))
    return square.clamp_min(torch.finfo(images.dtype).tiny).sqrt().mean()


class Roughness(NamedTuple):
    """Weighted squared differences of neighboring pixels, plus a weak pull to zero: a quadratic image prior.

    Args:
        vertical: weight of each vertical pair.
        horizontal: weight of each horizontal pair.
    """

    vertical: Tensor
    horizontal: Tensor

    @staticmethod
    def uniform(like: Field) -> Roughness:
        """Return the prior that treats all neighbors alike."""
        return Roughness(torch.ones_like(like[..., 1:, :]), torch.ones_like(like[..., 1:]))

    @staticmethod
    def around_edges(images: Field, scale: float) -> Roughness:
        """Return the prior whose minimum approaches that of total variation when it is taken anew a few times.

        Args:
            images: current estimate.
            scale: neighbor difference at which a weight is about one.
        """
        vertical = images[..., 1:, :] - images[..., :-1, :]
        horizontal = images[..., 1:] - images[..., :-1]
        half = scale / 2**0.5
        return Roughness(
            half / (vertical.square() + _EDGE_FLOOR**2).sqrt(), half / (horizontal.square() + _EDGE_FLOOR**2).sqrt()
        )

    def gradient(self, images: Field) -> Field:
        """Return half the gradient of the prior's energy: a linear map of `images`."""
        vertical = (images[..., 1:, :] - images[..., :-1, :]) * self.vertical
        horizontal = (images[..., 1:] - images[..., :-1]) * self.horizontal
        result = GREY_PULL * images
        result[..., 1:, :] += vertical
        result[..., :-1, :] -= vertical
        result[..., 1:] += horizontal
        result[..., :-1] -= horizontal
        return result


def natural_noise(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Images:
    """Return random images in [0, 1] with the 1/f amplitude spectrum of photographs, and random color and contrast.

    Source: Field, "Relations between the statistics of natural images and the response properties of cortical cells",
    JOSA A 1987, for the spectrum.
    """
    channels, height, width = shape
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    frequency = (rows[:, None].square() + columns[None].square()).sqrt()
    frequency[0, 0] = 1 / max(height, width)
    white = torch.randn(count, channels, height, width, generator=generator)
    texture = torch.fft.ifft2(torch.fft.fft2(white) / frequency).real
    texture = texture / texture.std(dim=(1, 2, 3), keepdim=True)
    contrast = 0.05 + 0.25 * torch.rand(count, 1, 1, 1, generator=generator)
    brightness = 0.2 * torch.randn(count, 1, 1, 1, generator=generator)
    color = 0.075 * torch.randn(count, channels, 1, 1, generator=generator)
    images: Tensor = GREY + brightness + color + contrast * texture
    return images.clamp(0, 1)
