"""Attacks on several updates at once: which views a scope has, and what is seen of one: the mean, and each unless summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.exchange import Candidates, DefenseKnowledge, Observation, Scope, TrainingKnowledge, Update, View
from fedsim.labels import without_order


def views(
    scope: Scope, captured: Mapping[int, Sequence[int]], clients: Sequence[int], is_sum: bool = False
) -> list[View]:
    """Return what attacks of a scope look at, of several updates at once.

    Args:
        scope: `client`, `round` or `run`.
        captured: round -> the clients whose updates are there, ascending.
        clients: those that the audit is of; a round and a run are of all.
        is_sum: whether the sum of a round alone is seen.
    """
    known = {round: tuple(found) for round, found in captured.items() if found}
    if not known:
        return []
    if scope == "round":
        return [View((round,), found, scope, is_sum) for round, found in known.items()]
    everybody = sorted({client for found in known.values() for client in found})
    if scope == "run":
        return [View(tuple(known), tuple(everybody), scope, is_sum)]
    return [
        View(tuple(round for round, found in known.items() if client in found), (client,), scope)
        for client in everybody
        if client in clients
    ]


def observation_of(members: Sequence[Observation], is_sum: bool = False) -> Observation:
    """Return the observation of several updates; see `Observation.members`.

    Args:
        members: that of each update, by round and client; at least one.
        is_sum: whether the weighted sum of each round alone is seen, as under secure aggregation.
    """
    first = members[0]
    if is_sum:
        by_round: dict[int, list[Observation]] = {}
        for member in members:
            by_round.setdefault(member.update.round, []).append(member)
        sums = [replace(observation_of(own), members=()) for own in by_round.values()]
        return sums[0] if len(sums) == 1 else observation_of(sums)
    in_first = [member for member in members if member.update.round == first.update.round]
    labels = [member.labels for member in members if member.labels is not None]
    sizes = [member.batch_size for member in in_first if member.batch_size is not None]
    defenses = [known for member in members if member.defenses is not None for known in member.defenses]
    pairs = [member.candidates for member in members if member.candidates is not None]
    return replace(
        first,
        update=_mean([member.update for member in members]),
        training=_mean_recipe(members),
        labels=without_order(torch.cat(labels)) if labels else None,
        batch_size=sum(sizes) if sizes else None,
        defenses=None if first.defenses is None else tuple(_distinct(defenses)),
        candidates=Candidates(torch.cat([one.images for one in pairs]), torch.cat([one.labels for one in pairs]))
        if pairs
        else None,
        # Pairs are of the view alone.
        members=tuple(replace(member, candidates=None) for member in members),
    )


def _mean(updates: Sequence[Update]) -> Update:
    """Return the mean of several updates, weighted by what each client reported, else equally."""
    counts, weights = [update.num_examples for update in updates], _weights(updates)

    def mean(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        shared = [name for name in parts[0] if all(name in part for part in parts)]
        return {
            name: torch.stack([weight * part[name] for weight, part in zip(weights, parts, strict=True)]).sum(0)
            for name in shared
        }

    tensors, buffers = mean([update.tensors for update in updates]), mean([update.buffers for update in updates])
    last = max(update.round for update in updates)
    return Update(last, -1, updates[0].kind, tensors, sum(counts) if all(counts) else 0, buffers)


def _weights(updates: Sequence[Update]) -> list[float]:
    counts = [update.num_examples for update in updates]
    return [count / sum(counts) for count in counts] if all(counts) else [1 / len(updates)] * len(updates)


def _mean_recipe(members: Sequence[Observation]) -> TrainingKnowledge | None:
    """Return the recipe behind the mean of several updates: a delta is linear in the learning rate of its round."""
    first, rates = members[0].training, [member.training.learning_rate for member in members if member.training]
    if first is None or len(set(rates)) < 2:
        return first
    weights = _weights([member.update for member in members])
    return replace(first, learning_rate=sum(weight * rate for weight, rate in zip(weights, rates, strict=True)))


def _distinct(defenses: Sequence[DefenseKnowledge]) -> list[DefenseKnowledge]:
    found: list[DefenseKnowledge] = []
    for known in defenses:
        if all((known.name, known.params) != (other.name, other.params) for other in found):
            found.append(known)
    return found
