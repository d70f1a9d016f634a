"""The context that a client's hooks get, and the part of it that the grant `training` tells an attacker."""

from __future__ import annotations

import torch
from torch import nn

from fedsim.data.batches import FederatedData
from fedsim.defense import ClientContext
from fedsim.exchange import TrainingKnowledge
from fedsim.scenario import Scenario


def training_knowledge(scenario: Scenario, model: nn.Module, round: int) -> TrainingKnowledge:
    """Return the local recipe of a round."""
    training = scenario.training
    exempt = decay_exempt(model) if training.weight_decay else set()
    steps = None if training.local_epochs else training.local_steps or 1
    return TrainingKnowledge(
        training.optimizer,
        scenario.learning_rate(round),
        training.momentum,
        training.weight_decay,
        steps,
        training.local_epochs,
        tuple(name for name, _ in model.named_parameters() if name in exempt),
        training.label_smoothing,
        training.mixup,
        training.sampling,
        training.clip_norm,
        training.augment,
    )


def decay_exempt(model: nn.Module) -> set[str]:
    """Return the names of the parameters that a model wants without weight decay."""
    stated = getattr(model, "no_weight_decay", None)
    return set(stated()) if callable(stated) else set()


def client_context(
    scenario: Scenario, data: FederatedData, model: nn.Module, client: int, round: int, participation: int = 1
) -> ClientContext:
    """Return the context of one client in one round, with nothing kept from earlier ones.

    Args:
        scenario: of the run.
        data: its data.
        model: the client's, prepared by the defenses.
        client: partition number, from 0.
        round: server round, from 1.
        participation: in how many rounds the client has taken part, this one included.
    """
    training, own = scenario.training, data.partition[client]
    counts = torch.bincount(data.pools.train.labels[list(own)], minlength=len(data.pools.class_names))
    return ClientContext(
        round=round,
        rounds=scenario.federation.rounds,
        client=client,
        training=training_knowledge(scenario, model, round),
        batch_size=min(training.batch_size, len(own)),
        num_examples=len(own),
        steps=len(data.client_inputs(client, round, training)),
        class_counts=tuple(counts.tolist()),
        participation=participation,
    )
