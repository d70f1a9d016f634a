"""Victim models and batches for the label benchmarks: untrained, and trained to a stated accuracy on the clients' pictures.

A trained state is reached by AdamW on all clients' pictures together, without augmentation, and stops at the first
evaluation that meets the accuracy: the one on the clients' own pictures, whose gradients are then attacked. Weights are
kept in a cache folder.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedsim import models
from fedsim.data.source import Pool, Pools
from fedsim.exchange import LabeledImages
from fedsim.scenario import ModelPart
from fedsim.seeds import torch_generator

SIZE = 32
MODEL = ModelPart(name="vit_micro", kwargs={"patch_size": 8})  # a quarter of the preset's tokens: trains in a minute
_BATCH, _RATE, _EVERY, _MOST_SECONDS = 64, 1e-3, 25, 300


class State(NamedTuple):
    """One victim: a model and how well it knows the pictures.

    Args:
        name: `untrained`, or the accuracy it was trained to.
        model: in evaluation mode.
        train_accuracy: on the clients' pictures.
        test_accuracy: on pictures that no client holds.
    """

    name: str
    model: nn.Module
    train_accuracy: float
    test_accuracy: float


class Batch(NamedTuple):
    """One client's batch; `index` tells batches of the same size apart."""

    images: Tensor
    labels: Tensor
    index: int


def in_memory(pool: Pool) -> Pool:
    """Return the pool with all its pictures read once."""
    pictures = pool.fetch(range(len(pool)))
    return Pool(pool.labels, lambda chosen: pictures[list(chosen)])


def untrained(pools: Pools, seed: int) -> State:
    """Return a model as timm initializes it."""
    model = models.build(MODEL, len(pools.class_names), SIZE, seed)
    return State("untrained", model, accuracy(model, pools.train, 500), accuracy(model, pools.test, 500))


def trained(pools: Pools, targets: list[float], cache: Path, key: str, seed: int = 0) -> list[State]:
    """Return one state per target accuracy, ascending, each trained on from the one before; from the cache where it has it.

    Args:
        pools: the clients' pictures are `train`.
        targets: accuracies on the clients' pictures.
        cache: folder of weights.
        key: what tells these pools and this seed from others in the cache.
        seed: of the initial weights and of the order of pictures.
    """
    cache.mkdir(parents=True, exist_ok=True)
    model, states = models.build(MODEL, len(pools.class_names), SIZE, seed), []
    for number, target in enumerate(targets):
        file = cache / f"{key}-{target:g}.safetensors"
        if not file.exists():
            _train(model, pools.train, target, _RATE / 3**number, seed)
            save_file(model.state_dict(), file)
        model.load_state_dict(load_file(file))
        name, victim = f"trained to {target:.0%}", copy.deepcopy(model)
        states.append(State(name, victim, accuracy(victim, pools.train, 2000), accuracy(victim, pools.test, 1000)))
    return states


def batches(pool: Pool, classes: int, size: int, count: int, first: int = 0) -> list[Batch]:
    """Return batches number `first` and on: labels drawn with replacement, the pictures of one batch all different."""
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
    """Return the attacker's own pictures, which no client holds."""
    return pools.auxiliary.read(range(len(pools.auxiliary)))


@torch.inference_mode()
def accuracy(model: nn.Module, pool: Pool, most: int) -> float:
    """Return the share of right answers among the first pictures of a pool."""
    normalization, right, count = models.normalization(model), 0, min(most, len(pool))
    for start in range(0, count, 100):
        known = pool.read(range(start, min(start + 100, count)))
        right += int((model(normalization.normalize(known.images)).argmax(1) == known.labels).sum())
    return right / count


def _train(model: nn.Module, pool: Pool, target: float, rate: float, seed: int) -> None:
    """Train until the target is met."""
    normalization, start = models.normalization(model), time.process_time()
    known = pool.read(range(len(pool)))
    images = normalization.normalize(known.images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    generator, step = torch_generator(seed, "train"), 0
    while time.process_time() - start < _MOST_SECONDS:
        for chosen in torch.randperm(len(pool), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(images[chosen]), known.labels[chosen]))
            optimizer.step()
            step += 1
            if step % _EVERY == 0 and accuracy(model, pool, 1000) >= target:
                return
    raise TimeoutError(f"{target:.0%} is not reached in {_MOST_SECONDS} s of training.")
