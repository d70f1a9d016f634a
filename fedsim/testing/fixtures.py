"""Small real material for tests: a model, images, an update, and what an attacker observes of it."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import replace
from typing import Any, get_args

import torch
from timm.models import VisionTransformer
from torch import nn

from fedsim import models
from fedsim.attack import Need
from fedsim.data.candidates import candidates
from fedsim.defense import ClientContext
from fedsim.exchange import (
    Candidates,
    LabeledImages,
    Labels,
    Observation,
    TrainingKnowledge,
    Truth,
    Update,
    UpdateKind,
)
from fedsim.labels import without_order
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator
from fedsim.source import Pool

_RECIPE = TrainingKnowledge("sgd", 0.01, 0.0, 0.0, 1, None)

ALL_GRANTS: frozenset[Need] = frozenset(get_args(Need))

_DEFAULT_GRANTS: frozenset[Need] = frozenset({"batch_size", "normalization"})
_IMAGE_SHAPE = (3, 32, 32)  # the input of vit_nano


def small_model(num_classes: int = 10, seed: int = 0) -> VisionTransformer:
    """Return the preset `vit_nano`, untrained, in evaluation mode: 0.2 M parameters, input (3, 32, 32)."""
    model = models.build(ModelPart(name="vit_nano"), num_classes, _IMAGE_SHAPE[1], seed)
    assert isinstance(model, VisionTransformer)
    return model


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """Return channels, height and width of the input of a timm ViT."""
    grid = models.patch_grid(model)
    return grid.channels, grid.rows * grid.patch, grid.columns * grid.patch


def client_context(**changes: Any) -> ClientContext:
    """Return what the hooks of a defense get: client 0 in round 1 of 4, one step of SGD on one of its ten images.

    Args:
        changes: fields with other values.
    """
    usual = ClientContext(
        round=1, rounds=4, client=0, training=_RECIPE, batch_size=1, num_examples=10, steps=1, class_counts=(1,) * 10
    )
    return replace(usual, **{"state": {}, "logged": {}, **changes})


def random_images(
    generator: torch.Generator,
    count: int = 1,
    num_classes: int = 10,
    labels: Labels | None = None,
    image_shape: tuple[int, int, int] = _IMAGE_SHAPE,
) -> LabeledImages:
    """Return smooth random images, pixels in [0, 1], with labels.

    Args:
        generator: of every draw.
        count: how many.
        num_classes: labels are drawn from 0 to this, excluded.
        labels: use these, one an image, hard or soft, instead of drawing them.
        image_shape: channels, height and width; that of `small_model` unless given.
    """
    channels, *size = image_shape
    coarse = torch.rand(count, channels, 8, 8, generator=generator)
    images = nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    drawn = torch.randint(num_classes, (count,), generator=generator)
    return LabeledImages(images, drawn if labels is None else labels)


def make_update(
    model: nn.Module,
    pictures: LabeledImages,
    kind: UpdateKind = "gradient",
    learning_rate: float = 0.01,
    local_steps: int = 1,
) -> Update:
    """Return what an unprotected client sends that trains `model`, which stays as it is, on `pictures`.

    Args:
        model: a timm ViT with the round's global weights.
        pictures: one batch.
        kind: `gradient` of the mean loss, or the `delta` of plain SGD.
        learning_rate: of SGD; no matter for a gradient.
        local_steps: steps of SGD, each on the whole batch; no matter for a gradient.
    """
    inputs = models.normalization(model).normalize(pictures.images)
    if kind == "gradient":
        tensors = models.gradient_of(model, inputs, pictures.labels)
    else:
        trained = models.copied(model)
        for _ in range(local_steps):
            gradient = models.gradient_of(trained, inputs, pictures.labels)
            with torch.no_grad():
                for name, parameter in models.trained(trained).items():
                    parameter.sub_(gradient[name], alpha=learning_rate)
        before = models.trained(model)
        tensors = {name: after.detach() - before[name].detach() for name, after in models.trained(trained).items()}
    return Update(1, 0, kind, tensors, len(pictures))


def observation(
    pictures: LabeledImages,
    kind: UpdateKind = "gradient",
    grants: Collection[Need] = _DEFAULT_GRANTS,
    learning_rate: float = 0.01,
    local_steps: int = 1,
    model: VisionTransformer | None = None,
    update: Update | None = None,
) -> Observation:
    """Return what an attacker sees of a client that trained on one batch of images.

    Args:
        pictures: the client's batch.
        kind: what the client shares.
        grants: what the attacker is told beside the update and the model; a scenario's default unless given.
        learning_rate: of the client's SGD.
        local_steps: steps of SGD, each on the whole batch.
        model: the global model; `small_model()` unless given.
        update: what the client sent, for example after a defense; an unprotected client's unless given.
    """
    shared = small_model() if model is None else model
    shape, classes = image_shape(shared), shared.num_classes
    if update is None:
        update = make_update(shared, pictures, kind, learning_rate, local_steps)
    recipe = TrainingKnowledge("sgd", learning_rate, 0.0, 0.0, local_steps, None)
    auxiliary = random_images(torch_generator(0, "testing", "auxiliary"), 2 * classes, classes, image_shape=shape)
    return Observation(
        update=update,
        model=functools.partial(models.copied, shared.eval()),
        image_shape=shape,
        num_classes=classes,
        batch_size=len(pictures) if "batch_size" in grants else None,
        labels=without_order(pictures.labels) if "labels" in grants else None,
        normalization=models.normalization(shared) if "normalization" in grants else None,
        training=recipe if "training" in grants else None,
        train_mode=False if "train_mode" in grants else None,
        defenses=() if "defenses" in grants else None,
        auxiliary_data=auxiliary if "auxiliary_data" in grants else None,
        candidates=_candidates(pictures, auxiliary) if "candidates" in grants else None,
    )


def _candidates(pictures: LabeledImages, others: LabeledImages) -> Candidates:
    pool = Pool(others.labels, lambda samples: (255 * others.images[list(samples)]).to(torch.uint8))
    return candidates(Truth(pictures.images, pictures.labels), pool, 0)[0]
