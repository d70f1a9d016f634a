"""Which of the found belongs to which original: one optimal assignment per batch, used by all image metrics."""

from __future__ import annotations

import numpy as np
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
    """Return, for each true picture, the index of the found one that is assigned to it.

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
