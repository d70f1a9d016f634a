"""Which patches a masked jigsaw puzzle takes, and their shuffle."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fedsim.exchange import Images
from fedsim.models import PatchGrid

MaskKind = Literal["block", "random"]

_TRIES = 10  # for one block, as in BEiT's code
_ASPECT = 0.3  # narrowest block, BEiT algorithm 1: height over width between this and its inverse


def draw_mask(
    kind: MaskKind,
    grid: PatchGrid,
    target: int,
    generator: torch.Generator,
    smallest: int | None = None,
    largest: int | None = None,
) -> Bool[Tensor, " patch"]:
    """Draw which patches a puzzle takes.

    Args:
        kind: `block`, rectangles as in the paper, which may fall short of the target; `random`, single patches.
        grid: of the model.
        target: patches to mask.
        generator: of every draw.
        smallest: see `block_mask`; None scales the paper's 8 of 196 to the grid.
        largest: see `block_mask`; None scales the paper's 75 of 196 to the grid.
    """
    if kind == "random":
        return random_mask(grid.count, target, generator)
    least = smallest or max(1, round(8 * grid.count / 196))
    most = largest or max(least, round(75 * grid.count / 196))
    return block_mask(grid.rows, grid.columns, target, min(least, most), most, generator).flatten()


def block_mask(
    rows: int, columns: int, target: int, smallest: int, largest: int, generator: torch.Generator
) -> Bool[Tensor, "row column"]:
    """Draw rectangles until `target` patches are covered or no further one fits, so the mask may fall short.

    Args:
        rows: patches from top to bottom.
        columns: patches from left to right.
        target: patches to mask.
        smallest: least area of a rectangle in patches, while that many are left to mask.
        largest: most patches that one rectangle may add.
        generator: of every draw.

    Source: Bao et al., "BEiT: BERT Pre-Training of Image Transformers", algorithm 1. 2021.
        https://arxiv.org/abs/2106.08254
    """
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    masked = 0
    while masked < target:
        added = _add_block(mask, smallest, min(target - masked, largest), generator)
        if not added:
            break
        masked += added
    return mask


def _add_block(mask: Bool[Tensor, "row column"], smallest: int, budget: int, generator: torch.Generator) -> int:
    """Mask one rectangle in place; returns how many patches it added, 0 when no try fits."""
    rows, columns = mask.shape
    for _ in range(_TRIES):
        u_area, u_aspect, u_top, u_left = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = smallest + (budget - smallest) * u_area
        aspect = math.exp((1 - 2 * u_aspect) * math.log(_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top, left = int(u_top * (rows - height + 1)), int(u_left * (columns - width + 1))
        block = mask[top : top + height, left : left + width]
        added = int((~block).sum())
        if 0 < added <= budget:
            block[:] = True
            return added
    return 0


def random_mask(count: int, target: int, generator: torch.Generator) -> Bool[Tensor, " patch"]:
    """Draw `target` of `count` patches, each as likely as any other."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=generator)[:target]] = True
    return mask


def shuffle_patches(
    images: Images, grid: PatchGrid, positions: Int[Tensor, " masked"], generator: torch.Generator
) -> Images:
    """Return the images with the contents of these patches permuted, alike in every image of the batch."""
    order = torch.randperm(len(positions), generator=generator).to(positions.device)
    patches = grid.cut(images)
    shuffled = patches.clone()
    shuffled[:, positions] = patches[:, positions[order]]
    return grid.join(shuffled)
