"""A scenario made ready to run: every name found, every value checked, before the first gradient.

Each process (driver, Ray actor, audit worker) builds its own plan from the same resolved scenario; since all of it is a
pure function of the scenario, all plans agree.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

from torch import nn

from fedsim import applicability, models, plugins, targets
from fedsim.attack import Attack, Need, Recovers
from fedsim.data.batches import FederatedData
from fedsim.data.batches import load as load_data
from fedsim.defense import EPSILON_OF_ONE_RUN, Defense
from fedsim.errors import EvaluationRefusedError, PluginError, RunFolderError, ScenarioError, message_of, told
from fedsim.evaluator import Evaluator, PixelModel
from fedsim.exchange import SCOPES
from fedsim.models.correspondence import Correspondence, ForeignArraysError, correspond
from fedsim.planning import starts
from fedsim.planning.checks import (
    check_accumulation,
    check_bottleneck,
    check_coverage,
    check_inputs,
    check_memory_limit,
    check_observed_schedule,
    check_order,
    check_promises,
    check_schedule,
    check_sums,
    refuse_equal,
    refuse_of_observed,
    refuse_skipped,
)
from fedsim.planning.plan import Plan, foreign
from fedsim.planning.planned import PlannedAttack, PlannedDefense, PlannedEvaluator, blaming, cautions
from fedsim.planning.supplied_truth import SuppliedTruth
from fedsim.planning.variants import with_variants
from fedsim.plugins import PluginInfo
from fedsim.recording import environment, observed
from fedsim.recording.observed import Captured
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import DataPart, PartitionPart, Scenario, parse, select_clients, select_rounds
from fedsim.seeds import seeded
from fedsim.validation import shown


def make(scenario: Scenario, trains: bool = True, before: Plan | None = None) -> Plan:
    """Build and check the plan of a scenario.

    Args:
        scenario: the scenario.
        trains: whether to train a model that is to be trained centrally first; its architecture alone is checked otherwise.
        before: the plan of a run that this one is to start from and that has not been made yet, to check that its weights fit.

    Raises:
        ScenarioError: anything that the scenario names or combines does not work, with its YAML path.
        PluginError: an installed plug-in breaks the contract.
    """
    from fedsim.strategies.building import check_shared, check_strategy

    check_memory_limit(scenario)
    refuse_of_observed(scenario)
    clients = scenario.federation.clients
    attacks, defenses = _plugins(scenario, clients)
    audit_rounds = select_rounds(scenario.audit.rounds, scenario.federation.rounds)
    audit_clients = select_clients(scenario.audit.clients, clients, scenario.seed, "audit.clients")
    check_strategy(scenario)
    check_schedule(scenario)
    data = load_data(scenario.data, clients, scenario.seed)
    check_inputs(scenario, data)
    check_bottleneck(scenario)
    skeleton, notes, added = _model(scenario, data, len(data.pools.class_names), defenses, trains, before)
    check_promises(scenario, data, skeleton, defenses)
    check_order(scenario, data, skeleton, defenses)
    check_accumulation(scenario, data, skeleton, defenses)
    normalization = models.normalization(skeleton)
    plan = Plan(
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
        added=added,
    )
    check_shared(scenario.federation, plan.initial_weights())
    return replace(plan, notes=(*notes, *_dilution(plan), *_refusals(plan), *_of_one_run(plan)))


def _of_one_run(plan: Plan) -> tuple[str, ...]:
    """Return a note where an epsilon is stated and the model comes from another run."""
    claims = any(plan.claims_after_another_run(client) for client in range(plan.scenario.federation.clients))
    return (f"model.pretrained: {EPSILON_OF_ONE_RUN}.",) if claims else ()


def _refusals(plan: Plan) -> Iterator[str]:
    """Yield a note on each evaluator that will refuse the model.

    Raises:
        PluginError: its check raises anything else.
    """
    for planned in plan.evaluators:
        asked, name = PixelModel(plan.model(), plan.normalization).eval(), planned.info.name
        try:
            planned.evaluator.check(asked, plan.data.pools.class_names)
        except EvaluationRefusedError as error:
            yield f"evaluators.{planned.index}: {name} will be refused: {message_of(error)}."
        except Exception as error:
            raise PluginError(
                f"evaluators.{planned.index}: check of {name} ({planned.info.target}) raised {told(error)}. Mend the plug-in, "
                "or leave it out."
            ) from error


def _dilution(plan: Plan) -> tuple[str, ...]:
    """Return a note where the strategy averages parameters of a defense over clients that do not train them, too."""
    from fedsim.strategies.constraints import MEAN_ALONE

    federation = plan.scenario.federation
    if not plan.added or federation.strategy in MEAN_ALONE:
        return ()
    untrained = [plan.untrained(client, federation.rounds) for client in range(federation.clients)]
    names = list(dict.fromkeys(name for names in untrained for name in names))
    if not names:
        return ()
    count = sum(bool(names) for names in untrained)
    return (
        f"federation.strategy: {federation.strategy} takes what {count} clients send of {names[0]}, which they do not train, "
        f"for updates of zero. Strategies that need the mean alone leave it out: {', '.join(sorted(MEAN_ALONE))}.",
    )


def make_observed(scenario: Scenario, captured: Captured) -> Plan:
    """Build and check the plan of an audit of somebody else's app: its clients, rounds and classes are those captured.

    The scenario's data serve as auxiliary images alone; they are dealt to nobody.

    Raises:
        ScenarioError: see `make`; also a grant of what the scenario does not state.
        RunFolderError: what was captured is not the scenario's model.
    """
    scenario = _with_stated_grants(scenario)
    check_memory_limit(scenario)
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
    if scenario.model.start is not None and scenario.model.start.central is not None:
        raise ScenarioError(
            "model.pretrained.central",
            "an observed app started from weights of its own, which the capture holds. Leave model.pretrained out.",
        )
    rounds, clients = captured.rounds[-1], captured.clients[-1] + 1
    check_observed_schedule(scenario, rounds)
    attacks, defenses = _plugins(scenario, clients)
    audit_rounds = select_rounds(scenario.audit.rounds, rounds, "the last captured round is")
    audit_clients = select_clients(scenario.audit.clients, clients, scenario.seed, "audit.clients")
    data = load_data(DataPart(**{**dict(scenario.data), "partition": PartitionPart()}), 1, scenario.seed)
    classes = len(data.pools.class_names)
    expected = models.own_outputs(scenario.model, classes, data.image_shape, scenario.seed) or classes
    skeleton, notes, _ = _model(scenario, data, expected, defenses)
    outputs, matched = _matched(scenario, captured, skeleton)
    if outputs != classes:
        if "auxiliary_data" in scenario.threat.grants:
            raise ScenarioError(
                "threat.grants",
                f"auxiliary_data: {scenario.data.name} has {classes} classes, the head of the observed app {outputs}, so its "
                "labels mean nothing there. Name data with the classes of the app under data, or leave the grant out.",
            )
    if outputs != expected:
        skeleton, notes, _ = _model(scenario, data, outputs, defenses)
    if scenario.training.loss is not None:
        where = "training.loss"
        models.set_loss(skeleton, targets.imported(scenario.training.loss, where, "'module:function'"))
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


_STATED_BY = {
    "batch_size": ("training", "batch_size"),
    "training": ("training", "learning_rate"),
    "train_mode": ("training", "mode"),
    "defenses": ("defenses", None),
    "auxiliary_data": ("data", "name"),
}


def _with_stated_grants(scenario: Scenario) -> Scenario:
    """Return the scenario with grants of nothing but what it states: its defaults are no knowledge of somebody else's app.

    Where it states no grants, the server knows the recipe as far as its learning rate is stated: it hands that out.

    Raises:
        ScenarioError: a grant that is stated, of something that is not.
    """
    kept, asked = [], list(scenario.threat.grants)
    if "grants" not in scenario.threat.model_fields_set:
        asked.append("training")
    for grant in asked:
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
    refuse_equal(attacks)
    check_sums(scenario, attacks)
    defenses = tuple(_plan_defense(index, scenario, clients) for index in range(len(scenario.defenses)))
    refuse_skipped(defenses)
    is_defended = any(planned.clients for planned in defenses)
    return with_variants(scenario, attacks) if is_defended else attacks, defenses


def _model(
    scenario: Scenario,
    data: FederatedData,
    classes: int,
    defenses: tuple[PlannedDefense, ...],
    trains: bool = True,
    before: Plan | None = None,
) -> tuple[nn.Module, tuple[str, ...], dict[str, PlannedDefense]]:
    """Return the model that all share, notes on it, and which defense first added each parameter that is not its own."""
    channels, *size = data.image_shape
    start = starts.of(scenario, data.pools.auxiliary, trains, of) if before is None else starts.like(before, scenario)
    skeleton, notes = models.build_with_notes(
        scenario.model, classes, (size[0], size[1]), scenario.seed, channels, start
    )
    own, added = {name for name, _ in skeleton.named_parameters()}, dict[str, PlannedDefense]()
    with seeded(scenario.seed, "defenses"):
        for planned in defenses:
            with blaming(planned, "prepare_model"):
                planned.defense.prepare_model(skeleton)
            for name, _ in skeleton.named_parameters():
                if name not in own:
                    added.setdefault(name, planned)
    if scenario.training.trainable is not None:
        models.freeze_others(skeleton, scenario.training.trainable)
    for planned in defenses:
        cautions(planned, skeleton)
        check_coverage(planned, skeleton, scenario, data)
    return skeleton.eval(), notes, added


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
        for name, stated in (("applicability", attack.applicability), ("chosen_for", attack.chosen_for)):
            found = applicability.fault(stated)
            fault = fault or (found and f"{name}: {found}")
    except Exception as error:  # noqa: BLE001  (a third party's code)
        fault = fault or f"applicability: raised {told(error)}"
    if fault is not None:
        raise PluginError(f"{where}: {info.name} ({info.target}): {fault}. Mend the plug-in, or leave it out.")


def _plan_defense(index: int, scenario: Scenario, clients: int) -> PlannedDefense:
    part, where = scenario.defenses[index], f"defenses.{index}"
    info = plugins.find("defenses", part.name, f"{where}.name")
    defense = plugins.configure(plugins.load(info, Defense, f"{where}.name"), part.params, f"{where}.params")
    chosen = select_clients(part.clients, clients, scenario.seed, f"{where}.clients")
    return PlannedDefense(index, info, defense, frozenset(chosen))


@functools.lru_cache(maxsize=2)
def _made(resolved: str) -> Plan:
    return make(parse(json.loads(resolved), "scenario"))


def of(scenario: Scenario) -> Plan:
    """Return the plan of a scenario, built once per process."""
    return _made(json.dumps(scenario.resolved()))


@functools.lru_cache(maxsize=2)
def _made_observed(stated: str, captured: Captured) -> Plan:
    return make_observed(parse(json.loads(stated), "scenario"), captured)


def of_captured(scenario: Scenario, captured: Captured) -> Plan:
    """Return the plan of the audit of what was captured of somebody else's app, built once per process; see `make_observed`."""
    return _made_observed(json.dumps(scenario.stated()), captured)


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
    plan, truth = of_captured(chosen, observed.read(folder)), chosen.audit.truth
    if truth is None:
        return plan
    return replace(plan, supplied=SuppliedTruth(truth, folder.path, plan.image_shape, plan.num_classes))
