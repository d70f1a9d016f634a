"""A scenario made ready to run: every name found, every value checked, before the first gradient.

Each process (driver, Ray actor, audit worker) builds its own plan from the same resolved scenario; since all of it is a
pure function of the scenario, all plans agree.
"""

from __future__ import annotations

import functools
import json
from typing import Any, get_args

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim import applicability, models, plugins, process_tree
from fedsim.attack import Attack, Need, Recovers
from fedsim.data.batches import FederatedData
from fedsim.data.batches import load as load_data
from fedsim.defense import Defense, acts_in_training
from fedsim.errors import PluginError, RunFolderError, ScenarioError, told
from fedsim.evaluator import Evaluator
from fedsim.exchange import SCOPES
from fedsim.models.correspondence import Correspondence, ForeignArraysError, correspond
from fedsim.planning.context import client_context
from fedsim.planning.plan import Plan, foreign
from fedsim.planning.planned import PlannedAttack, PlannedDefense, PlannedEvaluator, blaming, cautions
from fedsim.plugins import PluginInfo
from fedsim.recording import environment, observed
from fedsim.recording.observed import Captured
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import DataPart, PartitionPart, Scenario, parse, select_clients, select_rounds
from fedsim.seeds import seeded
from fedsim.validation import shown


def make(scenario: Scenario) -> Plan:
    """Build and check the plan of a scenario.

    Raises:
        ScenarioError: anything that the scenario names or combines does not work, with its YAML path.
        PluginError: an installed plug-in breaks the contract.
    """
    from fedsim.strategies.building import check_strategy

    _check_memory_limit(scenario)
    clients = scenario.federation.clients
    attacks, defenses = _plugins(scenario, clients)
    audit_rounds = select_rounds(scenario.audit.rounds, scenario.federation.rounds)
    audit_clients = select_clients(scenario.audit.clients, clients, scenario.seed, "audit.clients")
    check_strategy(scenario)
    _check_schedule(scenario)
    data = load_data(scenario.data, clients, scenario.seed)
    _check_inputs(scenario, data)
    skeleton, notes = _model(scenario, data, len(data.pools.class_names), defenses)
    _check_promises(scenario, data, skeleton, defenses)
    _check_order(scenario, data, skeleton, defenses)
    _check_accumulation(scenario, data, skeleton, defenses)
    normalization = models.normalization(skeleton)
    return Plan(
        scenario,
        attacks,
        defenses,
        data,
        normalization,
        audit_rounds,
        audit_clients,
        notes,
        len(data.pools.class_names),
        data.image_shape,
        skeleton,
        evaluators=_evaluators(scenario, scenario.federation.rounds),
    )


def make_observed(scenario: Scenario, captured: Captured) -> Plan:
    """Build and check the plan of an audit of somebody else's app: its clients, rounds and classes are those captured.

    The scenario's data serve as auxiliary images alone; they are dealt to nobody.

    Raises:
        ScenarioError: see `make`; also a grant of what the scenario does not state.
        RunFolderError: what was captured is not the scenario's model.
    """
    scenario = _with_stated_grants(scenario)
    _check_memory_limit(scenario)
    if scenario.evaluators:
        raise ScenarioError(
            "evaluators",
            "an observed app's test images are its own, and the scenario's are other ones. Leave evaluators out.",
        )
    if "candidates" in scenario.threat.grants:
        raise ScenarioError(
            "threat.grants",
            "candidates: what an observed app trained on is not known, so nobody can pair it. Leave the grant out.",
        )
    rounds, clients = captured.rounds[-1], captured.clients[-1] + 1
    _check_observed_schedule(scenario, rounds)
    attacks, defenses = _plugins(scenario, clients)
    audit_rounds = select_rounds(scenario.audit.rounds, rounds, "the last captured round is")
    audit_clients = select_clients(scenario.audit.clients, clients, scenario.seed, "audit.clients")
    data = load_data(DataPart(**{**dict(scenario.data), "partition": PartitionPart()}), 1, scenario.seed)
    classes = len(data.pools.class_names)
    skeleton, notes = _model(scenario, data, classes, defenses)
    outputs, matched = _matched(scenario, captured, skeleton)
    if outputs != classes:
        if "auxiliary_data" in scenario.threat.grants:
            raise ScenarioError(
                "threat.grants",
                f"auxiliary_data: {scenario.data.name} has {classes} classes, the head of the observed app {outputs}, so its "
                "labels mean nothing there. Name data with the classes of the app under data, or leave the grant out.",
            )
        skeleton, notes = _model(scenario, data, outputs, defenses)
    normalization = models.normalization(skeleton)
    return Plan(
        scenario,
        attacks,
        defenses,
        data,
        normalization,
        audit_rounds,
        audit_clients,
        notes,
        outputs,
        data.image_shape,
        skeleton,
        captured,
        matched,
    )


def _check_observed_schedule(scenario: Scenario, captured: int) -> None:
    """Refuse a schedule over rounds of which nobody has said how many the observed app has."""
    stated = scenario.federation.rounds if "rounds" in scenario.federation.model_fields_set else None
    if scenario.training.schedule.is_constant or (stated is not None and stated >= captured):
        _check_schedule(scenario)
        return
    given = "is not stated" if stated is None else f"is {stated}, and round {captured} was captured"
    raise ScenarioError(
        "training.schedule",
        f"the learning rate of a round depends on how many the app has, and federation.rounds {given}. State it, or leave the "
        "schedule out.",
    )


_STATED_BY = {
    "batch_size": ("training", "batch_size"),
    "training": ("training", "learning_rate"),
    "train_mode": ("training", "mode"),
    "defenses": ("defenses", None),
    "auxiliary_data": ("data", None),
}


def _with_stated_grants(scenario: Scenario) -> Scenario:
    """Return the scenario with grants of nothing but what it states: its defaults are no knowledge of somebody else's app.

    Raises:
        ScenarioError: a grant that is stated, of something that is not.
    """
    kept = []
    for grant in scenario.threat.grants:
        part, key = _STATED_BY.get(grant, (None, None))
        is_stated = part is None or (
            part in scenario.model_fields_set and (key is None or key in getattr(scenario, part).model_fields_set)
        )
        if is_stated:
            kept.append(grant)
        elif "grants" in scenario.threat.model_fields_set:
            where = f"{part}.{key}" if key else part
            raise ScenarioError(
                "threat.grants",
                f"{grant}: the scenario does not state {where}, and fedsim does not know the observed app. State it, or leave "
                "the grant out.",
            )
    return scenario.model_copy(update={"threat": scenario.threat.model_copy(update={"grants": kept})})


def _matched(scenario: Scenario, captured: Captured, model: nn.Module) -> tuple[int, Correspondence]:
    """Return the rows of the classifier that was captured, and which captured array is which parameter of the model.

    Raises:
        RunFolderError: the arrays are not those of the model.
    """
    heads = [name for head in models.head_names(model) for name in head if name is not None]
    shapes = captured.shapes
    try:
        matched = correspond(shapes, model, resized=heads)
    except ForeignArraysError as error:
        raise RunFolderError(foreign(scenario, "what was captured is", error)) from None
    rows = {shapes[matched.captured[name]][0] for name in heads}
    if len(rows) > 1 or min(rows) < 2:
        raise RunFolderError(
            f"what was captured has a classifier of {' and '.join(map(str, sorted(rows)))} outputs; fedsim reads one of at "
            "least 2, trained with cross-entropy."
        )
    return rows.pop(), matched


def _plugins(scenario: Scenario, clients: int) -> tuple[tuple[PlannedAttack, ...], tuple[PlannedDefense, ...]]:
    attacks = tuple(_plan_attack(index, scenario) for index in range(len(scenario.attacks)))
    _refuse_equal(attacks)
    _check_sums(scenario, attacks)
    defenses = tuple(_plan_defense(index, scenario, clients) for index in range(len(scenario.defenses)))
    _refuse_skipped(defenses)
    return attacks, defenses


def _model(
    scenario: Scenario, data: FederatedData, classes: int, defenses: tuple[PlannedDefense, ...]
) -> tuple[nn.Module, tuple[str, ...]]:
    channels, *size = data.image_shape
    skeleton, notes = models.build_with_notes(scenario.model, classes, (size[0], size[1]), scenario.seed, channels)
    with seeded(scenario.seed, "defenses"):
        for planned in defenses:
            with blaming(planned, "prepare_model"):
                planned.defense.prepare_model(skeleton)
    if scenario.training.trainable is not None:
        models.freeze_others(skeleton, scenario.training.trainable)
    for planned in defenses:
        cautions(planned, skeleton)
        _check_coverage(planned, skeleton, scenario, data)
    return skeleton.eval(), notes


def _check_coverage(planned: PlannedDefense, model: nn.Module, scenario: Scenario, data: FederatedData) -> None:
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


def _check_promises(
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


def _check_memory_limit(scenario: Scenario) -> None:
    """Refuse a limit that nobody would enforce."""
    if scenario.audit.attack_memory is not None and not process_tree.tells_memory():
        raise ScenarioError(
            "audit.attack_memory",
            "this system does not tell how much memory a process and its children hold, which fedsim reads under /proc on "
            "Linux. Leave it out.",
        )


def _check_schedule(scenario: Scenario) -> None:
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


def _check_inputs(scenario: Scenario, data: FederatedData) -> None:
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


def _check_accumulation(
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


def _plan_attack(index: int, scenario: Scenario) -> PlannedAttack:
    part, where = scenario.attacks[index], f"attacks.{index}"
    info = plugins.find("attacks", part.name, f"{where}.name")
    attack = plugins.configure(plugins.load(info, Attack, f"{where}.name"), part.params, f"{where}.params")
    _check_facts(attack, where, info)
    missing = sorted(attack.needs - set(scenario.threat.grants))
    if missing:
        granted = ", ".join(scenario.threat.grants) or "none"
        raise ScenarioError(
            f"{where}.name",
            f"{part.name} needs the grant {', '.join(missing)}; threat.grants has {granted}. "
            "Grant it, or leave the attack out.",
        )
    return PlannedAttack(index, info, attack, part.label)


def _check_sums(scenario: Scenario, attacks: tuple[PlannedAttack, ...]) -> None:
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


def _evaluators(scenario: Scenario, rounds: int) -> tuple[PlannedEvaluator, ...]:
    planned: list[PlannedEvaluator] = []
    for index, part in enumerate(scenario.evaluators):
        where = f"evaluators.{index}"
        info = plugins.find("evaluators", part.name, f"{where}.name")
        evaluator = plugins.configure(plugins.load(info, Evaluator, f"{where}.name"), part.params, f"{where}.params")
        chosen = select_rounds(part.rounds, rounds, where=f"{where}.rounds")
        one = PlannedEvaluator(index, info, evaluator, chosen, part.label)
        for other in planned:
            if (other.info.name, other.params) == (one.info.name, one.params):
                raise ScenarioError(where, f"{part.name} is listed before, as evaluators.{other.index}. Leave one out.")
        planned.append(one)
    return tuple(planned)


def _check_facts(attack: Attack, where: str, info: PluginInfo) -> None:
    """Refuse an attack whose class facts nobody can read, before anything rests on them.

    Raises:
        PluginError: names the first fact.
    """
    fault = None
    for name, allowed in (("needs", get_args(Need)), ("recovers", get_args(Recovers))):
        stated: Any = getattr(attack, name)
        if not isinstance(stated, frozenset) or not stated <= set(allowed):
            fault = fault or f"{name}: expected a frozenset out of {', '.join(allowed)}, got {shown(stated)}"
    if attack.scope not in SCOPES:
        fault = fault or f"scope: expected one of {', '.join(SCOPES)}, got {shown(attack.scope)}"
    try:
        found = applicability.fault(attack.applicability)
        fault = fault or (found and f"applicability: {found}")
    except Exception as error:  # noqa: BLE001  (a third party's code)
        fault = fault or f"applicability: raised {told(error)}"
    if fault is not None:
        raise PluginError(f"{where}: {info.name} ({info.target}): {fault}. Mend the plug-in, or leave it out.")


def _refuse_equal(attacks: tuple[PlannedAttack, ...]) -> None:
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
        if planned.label and labels.setdefault(planned.label, planned.index) != planned.index:
            raise ScenarioError(
                f"attacks.{planned.index}.label",
                f"attacks.{labels[planned.label]} is called {planned.label!r} already. Choose another label.",
            )


def _plan_defense(index: int, scenario: Scenario, clients: int) -> PlannedDefense:
    part, where = scenario.defenses[index], f"defenses.{index}"
    info = plugins.find("defenses", part.name, f"{where}.name")
    defense = plugins.configure(plugins.load(info, Defense, f"{where}.name"), part.params, f"{where}.params")
    chosen = select_clients(part.clients, clients, scenario.seed, f"{where}.clients")
    return PlannedDefense(index, info, defense, frozenset(chosen))


def _refuse_skipped(defenses: tuple[PlannedDefense, ...]) -> None:
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


def _check_order(
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


@functools.lru_cache(maxsize=2)
def _made(resolved: str) -> Plan:
    return make(parse(json.loads(resolved), "scenario"))


def of(scenario: Scenario) -> Plan:
    """Return the plan of a scenario, built once per process."""
    return _made(json.dumps(scenario.resolved()))


@functools.lru_cache(maxsize=2)
def _made_observed(stated: str, captured: Captured) -> Plan:
    return make_observed(parse(json.loads(stated), "scenario"), captured)


def of_folder(folder: RunFolder, scenario: Scenario | None = None) -> Plan:
    """Return the plan of the audit of a run folder, built once per process.

    Args:
        folder: the run, simulated or observed.
        scenario: in the place of the folder's own.

    Raises:
        RunFolderError: the folder has no scenario and none is given, holds no capture, or captures of another model.
        ScenarioError: see `make` and `make_observed`.
    """
    chosen = scenario or folder.scenario()
    if not environment.is_observed(folder.path):
        return of(chosen)
    return _made_observed(json.dumps(chosen.stated()), observed.read(folder))
