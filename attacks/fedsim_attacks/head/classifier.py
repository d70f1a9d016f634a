"""The gradient at the classifier of an update, and what images of no client in particular do to that classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images, Normalization, Observation
from fedsim.models import HeadNames, head_inputs, head_names
from fedsim_attacks.priors import natural_noise
from fedsim_attacks.update import is_taken_for_one_step, mean_gradient

ClassVector = Float[Tensor, " class"]
Logits = Float[Tensor, "sample class"]
Features = Float[Tensor, "sample embed"]

_LABEL_TRUST = 0.3  # weight of the model's own opinion of an auxiliary image beside its label
_RIDGE = 0.1  # of the functional that is one on every head input, in units of the inputs' mean square


class References(NamedTuple):
    """Images of no client.

    Args:
        logits: of the model that is attacked.
        shares: how much each image stands for a class; columns sum to one.
        inputs: of each linear classifier.
        is_real: whether they are auxiliary data; noise with the spectrum of photographs otherwise.
    """

    logits: Logits
    shares: Logits
    inputs: tuple[Features, ...]
    is_real: bool


class LinearHead(NamedTuple):
    """One linear classifier and its gradient, in float64; a gradient is None where it was not shared.

    Args:
        names: of its parameters.
        weight: as at the start of the round.
        bias: the same; zero where there is none.
        weight_gradient: mean of (p - y) h^T.
        bias_gradient: mean of p - y.
    """

    names: HeadNames
    weight: Float[Tensor, "class embed"]
    bias: ClassVector
    weight_gradient: Float[Tensor, "class embed"] | None
    bias_gradient: ClassVector | None


class Classifier(NamedTuple):
    """The linear classifiers of a model, whose mean gives its logits, and whether the factor of their gradient is one."""

    heads: tuple[LinearHead, ...]
    is_scaled: bool


@dataclass(frozen=True)
class HeadGradient:
    """Sums over images of p - y, predicted probabilities minus the one-hot label, alone and with the logits.

    Args:
        residual: mean of p - y.
        heads: the linear classifiers whose mean gives the logits.
        noise: standard deviation of an entry, from sums over classes that vanish for every image.
        is_scaled: whether the factor of the gradient is known to be one.
        is_derived: whether the residual had to be read off the weight gradient.
    """

    residual: ClassVector
    heads: tuple[LinearHead, ...]
    noise: float
    is_scaled: bool
    is_derived: bool

    def with_logits(self, weights: ClassVector) -> ClassVector | None:
        """Return the mean of <weights, p - y> times the logits, centered over classes; None without weight gradients."""
        total = torch.zeros_like(weights)
        for head in self.heads:
            if head.weight_gradient is None:
                return None
            total += (weights @ head.weight_gradient) @ head.weight.T
            total += float(weights @ self.residual) / len(self.heads) * head.bias
        return total - total.mean()

    def scaled(self, factor: float) -> HeadGradient:
        """Return the gradient times a factor."""
        heads = tuple(
            head._replace(weight_gradient=None if head.weight_gradient is None else head.weight_gradient * factor)
            for head in self.heads
        )
        return HeadGradient(self.residual * factor, heads, self.noise * abs(factor), True, self.is_derived)


def reference_images(
    observation: Observation, count: int, generator: torch.Generator, halfway: bool | None = None
) -> References:
    """Return what the attacked model makes of auxiliary images, or of noise like photographs where none are granted.

    Args:
        observation: what the attack may know.
        count: images at most.
        generator: draws the noise.
        halfway: whether the model holds the global weights plus half the update; where a client takes several steps unless
            given.
    """
    model = observation.model()
    if halfway or (halfway is None and not is_taken_for_one_step(observation)):
        _step(model, observation)
    auxiliary = observation.auxiliary_data
    images = natural_noise(count, observation.image_shape, generator) if auxiliary is None else auxiliary.images[:count]
    logits, inputs = _forward(model, (observation.normalization or _centered(images)).normalize(images))
    opinions = logits.softmax(1)
    if auxiliary is None:
        return References(logits, opinions / opinions.sum(0), inputs, False)
    shares = nn.functional.one_hot(auxiliary.labels[:count].long(), observation.num_classes).double()
    shares = shares + _LABEL_TRUST * opinions
    return References(logits, shares / shares.sum(0), inputs, True)


def read_classifier(observation: Observation) -> Classifier:
    """Return a model's classifiers with their gradient, as far as it was shared.

    Raises:
        AttackRefusedError: an entry is not finite, or the client's optimizer is not linear; or the model has no linear
            classifier, or one of one class.
    """
    model = observation.model()
    check_classifier(model)
    names = head_names(model)
    gradient = mean_gradient(observation, [name for head in names for name in head if name is not None])
    if not all(bool(torch.isfinite(tensor).all()) for tensor in gradient.tensors.values()):
        raise AttackRefusedError("the gradient of the classifier is not finite.")
    return Classifier(tuple(_linear_head(model, head, gradient.tensors) for head in names), gradient.is_scaled)


def read_head(observation: Observation, references: Callable[[], References]) -> HeadGradient:
    """Return the gradient at the classifier as sums over images.

    Without a bias gradient, the residual is read off the weight gradient by the linear functional that is as close to
    one as can be on every reference head input, as the constant input of a bias is.

    Args:
        observation: what the attack may know.
        references: returns the reference images; asked where there is no bias gradient.

    Raises:
        AttackRefusedError: it was not shared, is zero or not finite, or the client's optimizer is not linear; or the model
            has no linear classifier, or one of one class.
    """
    heads, is_scaled = read_classifier(observation)
    biases = [head.bias_gradient for head in heads if head.bias_gradient is not None]
    is_derived = len(biases) < len(heads) or not any(bias.any() for bias in biases)
    if not is_derived:
        residual = torch.stack(biases).sum(0)
    else:
        residual = torch.zeros(observation.num_classes, dtype=torch.float64)
        for head, inputs in zip(heads, references().inputs, strict=True):
            if head.weight_gradient is None or not head.weight_gradient.any():
                raise AttackRefusedError("the gradient of the classifier is zero or missing: it was not shared.")
            residual += head.weight_gradient @ _constant_functional(inputs)
    return HeadGradient(residual, heads, _noise(residual, heads), is_scaled, is_derived)


def check_classifier(model: nn.Module) -> None:
    """Refuse a model whose logits no linear layer with two or more outputs gives."""
    if any(len(model.get_parameter(names.weight)) < 2 for names in head_names(model)):
        raise AttackRefusedError("the classifier has one class, so its loss is zero whatever the image.")


def _linear_head(model: nn.Module, names: HeadNames, gradients: Mapping[str, Tensor]) -> LinearHead:
    weight = model.get_parameter(names.weight).detach().double()
    if names.bias is None:
        return LinearHead(names, weight, weight.new_zeros(len(weight)), gradients.get(names.weight), None)
    bias = model.get_parameter(names.bias).detach().double()
    return LinearHead(names, weight, bias, gradients.get(names.weight), gradients.get(names.bias))


def _constant_functional(inputs: Features) -> Float[Tensor, " embed"]:
    moments = inputs.T @ inputs / len(inputs)
    ridge = float(_RIDGE * moments.diagonal().mean())
    solution: Tensor = torch.linalg.solve(
        moments + ridge * torch.eye(len(moments), dtype=moments.dtype), inputs.mean(0)
    )
    return solution


def _noise(residual: ClassVector, heads: tuple[LinearHead, ...]) -> float:
    sums = [residual.sum()[None]]
    sums += [head.weight_gradient.sum(0) for head in heads if head.weight_gradient is not None]
    return float(torch.cat(sums).square().mean().sqrt()) / math.sqrt(len(residual))


def _centered(images: Images) -> Normalization:
    channels = images.shape[1]
    return Normalization((0.5,) * channels, (0.5,) * channels)


def _step(model: nn.Module, observation: Observation) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in observation.update.tensors:
                parameter.add_(observation.update.tensors[name], alpha=0.5)


def _forward(model: nn.Module, images: Images) -> tuple[Logits, tuple[Features, ...]]:
    inputs = tuple(rows.double() for rows in head_inputs(model, images))
    heads = [_linear_head(model, names, {}) for names in head_names(model)]
    logits = [rows @ head.weight.T + head.bias for rows, head in zip(inputs, heads, strict=True)]
    return torch.stack(logits).mean(0), inputs
