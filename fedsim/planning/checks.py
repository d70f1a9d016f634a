"""What a scenario may not combine: checked before anything is trained, and refused with the YAML path and what to do."""

from __future__ import annotations

import json

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim import models, process_tree
from fedsim.data.batches import FederatedData
from fedsim.defense import Defense, acts_in_training
from fedsim.errors import ScenarioError
from fedsim.planning.context import client_context
from fedsim.planning.planned import PlannedAttack, PlannedDefense, blaming
from fedsim.recording.records import PLAIN
from fedsim.scenario import Scenario


def check_observed_schedule(scenario: Scenario, captured: int) -> None:
    """Refuse a schedule over rounds of which nobody has said how many the observed app has."""
    stated = scenario.federation.rounds if "rounds" in scenario.federation.model_fields_set else None
    if scenario.training.schedule.is_constant or (stated is not None and stated >= captured):
        check_schedule(scenario)
        return
    given = "is not stated" if stated is None else f"is {stated}, and round {captured} was captured"
    raise ScenarioError(
        "training.schedule",
        f"the learning rate of a round depends on how many the app has, and federation.rounds {given}. State it, or leave the "
        "schedule out.",
    )


def refuse_of_observed(scenario: Scenario) -> None:
    """Refuse settings of a simulated run that only somebody else's app can have."""
    for where, given in (("training.loss", scenario.training.loss), ("audit.truth", scenario.audit.truth)):
        if given is not None:
            raise ScenarioError(
                where,
                f"got {given}, and is for the audit of an observed app: clients of a simulation minimize cross-entropy "
                "on images that fedsim deals to them. Leave it out.",
            )


def check_coverage(planned: PlannedDefense, model: nn.Module, scenario: Scenario, data: FederatedData) -> None:
    """Refuse a guarantee on a model whose buffers travel: it is one for the parameters alone."""
    buffers = models.shared_buffers(model)
    if not buffers:
        return
    with blaming(planned, "budget"):
        budget = planned.defense.budget(client_context(scenario, data, model, 0, 1))
    if budget is not None:
        raise ScenarioError(
            f"defenses.{planned.index}",
            f"{planned.info.name} guarantees privacy for the parameters, and {scenario.model.name} also sends "
            f"{len(buffers)} buffers, {buffers[0]} the first, which hold statistics of the images. Choose a model without "
            "BatchNorm.",
        )


def check_promises(
    scenario: Scenario, data: FederatedData, model: nn.Module, defenses: tuple[PlannedDefense, ...]
) -> None:
    """Let each defense refuse what it could not keep its promises with, on each client that carries it."""
    for planned in defenses:
        if type(planned.defense).check is Defense.check:
            continue
        for client in sorted(planned.clients):
            others = [other.defense for other in defenses if other is not planned and client in other.clients]
            with blaming(planned, "check"):
                try:
                    planned.defense.check(model, client_context(scenario, data, model, client, 1), others)
                except ValueError as error:
                    raise ScenarioError(f"defenses.{planned.index}", f"{planned.info.name}: {error}") from None


def check_memory_limit(scenario: Scenario) -> None:
    """Refuse a limit that nobody would enforce."""
    if scenario.audit.attack_memory is not None and not process_tree.tells_memory():
        raise ScenarioError(
            "audit.attack_memory",
            "this system does not tell how much memory a process and its children hold, which fedsim reads under /proc on "
            "Linux. Leave it out.",
        )


def check_schedule(scenario: Scenario) -> None:
    """Refuse a schedule that does not fit the rounds."""
    schedule, rounds = scenario.training.schedule, scenario.federation.rounds
    if schedule.warmup_rounds and schedule.warmup_rounds >= rounds:
        raise ScenarioError(
            "training.schedule.warmup_rounds",
            f"got {schedule.warmup_rounds}, and there are {rounds} rounds, so the warm-up would never end. Give fewer, or "
            "raise federation.rounds.",
        )
    if not scenario.learning_rate(rounds):
        raise ScenarioError(
            "training.schedule",
            f"the learning rate of round {rounds} is too small to be told from 0. Raise factor or every, or train fewer "
            "rounds.",
        )


def check_inputs(scenario: Scenario, data: FederatedData) -> None:
    """Refuse inputs that cannot be made of a client's images, or that make a grant mean nothing."""
    training = scenario.training
    trained = {"mixup": training.mixup is not None and "blends", "augment": training.augment and "changed images"}
    for key, inputs in trained.items():
        if inputs and "candidates" in scenario.threat.grants:
            raise ScenarioError(
                "threat.grants",
                f"candidates: with {key} a client trains on {inputs}, and on no single image as it is. Leave the grant or "
                f"{key} out.",
            )
    if training.mixup is None:
        return
    for client, samples in enumerate(data.partition):
        if len(samples) < 2:
            raise ScenarioError(
                "training.mixup",
                f"client {client} has a single image, and mixup blends two of a client's own. Deal it more (data.samples, "
                "data.partition, federation.clients), or leave mixup out.",
            )


def check_accumulation(
    scenario: Scenario, data: FederatedData, model: nn.Module, defenses: tuple[PlannedDefense, ...]
) -> None:
    """Refuse to split batches where the gradient would be another one, or where nothing would be split."""
    training = scenario.training
    if training.accumulate == 1:
        return
    reason = None
    if training.mode == "train" and any(isinstance(module, _BatchNorm) for module in model.modules()):
        reason = (
            f"in training, BatchNorm of {scenario.model.name} normalizes by the statistics of what passes it at once"
        )
    elif training.mode == "train" and models.draws_in_training(model, data.image_shape, scenario.seed):
        reason = f"in training, {scenario.model.name} draws other numbers for parts than for the whole, as dropout does"
    if reason is not None:
        raise ScenarioError(
            "training.accumulate",
            f"got {training.accumulate}, and {reason}: the gradient would not be that of the batch. Leave it out, set "
            "training.mode to eval, or choose a model without.",
        )
    for planned in defenses:
        if planned.clients and planned.defense.replaces_gradient:
            raise ScenarioError(
                "training.accumulate",
                f"got {training.accumulate}, and {planned.info.name} (defenses.{planned.index}) computes the gradient of the "
                "whole batch itself, so that nothing would be split. Leave it or the defense out.",
            )


def check_bottleneck(scenario: Scenario) -> None:
    """Refuse a bottleneck that would draw nothing."""
    if scenario.model.precode is not None and scenario.training.mode == "eval":
        raise ScenarioError(
            "training.mode",
            "got eval, in which the bottleneck of model.precode draws nothing and hides nothing. Set it to train, or leave "
            "model.precode out.",
        )


def check_sums(scenario: Scenario, attacks: tuple[PlannedAttack, ...]) -> None:
    """Refuse what is about single clients where the server sees the sums of rounds alone."""
    if scenario.threat.sees != "aggregate":
        return
    if scenario.audit.clients != "all":
        raise ScenarioError(
            "audit.clients",
            "with threat.sees: aggregate there are only sums over all clients of a round. Leave it out.",
        )
    for planned in attacks:
        if planned.attack.scope == "client":
            raise ScenarioError(
                f"attacks.{planned.index}.name",
                f"{planned.info.name} looks at all updates of one client, and with threat.sees: aggregate the server sees the "
                "sums of rounds alone. Leave the attack out, or set threat.sees: updates.",
            )


def refuse_equal(attacks: tuple[PlannedAttack, ...]) -> None:
    """Refuse two equal attacks: records tell attacks apart by name and parameters, and readers by their labels."""
    seen: dict[str, int] = {}
    labels: dict[str, int] = {}
    for planned in attacks:
        identity = json.dumps([planned.info.name, planned.params], sort_keys=True, default=str)
        first = seen.setdefault(identity, planned.index)
        if first != planned.index:
            raise ScenarioError(
                f"attacks.{planned.index}",
                f"{planned.info.name} is listed before, as attacks.{first}, with equal parameters. Leave one out.",
            )
        if planned.label and planned.label.endswith(PLAIN):
            raise ScenarioError(
                f"{planned.where}.label",
                f"{planned.label!r} is what a plain variant would be called. Choose a label that does not end in{PLAIN}.",
            )
        if planned.label and labels.setdefault(planned.label, planned.index) != planned.index:
            raise ScenarioError(
                f"attacks.{planned.index}.label",
                f"attacks.{labels[planned.label]} is called {planned.label!r} already. Choose another label.",
            )


def refuse_skipped(defenses: tuple[PlannedDefense, ...]) -> None:
    """Refuse a recipe behind one that never calls it: for the clients of both it would be left out without a word."""
    for first in defenses:
        if not first.defense.replaces_gradient:
            continue
        for later in defenses[first.index + 1 :]:
            both = sorted(first.clients & later.clients)
            if both and type(later.defense).train_step is not Defense.train_step:
                raise ScenarioError(
                    f"defenses.{later.index}",
                    f"{later.info.name} would be left out on client {both[0]}: {first.info.name}, listed before it, computes "
                    f"the gradient itself. List {later.info.name} first, or give them different clients.",
                )


def check_order(
    scenario: Scenario, data: FederatedData, model: nn.Module, defenses: tuple[PlannedDefense, ...]
) -> None:
    """Refuse a defense that changes a noisy update by what it saw of the images: what the noise promised would be false."""
    for first in defenses:
        later = [
            other
            for other in defenses[first.index + 1 :]
            if _sees_data(other.defense) and first.clients & other.clients
        ]
        if not later:
            continue
        client = min(first.clients & later[0].clients)
        with blaming(first, "budget"):
            budget = first.defense.budget(client_context(scenario, data, model, client, 1))
        if budget is not None:
            raise ScenarioError(
                f"defenses.{later[0].index}",
                f"{later[0].info.name} sees the images of client {client} and then changes the update that {first.info.name}, "
                f"listed before it, has made private: the epsilon of {first.info.name} would be false. List "
                f"{later[0].info.name} first, or give them different clients.",
            )


def _sees_data(defense: Defense) -> bool:
    """Return whether a defense may change the update by what it saw of the client's images."""
    kind = type(defense)
    looks = (
        acts_in_training(defense)
        or kind.begin_round is not Defense.begin_round
        or kind.end_round is not Defense.end_round
    )
    return looks and kind.protect_update is not Defense.protect_update
