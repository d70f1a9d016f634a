"""Real updates of timm ViTs on real images, for the attacks' tests."""

from typing import Any

import torch

from fedsim import models
from fedsim.audit.threat import ModelFactory
from fedsim.data.photos import Photos
from fedsim.exchange import LabeledImages, Observation, TrainingKnowledge, Update
from fedsim.findings import blind
from fedsim.metrics.image import psnr
from fedsim.scenario import ModelPart
from fedsim.source import Pool

CLASSES = 10


def photos(size: int = 32) -> Pool:
    return Photos(image_size=size).load(0).train


def build(name: str = "vit_mini", size: int = 32, seed: int = 0, **kwargs: Any) -> torch.nn.Module:
    return models.build(ModelPart(name=name, kwargs=kwargs), CLASSES, size, seed)


def tiny_model(depth: int = 1) -> torch.nn.Module:
    """Return a ViT for images of 8 px: one block is enough where a test takes many passes, or pays for each tensor."""
    return build("vit_nano", 8, img_size=8, patch_size=4, embed_dim=32, num_heads=2, depth=depth)


def build_april(seed: int = 0, **kwargs: Any) -> torch.nn.Module:
    """Return a model whose first attention sees tokens and positions alone; 32 px, patch values as many as the width."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 12}
    part = ModelPart(name="vit_tiny_patch16_224", kwargs={**sizes, **kwargs}, first_block="april")
    return models.build(part, CLASSES, 32, seed)


def observe(model: torch.nn.Module, update: Update, size: int = 32, **granted: Any) -> Observation:
    shape = (3, size, size)
    return Observation(
        update, ModelFactory(model), shape, CLASSES, normalization=models.normalization(model), **granted
    )


def gradient(model: torch.nn.Module, batch: LabeledImages) -> Update:
    images = models.normalization(model).normalize(batch.images)
    return Update(1, 0, "gradient", models.gradient_of(model, images, batch.labels), len(batch))


def delta(model: torch.nn.Module, batch: LabeledImages, recipe: TrainingKnowledge, double: bool = False) -> Update:
    """Return what local SGD on one batch, again and again, sends as a delta."""
    trained = ModelFactory(model)()
    if double:
        trained = trained.double()
    before = {n: p.detach().clone() for n, p in trained.named_parameters()}
    groups = [
        {"params": [p], "weight_decay": 0.0 if n in recipe.decay_exempt else recipe.weight_decay}
        for n, p in trained.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    images = models.normalization(model).normalize(batch.images).to(next(trained.parameters()).dtype)
    for _ in range(recipe.local_steps or 1):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(trained(images), batch.labels).backward()
        optimizer.step()
    tensors = {n: (p.detach() - before[n]).float() for n, p in trained.named_parameters()}
    return Update(1, 0, "delta", tensors, len(batch))


def noisy(update: Update, multiplier: float, seed: int = 0) -> Update:
    """Return the update with Gaussian noise of `multiplier` times its norm in every entry."""
    generator, scale = torch.Generator().manual_seed(seed), multiplier * update.norm()
    tensors = {n: t + scale * torch.randn(t.shape, generator=generator) for n, t in update.tensors.items()}
    return Update(1, 0, update.kind, tensors, update.num_examples)


def decibels(found: torch.Tensor | None, batch: LabeledImages) -> float:
    assert found is not None
    return psnr(found[0], batch.images[0], 1.0)


def best_control(batch: LabeledImages) -> float:
    return max(decibels(guess(batch.images), batch) for guess in (blind.grey, blind.own_mean))
