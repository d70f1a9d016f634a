"""What several restarts agree on: the mean of their images, as they are or shifted onto it.

Source: Yin et al., "See through Gradients: Image Batch Recovery via GradInversion", CVPR 2021, R_group: the distance of every
seed's images from a consensus, the pixelwise mean of all seeds (lazy) or of all seeds registered to that mean. There the
registration is RANSAC-flow, a learned dense flow; here it is the shift of whole pixels that correlates best, which needs no
weights of another network and undoes translations alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Seeds = Float[Tensor, "restart batch channel height width"]
Consensus = Float[Tensor, "batch channel height width"]


def lazy(seeds: Seeds) -> Consensus:
    """Return the mean of all seeds."""
    return seeds.mean(0)


def registered(seeds: Seeds, reach: float = 0.25) -> Consensus:
    """Return the mean of all seeds, each image shifted to where it fits their lazy mean best.

    Args:
        seeds: images of every restart.
        reach: longest shift, as a share of the image's side; a shift moves the border's pixels around.
    """
    count, batch, _, height, width = seeds.shape
    mean = lazy(seeds)
    centered = seeds - seeds.mean((-2, -1), keepdim=True)
    spectrum = torch.fft.rfft2(mean - mean.mean((-2, -1), keepdim=True)) * torch.fft.rfft2(centered).conj()
    correlation = torch.fft.irfft2(spectrum, s=(height, width)).sum(2)
    rows, columns = (_signed(size).to(seeds.device) for size in (height, width))
    near = (rows.abs()[:, None] <= reach * height) & (columns.abs()[None] <= reach * width)
    best = correlation.masked_fill(~near, -torch.inf).flatten(-2).argmax(-1)
    moved = torch.empty_like(seeds)
    for seed in range(count):
        for picture in range(batch):
            place = int(best[seed, picture])
            shift = int(rows[place // width]), int(columns[place % width])
            moved[seed, picture] = seeds[seed, picture].roll(shift, (-2, -1))
    return moved.mean(0)


def _signed(size: int) -> Tensor:
    """Return the shift that each place of a circular correlation stands for."""
    shifts = torch.arange(size)
    return torch.where(shifts > size // 2, shifts - size, shifts)
