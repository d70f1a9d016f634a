"""A distance of gradients: the sum of absolute differences, in units of the observed sum."""

from __future__ import annotations

import torch
from fedsim_attacks.matching import Distance
from fedsim_attacks.update import Gradients


def relative_l1(found: Gradients, observed: Gradients) -> torch.Tensor:
    """Return the l1 distance over all entries, beside the observed l1 norm."""
    apart = torch.stack([(f - o).abs().sum() for f, o in zip(found, observed, strict=True)])
    return apart.sum() / torch.stack([o.abs().sum() for o in observed]).sum()


l1 = Distance(relative_l1, is_scaled=True)
