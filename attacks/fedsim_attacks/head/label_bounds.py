"""What the gradient at a classifier says for certain about its batch's class counts.

Probabilities are not negative, so the residual p - n / B leaves at least n_c >= -B residual_c. And the columns of the weight
gradient span the vectors p_k - y_k, each negative at its own class alone: of few images, these tell which classes are present
(`separable`).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsim_attacks.head.classifier import ClassVector, HeadGradient
from fedsim_attacks.solvers import Bounds

ClassRows = Float[Tensor, "class embed"]

_SLACK, _DEVIATIONS = 1e-3, 4  # counts, and standard deviations of noise, by which a count may miss its least
FEW = 2 / 3  # of C - 1 images; with more, the column space holds vectors of classes without an image

SEPARABLE = 0.1  # distance from which on a class counts as present; absent ones leave 1e-6, present ones mostly 1
_RANK_TOLERANCE = 1e-6  # of singular values, beside the largest; float32 gradients leave 3e-8


def side_by_side(head: HeadGradient) -> ClassRows | None:
    """Return the weight gradients of all linear classifiers as that of one; None where one was not shared."""
    gradients = [linear.weight_gradient for linear in head.heads if linear.weight_gradient is not None]
    return len(head.heads) * torch.cat(gradients, 1) if len(gradients) == len(head.heads) else None


def separable(rows: ClassRows, count: int, classes: list[int]) -> ClassVector:
    """Return, for each of some classes, how far it is from being absent: 0 where it is, up to 1; -1 for the others.

    G = D^T H / B has the column space of D, whose rows p_k - y_k are negative at their own class alone. With q_j the rows of an
    orthonormal basis, no vector r has <r, q_c> < 0 and <r, q_j> >= 0 for all others just if q_c is a sum of non-negative
    multiples of the others. What non-negative least squares leaves of q_c, beside q_c, is returned.

    Args:
        rows: the weight gradient.
        count: images; bounds the rank.
        classes: the ones to ask about.
    """
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    rank = min(int((values > _RANK_TOLERANCE * values[0]).sum()), count)
    basis, distances = left[:, :rank].numpy(), -torch.ones_like(rows[:, 0])
    for c in classes:
        length = float(np.linalg.norm(basis[c]))
        distances[c] = _distance(np.delete(basis, c, 0), basis[c]) / length if length else 0.0
    return distances


def _distance(generators: np.ndarray, point: np.ndarray) -> float:
    """Return the distance of a point from the cone of the generators' rows; its own length where that is not found."""
    from scipy.optimize import nnls  # half a second to import, which few attacks need

    try:
        return float(nnls(generators.T, point)[1])
    except RuntimeError:  # scipy's, after three iterations a row
        return float(np.linalg.norm(point))


def least_counts(head: HeadGradient, count: int, exact: bool) -> ClassVector:
    """Return how many images each class has at least, by the sign and size of its residual.

    Args:
        head: the gradient.
        count: images.
        exact: whether all images weigh one; otherwise a negative residual is one image.
    """
    if head.is_derived:
        return torch.zeros_like(head.residual)
    slack = max(_SLACK, _DEVIATIONS * count * head.noise)
    least = (-count * head.residual - slack).ceil().clamp_min(0)
    return least if exact else least.clamp_max(1)


def count_bounds(head: HeadGradient, active: Int[Tensor, " active"], count: int, exact: bool) -> Bounds:
    """Return the bounds of the counts of some classes.

    Bounds that contradict the number of images are dropped, those of the column space first.

    Args:
        head: the gradient.
        active: the classes.
        count: images.
        exact: as for `least_counts`.
    """
    least = least_counts(head, count, exact)
    free = torch.full_like(least, count)
    choices = [Bounds(least, free), Bounds(torch.zeros_like(least), free)]
    rows = side_by_side(head)
    if rows is not None and count <= FEW * (len(least) - 1) and _has_rank(rows, count):
        present = (separable(rows, count, active.tolist()) > SEPARABLE).double()
        choices.insert(0, Bounds(torch.maximum(least, present), free * torch.maximum(least.sign(), present)))
    narrowed = [Bounds(choice.least[active], choice.most[active]) for choice in choices]
    return next(bounds for bounds in narrowed if bounds.allow(count))


def _has_rank(rows: ClassRows, count: int) -> bool:
    """Return whether the gradient is one of at most `count` head inputs, up to rounding."""
    values = torch.linalg.svdvals(rows)
    return len(values) <= count or float(values[count]) <= _RANK_TOLERANCE * float(values[0])
