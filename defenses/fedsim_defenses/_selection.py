"""Which entries of a tensor are sent: an exact number of the largest."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def largest(values: Float[Tensor, " entry"], count: int) -> Bool[Tensor, " entry"]:
    """Return a mask of so many entries of largest value; of equal ones the first.

    Args:
        values: any.
        count: from 0 to their number.
    """
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = values.kthvalue(len(values) - count + 1).values
    chosen = values > limit
    chosen[(values == limit).nonzero()[: count - int(chosen.sum()), 0]] = True
    return chosen
