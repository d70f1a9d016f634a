"""Which found picture belongs to which original: one optimal assignment per batch, used by all image metrics."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Found = Float[Tensor, "found channel height width"]
Originals = Float[Tensor, "batch channel height width"]


def match(found: Found, true: Originals) -> tuple[int | None, ...]:
    """Return, for each true picture, the index of the found one that is assigned to it.

    The order of a batch leaves no trace in an update, so a finding is a set. The assignment minimizes the summed mean
    squared error (Hungarian method); no found picture is used twice. With fewer found than true pictures, the originals
    that are left over get None.
    """
    assigned: list[int | None] = [None] * len(true)
    if len(found) == 0:
        return tuple(assigned)
    originals = true.detach().cpu().numpy().astype(np.float64)
    cost = np.stack(
        [
            np.square(originals - candidate.astype(np.float64)).mean(axis=(1, 2, 3))
            for candidate in found.detach().cpu().numpy()
        ]
    )
    for candidate, original in zip(*linear_sum_assignment(cost), strict=True):
        assigned[int(original)] = int(candidate)
    return tuple(assigned)
