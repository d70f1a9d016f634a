"""Batches for the image benchmarks: what a server sees of each, the truth behind it, and what blind guesses score on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn
from victims import State

from fedsim import models
from fedsim.audit.threat import ModelFactory
from fedsim.data.batches import FederatedData
from fedsim.defense import Defense
from fedsim.exchange import LabeledImages, Observation, Truth, Update
from fedsim.findings.blind import Auxiliary
from fedsim.metrics.scoring import Scores, controls
from fedsim.seeds import torch_generator
from fedsim.testing import client_context

Part = Literal["train", "test"]

METRICS = ("psnr", "ssim")
_TRAINING_HOOKS = ("protect_batch", "train_step")


class Case(NamedTuple):
    """One batch.

    Args:
        observation: the gradient; batch size and normalization are granted, labels are not.
        truth: for scoring alone.
        controls: what blind guesses score: control -> metric -> value.
        number: tells batches of one size apart.
        digest: of the weights and the batch.
    """

    observation: Observation
    truth: Truth
    controls: dict[str, Scores]
    number: int
    digest: str


def batches(data: FederatedData, part: Part, size: int, count: int, seed: int) -> list[LabeledImages]:
    """Return batches without an image in common, in an order that the seed alone decides.

    Args:
        data: the images and who holds them.
        part: `train`: batch k is drawn from the images of client k; `test`: batches of images that no client holds.
        size: images in a batch.
        count: batches.
        seed: of the order.

    Raises:
        ValueError: there are too few images or clients.
    """
    if part == "train":
        if count > len(data.partition):
            raise ValueError(f"{count} batches of one client each need more than {len(data.partition)} clients.")
        drawn = [
            _drawn(data.partition[client], size, seed, "pictures", "client", client, size) for client in range(count)
        ]
        return [data.pools.train.read(chosen) for chosen in drawn]
    order = _drawn(range(len(data.pools.test)), size * count, seed, "pictures", size)
    return [data.pools.test.read(order[start : start + size]) for start in range(0, size * count, size)]


def _drawn(samples: Sequence[int], count: int, seed: int, *path: str | int) -> list[int]:
    if count > len(samples):
        raise ValueError(f"{count} distinct images are more than the {len(samples)} there are.")
    order = torch.randperm(len(samples), generator=torch_generator(seed, *path))[:count]
    return [samples[place] for place in order.tolist()]


def cases(
    state: State,
    data: FederatedData,
    part: Part,
    size: int,
    count: int,
    seed: int,
    defense: Defense | None,
    auxiliary: bool,
) -> list[Case]:
    """Return batches of images of one size, and their gradients at one state.

    Args:
        state: the victim.
        data: its images and who holds them.
        part: the pool that batches are drawn from, see `batches`.
        size: images in a batch.
        count: batches.
        seed: of the batches, and of a defense's noise.
        defense: protects the gradient.
        auxiliary: whether the attacker is granted other images.

    Raises:
        ValueError: the defense changes the training rather than the gradient; too few images.
    """
    pools = data.pools
    known = pools.auxiliary.read(range(len(pools.auxiliary)))
    blind = Auxiliary(known.images.mean(0), known.labels, len(pools.class_names))
    normalization, weights = models.normalization(state.model), _digest_weights(state.model)
    made = []
    for number, batch in enumerate(batches(data, part, size, count, seed)):
        gradient = models.gradient_of(state.model, normalization.normalize(batch.images), batch.labels)
        update = Update(1, 0, "gradient", gradient, size)
        if defense is not None:
            update = protected(defense, state.model, update, torch_generator(seed, "defense", size, number))
        shape = (int(batch.images.shape[1]), int(batch.images.shape[2]), int(batch.images.shape[3]))
        observation = Observation(
            update,
            ModelFactory(state.model),
            shape,
            len(pools.class_names),
            batch_size=size,
            normalization=normalization,
            auxiliary_data=known if auxiliary else None,
        )
        truth = Truth(batch.images, batch.labels)
        guesses = controls(METRICS, truth, blind, None)
        made.append(Case(observation, truth, guesses, number, _digest(weights, batch)))
    return made


def protected(defense: Defense, model: nn.Module, update: Update, generator: torch.Generator) -> Update:
    """Return the update that a defense of updates sends.

    Raises:
        ValueError: the defense changes the batch or the step of training, which is not played here.
    """
    for hook in _TRAINING_HOOKS:
        if getattr(type(defense), hook) is not getattr(Defense, hook):
            raise ValueError(f"{type(defense).__name__} changes the training; give a defense that protects the update.")
    defense.prepare_model(model)
    return defense.protect_update(update, client_context(num_examples=update.num_examples), generator)


def _digest_weights(model: nn.Module) -> bytes:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.digest()


def _digest(weights: bytes, batch: LabeledImages) -> str:
    parts = [weights, batch.images.numpy().tobytes(), batch.labels.numpy().tobytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]
