"""A scenario made ready to run: every name found, every value checked, before the first gradient.

Each process (driver, Ray actor, audit worker) builds its own plan from the same resolved scenario; since all of it is a
pure function of the scenario, all plans agree.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor, nn

from fedsim import applicability, environment, models, observed, plugins
from fedsim.applicability import Setting, Workload
from fedsim.attack import Attack, Need, Recovers
from fedsim.context import client_context
from fedsim.correspondence import Correspondence, ForeignArraysError, correspond
from fedsim.data.batches import FederatedData
from fedsim.data.batches import load as load_data
from fedsim.defense import ClientContext, Defense, knowledge_of
from fedsim.errors import FedsimError, PluginError, RunFolderError, ScenarioError, told
from fedsim.evaluator import Evaluator
from fedsim.exchange import DefenseKnowledge, Normalization, Update
from fedsim.faults import shown
from fedsim.observed import Captured
from fedsim.plugins import PluginInfo
from fedsim.recording import RunFolder
from fedsim.scenario import DataPart, PartitionPart, Scenario, ThreatPart, parse, select_clients, select_rounds
from fedsim.seeds import seeded


def _changed(plugin: Attack | Defense) -> dict[str, Any]:
    defaults = {parameter.name: parameter.default for parameter in plugins.parameters(type(plugin))}
    return {name: value for name, value in dataclasses.asdict(plugin).items() if value != defaults.get(name)}


@dataclass(frozen=True)
class PlannedAttack:
    """One attack of the scenario.

    Args:
        index: position in the scenario.
        info: where the class comes from.
        attack: the configured instance.
        label: what reports call it; None for its name.
    """

    index: int
    info: PluginInfo
    attack: Attack
    label: str | None = None

    @property
    def title(self) -> str:
        """What people read: the label, else the name."""
        return self.label or self.info.name

    @property
    def slug(self) -> str:
        """File name of its artifacts: position and name, so that one attack may run twice with other parameters."""
        return f"{self.index:02d}-{self.info.name.replace(':', '.')}"

    @property
    def params(self) -> dict[str, Any]:
        """All parameters, given and default."""
        return dataclasses.asdict(self.attack)

    @property
    def changed(self) -> dict[str, Any]:
        """Parameters that differ from their defaults."""
        return _changed(self.attack)


@dataclass(frozen=True)
class PlannedDefense:
    """One defense of the scenario and the clients that carry it.

    Args:
        index: position in the scenario.
        info: where the class comes from.
        defense: the configured instance.
        clients: who carries it.
    """

    index: int
    info: PluginInfo
    defense: Defense
    clients: frozenset[int]

    @property
    def slug(self) -> str:
        """What its own state is kept under: position and name, so that one defense may be carried twice."""
        return f"{self.index:02d}-{self.info.name}"

    @property
    def params(self) -> dict[str, Any]:
        """All parameters, given and default."""
        return dataclasses.asdict(self.defense)

    @property
    def changed(self) -> dict[str, Any]:
        """Parameters that differ from their defaults."""
        return _changed(self.defense)

    @property
    def knowledge(self) -> DefenseKnowledge:
        """What the grant `defenses` tells an attacker."""
        return knowledge_of(self.info.name, self.defense)


@dataclass(frozen=True)
class PlannedEvaluator:
    """One evaluator of the scenario.

    Args:
        index: position in the scenario.
        info: where the class comes from.
        evaluator: the configured instance.
        rounds: after which it is asked.
        label: what reports call it; None for its name.
    """

    index: int
    info: PluginInfo
    evaluator: Evaluator
    rounds: tuple[int, ...]
    label: str | None = None

    @property
    def params(self) -> dict[str, Any]:
        """All parameters, given and default."""
        return dataclasses.asdict(self.evaluator)


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that a run needs, checked.

    Args:
        scenario: the resolved scenario.
        attacks: in the scenario's order.
        defenses: in the order of application.
        data: pools and partition.
        normalization: of the model's input.
        audit_rounds: rounds whose updates are attacked.
        audit_clients: clients whose updates are attacked.
        notes: what its user should know though it is no fault, one sentence each.
        captured: what was captured of an observed app, whose data, clients and rounds the scenario does not know; None where
            fedsim trains itself.
        matched: how the app's arrays became the model's parameters; None where fedsim trains itself.
        num_classes: outputs of the head.
        image_shape: channels, height, width of the model's input.
        evaluators: in the scenario's order.
    """

    scenario: Scenario
    attacks: tuple[PlannedAttack, ...]
    defenses: tuple[PlannedDefense, ...]
    data: FederatedData
    normalization: Normalization
    audit_rounds: tuple[int, ...]
    audit_clients: tuple[int, ...]
    notes: tuple[str, ...]
    num_classes: int
    image_shape: tuple[int, int, int]
    _skeleton: nn.Module
    captured: Captured | None = None
    matched: Correspondence | None = None
    evaluators: tuple[PlannedEvaluator, ...] = ()

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the model's buffers that travel."""
        return models.shared_buffers(self._skeleton)

    def model(self, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """Return a fresh model in evaluation mode, with these weights, else with the scenario's initial ones."""
        model = copy.deepcopy(self._skeleton)
        if weights is not None:
            for name, tensor in models.shared_state(model).items():
                tensor.copy_(weights[name])
        return model

    def initial_weights(self) -> dict[str, Tensor]:
        """Return what of the model travels, as the server starts from it, in the model's order."""
        return {name: tensor.clone() for name, tensor in models.shared_state(self._skeleton).items()}

    def defenses_of(self, client: int) -> tuple[PlannedDefense, ...]:
        """Return the defenses that a client carries, in order of application."""
        return tuple(planned for planned in self.defenses if client in planned.clients)

    def context_of(self, client: int, round: int = 1, participation: int = 1) -> ClientContext:
        """Return what the hooks of a client's defenses get in a round, with nothing kept from earlier ones."""
        return client_context(self.scenario, self.data, self._skeleton, client, round, participation)

    def setting_of(self, client: int, round: int) -> Setting:
        """Return how the update of a simulated client in a round is made."""
        training, steps = self.scenario.training, self.data.client_inputs(client, round, self.scenario.training)
        pictures = len({one for step in steps for one in step})
        return self._setting(pictures, min(training.batch_size, len(self.data.partition[client])), len(steps))

    def workload_of(self, client: int) -> Workload:
        """Return how much a simulated client trains on in any round."""
        training, held = self.scenario.training, len(self.data.partition[client])
        size = min(training.batch_size, held)
        if training.local_epochs is not None:
            return Workload(held, size, training.local_epochs * -(-held // size))
        steps = training.local_steps or 1
        return Workload(min(held, steps * size), size, steps)

    def setting_reported(self, update: Update) -> Setting:
        """Return how an observed update was made, as far as the client's report and the scenario tell."""
        training, pictures = self.scenario.training, update.num_examples or None
        size = training.batch_size if pictures is None else min(training.batch_size, pictures)
        steps: int | None = training.local_steps or 1
        if training.local_epochs is not None:
            steps = None if pictures is None else training.local_epochs * -(-pictures // size)
        return self._setting(pictures, size, steps)

    def _setting(self, pictures: int | None, batch_size: int, steps: int | None) -> Setting:
        training = self.scenario.training
        return Setting(
            pictures,
            batch_size,
            training.shares,
            steps,
            training.optimizer,
            bool(training.label_smoothing or training.mixup),
            models.facts(self._skeleton),
        )

    def cautions_of(self, client: int) -> tuple[str, ...]:
        """Return the doubts about a client: what its defenses state about themselves on this model, and a batch cut short."""
        stated = [
            f"{planned.info.name}: {text}"
            for planned in self.defenses_of(client)
            for text in _cautions(planned, self._skeleton)
        ]
        if self.captured is not None:
            return (*stated, *self._cautions_of_capture())
        asked, held = self.scenario.training.batch_size, len(self.data.partition[client])
        if asked > held:
            stated.append(
                f"training.batch_size is {asked}, but the client has {held} samples: its batches are as small"
            )
        return tuple(stated)

    def _cautions_of_capture(self) -> list[str]:
        """Return what rests on a guess about an observed app: which array is which, and what the data set has to do with it."""
        cautions, name = [], self.scenario.model.name
        if self.matched is not None and self.matched.how:
            cautions.append(f"the app's arrays were matched to the parameters of {name} {self.matched.how}")
        if self.matched is not None and self.matched.foreign:
            foreign = self.matched.foreign
            cautions.append(
                f"the app also sent {len(foreign)} arrays that {name} does not have, {foreign[0]} the first; no attack saw them"
            )
        classes = len(self.data.pools.class_names)
        if "data" in self.scenario.model_fields_set and classes != self.num_classes:
            cautions.append(
                f"data {self.scenario.data.name} has {classes} classes, the head of the app {self.num_classes}: no class prior "
                "and no other control of that data applies"
            )
        return cautions


def make(scenario: Scenario) -> Plan:
    """Build and check the plan of a scenario.

    Raises:
        ScenarioError: anything that the scenario names or combines does not work, with its YAML path.
        PluginError: an installed plug-in breaks the contract.
    """
    from fedsim.federation.strategy import check_strategy

    clients = scenario.federation.clients
    attacks, defenses = _plugins(scenario, clients)
    audit_rounds = select_rounds(scenario.audit.rounds, scenario.federation.rounds)
    audit_clients = select_clients(scenario.audit.clients, clients, scenario.seed, "audit.clients")
    check_strategy(scenario)
    data = load_data(scenario.data, clients, scenario.seed)
    _check_mixup(scenario, data)
    skeleton, notes = _model(scenario, data, len(data.pools.class_names), defenses)
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

    The scenario's data serve as auxiliary pictures alone; they are dealt to nobody.

    Raises:
        ScenarioError: see `make`; also a grant of what the scenario does not state.
        RunFolderError: what was captured is not the scenario's model.
    """
    scenario = _with_stated_grants(scenario)
    if scenario.evaluators:
        raise ScenarioError(
            "evaluators",
            "an observed app's test pictures are its own, and the scenario's are other ones. Leave evaluators out.",
        )
    rounds, clients = captured.rounds[-1], captured.clients[-1] + 1
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
    return scenario.model_copy(update={"threat": ThreatPart(grants=kept)})


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


def foreign(scenario: Scenario, what: str, error: ForeignArraysError) -> str:
    """Return the message that captured arrays are not those of the scenario's model."""
    return (
        f"{what} not of model {scenario.model.name}: {error}. Name the model of the observed app in the scenario (model.name, "
        "model.kwargs), a model of timm or a 'module:factory'."
    )


def _plugins(scenario: Scenario, clients: int) -> tuple[tuple[PlannedAttack, ...], tuple[PlannedDefense, ...]]:
    attacks = tuple(_plan_attack(index, scenario) for index in range(len(scenario.attacks)))
    _refuse_equal(attacks)
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
            with _blaming(planned, "prepare_model"):
                planned.defense.prepare_model(skeleton)
    for planned in defenses:
        _cautions(planned, skeleton)
        _check_coverage(planned, skeleton, scenario, data)
    return skeleton.eval(), notes


def _check_coverage(planned: PlannedDefense, model: nn.Module, scenario: Scenario, data: FederatedData) -> None:
    """Refuse a guarantee on a model whose buffers travel: it is one for the parameters alone."""
    buffers = models.shared_buffers(model)
    if not buffers:
        return
    with _blaming(planned, "budget"):
        budget = planned.defense.budget(client_context(scenario, data, model, 0, 1))
    if budget is not None:
        raise ScenarioError(
            f"defenses.{planned.index}",
            f"{planned.info.name} guarantees privacy for the parameters, and {scenario.model.name} also sends "
            f"{len(buffers)} buffers, {buffers[0]} the first, which hold statistics of the pictures. Choose a model without "
            "BatchNorm.",
        )


def _check_mixup(scenario: Scenario, data: FederatedData) -> None:
    if scenario.training.mixup is None:
        return
    for client, samples in enumerate(data.partition):
        if len(samples) < 2:
            raise ScenarioError(
                "training.mixup",
                f"client {client} has a single picture, and mixup blends two of a client's own. Deal it more (data.samples, "
                "data.partition, federation.clients), or leave mixup out.",
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


@contextlib.contextmanager
def _blaming(planned: PlannedDefense, hook: str) -> Iterator[None]:
    """Name the plug-in of which a hook outside the client raises; what it refuses by a FedsimError passes unchanged.

    Raises:
        PluginError: the hook raises anything else, or tries to end the process.
    """
    try:
        yield
    except FedsimError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"defenses.{planned.index}: {hook} of {planned.info.name} ({planned.info.target}) raised {told(error)}. Mend the "
            "plug-in or its parameters, or leave it out."
        ) from error


def _cautions(planned: PlannedDefense, model: nn.Module) -> tuple[str, ...]:
    with _blaming(planned, "cautions"):
        stated: Any = planned.defense.cautions(model)
        if not isinstance(stated, tuple | list) or not all(isinstance(text, str) for text in stated):
            raise TypeError(f"expected a tuple of texts, got {shown(stated)}")
    return tuple(stated)


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
