"""Which of the found belongs to which original: one optimal assignment per batch, used by all image metrics."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Found = Float[Tensor, "found channel height width"]
Originals = Float[Tensor, "batch channel height width"]


def assign(cost: Shaped[np.ndarray, "found batch"]) -> tuple[int | None, ...]:
    """Return, for each true item, the index of the found one in the assignment of least total cost (Hungarian method).

    No found item is used twice. With fewer found than true items, those that are left over get None.
    """
    from scipy.optimize import linear_sum_assignment

    assigned: list[int | None] = [None] * cost.shape[1]
    for candidate, original in zip(*linear_sum_assignment(cost), strict=True):
        assigned[int(original)] = int(candidate)
    return tuple(assigned)


def match(found: Found, true: Originals) -> tuple[int | None, ...]:
    """Return, for each true image, the index of the found one that is assigned to it.

    The order of a batch leaves no trace in an update, so a finding is a set. The assignment minimizes the summed mean
    squared error; see `assign`.
    """
    if len(found) == 0:
        return (None,) * len(true)
    originals = true.detach().cpu().numpy().astype(np.float64)
    cost = np.stack(
        [
            np.square(originals - candidate.astype(np.float64)).mean(axis=(1, 2, 3))
            for candidate in found.detach().cpu().numpy()
        ]
    )
    return assign(cost)


_POOLED = 4096**2  # entries of the cost of one assignment; beyond it patches stay within their images


def match_patches(
    found: Float[Tensor, "found patch value"], true: Float[Tensor, "batch patch value"], matched: tuple[int | None, ...]
) -> Float[Tensor, "batch patch value"]:
    """Return the true images' patches as found ones, put where they fit best, grey where there is none.

    Of an attack that finds patches without their places, or of a client that shuffles them, a comparison in place sees nothing.
    The assignment minimizes the summed squared error, over all patches of a batch; of very large batches, within each
    image and the one that is `matched` to it. It flatters whatever it is applied to, so that a control needs the same.

    Args:
        found: patches of the found images.
        true: patches of the true ones.
        matched: for each true image, the index of the found one; see `match`.
    """
    rows = torch.full_like(true, 0.5)
    if found.shape[0] * found.shape[1] * true.shape[0] * true.shape[1] <= _POOLED:
        _put(rows.flatten(0, 1), found.flatten(0, 1), true.flatten(0, 1))
        return rows
    for row, original, index in zip(rows, true, matched, strict=True):
        if index is not None:
            _put(row, found[index], original)
    return rows


def _put(rows: Tensor, found: Tensor, true: Tensor) -> None:
    ours, theirs = found.double(), true.double()
    cost = ours.square().sum(1)[:, None] + theirs.square().sum(1)[None] - 2 * ours @ theirs.T
    for place, index in enumerate(assign(cost.numpy())):
        if index is not None:
            rows[place] = found[index]
