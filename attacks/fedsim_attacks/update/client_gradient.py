"""What a client would have sent for given images: one gradient, one gradient on the way, or simulated local training.

A delta of several local steps is no gradient at the global weights w_0. Three readings of it:

- `OneGradient` takes it for one all the same;
- `Surrogate` takes it for the gradient at a point between w_0 and the client's last weights w_T, which is learned beside the
  images (Zhu, Yao, Blaschko, "Surrogate Model Extension (SME)", ICML 2023, https://arxiv.org/abs/2306.00127);
- `Unrolled` simulates the client's steps and differentiates through them (Dimitrov, Balunovic, Konstantinov, Vechev, "Data
  Leakage in Federated Averaging", TMLR 2022, https://arxiv.org/abs/2206.12395).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from fedsim import models
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Images, Labels, Observation, TrainingKnowledge
from fedsim.labels import distributions, smooth
from fedsim_attacks.update.gradient import CLIP_MARGIN, is_taken_for_one_step, local_steps, sgd_factors
from fedsim_attacks.update.target import Target
from fedsim_attacks.update.tensors import Gradients, Scalar

Parameters = Mapping[str, Tensor]

LABELS, PATH = "labels", "path"  # variables beside the images
HALFWAY = 0.5

Reading = Literal["auto", "one_gradient", "surrogate", "unrolled"]

_MOST_UNROLLED = 8  # steps; memory and time grow with them


def _unchanged(weights: Parameters) -> Parameters:
    return weights


@dataclass(frozen=True, eq=False)
class ClientGradient(ABC):
    """The gradient that images cause, differentiable in the images and in the variables beside them.

    Args:
        model: in the client's mode; its weights are the round's global ones.
        names: parameters whose gradient is asked for.
        labels: of the images; overruled by the variable `labels`, logits, where there is one.
        is_functional: whether `torch.func` differentiates, as it must under `vmap`; autograd is faster.
        is_bfloat16: whether the forward pass is in bfloat16.
        used: weights to those that the client's forward pass used, which a defense may have changed.
    """

    model: nn.Module
    names: Sequence[str]
    labels: Labels
    is_functional: bool = False
    is_bfloat16: bool = False
    used: Callable[[Parameters], Parameters] = _unchanged

    @abstractmethod
    def gradients(self, images: Images, variables: Mapping[str, Tensor]) -> Gradients:
        """Return the gradient, in the order of `names`, with a graph."""

    def functional(self) -> ClientGradient:
        """Return the same response for use under `vmap`."""
        return replace(self, is_functional=True)

    def weights(self) -> dict[str, Tensor]:
        """Return the named global weights, without a graph."""
        return {name: weight.detach() for name, weight in self._named.items()}

    def own(self) -> dict[str, Tensor]:
        """Return the named global weights as the model holds them, to differentiate by; `loss` is fastest at these."""
        for weight in self._named.values():
            weight.requires_grad_()
        return self._named

    @cached_property
    def _named(self) -> dict[str, Tensor]:
        known = dict(self.model.named_parameters())
        return {name: known[name] for name in self.names}

    @cached_property
    def _is_tied(self) -> bool:
        # torch looks for tied weights in every call, which takes as long as a small layer.
        return len(list(self.model.named_parameters())) < len(list(self.model.named_parameters(remove_duplicate=False)))

    def loss(self, weights: Parameters, images: Images, variables: Mapping[str, Tensor], rows: slice) -> Scalar:
        """Return what a client's step minimizes, the mean over some of the images, at given weights.

        Args:
            weights: of the names; all others are the global ones.
            images: normalized, all of them.
            variables: of the attack.
            rows: images to take.
        """
        guessed = variables.get(LABELS)
        labels = self.labels if guessed is None else guessed.softmax(-1)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.is_bfloat16):
            logits = self._logits(weights, images[rows])
        return models.training_loss(self.model, logits.to(images.dtype), labels[rows])

    def _logits(self, weights: Parameters, images: Images) -> Tensor:
        used = self.used(weights)
        if used is self._named:
            own: Tensor = self.model(images)  # without the time that exchanging weights takes
            return own
        exchanged: Tensor = torch.func.functional_call(self.model, dict(used), (images,), tie_weights=self._is_tied)
        return exchanged

    def _gradients_at(
        self, weights: Parameters, images: Images, variables: Mapping[str, Tensor], rows: slice = slice(None)
    ) -> list[Tensor]:
        if self.is_functional:
            gradients = torch.func.grad(self.loss)(dict(weights), images, variables, rows)
            return [gradients[name] for name in self.names]
        for weight in weights.values():
            if not weight.requires_grad:  # others are on the way of simulated steps
                weight.requires_grad_()
        loss = self.loss(weights, images, variables, rows)
        wanted = [weights[name] for name in self.names]
        return list(torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True))


@dataclass(frozen=True, eq=False)
class OneGradient(ClientGradient):
    """The gradient at the global weights."""

    def gradients(self, images: Images, variables: Mapping[str, Tensor]) -> Gradients:
        """Return the gradient of all images' mean loss."""
        return self._gradients_at(self.weights() if self.is_functional else self.own(), images, variables)


@dataclass(frozen=True, eq=False)
class Surrogate(ClientGradient):
    """The gradient at w_0 + a (w_T - w_0), with a the variable `path`.

    Args:
        movement: w_T - w_0, in the order of `names`.
    """

    movement: Sequence[Tensor] = ()

    def gradients(self, images: Images, variables: Mapping[str, Tensor]) -> Gradients:
        """Return the gradient of all images' mean loss."""
        steps = zip(self.weights().items(), self.movement, strict=True)
        return self._gradients_at({n: w + variables[PATH] * moved for (n, w), moved in steps}, images, variables)


@dataclass(frozen=True, eq=False)
class Unrolled(ClientGradient):
    """The mean gradient of simulated local SGD, reduced from its delta as the observed one is.

    Args:
        training: the client's recipe.
        steps: of local training.
        batch_size: images a step. With more images than that, they are taken in the order found, epoch after epoch; the
            client's own order is not known.
    """

    training: TrainingKnowledge | None = None
    steps: int = 1
    batch_size: int = 1

    def gradients(self, images: Images, variables: Mapping[str, Tensor]) -> Gradients:
        """Return (a w_0 - w_T) / sum of c_t, with a and c_t of `gradient.sgd_factors`; each step clipped as the client's."""
        training = self.training
        assert training is not None
        start = self.weights()
        decay = {n: 0.0 if n in training.decay_exempt else training.weight_decay for n in self.names}
        weights, velocity = dict(start), {n: torch.zeros_like(w) for n, w in start.items()}
        for rows in self._batches(len(images)):
            gradients = self._clipped(self._gradients_at(weights, images, variables, rows))
            for name, gradient in zip(self.names, gradients, strict=True):
                velocity[name] = training.momentum * velocity[name] + gradient + decay[name] * weights[name]
                weights[name] = weights[name] - training.learning_rate * velocity[name]
        factors = {n: sgd_factors(training, self.steps, decay[n]) for n in self.names}
        return [(factors[n][0] * start[n] - weights[n]) / factors[n][1] for n in self.names]

    def _clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        limit = self.training.clip_norm if self.training is not None else None
        if limit is None:
            return gradients
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in gradients]))
        factor = (limit / (length + CLIP_MARGIN)).clamp_max(1)
        return [factor * tensor for tensor in gradients]

    def _batches(self, count: int) -> Iterator[slice]:
        starts = range(0, count, self.batch_size)
        for step in range(self.steps):
            start = starts[step % len(starts)]
            yield slice(start, start + self.batch_size)


def model_client(
    observation: Observation, target: Target, labels: Labels, reading: Reading
) -> tuple[ClientGradient, str | None]:
    """Return what images would have made the client send, and what is to be doubted about that.

    Args:
        observation: what the attack may know.
        target: what its update holds.
        labels: of the images, on the target's device; smoothed here where the recipe says so.
        reading: `auto` takes one gradient for what it is, simulates up to eight known steps, and looks for a surrogate of
            more or of unknown ones, and of clipped ones where not all parameters are matched.

    Raises:
        AttackRefusedError: the reading needs a recipe that is not granted.
    """
    training = observation.training
    if training is not None and training.label_smoothing and labels.ndim == 1:
        labels = smooth(distributions(labels, observation.num_classes), training.label_smoothing)
    one = OneGradient(target.model, target.names, labels)
    if observation.update.kind == "gradient":
        return one, None
    steps = local_steps(observation)
    is_partial = not {name for name, weight in target.model.named_parameters() if weight.requires_grad} <= set(
        target.names
    )
    clips_unseen = training is not None and training.clip_norm is not None and is_partial
    if reading == "auto":
        reading = _fitting(observation, None if clips_unseen else steps)
    if reading == "one_gradient":
        doubt = "This delta may hold several local steps; it is matched as one gradient." if steps != 1 else None
        return one, doubt
    if reading == "surrogate":
        tensors = observation.update.tensors
        moved = [tensors[name].to(target.gradients[0]) for name in target.names]
        return Surrogate(target.model, target.names, labels, movement=moved), None
    if training is None or steps is None:
        raise AttackRefusedError("local: unrolled simulates the client's steps. Grant `training` and `batch_size`.")
    size, doubt = observation.batch_size or len(labels), None
    if clips_unseen:
        doubt = (
            "The client clips each step by the norm of all parameters, which is simulated by those that are matched."
        )
    elif len(labels) > size:
        doubt = (
            f"Batches of {size} are simulated in the order in which the images were found; the client's is not known."
        )
    return (
        Unrolled(target.model, target.names, labels, training=training, steps=steps, batch_size=size),
        doubt,
    )


def _fitting(observation: Observation, steps: int | None) -> Reading:
    if is_taken_for_one_step(observation):
        return "one_gradient"
    if steps is not None and steps <= _MOST_UNROLLED:
        return "unrolled"
    return "surrogate"
