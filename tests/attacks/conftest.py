"""What the tests of attacks share: photographs, tiny models, and observations made of both."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim import models
from fedsim.data.photos import Photos
from fedsim.exchange import LabeledImages, Observation, Update, UpdateKind
from fedsim.scenario import ModelPart
from fedsim.threat import ModelFactory

CLASSES = 10


@pytest.fixture(scope="session")
def photos() -> LabeledImages:
    """Thirty-two natural pictures of 32 pixels."""
    pool = Photos(image_size=32).load(0).train
    return pool.read(range(0, len(pool), len(pool) // 32)[:32])


@pytest.fixture(scope="session")
def vit() -> Callable[..., nn.Module]:
    """Return a function: timm kwargs, seed -> a small ViT; without kwargs the preset vit_mini."""

    def build(seed: int = 0, name: str = "vit_mini", size: int = 32, **kwargs: Any) -> nn.Module:
        return models.build(ModelPart(name=name, kwargs=kwargs), CLASSES, size, seed)

    return build


@pytest.fixture(scope="session")
def observe() -> Callable[..., Observation]:
    """Return a function: model, pictures, labels -> the observation of their gradient, or of given tensors."""

    def make(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        kind: UpdateKind = "gradient",
        tensors: Mapping[str, Tensor] | None = None,
        **grants: Any,
    ) -> Observation:
        normalization = models.normalization(model)
        if tensors is None:
            tensors = models.gradient_of(model, normalization.normalize(images), labels)
        known = {"batch_size": len(images), "normalization": normalization, **grants}
        update = Update(1, 0, kind, tensors, len(images))
        return Observation(update, ModelFactory(model), tuple(images.shape[1:]), CLASSES, **known)

    return make


@pytest.fixture(scope="session")
def with_noise() -> Callable[..., Observation]:
    """Return a function: observation, multiplier, seed -> the same with noise of multiplier * norm in each entry."""

    def add(seen: Observation, multiplier: float, seed: int = 0) -> Observation:
        generator, sigma = torch.Generator().manual_seed(seed), multiplier * seen.update.norm()
        tensors = {n: t + sigma * torch.randn(t.shape, generator=generator) for n, t in seen.update.tensors.items()}
        update = Update(1, 0, seen.update.kind, tensors, seen.update.num_examples)
        return Observation(
            update, seen.model, seen.image_shape, seen.num_classes, seen.batch_size, normalization=seen.normalization
        )

    return add
