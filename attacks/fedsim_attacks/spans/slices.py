"""Inputs of the MLP that a span allows, and how far what follows from them lies outside of the next layer's span.

An input a is a combination of the tokens whose coefficients sum to one, since (a, 1) is in the span. Of these, the true tokens
are those with a layer norm's length whose activations phi(W a + b) lie in the span of the next layer's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim_attacks.spans.block import FirstBlock, LayerSpan

Coordinates = Float[Tensor, " free"]

_LENGTH_WEIGHT = 0.1  # of the layer norm's length beside the share outside of the span


class Linearized(NamedTuple):
    """Gauss-Newton's system at one point: half the gradient and the curvature of the objective."""

    curvature: Float[Tensor, "free free"]
    gradient: Coordinates


@dataclass(frozen=True)
class Slice:
    """Inputs a = origin + directions @ coordinates, and the same through the first layer and the layer norm.

    Args:
        origin: (embed,).
        directions: orthonormal columns, (embed, free).
        before: W origin + b, (hidden,).
        through: W directions.
        whitened: the origin without the norm's affine part, over the root of the width, so that tokens have length 1.
        whitening: the same of the directions.
        hidden: span of the second layer's inputs.
        activation: elementwise.
    """

    origin: Float[Tensor, " embed"]
    directions: Float[Tensor, "embed free"]
    before: Float[Tensor, " hidden"]
    through: Float[Tensor, "hidden free"]
    whitened: Float[Tensor, " embed"]
    whitening: Float[Tensor, "embed free"]
    hidden: LayerSpan
    activation: nn.Module

    @staticmethod
    def of(block: FirstBlock, basis: Float[Tensor, "appended rank"]) -> Slice:
        """Return the inputs in a subspace of the first layer's span.

        Args:
            block: the first block, with the spans of its tokens.
            basis: orthonormal columns.
        """
        mlp: Any = block.block.mlp
        last, constant = basis[-1], block.inputs.constant
        length = last.norm()
        # A Householder reflection takes the last row to the first axis; the others keep the appended entry at its constant.
        axis = last / length
        axis = axis + torch.sign(axis[0]) * torch.eye(len(axis), dtype=axis.dtype)[0]
        mirror = torch.eye(len(axis), dtype=axis.dtype) - 2 * torch.outer(axis, axis) / axis.square().sum()
        origin = basis[:-1] @ (last * (constant / length**2))
        directions = basis[:-1] @ mirror[:, 1:]
        weight = mlp.fc1.weight
        norm: Any = block.block.norm2
        scale = len(origin) ** -0.5
        return Slice(
            origin,
            directions,
            weight @ origin + mlp.fc1.bias,
            weight @ directions,
            block.whitened(origin[None])[0] * scale,
            directions / norm.weight[:, None] * scale,
            block.hidden,
            mlp.act,
        )

    @property
    def free(self) -> int:
        """Coordinates."""
        return self.directions.shape[1]

    def to(self, dtype: torch.dtype, device: torch.device) -> Slice:
        """Return it in another precision, on a device."""
        moved = {
            name: getattr(self, name).to(device, dtype)
            for name in ("origin", "directions", "before", "through", "whitened", "whitening")
        }
        hidden = replace(self.hidden, right=self.hidden.right.to(device, dtype))
        return replace(self, hidden=hidden, **moved)

    def inputs(self, coordinates: Coordinates) -> Float[Tensor, " embed"]:
        """Return the input with these coordinates."""
        return self.origin + self.directions @ coordinates

    def coordinates(self, inputs: Float[Tensor, " embed"]) -> Coordinates:
        """Return the coordinates of the nearest input."""
        return self.directions.T @ (inputs - self.origin)

    def objective(self, coordinates: Float[Tensor, "start free"]) -> Float[Tensor, " start"]:
        """Return the squared share of the activations outside of the span, and how far the length is off; differentiable."""
        whole = self.hidden.appended(self.activation(self.before + coordinates @ self.through.T))
        outside = whole - (whole @ self.hidden.right.T) @ self.hidden.right
        share: Tensor = outside.square().sum(1) / whole.square().sum(1)
        return share + _LENGTH_WEIGHT * self._length(coordinates).square()

    def linearized(self, coordinates: Coordinates) -> Linearized:
        """Return Gauss-Newton's system, with the activations' norm held."""
        slope, outside, size = self._slope(coordinates)
        right = self.hidden.right[:, :-1]
        jacobian = slope[:, None] * self.through
        inside = right @ jacobian
        curvature = (jacobian.T @ jacobian - inside.T @ inside) / size
        return self._with_length(coordinates, curvature, jacobian.T @ outside / size)

    def gradient(self, coordinates: Coordinates) -> Coordinates:
        """Return half the gradient alone, as in `linearized`."""
        slope, outside, size = self._slope(coordinates)
        towards = self.through.T @ (slope * outside) / size
        length = self._length(coordinates[None])[0]
        return towards + _LENGTH_WEIGHT * length * self._length_slope(coordinates)

    def _slope(self, coordinates: Coordinates) -> tuple[Tensor, Tensor, Tensor]:
        """Return the activation's slope, what of the activations is outside of the span, and their squared norm."""
        before = (self.before + self.through @ coordinates).requires_grad_()
        with torch.enable_grad():
            after = self.activation(before)
            (slope,) = torch.autograd.grad(after.sum(), before)
        whole = self.hidden.appended(after.detach()[None])[0]
        outside = whole - self.hidden.right.T @ (self.hidden.right @ whole)
        return slope, outside[:-1], whole.square().sum()

    def _with_length(self, coordinates: Coordinates, curvature: Tensor, gradient: Tensor) -> Linearized:
        slope, length = self._length_slope(coordinates), self._length(coordinates[None])[0]
        return Linearized(
            curvature + _LENGTH_WEIGHT * torch.outer(slope, slope), gradient + _LENGTH_WEIGHT * length * slope
        )

    def _length(self, coordinates: Float[Tensor, "start free"]) -> Float[Tensor, " start"]:
        return (self.whitened + coordinates @ self.whitening.T).square().sum(1) - 1

    def _length_slope(self, coordinates: Coordinates) -> Coordinates:
        return 2 * self.whitening.T @ (self.whitened + self.whitening @ coordinates)

    def start(self, count: int, generator: torch.Generator) -> Float[Tensor, "start free"]:
        """Return random coordinates whose inputs have a layer norm's length, where the slice has such."""
        drawn = torch.randn(count, self.free, generator=generator).to(self.whitened)
        way = drawn @ self.whitening.T
        squares, cross = way.square().sum(1), way @ self.whitened
        left = cross.square() - squares * (self.whitened.square().sum() - 1)
        reach = (left.clamp_min(0).sqrt() - cross) / squares
        floor = 0.05 * squares.rsqrt()
        return drawn * torch.maximum(reach, floor)[:, None]
