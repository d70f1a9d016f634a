"""Whether images show the same: what an attack finds in an update of such images is no control of another one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.exchange import Images

Thumbnails = Float[Tensor, "image pixel"]
Others = Float[Tensor, "other pixel"]

_SIDE = 16
# Decibels between thumbnails; the same image, stored again or slightly cropped, is above.
_NEAR = 25.0


def thumbnails(images: Images) -> Thumbnails:
    """Return small versions of images, of at most 16 pixels a side, to compare them by."""
    side = min(_SIDE, images.shape[-1])
    return nn.functional.adaptive_avg_pool2d(images.detach().float(), side).flatten(1)


def alike(first: Thumbnails, second: Others) -> int:
    """Return how many of the first images have one among the second that shows the same."""
    if not len(first) or not len(second):
        return 0
    squared = torch.cdist(first, second).square() / first.shape[1]
    return int((squared.min(dim=1).values <= 10 ** (-_NEAR / 10)).sum())
