"""Images as files: strips and trajectories of tensors as PNG."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedsim.exchange import Images
from fedsim.metrics.trajectory import Frames

SHOWN = 8  # images of one update that the report shows, and frames of a trajectory; the findings hold all

GAP = 1 / 8  # of an image's width, before the originals of a trajectory


def spread(count: int, most: int) -> list[int]:
    """Return at most so many of the positions 0 to `count` - 1, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(position * (count - 1) / (most - 1)) for position in range(most)]


def png_strip(images: Images) -> bytes:
    """Return the first images side by side as a PNG, native size, pixels in [0, 1] clamped."""
    return _png(torch.cat(list(images[:SHOWN]), dim=-1))


def png_trajectory(frames: Frames, originals: Images) -> bytes:
    """Return frames as the columns of a PNG, the first images of the batch as its rows, and the originals set apart.

    Args:
        frames: of the originals, in their order.
        originals: one column at the right, a narrow white one before it.
    """
    channels, height, width = originals.shape[1:]
    gap = torch.ones(channels, height, max(1, round(width * GAP)))
    rows = [
        torch.cat([*frames[:, picture], gap, original], dim=-1) for picture, original in enumerate(originals[:SHOWN])
    ]
    return _png(torch.cat(rows, dim=-2))


def _png(image: Tensor) -> bytes:
    values = (image.clamp(0, 1) * 255).round().byte()
    buffer = io.BytesIO()
    picture: np.ndarray = values.movedim(0, -1).numpy()
    Image.fromarray(picture.squeeze()).save(buffer, format="PNG")
    return buffer.getvalue()
