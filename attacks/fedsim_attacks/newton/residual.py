"""What images leave of the observed gradient, and how that changes with the images.

With l the loss, g its gradient, r the residual's weights and J the Jacobian of r g in the images, `Differences` takes

    J v = r [g(x + e v) - g(x)] / e        and        J^T u = [grad_x l(x; w + e r u) - grad_x l(x; w)] / e,

one pass through the model each, with fused attention. `Exact` differentiates the gradient's graph: J^T u directly, and J v as
the derivative of J^T u, which is linear in u. That costs about three times as much and the memory of several passes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.exchange import Images
from fedsim.models import patch_grid, unfused_attention
from fedsim_attacks.update import NO_SCALE, POSITIONS, PROJECTION, ClientGradient, Gradients, OneGradient, Target

_AHEAD, _ASIDE = 1e-2, 1e-4  # lengths of the differences: share of the images' norm, of the weights'
_LINEAR = 17.0  # weight of the patch projection's gradient beside that of all tensors; of 0.02, 17 and 1,700 the best
_TINY = torch.finfo(torch.float32).tiny


class Iterate(NamedTuple):
    """Where an iteration has come.

    Args:
        images: normalized; they may leave the range of pixels.
        residual: norm of what they do not explain, beside that of what they should.
        coordinates: in which the iteration moves.
    """

    images: Images
    residual: float
    coordinates: Tensor


@dataclass(frozen=True, eq=False)
class Residual:
    """What a response leaves of the observed gradient, in weights that make its parts comparable.

    Args:
        response: one gradient at the global weights.
        variables: beside the images.
        target: what is to be reached.
        positions: weight of the rows of the position embedding, each in units of its own norm, beside that of all tensors.
        sent: what the client's defenses make of a gradient before it is compared.
    """

    response: ClientGradient
    variables: Mapping[str, Tensor]
    target: Target
    positions: float
    sent: Callable[[Gradients], Gradients] = list

    @cached_property
    def scales(self) -> list[Tensor]:
        """Weight of every entry."""
        count = len(self.target.gradients)
        found = [1 / (count**0.5 * tensor.norm()) for tensor in self.target.gradients]
        place = self.target.place(POSITIONS)
        if place is not None and self.positions:
            lengths = self.target.gradients[place].norm(dim=-1, keepdim=True)
            rows = int((lengths > 0).sum())
            by_row = torch.where(lengths > 0, self.positions**0.5 / (lengths * rows**0.5), 0.0)
            found[place] = (found[place] ** 2 + by_row**2).sqrt()
        place = self.target.place(PROJECTION)
        if place is not None:
            found[place] = _LINEAR**0.5 / self.target.gradients[place].norm()
        return found

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The global weights."""
        return self.response.weights()

    def gradient(self, images: Images, create_graph: bool = False) -> Gradients:
        """Return the gradient that images cause, with a graph where that is asked for."""
        weights = self.response.own()
        loss = self.response.loss(weights, images, self.variables, slice(None))
        return torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, materialize_grads=True)

    def compared(self, gradients: Gradients) -> Gradients:
        """Return what is compared of a gradient: as sent, weighed."""
        return self.weigh(self.sent(gradients))

    def reached(self, images: Images, create_graph: bool = False) -> Gradients:
        """Return what is compared of the gradient that images cause."""
        return self.compared(self.gradient(images, create_graph))

    def aside(self, gradients: Gradients, left: Gradients) -> Gradients:
        """Return how a change of what is compared, near to some gradient, asks the gradient to change."""
        leaves = [gradient.detach().requires_grad_() for gradient in gradients]
        return torch.autograd.grad(self.compared(leaves), leaves, left, materialize_grads=True)

    def image_gradient(self, images: Images, moved: Gradients | None = None) -> Images:
        """Return the loss's gradient in the images, at the global weights or at these plus something."""
        leaf, weights = images.detach().requires_grad_(), self.weights
        if moved is not None:
            weights = {n: w + step for (n, w), step in zip(weights.items(), moved, strict=True)}
        (found,) = torch.autograd.grad(self.response.loss(weights, leaf, self.variables, slice(None)), leaf)
        return found

    def weigh(self, gradients: Gradients) -> Gradients:
        """Return a gradient in the residual's weights."""
        return [scale * tensor for scale, tensor in zip(self.scales, gradients, strict=True)]

    def level(self, deviation: float) -> float:
        """Return which share of the observed gradient noise is; true images leave as much."""
        return deviation * norm(self.weigh([torch.ones_like(g) for g in self.target.gradients])) / norm(self.goal)

    @cached_property
    def goal(self) -> Gradients:
        """The observed gradient, weighed."""
        return self.weigh(self.target.gradients)


def obstacle(response: ClientGradient, target: Target) -> str | None:
    """Return why no residual can be formed, or None where one can."""
    if not isinstance(response, OneGradient):
        return "the delta holds several local steps"
    if not target.is_scaled:
        return NO_SCALE
    if target.model.training:
        return "dropout on the client draws other masks in every pass"
    return None


@dataclass(frozen=True, eq=False)
class Place(ABC):
    """Images, what they leave of the observed gradient, and products with the Jacobian there."""

    residual: Residual
    images: Images

    @cached_property
    @abstractmethod
    def compared(self) -> Gradients:
        """Return what is compared of the images' gradient."""

    @abstractmethod
    def forward(self, step: Images) -> Gradients:
        """Return J times a change of the images."""

    @abstractmethod
    def backward(self, left: Gradients) -> Images:
        """Return J transposed times a residual."""

    @cached_property
    def left(self) -> Gradients:
        """Return what is left of the observed gradient."""
        return minus(self.compared, self.residual.goal)


@dataclass(frozen=True, eq=False)
class Differences(Place):
    """Products by differences of two passes."""

    @cached_property
    def _gradient(self) -> Gradients:
        return self.residual.gradient(self.images)

    @cached_property
    def _slope(self) -> Images:
        return self.residual.image_gradient(self.images)

    @cached_property
    def compared(self) -> Gradients:
        """Return what is compared of the images' gradient."""
        return self.residual.compared(self._gradient)

    def forward(self, step: Images) -> Gradients:
        """Return J times a change of the images."""
        reach = _AHEAD * float(self.images.norm()) / max(float(step.norm()), _TINY)
        moved = self.residual.gradient(self.images + reach * step)
        change = minus(self.residual.compared(moved), self.compared)
        return [part / reach for part in change]

    def backward(self, left: Gradients) -> Images:
        """Return J transposed times a residual."""
        aside = self.residual.aside(self._gradient, left)
        reach = _ASIDE * norm(list(self.residual.weights.values())) / max(norm(aside), _TINY)
        moved = self.residual.image_gradient(self.images, [reach * part for part in aside])
        return (moved - self._slope) / reach


@dataclass(frozen=True, eq=False)
class Exact(Place):
    """Products through the graph of the gradient, which is kept as long as the place is."""

    @cached_property
    def _leaf(self) -> Images:
        return self.images.detach().requires_grad_()

    @cached_property
    def _graph(self) -> Gradients:
        with unfused_attention(self.residual.response.model):
            return self.residual.reached(self._leaf, create_graph=True)

    @cached_property
    def _transposed(self) -> tuple[Images, Gradients]:
        """J^T u for some u, with a graph that is linear in it, and u."""
        aside = [torch.zeros_like(part).requires_grad_() for part in self._graph]
        (found,) = torch.autograd.grad(self._graph, self._leaf, aside, create_graph=True)
        return found, aside

    @cached_property
    def compared(self) -> Gradients:
        """Return what is compared of the images' gradient."""
        return [part.detach() for part in self._graph]

    def forward(self, step: Images) -> Gradients:
        """Return J times a change of the images."""
        found, aside = self._transposed
        return torch.autograd.grad(found, aside, step, retain_graph=True, materialize_grads=True)

    def backward(self, left: Gradients) -> Images:
        """Return J transposed times a residual."""
        return torch.autograd.grad(self._graph, self._leaf, left, retain_graph=True)[0]


def adjoint_error(place: Place, step: Images) -> float:
    """Return how far products at a place are from each other's transposes: |<v, J^T J v> - |J v|^2| / |J v|^2.

    Args:
        place: with its products.
        step: v; along the gradient of what is left it shows errors that a random one does not.
    """
    ahead = place.forward(step)
    square = norm(ahead) ** 2
    return abs(float((step * place.backward(ahead)).sum()) - square) / max(square, _TINY)


def token_gradients(residual: Residual, images: Images) -> Float[Tensor, "batch token embed"]:
    """Return the loss's gradient at what the patch projection puts out, image by image.

    Raises:
        AttackRefusedError: the model has no patch projection.
    """
    caught: list[Tensor] = []
    patch_grid(residual.response.model)  # raises where there are no patches
    embed: nn.Module = residual.response.model.patch_embed  # type: ignore[assignment]
    handle = embed.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        leaf = images.detach().requires_grad_()  # without which frozen weights would leave no graph
        loss = residual.response.loss(residual.weights, leaf, residual.variables, slice(None))
    finally:
        handle.remove()
    return torch.autograd.grad(loss, caught[0])[0]


def minus(one: Gradients, other: Gradients) -> Gradients:
    """Return the difference of two lists of tensors."""
    return [a - b for a, b in zip(one, other, strict=True)]


def norm(tensors: Gradients) -> float:
    """Return the l2 norm of all entries."""
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))
