"""Labels, hard or soft: as distributions over classes, smoothed, and without the order of their batch."""

from __future__ import annotations

import torch
from torch import nn

from fedsim.exchange import Labels, SoftLabels


def distributions(labels: Labels, num_classes: int) -> SoftLabels:
    """Return a distribution over classes for each label: soft labels as they are, hard ones as one-hot rows."""
    return labels if labels.ndim == 2 else nn.functional.one_hot(labels.long(), num_classes).float()


def classes(labels: Labels) -> list[int]:
    """Return one class per label; a soft label counts as its most probable class, the first of several equal ones."""
    hard = labels.argmax(dim=1) if labels.ndim == 2 else labels
    return [int(c) for c in hard]


def smooth(labels: SoftLabels, amount: float) -> SoftLabels:
    """Return (1 - amount) y + amount / C for distributions y over C classes.

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision",
    CVPR 2016, section 7.
    """
    return (1 - amount) * labels + amount / labels.shape[1]


def without_order(labels: Labels) -> Labels:
    """Return the labels in an order that depends on nothing but themselves: hard ones ascending, soft ones row by row."""
    if labels.ndim == 1:
        return torch.sort(labels).values
    return torch.tensor(sorted(labels.tolist(), reverse=True), dtype=labels.dtype).reshape(labels.shape)
