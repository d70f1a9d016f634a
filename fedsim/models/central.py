"""Weights from training on one pool of images, before any client trains; kept in a cache, which decides nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsim import network_cache, progress
from fedsim.errors import ScenarioError, told
from fedsim.models.copying import copied
from fedsim.models.interface import normalization
from fedsim.scenario import CentralPart
from fedsim.seeds import numpy_generator, seeded, torch_threads
from fedsim.source import Pool

_WHERE = "model.pretrained.central"
_CACHE = "starts"
_RECIPE = 1  # raised whenever the same images give other weights
_MOMENTUM = 0.9
_READ = 256  # images that are read at once
_TRIED = 8  # images of the step that is tried


def train(model: nn.Module, part: CentralPart, pool: Pool, seed: int, identity: str) -> tuple[str, ...]:
    """Train a model in place, or take what the same training has given before out of the cache.

    The weights depend on the model as it is, the recipe, the images and the seed alone. Several processes may train the same at
    once: each writes a whole file.

    Args:
        model: with the weights to begin with; in evaluation mode afterwards.
        part: the recipe.
        pool: the images; no other is read.
        seed: of the scenario.
        identity: tells models apart that have the same parameters.

    Returns:
        What was done, as a sentence.

    Raises:
        ScenarioError: the weights do not stay finite.
    """
    key = _key(model, part, pool, seed, identity)
    if not network_cache.load(model, _CACHE, key):
        with seeded(seed, "central"), torch_threads(1), torch.enable_grad():
            _train(model, part, pool, seed)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
            raise ScenarioError(
                f"{_WHERE}.learning_rate",
                f"got {part.learning_rate:g}, and the weights do not stay finite. Lower it.",
            )
        network_cache.store(model, _CACHE, key)
    model.eval()
    recipe = f"{part.epochs} epochs of {part.optimizer}, learning rate {part.learning_rate:g}"
    return (
        f"model.pretrained: trained centrally on the {len(pool)} auxiliary images, {recipe}, before the first round "
        f"({key[:12]}).",
    )


def check(model: nn.Module, part: CentralPart, pool: Pool, seed: int) -> None:
    """Try one step on a copy of the model.

    Raises:
        ScenarioError: the model cannot be trained so, as one with BatchNorm on a single image.
    """
    _trial(model, part, pool, seed)


def _trial(model: nn.Module, part: CentralPart, pool: Pool, seed: int) -> list[torch.Tensor]:
    """Return logits and gradient of a copy of the model on some images, in training mode.

    Raises:
        ScenarioError: the model cannot be trained so.
    """
    tried, count = copied(model).train(), min(part.batch_size, len(pool), _TRIED)
    read = pool.read(range(count))
    try:
        with seeded(seed, "central", "trial"), torch_threads(1), torch.enable_grad():
            logits = tried(normalization(model).normalize(read.images))
            torch.autograd.backward(cross_entropy(logits, read.labels))
    except Exception as error:  # (boundary: the model may be anybody's)
        raise ScenarioError(
            _WHERE, f"a step on {count} images fails: {told(error)}. Raise batch_size and data.auxiliary_samples."
        ) from error
    return [logits.detach(), *(parameter.grad for parameter in tried.parameters() if parameter.grad is not None)]


def _train(model: nn.Module, part: CentralPart, pool: Pool, seed: int) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if part.optimizer == "sgd":
        optimizer = torch.optim.SGD(trained, part.learning_rate, _MOMENTUM, weight_decay=part.weight_decay)
    else:
        optimizer = torch.optim.AdamW(trained, part.learning_rate, weight_decay=part.weight_decay)
    normalize, size = normalization(model).normalize, min(part.batch_size, len(pool))
    total = part.epochs * (len(pool) // size)
    model.train()
    for step, batch in enumerate(_batches(part.epochs, size, len(pool), seed)):
        optimizer.param_groups[0]["lr"] = part.learning_rate * (1 + math.cos(math.pi * step / total)) / 2
        read = pool.read(batch)
        loss = cross_entropy(model(normalize(read.images)), read.labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        progress.advance(step + 1, total, float(loss.detach()))


def _batches(epochs: int, size: int, count: int, seed: int) -> Iterator[list[int]]:
    # Whole batches, as clients take them: BatchNorm cannot train on a last one of a single image.
    for epoch in range(epochs):
        order = numpy_generator(seed, "central", epoch).permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size].tolist()


def _key(model: nn.Module, part: CentralPart, pool: Pool, seed: int, identity: str) -> str:
    """Return a digest of all that the weights are a function of."""
    versions = (_RECIPE, torch.__version__, timm.__version__, np.__version__)
    digest = hashlib.sha256(repr((versions, part.model_dump(), seed, identity, normalization(model))).encode())
    # What the model computes: its factory may build on modules that have changed.
    for tensor in _trial(model, part, pool, seed):
        digest.update(tensor.contiguous().numpy().tobytes())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    for start in range(0, len(pool), _READ):
        images = pool.fetch(range(start, min(start + _READ, len(pool))))
        digest.update(f"{tuple(images.shape)} {images.dtype}\n".encode())
        digest.update(images.contiguous().numpy().tobytes())
    digest.update(pool.labels.to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()
