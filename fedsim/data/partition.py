"""How training samples are dealt to clients: runs of the shuffled samples, or by the partitioners of flwr-datasets."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.errors import ScenarioError
from fedsim.scenario import PartitionPart
from fedsim.seeds import derive, numpy_generator

DEFAULT_ALPHA = 0.5
DEFAULT_SHARDS = 2


def deal(labels: Sequence[int], part: PartitionPart, clients: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Return each client's sample numbers: disjoint, none empty, in random order.

    Every sample is dealt, with three exceptions: `sizes` that sum to less, the rest that fills no shard, and classes
    that no client drew under `pathological`.

    Args:
        labels: class of every sample.
        part: name and parameters of the partition.
        clients: how many to deal to.
        seed: of the scenario.

    Raises:
        ScenarioError: the samples cannot be dealt so that every client gets one.
    """
    _check(labels, part, clients)
    order = numpy_generator(seed, "partition").permutation(len(labels))
    if part.name in ("iid", "sizes"):
        return _in_runs(order, part, clients)
    import datasets  # takes a second to import

    index = datasets.Dataset.from_dict({"sample": order, "label": np.asarray(labels)[order]})
    partitioner = _partitioner(part, clients, derive(seed, "partition", part.name))
    # They warn of every draw they repeat, of samples left over, and of pyarrow's deprecations; failures raise.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            partitioner.dataset = index
            dealt = [partitioner.load_partition(client)["sample"][:] for client in range(clients)]
        except ValueError:
            raise _refusal(labels, part, clients) from None
    return tuple(tuple(int(sample) for sample in samples) for samples in dealt)


def _in_runs(order: np.ndarray, part: PartitionPart, clients: int) -> tuple[tuple[int, ...], ...]:
    """Return one run of the order per client, as flwr-datasets cuts them, whose import takes two seconds."""
    runs = np.array_split(order, clients) if part.sizes is None else np.split(order, np.cumsum(part.sizes))[:clients]
    return tuple(tuple(run.tolist()) for run in runs)


def _check(labels: Sequence[int], part: PartitionPart, clients: int) -> None:
    count, classes = len(labels), len(set(labels))
    if clients > count:
        raise ScenarioError("data.partition", f"{clients} clients and {count} training samples; each client needs one.")
    shards = part.shards_per_client or DEFAULT_SHARDS
    if part.name == "shards" and clients * shards > count:
        raise ScenarioError(
            "data.partition.shards_per_client",
            f"{clients} clients with {shards} shards each need {clients * shards} training samples, there are {count}.",
        )
    if part.classes_per_client is not None and part.classes_per_client > classes:
        raise ScenarioError(
            "data.partition.classes_per_client",
            f"{part.classes_per_client} is more than the {classes} classes of the training samples.",
        )
    if part.sizes is not None and len(part.sizes) != clients:
        raise ScenarioError(
            "data.partition.sizes", f"{len(part.sizes)} sizes for {clients} clients; give one for each."
        )
    if part.sizes is not None and sum(part.sizes) > count:
        raise ScenarioError(
            "data.partition.sizes", f"they sum to {sum(part.sizes)}, there are {count} training samples."
        )


def _partitioner(part: PartitionPart, clients: int, seed: int) -> Any:
    from flwr_datasets import partitioner

    if part.name == "dirichlet":
        alpha = DEFAULT_ALPHA if part.alpha is None else part.alpha
        return partitioner.DirichletPartitioner(clients, "label", alpha, min_partition_size=1, seed=seed)
    if part.name == "shards":
        return partitioner.ShardPartitioner(clients, "label", part.shards_per_client or DEFAULT_SHARDS, seed=seed)
    return partitioner.PathologicalPartitioner(clients, "label", part.classes_per_client, seed=seed)


def _refusal(labels: Sequence[int], part: PartitionPart, clients: int) -> ScenarioError:
    rarest = min(Counter(labels).values())
    if part.name == "pathological":
        return ScenarioError(
            "data.partition.classes_per_client",
            f"{clients} clients with {part.classes_per_client} classes each: more clients drew one class than it has "
            f"samples (the rarest has {rarest}). Take fewer clients or classes per client, or more samples.",
        )
    alpha = DEFAULT_ALPHA if part.alpha is None else part.alpha
    return ScenarioError(
        "data.partition.alpha",
        f"no draw with alpha {alpha} gave each of {clients} clients one of the {len(labels)} training samples "
        f"(the rarest class has {rarest}). Raise alpha, take fewer clients, or use iid.",
    )
