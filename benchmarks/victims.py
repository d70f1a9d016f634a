"""Victim models for the benchmarks: how they are trained, how well they know images, and where their weights are kept."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fedsim import models
from fedsim.seeds import torch_generator
from fedsim.source import Pool, Pools

JUDGED = 1000  # images of an evaluation during training


class State(NamedTuple):
    """One victim: a model and how well it knows the images.

    Args:
        name: how far it is trained.
        model: in evaluation mode.
        train_accuracy: on the clients' images.
        test_accuracy: on images that no client holds.
    """

    name: str
    model: nn.Module
    train_accuracy: float
    test_accuracy: float


class Recipe(NamedTuple):
    """AdamW with weight decay 0.05 until an accuracy is met.

    Args:
        rate: learning rate.
        batch_size: images a step.
        every: steps between two evaluations.
        most_seconds: processor time after which to give up.
        decay: steps over which the learning rate falls to zero, where training ends; None keeps it.
        mirrored: whether half of the images of each step, at random, are mirrored; else nothing is augmented.
    """

    rate: float
    batch_size: int
    every: int
    most_seconds: float
    decay: int | None = None
    mirrored: bool = False


def in_memory(pool: Pool) -> Pool:
    """Return the pool with all its images read once."""
    pictures = pool.fetch(range(len(pool)))
    return Pool(pool.labels, lambda chosen: pictures[list(chosen)])


def all_in_memory(pools: Pools) -> Pools:
    """Return the three pools with all their images read once."""
    return dataclasses.replace(
        pools, **{part: in_memory(getattr(pools, part)) for part in ("train", "test", "auxiliary")}
    )


def assess(name: str, model: nn.Module, pools: Pools, train: int, test: int) -> State:
    """Return a state, its accuracies on that many images at most."""
    return State(name, model, accuracy(model, pools.train, train), accuracy(model, pools.test, test))


@torch.inference_mode()
def accuracy(model: nn.Module, pool: Pool, most: int) -> float:
    """Return the share of right answers among the first images of a pool."""
    normalization, right, count = models.normalization(model), 0, min(most, len(pool))
    for start in range(0, count, 100):
        known = pool.read(range(start, min(start + 100, count)))
        right += int((model(normalization.normalize(known.images)).argmax(1) == known.labels).sum())
    return right / count


def kept(file: Path, model: nn.Module, make: Callable[[nn.Module], None]) -> None:
    """Load a model's weights from a file; where there is none, make them and write it."""
    if not file.exists():
        make(model)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), file)
    model.load_state_dict(load_file(file))


def train(model: nn.Module, pool: Pool, recipe: Recipe, judge: Pool, target: float, seed: int) -> None:
    """Train until the model is right on so many of the first images of `judge`, or the learning rate is used up.

    Raises:
        TimeoutError: that takes longer than the recipe allows.
    """
    normalization, start = models.normalization(model), time.process_time()
    known = pool.read(range(len(pool)))
    images = normalization.normalize(known.images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.05)
    generator, step = torch_generator(seed, "train"), 0
    while time.process_time() - start < recipe.most_seconds:
        for chosen in torch.randperm(len(pool), generator=generator).split(recipe.batch_size):
            if recipe.decay is not None:
                optimizer.param_groups[0]["lr"] = recipe.rate * (1 - step / recipe.decay)
            batch = images[chosen]
            if recipe.mirrored:
                batch = torch.where(torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5, batch.flip(-1), batch)
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(batch), known.labels[chosen]))
            optimizer.step()
            step += 1
            if (step % recipe.every == 0 and accuracy(model, judge, JUDGED) >= target) or step == recipe.decay:
                return
    raise TimeoutError(f"{target:.0%} is not reached in {recipe.most_seconds:g} s of training.")
