"""Inversion of A^T X Q^T = R: patches X seen through token gradients A on one side and the patch projection Q on the other.

In the singular vectors of A and Q the system is diagonal: s_i q_j Y_ij = R_ij. Entries that noise hides, or of which no
equation speaks, are filled by a prior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim_attacks.closed_form.linear import Completion, Patches, settle
from fedsim_attacks.update import TokenGradient

Projection = Float[Tensor, "embed value"]
Products = Float[Tensor, "embed embed"]

_EXACT = 1e6  # squared gains this far above the prior's weight are inverted exactly
_RANK = 1e-12


class Bilinear(NamedTuple):
    """A^T X Q^T = R in singular coordinates, padded with zeros to the shape of X.

    Args:
        directions: left singular vectors of A, one a column, a full basis.
        patterns: right singular vectors of Q, one a row, a full basis.
        values: singular values of A, descending.
        gains: products of a singular value of A and one of Q; 0 in directions of A that are noise.
        data: R in these coordinates.
        residual: variance of an entry of R that A cannot explain, per pattern; 0 without spare equations.
        unexplained: norm of what no patches explain of R.
    """

    directions: Float[Tensor, "token token"]
    patterns: Float[Tensor, "value value"]
    values: Float[Tensor, " token"]
    gains: Patches
    data: Patches
    residual: Float[Tensor, " value"]
    unexplained: float


def decompose_bilinear(
    tokens: TokenGradient, projection: Projection, products: Products, noise_edge: float
) -> Bilinear:
    """Return the system A^T X Q^T = R in singular coordinates.

    Args:
        tokens: A.
        projection: Q.
        products: R.
        noise_edge: singular values of A up to this one are noise.
    """
    (count, width), patch = tokens.shape, projection.shape[1]
    directions, values, rows = torch.linalg.svd(tokens, full_matrices=count > width)
    columns, scales, patterns = torch.linalg.svd(projection, full_matrices=patch > width)
    rank = int((values > max(noise_edge, float(values[0]) * _RANK)).sum())
    order = int((scales > scales[0] * _RANK).sum())
    rows, columns = rows[:rank], columns[:, :order]
    gains, data = products.new_zeros(count, patch), products.new_zeros(count, patch)
    gains[:rank, :order] = values[:rank, None] * scales[:order]
    data[:rank, :order] = rows @ products @ columns
    outside, residual = products - rows.T @ (rows @ products), products.new_zeros(patch)
    if width > rank:
        residual[:order] = (outside @ columns).square().sum(0) / (width - rank)
    unexplained = (products - rows.T @ data[:rank, :order] @ columns.T).norm()
    padded = torch.cat([values, values.new_zeros(count - len(values))])
    return Bilinear(directions, patterns, padded, gains, data, residual, float(unexplained))


def complete_bilinear(
    system: Bilinear,
    weights: Float[Tensor, " value"],
    prior: Callable[[Patches], Patches],
    start: Patches | None = None,
) -> Completion:
    """Minimize ||R - A^T X Q^T||^2, each pattern divided by its weight, plus the energy of the prior.

    Args:
        system: from `decompose_bilinear`.
        weights: of the prior, per pattern; positive.
        prior: half the gradient of a convex quadratic energy.
        start: patches to start from.
    """
    left, right = system.directions, system.patterns
    is_exact = system.gains.square() > _EXACT * weights
    fixed = torch.where(is_exact, system.data / torch.where(is_exact, system.gains, 1), 0)
    if bool(is_exact.all()):
        return Completion(left @ fixed @ right, 0, 0)

    def pull(coordinates: Patches) -> Patches:
        return torch.where(is_exact, 0, left.T @ prior(left @ coordinates @ right) @ right.T)

    stiffness = torch.where(is_exact, 0, system.gains.square() / weights)
    target = torch.where(is_exact, 0, system.gains * system.data / weights) - pull(fixed)
    guess = torch.zeros_like(target) if start is None else torch.where(is_exact, 0, left.T @ start @ right.T)
    unknown, steps = settle(lambda y: stiffness * y + pull(y), target, stiffness, guess)
    return Completion(left @ (fixed + unknown) @ right, int((~is_exact).sum()), steps)
