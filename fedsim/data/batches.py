"""What a client trains on in a round: a pure function of (seed, client, round)."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from fedsim import plugins
from fedsim.data import augmentation, mixup
from fedsim.data.augmentation import Placement
from fedsim.data.mixup import Mixture
from fedsim.data.partition import deal
from fedsim.errors import ScenarioError
from fedsim.exchange import LabeledImages, Truth
from fedsim.labels import distributions, smooth
from fedsim.scenario import DataPart, Sampling, TrainingPart
from fedsim.seeds import derive, numpy_generator
from fedsim.source import Pool, Pools, Source

Step = tuple[int, ...]
Inputs = tuple[Mixture, ...]


@dataclass(frozen=True)
class FederatedData:
    """The pools of a source and how the training pool is dealt.

    Args:
        pools: training, test and auxiliary images.
        partition: numbers of the training samples of each client.
        seed: of the scenario; moves the order in which a client uses its samples.
    """

    pools: Pools
    partition: tuple[tuple[int, ...], ...]
    seed: int

    @functools.cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        channels, height, width = self.pools.train.read([0]).images.shape[1:]
        return channels, height, width

    def client_steps(
        self,
        client: int,
        round: int,
        batch_size: int,
        local_steps: int | None = None,
        local_epochs: int | None = None,
        sampling: Sampling = "shuffle",
    ) -> list[Step]:
        """Return the sample numbers, in the training pool, of each local step of a round.

        With steps (one by default), successive rounds walk on through the client's samples: each pass takes them in a
        new order, whole batches only, so that no batch holds a sample twice and every batch is full. With epochs, each
        epoch of each round is a pass of its own, and its last batch may be smaller.

        Poisson sampling takes each of the client's samples into each step with probability batch size / samples, independently
        of all other samples and steps. An epoch is then as many steps as a pass has; a batch may be empty.

        Args:
            client: partition number, from 0.
            round: server round, from 1.
            batch_size: samples a step, in Poisson sampling their expected number; all samples of the client where it has fewer.
            local_steps: steps in the round.
            local_epochs: passes in the round; excludes `local_steps`.
            sampling: how a step takes its samples.
        """
        count = len(self.partition[client])
        size = min(batch_size, count)
        if sampling == "poisson":
            steps = local_steps or 1 if local_epochs is None else local_epochs * -(-count // size)
            return [self._drawn(client, round, step, size / count) for step in range(steps)]
        if local_epochs is not None:
            passes = [self._shuffled(client, "epoch", round, epoch) for epoch in range(local_epochs)]
            return [samples[start : start + size] for samples in passes for start in range(0, count, size)]
        steps = local_steps or 1
        places = [divmod(step, count // size) for step in range((round - 1) * steps, round * steps)]
        turns = {turn: self._shuffled(client, "pass", turn) for turn, _ in places}
        return [turns[turn][place * size : (place + 1) * size] for turn, place in places]

    def client_inputs(self, client: int, round: int, training: TrainingPart) -> list[Inputs]:
        """Return what each local step of a round trains on; `read` makes it.

        With mixup, the same sample is blended anew whenever it is used, and with augmentation placed anew.
        """
        steps = self._mixtures(client, round, training)
        if not training.augment:
            return steps
        return [
            tuple(self._placed(mixture, training, client, round, index) for mixture in step)
            for index, step in enumerate(steps)
        ]

    def _mixtures(self, client: int, round: int, training: TrainingPart) -> list[Inputs]:
        """Return what each local step is made of, before augmentation."""
        steps = self._steps(client, round, training)
        if training.mixup is None:
            return [mixup.unmixed(step) for step in steps]
        own = self.partition[client]
        return [
            mixup.draw(step, own, training.mixup, numpy_generator(self.seed, "mixup", client, round, index))
            for index, step in enumerate(steps)
        ]

    def _placed(self, mixture: Mixture, training: TrainingPart, client: int, round: int, step: int) -> Mixture:
        """Return an input whose images are placed by draws of their own, which no other image of the client has a say in."""
        _, height, width = self.image_shape

        def drawn(*path: int) -> Placement:
            seed = derive(self.seed, "augment", client, round, step, *path)
            return augmentation.draw(training.augment, height, width, seed)

        own = drawn(mixture.sample)
        other = own if mixture.partner == mixture.sample else drawn(mixture.sample, mixture.partner)
        return mixture._replace(placement=own, partner_placement=other)

    def client_examples(self, client: int, round: int, training: TrainingPart) -> int:
        """Return what an honest client reports as Flower's `num-examples` in a round.

        That is the number of distinct images that it trains on, however often it uses each: the size of its data where it
        runs epochs. Where it runs steps, images that no step uses do not count. Partners that mixup blends in do not either.
        With Poisson sampling it is the size of its data in any case: how many images were drawn is not to be told, and may be
        none, which no average could weigh.
        """
        if training.sampling == "poisson":
            return len(self.partition[client])
        return self.images_used(client, round, training)

    def images_used(self, client: int, round: int, training: TrainingPart) -> int:
        """Return how many distinct images a client trains on in a round, without the partners that mixup blends in."""
        return len(set(chain.from_iterable(self._steps(client, round, training))))

    def read(self, inputs: Sequence[Mixture], training: TrainingPart) -> LabeledImages:
        """Return training inputs: pixels augmented and blended in [0, 1], labels blended, then smoothed; hard without either.

        Augmentation comes before mixup, and changes no label.
        """
        if not inputs:  # an empty batch, of the shapes that any other has
            shaped = self.read(mixup.unmixed([0]), training)
            return LabeledImages(shaped.images[:0], shaped.labels[:0])
        pool, classes = self.pools.train, len(self.pools.class_names)
        first = pool.read([mixture.sample for mixture in inputs])
        images = augmentation.augmented(first.images, [mixture.placement for mixture in inputs])
        if training.mixup is None and not training.label_smoothing:
            return LabeledImages(images, first.labels)
        labels = distributions(first.labels, classes)
        if training.mixup is not None:
            second = pool.read([mixture.partner for mixture in inputs])
            shares = [mixture.share for mixture in inputs]
            others = augmentation.augmented(second.images, [mixture.partner_placement for mixture in inputs])
            images = mixup.blend(images, others, shares)
            labels = mixup.blend(labels, distributions(second.labels, classes), shares)
        return LabeledImages(images, smooth(labels, training.label_smoothing))

    def truth(self, client: int, round: int, training: TrainingPart) -> Truth:
        """Return every distinct input that the client trained on in a round, in the order of first use.

        Without mixup and augmentation an input is an image, used once or in several steps; with them, almost every use is an
        input of its own.
        With Poisson sampling there may be none.
        """
        read = self.read(self._inputs(client, round, training), training)
        return Truth(read.images, read.labels, self.images_used(client, round, training))

    def verify(self, rounds: int, training: TrainingPart) -> dict[str, str]:
        """Read every image that a run may use, so that a damaged one is refused before the first gradient.

        Returns:
            SHA-256 of the class names, the partition, and the images with labels that each pool gives to the run.

        Raises:
            ScenarioError: an image is damaged.
        """
        return {
            "class names": _digest_of(self.pools.class_names),
            "partition": _digest_of(self.partition),
            "train": _digest_of_images(self.pools.train, self._used_by_all(rounds, training)),
            "test": _digest_of_images(self.pools.test, range(len(self.pools.test))),
            "auxiliary": _digest_of_images(self.pools.auxiliary, range(len(self.pools.auxiliary))),
        }

    def notes(self, rounds: int, training: TrainingPart) -> tuple[str, ...]:
        """Return what a user should know of the images that a run may use: which are left out, how they are converted.

        Raises:
            ScenarioError: an image is damaged.
        """
        pools, used = self.pools, self._used_by_all(rounds, training)
        pictures = [(pools.train, used), *((pool, range(len(pool))) for pool in (pools.test, pools.auxiliary))]
        phrases = Counter(phrase for pool, samples in pictures for one in samples for phrase in pool.conversions(one))
        total = sum(len(samples) for _, samples in pictures)
        return (
            *pools.notes,
            *(f"data: {count} of {total} images used: {phrase}." for phrase, count in phrases.items()),
        )

    def _used_by_all(self, rounds: int, training: TrainingPart) -> list[int]:
        clients = range(len(self.partition))
        inputs = {
            one
            for c in clients
            for r in range(1, rounds + 1)
            for step in self._mixtures(c, r, training)
            for one in step
        }
        return sorted({sample for one in inputs for sample in (one.sample, one.partner)})

    def _inputs(self, client: int, round: int, training: TrainingPart) -> list[Mixture]:
        return list(dict.fromkeys(chain.from_iterable(self.client_inputs(client, round, training))))

    def _steps(self, client: int, round: int, training: TrainingPart) -> list[Step]:
        lengths = training.batch_size, training.local_steps, training.local_epochs
        return self.client_steps(client, round, *lengths, training.sampling)

    def _drawn(self, client: int, round: int, step: int, rate: float) -> Step:
        samples = np.asarray(self.partition[client])
        drawn = numpy_generator(self.seed, "poisson", client, round, step).random(len(samples)) < rate
        return tuple(samples[drawn].tolist())

    def _shuffled(self, client: int, *path: str | int) -> Step:
        samples = np.asarray(self.partition[client])
        order = numpy_generator(self.seed, "batches", client, *path).permutation(len(samples))
        return tuple(samples[order].tolist())


def _digest_of(value: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _digest_of_images(pool: Pool, samples: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        picture = pool.fetch([sample])
        digest.update(json.dumps([sample, int(pool.labels[sample]), *picture.shape]).encode())
        digest.update(picture.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load(part: DataPart, clients: int, seed: int) -> FederatedData:
    """Build the source of a scenario, check what it delivers, and deal the training pool to the clients.

    Raises:
        ScenarioError: the source, its parameters or its files are at fault, or the partition is impossible.
        PluginError: a source that breaks the contract.
    """
    source: Source = plugins.build("data", Source, part.name, part.params, "data")
    pools = source.load(seed)
    _check(pools)
    return FederatedData(pools, deal(pools.train.labels.tolist(), part.partition, clients, seed), seed)


def _check(pools: Pools) -> None:
    classes = len(pools.class_names)
    if classes < 2:
        raise ScenarioError("data", f"{classes} class; a classifier needs at least 2.")
    shapes = {}
    for name, pool in (("training", pools.train), ("test", pools.test), ("auxiliary", pools.auxiliary)):
        if not len(pool):
            raise ScenarioError("data", f"the {name} pool is empty.")
        if int(pool.labels.min()) < 0 or int(pool.labels.max()) >= classes:
            raise ScenarioError("data", f"the {name} pool has labels outside 0 to {classes - 1}.")
        shapes[name] = tuple(pool.fetch([0]).shape[1:])
    channels, height, width = shapes["training"]
    for name, shape in shapes.items():
        if shape != (channels, height, width):
            raise ScenarioError("data.image_size", f"{name} images have shape {shape}, training {shapes['training']}.")
