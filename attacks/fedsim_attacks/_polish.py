"""Polish: a few large, solved steps from where a descent has ended, instead of many small ones.

`gauss_newton` is Levenberg-Marquardt on the residual of the whole gradient, every tensor in units of its own norm and every
row of the position embedding in units of its own. Neither the Jacobian J nor a second derivative is formed: with l the loss
and r the residual's weights,

    J v = r [g(x + e v) - g(x)] / e        and        J^T u = [grad_x l(x; w + e r u) - grad_x l(x; w)] / e,

one pass through the model each, with fused attention. The step solves (J^T J + damping + smoothness) v = -J^T residual by
conjugate gradients; smoothness, total variation in its reweighted quadratic form, falls with every step that helps. The
gradient of the patch projection, G_pe = A^T X with A the token gradients, is nearly linear in the pictures X and badly
conditioned, so it weighs more than other tensors, and (A A^T + damping)^-1 preconditions.

`closed_form` alternates: token gradients A of the current pictures, brought to the sum that the position embedding's gradient
shows, and the pictures X that solve G_pe = A^T X nearest to the current ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images
from fedsim.models import patch_grid, prefix_rows
from fedsim_attacks._matching import Gradients
from fedsim_attacks._priors import Roughness
from fedsim_attacks._response import Response
from fedsim_attacks._target import Target

Polish = Literal["none", "gauss_newton", "closed_form"]

_POSITIONS, _PROJECTION = "pos_embed", "patch_embed.proj.weight"
_AHEAD, _ASIDE = 1e-2, 1e-4  # lengths of the differences: share of the pictures' norm, of the weights'
_PRODUCTS = 40  # of conjugate gradients in a step
_SOLVED = 1e-5  # of the squared norm of the right side
_DAMPING, _SMOOTHNESS = 1e-4, 1e-3  # at first
_PATIENCE = 6  # steps that do not help, one after the other, before it gives up; damping grows by 10^6 in these
_EASE, _STIFFEN = 0.5, 10.0  # factors of the damping after a step that helped, and after one that did not
_SHARPEN = 0.7  # factor of the smoothness after a step that helped; 0.5 leaves flat directions where they are too soon
_LINEAR = 17.0  # weight of the patch projection's gradient beside that of all tensors; of 0.02, 17 and 1,700 the best
_MOST_ROWS = 4096  # of A, above which its eigenvectors would cost more than they save
_FLAT = 1e-6  # of its largest eigenvalue: what the preconditioner adds
_EDGE = 0.05  # pixel difference at which an edge begins to cost less than its square
_TINY = torch.finfo(torch.float32).tiny
_CLOSED_DAMPING = 1e-2  # of the largest squared singular value


class Polished(NamedTuple):
    """Pictures, and what is left: norm of what they do not explain, beside that of what they should."""

    images: Images
    residual: float


@dataclass(frozen=True, eq=False)
class Residual:
    """What a response leaves of the observed gradient, in weights that make its parts comparable.

    Args:
        response: one gradient at the global weights.
        variables: beside the pictures.
        target: what is to be reached.
        positions: weight of the rows of the position embedding, each in units of its own norm, beside that of all tensors.
        sent: what the client's defenses make of a gradient before it is compared.
    """

    response: Response
    variables: Mapping[str, Tensor]
    target: Target
    positions: float
    sent: Callable[[Gradients], Gradients] = list

    @cached_property
    def scales(self) -> list[Tensor]:
        """Weight of every entry."""
        count = len(self.target.gradients)
        found = [1 / (count**0.5 * tensor.norm()) for tensor in self.target.gradients]
        place = self.target.place(_POSITIONS)
        if place is not None and self.positions:
            lengths = self.target.gradients[place].norm(dim=-1, keepdim=True)
            rows = int((lengths > 0).sum())
            by_row = torch.where(lengths > 0, self.positions**0.5 / (lengths * rows**0.5), 0.0)
            found[place] = (found[place] ** 2 + by_row**2).sqrt()
        place = self.target.place(_PROJECTION)
        if place is not None:
            found[place] = _LINEAR**0.5 / self.target.gradients[place].norm()
        return found

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The global weights."""
        return self.response.weights()

    def gradient(self, images: Images) -> Gradients:
        """Return the gradient that pictures cause."""
        weights = self.response.own()
        loss = self.response.loss(weights, images, self.variables, slice(None))
        return torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)

    def compared(self, gradients: Gradients) -> Gradients:
        """Return what is compared of a gradient: as sent, weighed."""
        return self.weigh(self.sent(gradients))

    def aside(self, gradients: Gradients, left: Gradients) -> Gradients:
        """Return how a change of what is compared, near to some gradient, asks the gradient to change."""
        leaves = [gradient.detach().requires_grad_() for gradient in gradients]
        return torch.autograd.grad(self.compared(leaves), leaves, left, materialize_grads=True)

    def slope(self, images: Images, moved: Gradients | None = None) -> Images:
        """Return the loss's slope in the pictures, at the global weights or at these plus something."""
        leaf, weights = images.detach().requires_grad_(), self.weights
        if moved is not None:
            weights = {n: w + step for (n, w), step in zip(weights.items(), moved, strict=True)}
        (found,) = torch.autograd.grad(self.response.loss(weights, leaf, self.variables, slice(None)), leaf)
        return found

    def weigh(self, gradients: Gradients) -> Gradients:
        """Return a gradient in the residual's weights."""
        return [scale * tensor for scale, tensor in zip(self.scales, gradients, strict=True)]

    def level(self, deviation: float) -> float:
        """Return which share of the observed gradient noise is; true pictures leave as much."""
        return deviation * _norm(self.weigh([torch.ones_like(g) for g in self.target.gradients])) / _norm(self.goal)

    @cached_property
    def goal(self) -> Gradients:
        """The observed gradient, weighed."""
        return self.weigh(self.target.gradients)


@dataclass(frozen=True, eq=False)
class _Place:
    """Pictures and what belongs to them: their gradient, and the loss's slope."""

    residual: Residual
    images: Images
    gradient: Gradients

    @staticmethod
    def of(residual: Residual, images: Images) -> _Place:
        return _Place(residual, images, residual.gradient(images))

    @cached_property
    def slope(self) -> Images:
        return self.residual.slope(self.images)

    @cached_property
    def compared(self) -> Gradients:
        return self.residual.compared(self.gradient)

    @cached_property
    def left(self) -> Gradients:
        return _minus(self.compared, self.residual.goal)

    def forward(self, step: Images) -> Gradients:
        """Return J times a change of the pictures."""
        reach = _AHEAD * float(self.images.norm()) / max(float(step.norm()), _TINY)
        moved = self.residual.gradient(self.images + reach * step)
        change = _minus(self.residual.compared(moved), self.compared)
        return [part / reach for part in change]

    def backward(self, left: Gradients) -> Images:
        """Return J transposed times a residual."""
        aside = self.residual.aside(self.gradient, left)
        reach = _ASIDE * _norm(list(self.residual.weights.values())) / max(_norm(aside), _TINY)
        moved = self.residual.slope(self.images, [reach * part for part in aside])
        return (moved - self.slope) / reach


def gauss_newton(
    residual: Residual, start: Images, confine: Callable[[Images], Images], count: int
) -> Iterator[Polished]:
    """Yield the pictures before and after every step; after one that does not lower the damped objective, those before it.

    It ends early where six steps in a row do not.

    Args:
        residual: to bring to zero.
        start: normalized pictures.
        confine: brings pictures back into the range of pixels.
        count: steps.
    """
    here, damping, smoothness = _Place.of(residual, start), _DAMPING, _SMOOTHNESS
    whole, failures = _norm(residual.goal), 0
    yield Polished(here.images, _norm(here.left) / whole)
    for _ in range(count):
        rough = Roughness.around_edges(here.images, _EDGE)
        curve = functools.partial(_curvature, here, rough, damping, smoothness)
        downhill = -here.backward(here.left) - smoothness * rough.gradient(here.images)
        step = _conjugate_gradients(curve, downhill, _preconditioner(here, damping))
        there = _Place.of(residual, confine(here.images + step))
        before, after = (
            _norm(place.left) ** 2 + smoothness * float((place.images * rough.gradient(place.images)).sum())
            for place in (here, there)
        )
        if after < before:
            here, damping, smoothness, failures = there, _EASE * damping, _SHARPEN * smoothness, 0
        else:
            damping, failures = _STIFFEN * damping, failures + 1
        yield Polished(here.images, _norm(here.left) / whole)
        if failures == _PATIENCE:
            return


def _curvature(here: _Place, rough: Roughness, damping: float, smoothness: float, step: Images) -> Images:
    return here.backward(here.forward(step)) + damping * step + smoothness * rough.gradient(step)


def _preconditioner(here: _Place, damping: float) -> Callable[[Images], Images]:
    """Return the inverse of what the patch projection's gradient contributes to the curvature."""
    residual = here.residual
    place, tokens = residual.target.place(_PROJECTION), _token_gradients(residual, here.images)
    if place is None or tokens.flatten(0, 1).shape[0] > _MOST_ROWS:
        return lambda images: images
    grid = patch_grid(residual.target.model)
    rows = tokens.flatten(0, 1).double() * float(residual.scales[place])
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    inverse = (vectors / (values.clamp_min(0) + _FLAT * values[-1] + damping)) @ vectors.T

    def apply(images: Images) -> Images:
        patches = grid.cut(images)
        solved = inverse @ patches.flatten(0, 1).double()
        return grid.join(solved.to(images).view_as(patches))

    return apply


def _conjugate_gradients(
    curve: Callable[[Images], Images], right: Images, precondition: Callable[[Images], Images]
) -> Images:
    """Return about what `curve` takes to `right`; products by differences are inexact, so it ends where they mislead."""
    solution, left = torch.zeros_like(right), right.clone()
    eased = precondition(left)
    direction, square = eased, float((left * eased).sum())
    enough = _SOLVED * square
    for _ in range(_PRODUCTS):
        bent = curve(direction)
        along = float((direction * bent).sum())
        if along <= 0 or square <= enough:
            break
        solution += square / along * direction
        left -= square / along * bent
        eased = precondition(left)
        square, before = float((left * eased).sum()), square
        direction = eased + square / before * direction
    return solution


def closed_form(
    residual: Residual, start: Images, confine: Callable[[Images], Images], count: int
) -> Iterator[Polished]:
    """Yield the pictures before and after every alternation of token gradients and pictures, and what is left of G_pe.

    Of one picture the token gradients are known exactly, so that this converges to the solution of `patch_embedding`, slowly
    by its damping; of several only their sum is.

    Args:
        residual: measures what is left.
        start: normalized pictures.
        confine: brings pictures back into the range of pixels.
        count: alternations.

    Raises:
        AttackRefusedError: the update lacks the position embedding's gradient or the patch projection's.
    """
    target, images = residual.target, start
    place, projection = target.place(_POSITIONS), target.place(_PROJECTION)
    if place is None or projection is None:
        raise AttackRefusedError(f"polish: closed_form reads the gradients of {_POSITIONS} and {_PROJECTION}.")
    grid = patch_grid(target.model)
    observed = target.gradients[place][0, prefix_rows(target.model) :].double()
    goal = target.gradients[projection].flatten(1).double()
    for number in range(count + 1):
        tokens = _token_gradients(residual, images).double()
        tokens = tokens + (observed - tokens.sum(0)) / len(tokens)
        rows, patches = tokens.flatten(0, 1), grid.cut(images).flatten(0, 1).double()
        left = goal - rows.T @ patches
        yield Polished(images, float(left.norm() / goal.norm()))
        if number == count:
            return
        gram = rows @ rows.T
        damped = gram + _CLOSED_DAMPING * torch.linalg.matrix_norm(gram, 2) * torch.eye(len(gram)).to(gram)
        moved = (patches + torch.linalg.solve(damped, rows @ left)).float().view(len(images), grid.count, -1)
        images = confine(grid.join(moved))


def _token_gradients(residual: Residual, images: Images) -> Float[Tensor, "batch token embed"]:
    """Return the loss's slope at what the patch projection puts out, picture by picture."""
    caught: list[Tensor] = []
    embed: nn.Module = residual.response.model.patch_embed  # type: ignore[assignment]
    handle = embed.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        leaf = images.detach().requires_grad_()  # without which frozen weights would leave no graph
        loss = residual.response.loss(residual.weights, leaf, residual.variables, slice(None))
    finally:
        handle.remove()
    return torch.autograd.grad(loss, caught[0])[0]


def _minus(one: Gradients, other: Gradients) -> Gradients:
    return [a - b for a, b in zip(one, other, strict=True)]


def _norm(tensors: Gradients) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))
