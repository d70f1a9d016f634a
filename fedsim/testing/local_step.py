"""One local step, plain or through a defense, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from fedsim import models
from fedsim.defense import Defense, LocalStep
from fedsim.exchange import Images, Labels
from fedsim.federation.training import plain_step
from fedsim.labels import distributions, smooth
from fedsim.seeds import seeded, torch_generator
from fedsim.testing.fixtures import client_context, image_shape, random_images
from fedsim.testing.isolation import equal, expect, no_change, no_global_effect

_SMOOTHING = 0.1

Tensors = Mapping[str, Tensor | None]


class Batch(NamedTuple):
    """Normalized model input, with hard or soft labels."""

    images: Images
    labels: Labels


class Stepped(NamedTuple):
    """The loss that a step returned, and every parameter's `.grad` after it."""

    loss: Tensor
    gradients: Tensors


def hook(defense: Defense, name: str) -> str:
    """Return how messages call a hook."""
    return f"{type(defense).__qualname__}.{name}"


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by name, sharing memory with the model."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def same(first: Tensors, second: Tensors) -> bool:
    """Return whether both have the same names in one order and equal tensors."""
    return list(first) == list(second) and all(equal(first[name], second[name]) for name in first)


def image_batch(model: nn.Module, count: int, soft: bool = False) -> Batch:
    """Return random images that fit the model, with hard labels or, as label smoothing and mixup make them, soft ones."""
    generator, classes = torch_generator(0, "testing", "batch"), int(model.num_classes)  # type: ignore[arg-type]
    pictures = random_images(generator, count, classes, image_shape=image_shape(model))
    labels = smooth(distributions(pictures.labels, classes), _SMOOTHING) if soft else pictures.labels
    return Batch(models.normalization(model).normalize(pictures.images), labels)


def plain_local_step(model: nn.Module, batch: Batch, training: bool) -> Stepped:
    """Step without any defense; the model's mode and weights are the same afterwards, its `.grad` are empty.

    Args:
        model: plain or prepared.
        batch: what to step on.
        training: whether the model is in training mode.
    """
    before = model.training
    model.train(training).zero_grad(set_to_none=True)
    with seeded(0, "testing"):
        loss = plain_step(LocalStep(model, batch.images, batch.labels, 0.0))
    gradients = _gradients(model)
    model.train(before).zero_grad(set_to_none=True)
    return Stepped(loss, gradients)


def _gradients(model: nn.Module) -> Tensors:
    return {n: None if p.grad is None else p.grad.detach().clone() for n, p in model.named_parameters()}


def protected_local_step(
    defense: Defense, model: nn.Module, batch: Batch, progress: float, global_seed: int = 0, fresh: bool = True
) -> Stepped:
    """Step through the defense, and check what the step leaves alone.

    Args:
        defense: its `train_step` is called.
        model: a prepared model.
        batch: what to step on.
        progress: share of the training that is done.
        global_seed: of the global generators, which must not matter.
        fresh: whether `.grad` is emptied first.
    """
    who = hook(defense, "train_step")
    if fresh:
        model.zero_grad(set_to_none=True)
    step = LocalStep(model, batch.images, batch.labels, progress)
    context = client_context(round=1 + int(4 * progress), rounds=4)
    training, before = model.training, {name: weight.clone() for name, weight in weights(model).items()}
    calls = []

    def proceed(passed: LocalStep) -> Tensor:
        calls.append(passed)
        return plain_step(passed)

    with (
        seeded(global_seed, "testing"),
        no_global_effect(who),
        no_change(who, {"the images": batch.images, "the labels": batch.labels}),
    ):
        loss = defense.train_step(step, context, torch_generator(0, "testing", "step"), proceed)
    expect(
        bool(calls) != defense.replaces_gradient,
        f"{who} {'calls' if calls else 'never calls'} proceed, and replaces_gradient says that it computes the gradient "
        f"{'itself' if defense.replaces_gradient else 'by calling it'}.",
    )
    after = weights(model)
    expect(list(before) == list(after), f"{who} adds or removes parameters; prepare_model is for that.")
    expect(same(before, after), f"{who} changes weights; it may fill p.grad alone, and must restore what it tries.")
    expect(model.training == training, f"{who} switches between training and evaluation mode.")
    return Stepped(loss, _gradients(model))
