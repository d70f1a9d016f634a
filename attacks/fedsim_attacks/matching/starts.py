"""The variables of a descent: images, perhaps of a smaller side, and the range in which their pixels lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.exchange import Images, Normalization
from fedsim_attacks.update import LABELS

IMAGES = "images"  # the variable

Latents = Float[Tensor, "batch channel _ _"]


class Box(NamedTuple):
    """The range of pixels, in normalized units, one number a channel."""

    low: Tensor
    high: Tensor

    @staticmethod
    def of(channels: int, normalization: Normalization, device: torch.device) -> Box:
        """Return the range that pixels from 0 to 1 have."""
        low, high = (normalization.normalize(torch.full((1, channels, 1, 1), value)) for value in (0.0, 1.0))
        return Box(low.to(device), high.to(device))

    def confine(
        self, images: Float[Tensor, "*batch channel height width"]
    ) -> Float[Tensor, "*batch channel height width"]:
        """Return images brought back into the range."""
        return images.clamp(self.low, self.high)


def enlarged(latents: Latents, factor: int) -> Images:
    """Return images from images of a smaller side."""
    if factor == 1:
        return latents
    return nn.functional.interpolate(latents, scale_factor=factor, mode="bicubic", align_corners=False)


def with_image(starts: Mapping[str, Tensor], drawn: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
    """Return starts with one image, and its label where that is a variable, of others."""
    found = {name: tensor.clone() for name, tensor in starts.items()}
    for name in (IMAGES, LABELS):
        if name in found:
            found[name][:, place] = drawn[name][:, place]
    return found
