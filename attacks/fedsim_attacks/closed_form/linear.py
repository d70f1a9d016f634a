"""Closed-form linear algebra of the patch embedding: noise read off identities, and regularized inversion.

With A (token embed) the gradient at the tokens and X (token value) the patches, the projection's gradient is A^T X.
Whatever the image, three combinations vanish: the sum of A over tokens minus the gradient of the projection's bias, and
the sums of A and of A^T X over the embedding, because every path leaves a token through a layer norm. What they are instead
of zero is noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim_attacks.solvers import conjugate_gradients
from fedsim_attacks.update import TokenGradient

ProjectionGradient = Float[Tensor, "embed value"]
BiasGradient = Float[Tensor, " embed"]
Patches = Float[Tensor, "token value"]
Weights = Float[Tensor, " value"]

_EXACT = 1e6  # squared singular values this far above the prior's weight are inverted exactly
_SETTLED = 1e-4  # pixels; conjugate gradients stop after three steps below it
_MOST_STEPS = 300


class Noise(NamedTuple):
    """Standard deviation of the noise in one entry, each from its own identity; `bias` is None without a bias gradient."""

    tokens: float
    projection: float
    bias: float | None


def noise_levels(tokens: TokenGradient, projection: ProjectionGradient, bias: BiasGradient | None) -> Noise:
    """Estimate the noise in each tensor from the identities that hold for every image.

    A model without layer norms keeps the bias identity alone; then its level stands for all.
    """
    count, width = tokens.shape
    rows = _root_mean_square(tokens.sum(1)) / width**0.5
    columns = _root_mean_square(projection.sum(0)) / width**0.5
    if bias is None:
        return Noise(rows, columns, None)
    sums = _root_mean_square(tokens.sum(0) - bias) / (count + 1) ** 0.5
    return Noise(sums, sums, sums) if sums < rows / 10 else Noise(rows, columns, sums)


def decay_share(update: Float[Tensor, "*axes"], start: Float[Tensor, "*axes"], axis: int) -> float:
    """Return which multiple of the weights `start` an update contains beside gradients that sum to zero over `axis`.

    That is what unknown weight decay adds; 0 where it explains less than half of what the sums are instead of zero.
    """
    sums, reference = update.sum(axis), start.sum(axis)
    energy = float(reference.square().sum())
    share = float((sums * reference).sum()) / energy if energy else 0.0
    left = float((sums - share * reference).square().sum())
    return share if left < 0.5 * float(sums.square().sum()) else 0.0


def merge_bias(
    tokens: TokenGradient,
    bias: BiasGradient,
    token_variance: TokenGradient | None = None,
    bias_variance: BiasGradient | None = None,
) -> TokenGradient:
    """Return the least-squares estimate of the token gradients, given that they sum to `bias` up to noise.

    It takes the noise out of the one direction that carries the image's mean color.

    Args:
        tokens: as observed.
        bias: as observed.
        token_variance: of each entry; equal everywhere unless given.
        bias_variance: the same.
    """
    own = torch.ones_like(tokens) if token_variance is None else token_variance
    other = torch.ones_like(bias) if bias_variance is None else bias_variance
    total = (own.sum(0) + other).clamp_min(torch.finfo(tokens.dtype).tiny)
    return tokens + own * ((bias - tokens.sum(0)) / total)


class Decomposition(NamedTuple):
    """A^T X = G in singular coordinates, padded with zeros to one row a token.

    Args:
        directions: left singular vectors of A, one a column, a full basis.
        values: singular values, descending.
        data: G in the right singular vectors.
        residual: the part of G outside A's row space.
    """

    directions: Float[Tensor, "token token"]
    values: Float[Tensor, " token"]
    data: Patches
    residual: ProjectionGradient

    @property
    def rank(self) -> int:
        """Directions above rounding."""
        return int((self.values > self.values[0] * 1e-12).sum())


def decompose(tokens: TokenGradient, projection: ProjectionGradient) -> Decomposition:
    """Return the singular value decomposition of the system A^T X = G."""
    count, width = tokens.shape
    directions, found, right = torch.linalg.svd(tokens, full_matrices=count > width)
    values, data = tokens.new_zeros(count), projection.new_zeros(count, projection.shape[1])
    values[: len(found)] = found
    data[: len(found)] = right[: len(found)] @ projection
    rank = int((values > values[0] * 1e-12).sum())
    return Decomposition(directions, values, data, projection - right[:rank].T @ data[:rank])


class Completion(NamedTuple):
    """Patches that fit the data where it speaks and the prior where it does not.

    Args:
        patches: the minimum.
        filled: how many directions conjugate gradients filled.
        steps: how many steps they took.
    """

    patches: Patches
    filled: int
    steps: int


def complete(
    system: Decomposition, weights: Weights | Patches, prior: Callable[[Patches], Patches], start: Patches | None = None
) -> Completion:
    """Minimize ||G - A^T X||^2 + sum over columns of weight * energy of the prior.

    Directions that dwarf the prior are inverted exactly; conjugate gradients fill the others, the null space among them.

    Args:
        system: from `decompose`.
        weights: of the prior, per column, or per singular value and column; positive.
        prior: half the gradient of a convex quadratic energy.
        start: patches to start from.
    """
    exact = int((system.values.square() > _EXACT * weights.max()).sum())
    kept, filled = system.directions[:, :exact], system.directions[:, exact:]
    fixed = kept @ (system.data[:exact] / system.values[:exact, None])
    if not filled.shape[1]:
        return Completion(fixed, 0, 0)
    values = system.values[exact:, None]
    weights = weights.expand_as(system.data)[exact:]
    stiffness = values.square() / weights
    target = values * system.data[exact:] / weights - filled.T @ prior(fixed)
    guess = torch.zeros_like(target) if start is None else filled.T @ start
    unknown, steps = settle(lambda y: stiffness * y + filled.T @ prior(filled @ y), target, stiffness, guess)
    return Completion(fixed + filled @ unknown, filled.shape[1], steps)


def settle(
    operator: Callable[[Patches], Patches], target: Patches, stiffness: Patches, start: Patches
) -> tuple[Patches, int]:
    """Return the solution of a system of patches, to a fraction of a pixel, and the steps it took.

    Args:
        operator: the linear map.
        target: its value at the solution.
        stiffness: what the data adds to the map's diagonal, beside about one of the prior.
        start: first guess.
    """
    inverse = 1 / (stiffness + 1)
    found = conjugate_gradients(operator, target, lambda left: inverse * left, _MOST_STEPS, 0.0, _SETTLED, start)
    return found.value, found.steps


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
