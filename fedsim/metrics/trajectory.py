"""A trajectory against the originals, once the attack has ended: which image is whose, and the PSNR of every frame."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.exchange import Images, Trajectory
from fedsim.findings import blind
from fedsim.metrics.matching import match
from fedsim.metrics.table import METRICS

Frames = Float[Tensor, "frame batch channel height width"]


def arranged(trajectory: Trajectory, true: Images) -> Frames:
    """Return the image of each original in every frame, grey where there is none; pixels clamped to [0, 1].

    The last frame is matched to the originals, as a finding is, and its assignment serves all frames: one image is
    followed from its start.

    Args:
        trajectory: of any number of images.
        true: the originals.
    """
    taken = trajectory.images.clamp(0, 1)
    frames = blind.grey(true).repeat(len(taken), 1, 1, 1, 1)
    for original, index in enumerate(match(taken[-1], true)):
        if index is not None:
            frames[:, original] = taken[:, index]
    return frames


def psnr_by_frame(frames: Frames, true: Images) -> tuple[float, ...]:
    """Return the mean PSNR over the originals for each frame, scored as a finding is.

    Args:
        frames: as `arranged` returns them.
        true: the originals, in their order.
    """
    psnr = METRICS["psnr"].function
    return tuple(
        math.fsum(psnr(picture, original) for picture, original in zip(frame, true, strict=True)) / len(true)
        for frame in torch.unbind(frames)
    )
