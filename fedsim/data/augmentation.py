"""Augmentation: training inputs that are mirrored and shifted versions of a client's images.

The usual recipe for CIFAR: a crop of the image's size out of the image with a black border of 4 pixels (of 32; an eighth of
any side), and a mirror image in half of the cases. Pixels are in [0, 1]; normalization comes after.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from fedsim.exchange import Images

Augmentation = Literal["flip", "crop"]

_BORDER = 4 / 32  # of a side; He et al., section 4.2


class Placement(NamedTuple):
    """What becomes of one image.

    Args:
        down: rows by which the crop lies below the image; negative above it.
        right: columns by which it lies to the right; negative to the left.
        is_flipped: whether the crop is mirrored, left for right.
    """

    down: int = 0
    right: int = 0
    is_flipped: bool = False


UNCHANGED = Placement()


def border(side: int) -> int:
    """Return the width of the border, in pixels, at both ends of a side; at least one."""
    return max(1, round(_BORDER * side))


def draw(kinds: Sequence[Augmentation], height: int, width: int, seed: int) -> Placement:
    """Return what becomes of one use of an image.

    Args:
        kinds: what is drawn; the order has no say.
        height: of the image, in pixels.
        width: of the image, in pixels.
        seed: of `fedsim.seeds.derive`, 63 random bits and the only source of randomness.
    """
    rows, columns = border(height), border(width)
    rest, down = divmod(seed // 2, 2 * rows + 1)
    crop = (down - rows, rest % (2 * columns + 1) - columns) if "crop" in kinds else (0, 0)
    return Placement(*crop, seed % 2 == 1 and "flip" in kinds)


def augmented(images: Images, placements: Sequence[Placement]) -> Images:
    """Return each image cropped and mirrored as placed, black where the crop lies outside of it."""
    if all(placement == UNCHANGED for placement in placements):
        return images
    height, width = images.shape[-2:]
    rows, columns = border(height), border(width)
    found = images.clone()
    for place, (image, placement) in enumerate(zip(images, placements, strict=True)):
        top, left = rows + placement.down, columns + placement.right
        padded = nn.functional.pad(image, (columns, columns, rows, rows))
        crop = padded[:, top : top + height, left : left + width]
        found[place] = torch.flip(crop, (-1,)) if placement.is_flipped else crop
    return found
