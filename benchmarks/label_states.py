"""Victim models and batches for the label benchmarks: untrained, and trained to a stated accuracy on the clients' images.

A trained state is reached by AdamW on all clients' images together, without augmentation, and stops at the first
evaluation that meets the accuracy: the one on the clients' own images, whose gradients are then attacked. Weights are
kept in a cache folder.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from victims import Recipe, State, assess, kept, train

from fedsim import models
from fedsim.exchange import LabeledImages
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator
from fedsim.source import Pool, Pools

SIZE = 32
MODEL = ModelPart(name="vit_micro", kwargs={"patch_size": 8})  # a quarter of the preset's tokens: trains in a minute
_RATE = 1e-3


class Batch(NamedTuple):
    """One client's batch; `index` tells batches of the same size apart."""

    images: Tensor
    labels: Tensor
    index: int


def untrained(pools: Pools, seed: int) -> State:
    """Return a model as timm initializes it."""
    model = models.build(MODEL, len(pools.class_names), SIZE, seed)
    return assess("untrained", model, pools, 500, 500)


def trained(pools: Pools, targets: list[float], cache: Path, key: str, seed: int = 0) -> list[State]:
    """Return one state per target accuracy, ascending, each trained on from the one before; from the cache where it has it.

    Args:
        pools: the clients' images are `train`.
        targets: accuracies on the clients' images.
        cache: folder of weights.
        key: what tells these pools and this seed from others in the cache.
        seed: of the initial weights and of the order of images.
    """
    model, states = models.build(MODEL, len(pools.class_names), SIZE, seed), []
    for number, target in enumerate(targets):
        recipe = Recipe(_RATE / 3**number, batch_size=64, every=25, most_seconds=300)
        go_on = functools.partial(train, pool=pools.train, recipe=recipe, judge=pools.train, target=target, seed=seed)
        kept(cache / f"{key}-{target:g}.safetensors", model, go_on)
        states.append(assess(f"trained to {target:.0%}", copy.deepcopy(model), pools, 2000, 1000))
    return states


def batches(pool: Pool, classes: int, size: int, count: int, first: int = 0) -> list[Batch]:
    """Return batches number `first` and on: labels drawn with replacement, the images of one batch all different."""
    members = [(pool.labels == c).nonzero()[:, 0] for c in range(classes)]
    drawn = []
    for index in range(first, first + count):
        generator = torch_generator(index, "batch", size)
        labels = torch.randint(classes, (size,), generator=generator)
        chosen = torch.empty_like(labels)
        for c in labels.unique():
            mine = labels == c
            order = torch.randperm(len(members[c]), generator=generator)
            chosen[mine] = members[c][order[: int(mine.sum())]]
        drawn.append(Batch(pool.read(chosen.tolist()).images, labels, index))
    return drawn


def head_gradient(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy at the classifier, by parameter name."""
    normalization, (names,) = models.normalization(model), models.head_names(model)
    (inputs,) = models.head_inputs(model, normalization.normalize(batch.images))
    head = nn.Linear(inputs.shape[1], model.get_parameter(names.weight).shape[0])
    head.load_state_dict(model.get_submodule(names.weight.rpartition(".")[0]).state_dict())
    gradients = torch.autograd.grad(nn.functional.cross_entropy(head(inputs), batch.labels), list(head.parameters()))
    return dict(zip(names, gradients, strict=True))  # type: ignore[arg-type]


def auxiliary(pools: Pools) -> LabeledImages:
    """Return the attacker's own images, which no client holds."""
    return pools.auxiliary.read(range(len(pools.auxiliary)))
