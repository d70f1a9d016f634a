"""What an optimization attack minimizes: weighted terms of the gradient that images cause, and of the images themselves.

The two are kept apart so that the gradient in the images needs no second derivative (`input_gradients`): a term of the model's
gradient is a function of tensors, and knows nothing of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.exchange import Images, Normalization
from fedsim_attacks.update import ClientGradient, Gradients, Scalar

Variables = Mapping[str, Tensor]
Weight = Callable[[float], float]  # of the share of the steps that is done


class Candidate(NamedTuple):
    """Images under way; every field but the last is differentiable in the variables.

    Args:
        images: normalized.
        pixels: in [0, 1].
        consensus: normalized images that the restarts agree on; None without a term that asks for it.
    """

    images: Images
    pixels: Images
    consensus: Images | None


class GradientTerm(NamedTuple):
    """A summand that sees the candidate's gradient alone, in the order of the target's names."""

    weight: Weight
    value: Callable[[Gradients], Scalar]


class ImageTerm(NamedTuple):
    """A summand that sees the images alone."""

    weight: Weight
    value: Callable[[Candidate], Scalar]


def constant(weight: float) -> Weight:
    """Return a weight that never changes."""
    return lambda progress: weight


def annealed(first: float, last: float, hold: float) -> Weight:
    """Return a weight that stays at `first` for a share of the steps, and falls geometrically to `last` in the others."""

    def weight(progress: float) -> float:
        share = max(0.0, (progress - hold) / (1 - hold)) if hold < 1 else 0.0
        return first * (last / first) ** share if first else 0.0

    return weight


def switched(before: float, after: float, at: float) -> Weight:
    """Return a weight that changes once, from a share of the steps on."""
    return lambda progress: before if progress < at else after


def delayed(weight: Weight, start: float) -> Weight:
    """Return a weight that is zero before a share of the steps."""
    return lambda progress: weight(progress) if progress >= start else 0.0


@dataclass(frozen=True, eq=False)
class Objective:
    """The sum of all terms as a function of an attack's variables.

    Args:
        response: gradient that the variables cause.
        to_images: variables to normalized images.
        normalization: of the model's input.
        gradient_terms: of the gradient.
        image_terms: of the images.
        sent: what the client's defenses make of a gradient before it is compared.
    """

    response: ClientGradient
    to_images: Callable[[Variables], Images]
    normalization: Normalization
    gradient_terms: Sequence[GradientTerm]
    image_terms: Sequence[ImageTerm]
    sent: Callable[[Gradients], Gradients] = list

    def matching(self, gradients: Gradients, progress: float) -> Scalar:
        """Return the weighted sum of the terms of a gradient."""
        weighted = [(term.weight(progress), term.value) for term in self.gradient_terms]
        sent = self.sent(gradients)
        return _total([weight * value(sent) for weight, value in weighted if weight], gradients[0])

    def prior(self, variables: Variables, consensus: Images | None, progress: float) -> Scalar:
        """Return the weighted sum of the terms of the images."""
        images = self.to_images(variables)
        candidate = Candidate(images, self.normalization.denormalize(images), consensus)
        weighted = [(term.weight(progress), term.value) for term in self.image_terms]
        return _total([weight * value(candidate) for weight, value in weighted if weight], images)


def _total(values: Sequence[Tensor], like: Tensor) -> Scalar:
    # A zero that is attached to nothing would have no gradient to ask for.
    return torch.stack(list(values)).sum() if values else 0 * like.sum()
