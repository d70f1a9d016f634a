"""The equations that a batch leaves in the gradient of a classifier, and their least-squares solution.

G = (1/B) sum_b r_b h_b^T and g = (1/B) sum_b r_b with r_b = softmax(W h_b + b) - y_b. Where the r_b are independent, the head
inputs lie in the row space of G, so that h_b = a_b V + c_b with k = rank G coordinates a_b each; c_b is zero there, and prior
knowledge where images outnumber the equations. Levenberg-Marquardt in the a_b: the normal equations have a closed form, B k
unknowns whatever the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim_attacks.head.shared_head import FeatureNorm, Features, SharedHead

Coordinates = Float[Tensor, "image rank"]
Distributions = Float[Tensor, "image class"]
Squares = Float[Tensor, "unknown unknown"]
Unknowns = Float[Tensor, " unknown"]

_DAMPING, _RAISE, _LOWER, _LEAST_DAMPING = 1e-3, 4.0, 5.0, 1e-14
_TRIES = 12  # of raising the damping before a step is given up
_STALLED = 1e-6  # relative gain of a step


class Penalty(NamedTuple):
    """What is asked of head inputs beside the gradient, as squares added to the squared residual.

    Args:
        normed: weight of the layer norm's two moments; the residual of an image that misses one by 1.
        prior: weight of the distance from `center`.
        center: coordinates that are expected.
    """

    normed: float
    prior: float
    center: Coordinates


class _State(NamedTuple):
    """A point, probabilities minus labels there, the residual, and the sum of all squares."""

    at: Coordinates
    errors: Distributions
    residual: Float[Tensor, "class column"]
    cost: float


@dataclass(frozen=True)
class HeadSystem:
    """The equations for the coordinates of a batch's head inputs.

    Args:
        labels: of each image, as distributions.
        basis: V, orthonormal rows.
        rest: c_b, the part of each head input outside the basis.
        slopes: W V^T.
        offsets: logits of the rest.
        target: G V^T, and g as a last column where it was shared.
        has_bias: whether it was.
        norm: the layer norm that produced the head inputs; None where it is unknown.
    """

    labels: Distributions
    basis: Float[Tensor, "rank embed"]
    rest: Features
    slopes: Float[Tensor, "class rank"]
    offsets: Distributions
    target: Float[Tensor, "class column"]
    has_bias: bool
    norm: FeatureNorm | None

    @classmethod
    def of(cls, head: SharedHead, labels: Distributions, basis: Tensor, rest: Features) -> HeadSystem:
        """Return the system of a classifier's gradient."""
        columns = [head.weight_gradient @ basis.T]
        if head.bias_gradient is not None:
            columns.append(head.bias_gradient[:, None])
        return cls(
            labels,
            basis,
            rest,
            head.weight @ basis.T,
            head.logits(rest),
            torch.cat(columns, 1),
            head.bias_gradient is not None,
            head.norm,
        )

    @property
    def size(self) -> float:
        """Norm of the gradient."""
        return float(self.target.norm())

    def features(self, at: Coordinates) -> Features:
        """Return the head inputs."""
        return at @ self.basis + self.rest

    def residuals(self, at: Coordinates) -> Distributions:
        """Return probabilities minus labels."""
        residuals: Distributions = (at @ self.slopes.T + self.offsets).softmax(1) - self.labels
        return residuals

    def misfit(self, at: Coordinates) -> float:
        """Return the norm of what is left of the gradient, beside the gradient's."""
        return math.sqrt(self.cost(at, _free(at))) / self.size

    def cost(self, at: Coordinates, penalty: Penalty) -> float:
        """Return the sum of squares that is minimized."""
        return self._state(at, penalty).cost

    def solve(self, start: Coordinates, penalty: Penalty, steps: int) -> Coordinates:
        """Return a minimum near a start.

        Args:
            start: coordinates.
            penalty: added to the squared residual.
            steps: at most.
        """
        state, damping = self._state(start, penalty), _DAMPING
        for _ in range(steps):
            squares, slope = self._normal(state, penalty)
            for _ in range(_TRIES):
                step = _damped_step(squares, slope, damping)
                tried = state if step is None else self._state(state.at + step.view(state.at.shape), penalty)
                if tried.cost < state.cost:
                    break
                damping *= _RAISE
            gain = 1 - tried.cost / state.cost if state.cost else 0.0
            if gain > 0:
                state, damping = tried, max(damping / _LOWER, _LEAST_DAMPING)
            if gain < _STALLED:
                break
        return state.at

    def variances(self, at: Coordinates, noise: float, prior: float) -> Float[Tensor, " image"]:
        """Return the expected squared error of each head input within the basis.

        Args:
            at: the solution.
            noise: standard deviation of an entry of the gradient.
            prior: standard deviation of a coordinate before the gradient is seen.
        """
        squares, _ = self._normal(self._state(at, _free(at)), _free(at))
        values, vectors = torch.linalg.eigh(squares)
        spread = 1 / (values.clamp_min(0) / noise**2 + 1 / prior**2)
        variances: Float[Tensor, " image"] = (vectors.square() @ spread).view(at.shape).sum(1)
        return variances

    def _state(self, at: Coordinates, penalty: Penalty) -> _State:
        errors = self.residuals(at)
        columns = [errors.T @ at / len(at)]
        if self.has_bias:
            columns.append(errors.mean(0)[:, None])
        residual = torch.cat(columns, 1) - self.target
        squares = residual.square().sum() + (penalty.prior * (at - penalty.center)).square().sum()
        if self.norm is not None and penalty.normed:
            squares += (penalty.normed * _moments(self.norm.standardize(self.features(at)))).square().sum()
        return _State(at, errors, residual, float(squares))

    def _normal(self, state: _State, penalty: Penalty) -> tuple[Squares, Unknowns]:
        """Return J^T J and J^T r of Gauss-Newton."""
        at, errors, (count, rank) = state.at, state.errors, state.at.shape
        probabilities = errors + self.labels
        # slopes[b, c, i] = d errors[b, c] / d at[b, i]
        slopes = probabilities[:, :, None] * (self.slopes - (probabilities @ self.slopes)[:, None])
        flat = slopes.transpose(1, 2).reshape(count * rank, -1)
        squares = (flat @ flat.T).view(count, rank, count, rank) * (at @ at.T + self.has_bias)[:, None, :, None]
        mixed = torch.einsum("be,bdi->bide", at, torch.einsum("bci,dc->bdi", slopes, errors))
        squares += mixed + mixed.permute(2, 3, 0, 1)
        squares += torch.einsum("bd,ie->bide", errors @ errors.T, torch.eye(rank, dtype=at.dtype))
        weighted = (
            torch.einsum("bci,cj,bj->bi", slopes, state.residual[:, :rank], at) + errors @ state.residual[:, :rank]
        )
        if self.has_bias:
            weighted += torch.einsum("bci,c->bi", slopes, state.residual[:, rank])
        squares, slope = squares / count**2, weighted / count + penalty.prior**2 * (at - penalty.center)
        each = torch.arange(count)
        squares[each, :, each, :] += penalty.prior**2 * torch.eye(rank, dtype=at.dtype)
        if self.norm is not None and penalty.normed:
            z = self.norm.standardize(self.features(at))
            along = self.basis.view(rank, *self.norm.scale.shape) / self.norm.scale
            moved = torch.stack(
                [along.mean(2).expand(count, -1, -1), 2 * torch.einsum("bhw,ihw->bih", z, along) / z.shape[2]]
            )
            squares[each, :, each, :] += penalty.normed**2 * torch.einsum("mbih,mbeh->bie", moved, moved)
            slope = slope + penalty.normed**2 * torch.einsum("mbih,mbh->bi", moved, _moments(z))
        return squares.reshape(count * rank, -1), slope.flatten()


def _free(at: Coordinates) -> Penalty:
    return Penalty(0.0, 0.0, torch.zeros_like(at))


def _moments(z: Float[Tensor, "image head width"]) -> Float[Tensor, "moment image head"]:
    """Return mean and mean square minus 1, both zero behind a layer norm."""
    return torch.stack([z.mean(-1), z.square().mean(-1) - 1])


def _damped_step(squares: Squares, slope: Unknowns, damping: float) -> Unknowns | None:
    """Return Levenberg-Marquardt's step; None where the damping is too small for a factorization."""
    ridge = damping * squares.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
    factor, failed = torch.linalg.cholesky_ex(squares + torch.diag(ridge))
    if failed:
        return None
    step: Unknowns = torch.cholesky_solve(-slope[:, None], factor)[:, 0]
    return step
