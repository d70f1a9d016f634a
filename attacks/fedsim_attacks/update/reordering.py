"""Patches that were shuffled among known places, brought to the order in which they fit together."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedsim.exchange import Finding, Images
from fedsim.models import PatchGrid

Order = Int[Tensor, " patch"]
Misfit = Float[Tensor, "patch patch"]

_STARTS = 8


def rearranged(finding: Finding, loose: Bool[Tensor, " patch"], grid: PatchGrid, generator: torch.Generator) -> Finding:
    """Return a finding with the loose patches of each image in the order that fits, and its trajectory with them.

    Args:
        finding: with images.
        loose: which patches may be elsewhere.
        grid: how they lie.
        generator: draws orders to begin with.
    """
    assert finding.images is not None
    orders = torch.stack([fitting_order(patches, loose, grid, generator) for patches in grid.cut(finding.images)])

    def arranged(images: Images) -> Images:
        return grid.join(grid.cut(images).gather(1, orders[..., None].expand(-1, -1, grid.values)))

    trajectory = finding.trajectory
    if trajectory is not None:
        trajectory = replace(trajectory, images=torch.stack([arranged(images) for images in trajectory.images]))
    return replace(finding, images=arranged(finding.images), trajectory=trajectory)


def fitting_order(
    patches: Float[Tensor, "patch value"], loose: Bool[Tensor, " patch"], grid: PatchGrid, generator: torch.Generator
) -> Order:
    """Return which patch belongs at each place: of all swaps of loose ones, those that leave the least difference at borders.

    Swaps are made while one helps, from the order as it is and from seven others; another one is taken where it is better.

    Args:
        patches: of one image.
        loose: which of them may be elsewhere.
        grid: how they lie.
        generator: draws the other orders.
    """
    beside, below = _misfits(patches, grid)
    places = loose.nonzero().flatten()
    best = torch.arange(grid.count)
    least = torch.inf
    for start in range(_STARTS):
        order = torch.arange(grid.count)
        if start:
            order[places] = places[torch.randperm(len(places), generator=generator)]
        order, cost = _settled(order, places, beside, below, grid)
        if cost < least:
            best, least = order, cost
    return best


def _misfits(patches: Float[Tensor, "patch value"], grid: PatchGrid) -> tuple[Misfit, Misfit]:
    """Return the mean absolute difference at the border if a patch (row) had another (column) to its right; and below."""
    cells = patches.reshape(grid.count, grid.channels, grid.patch, grid.patch)

    def between(first: Tensor, second: Tensor) -> Misfit:
        return torch.cdist(first.flatten(1), second.flatten(1), p=1) / first[0].numel()

    return between(cells[..., -1], cells[..., 0]), between(cells[..., -1, :], cells[..., 0, :])


def _settled(
    order: Order, places: Int[Tensor, " place"], beside: Misfit, below: Misfit, grid: PatchGrid
) -> tuple[Order, float]:
    """Return the order after the best swap of two places, again and again while one helps, and its cost."""
    cost = float(_cost(order[None], beside, below, grid))
    pairs = places[torch.combinations(torch.arange(len(places)))]
    lines = torch.arange(len(pairs))
    while len(pairs):
        swapped = order.repeat(len(pairs), 1)
        swapped[lines, pairs[:, 0]], swapped[lines, pairs[:, 1]] = order[pairs[:, 1]], order[pairs[:, 0]]
        costs = _cost(swapped, beside, below, grid)
        best = int(costs.argmin())
        # Rounding must not swap two equal patches for ever.
        if not costs[best] < cost - 1e-6 * abs(cost):
            break
        order, cost = swapped[best], float(costs[best])
    return order, cost


def _cost(
    orders: Int[Tensor, "order patch"], beside: Misfit, below: Misfit, grid: PatchGrid
) -> Float[Tensor, " order"]:
    cells = orders.reshape(-1, grid.rows, grid.columns)
    across = beside[cells[..., :-1], cells[..., 1:]].sum((1, 2))
    return across + below[cells[:, :-1], cells[:, 1:]].sum((1, 2))
