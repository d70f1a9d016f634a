"""The gradient of an objective, for one or for many sets of variables at once.

`DoubleBackward` differentiates the gradient's graph. `ForwardDifference` needs no second derivative: with g(x) the gradient
at weights w, M the terms of the gradient and v = dM/dg,

    dM/dx = d/de grad_x l(x; w + e v) at e = 0, which is [grad_x l(x; w + e v) - grad_x l(x; w)] / e up to O(e),

and the second pass of the two comes with g. It costs one backward pass more than training does, keeps no graph of a gradient,
and leaves fused attention on, which has no second derivative.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.exchange import Images
from fedsim.models import unfused_attention
from fedsim_attacks.matching.objective import Objective
from fedsim_attacks.update import Gradients, OneGradient

Variables = Mapping[str, Tensor]

REACH = 1e-4
"""Norm of e v, as a share of the weights' norm: less drowns in float32, more bends. Best of 1e-8 to 1e-3 on a small ViT."""
_REACHES = (1e-5, REACH, 1e-3)  # that are tried
_AGREE = 0.999  # cosine of the two gradients, from which on the cheap one is good enough


class Evaluation(NamedTuple):
    """Values and gradients of an objective, one a restart.

    Args:
        values: of the objective.
        gradients: of each variable, shaped like it.
    """

    values: Float[Tensor, " restart"]
    gradients: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class InputGradients(ABC):
    """How gradients are had; variables carry a leading axis of restarts."""

    objective: Objective

    @abstractmethod
    def one(self, variables: Variables, consensus: Images | None, progress: float) -> tuple[Tensor, Variables]:
        """Return value and gradients for variables without the leading axis."""

    @abstractmethod
    def many(self, variables: Variables, consensus: Images | None, progress: float) -> tuple[Tensor, Variables]:
        """Return values and gradients in one batch."""

    def __call__(self, variables: Variables, consensus: Images | None, progress: float) -> Evaluation:
        """Return value and gradient of every restart.

        Args:
            variables: (restart, ...) each.
            consensus: of the restarts.
            progress: share of the steps that is done.
        """
        count = len(next(iter(variables.values())))
        if count > 1:
            values, gradients = self.many(variables, consensus, progress)
            return Evaluation(values.detach(), {name: gradient.detach() for name, gradient in gradients.items()})
        value, gradients = self.one({name: tensor[0] for name, tensor in variables.items()}, consensus, progress)
        return Evaluation(value.detach()[None], {name: gradient.detach()[None] for name, gradient in gradients.items()})


@dataclass(frozen=True, eq=False)
class DoubleBackward(InputGradients):
    """InputGradients through the graph of the gradient."""

    def one(self, variables: Variables, consensus: Images | None, progress: float) -> tuple[Tensor, Variables]:
        """Differentiate by autograd."""
        leaves = _leaves(variables)
        with unfused_attention(self.objective.response.model):
            value = _value(self.objective, leaves, consensus, progress)
            return value, _named(torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), leaves)

    def many(self, variables: Variables, consensus: Images | None, progress: float) -> tuple[Tensor, Variables]:
        """Differentiate under `vmap`."""
        objective = replace(self.objective, response=self.objective.response.functional())

        def single(own: Variables) -> Tensor:
            return _value(objective, own, consensus, progress)

        with unfused_attention(objective.response.model):
            gradients, values = torch.vmap(torch.func.grad_and_value(single), randomness="different")(dict(variables))
        return values, gradients


@dataclass(frozen=True, eq=False)
class ForwardDifference(InputGradients):
    """InputGradients as the difference of two passes; the response has to be one gradient at the global weights.

    Args:
        reach: how far the second pass moves the weights, as a share of their norm.
    """

    reach: float = REACH

    @cached_property
    def _whole(self) -> Tensor:
        return _norm(list(self.objective.response.weights().values()))

    def one(self, variables: Variables, consensus: Images | None, progress: float) -> tuple[Tensor, Variables]:
        """Differentiate by autograd."""
        response, leaves = self.objective.response, _leaves(variables)
        weights = response.own()
        loss = self._loss(weights, leaves)
        both = list(torch.autograd.grad(loss, [*leaves.values(), *weights.values()], materialize_grads=True))
        here = [both.pop(0) for _ in leaves]
        value, moved, reach = self._ahead(both, weights, progress)
        del loss  # the second pass needs no graph of the first
        ahead = torch.autograd.grad(self._loss(moved, leaves), list(leaves.values()), materialize_grads=True)
        prior = self.objective.prior(leaves, consensus, progress)
        pull = torch.autograd.grad(prior, list(leaves.values()), materialize_grads=True)
        gradients = [(a - h) / reach + p for a, h, p in zip(ahead, here, pull, strict=True)]
        return value + prior.detach(), _named(gradients, leaves)

    def many(self, variables: Variables, consensus: Images | None, progress: float) -> tuple[Tensor, Variables]:
        """Differentiate under `vmap`."""
        weights = self.objective.response.weights()

        def single(own: Variables) -> tuple[Tensor, Variables]:
            both = torch.func.grad(self._loss, argnums=(0, 1))(weights, own)
            gradients = [both[0][name] for name in weights]
            value, moved, reach = self._ahead(gradients, weights, progress, functional=True)
            ahead = torch.func.grad(self._loss, argnums=1)(moved, own)
            pull, prior = torch.func.grad_and_value(self.objective.prior)(own, consensus, progress)
            return value + prior, {n: (ahead[n] - both[1][n]) / reach + pull[n] for n in own}

        with unfused_attention(self.objective.response.model):  # fused kernels have no batching rule
            values, gradients = torch.vmap(single, randomness="error")(dict(variables))
        return values, gradients

    def _loss(self, weights: Variables, variables: Variables) -> Tensor:
        return self.objective.response.loss(weights, self.objective.to_images(variables), variables, slice(None))

    def _ahead(
        self, gradients: list[Tensor], weights: dict[str, Tensor], progress: float, functional: bool = False
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the matching's value, the weights moved along its gradient, and how far; empties the list of gradients."""

        def matching(gradients: Gradients) -> Tensor:
            return self.objective.matching(gradients, progress)

        if functional:
            pulls, value = torch.func.grad_and_value(matching)(list(gradients))
        else:
            seen = [gradient.detach().requires_grad_() for gradient in gradients]
            value = matching(seen)
            pulls = torch.autograd.grad(value, seen, materialize_grads=True)
            seen.clear()
        gradients.clear()  # a set of weights each: the gradients, their pulls and the moved weights never lie side by side
        pulls, size = list(pulls), _norm(pulls)
        reach = self.reach * self._whole / size.clamp_min(torch.finfo(size.dtype).tiny)
        # Detached, or the moved weights would ask the second pass for a graph of their own.
        moved = {name: torch.addcmul(weights[name].detach(), pulls.pop(), reach) for name in reversed(weights)}
        return value.detach(), moved, reach


def choose(objective: Objective, variables: Variables) -> InputGradients:
    """Return the cheap gradients where they agree with the exact ones at the start, the exact ones elsewhere.

    They are compared on the terms of the gradient, which alone are had in two ways, and on the first image of the first
    restart: exact gradients of a whole batch would take the memory that the cheap ones save.
    """
    response = objective.response
    # Dropout would draw other masks in the second pass.
    if not isinstance(response, OneGradient) or response.is_bfloat16 or response.model.training:
        return DoubleBackward(objective)
    first = {name: tensor[:1, :1] for name, tensor in variables.items()}
    small = replace(objective, response=replace(response, labels=response.labels[:1]), image_terms=())

    def gradient(of: InputGradients) -> Tensor:
        found = of(first, None, 0.0).gradients
        return torch.cat([found[name].flatten() for name in first])

    goal = gradient(DoubleBackward(small))
    agreement = {
        reach: float(torch.cosine_similarity(gradient(ForwardDifference(small, reach)), goal, dim=0))
        for reach in _REACHES
    }
    best = max(_REACHES, key=agreement.__getitem__)
    return ForwardDifference(objective, best) if agreement[best] > _AGREE else DoubleBackward(objective)


def _value(objective: Objective, variables: Variables, consensus: Images | None, progress: float) -> Tensor:
    gradients = objective.response.gradients(objective.to_images(variables), variables)
    return objective.matching(gradients, progress) + objective.prior(variables, consensus, progress)


def _leaves(variables: Variables) -> dict[str, Tensor]:
    return {name: tensor.detach().requires_grad_() for name, tensor in variables.items()}


def _named(gradients: Gradients, leaves: Variables) -> dict[str, Tensor]:
    return dict(zip(leaves, gradients, strict=True))


def _norm(tensors: Gradients) -> Tensor:
    whole: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))
    return whole
