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
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from fedsim import models, plugins
from fedsim.attack import Attack
from fedsim.data.batches import FederatedData
from fedsim.data.batches import load as load_data
from fedsim.defense import Defense
from fedsim.errors import FedsimError, PluginError, ScenarioError, told
from fedsim.exchange import DefenseKnowledge, Normalization
from fedsim.faults import shown
from fedsim.plugins import PluginInfo
from fedsim.scenario import Scenario, parse, select_clients, select_rounds
from fedsim.seeds import seeded


def _changed(plugin: Attack | Defense) -> dict[str, Any]:
    values = dataclasses.asdict(plugin)
    return {
        field.name: values[field.name] for field in dataclasses.fields(plugin) if values[field.name] != field.default
    }


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
    """One defense of the scenario and the clients that carry it."""

    index: int
    info: PluginInfo
    defense: Defense
    clients: frozenset[int]

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
        return DefenseKnowledge(self.info.name, self.params)


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
    """

    scenario: Scenario
    attacks: tuple[PlannedAttack, ...]
    defenses: tuple[PlannedDefense, ...]
    data: FederatedData
    normalization: Normalization
    audit_rounds: tuple[int, ...]
    audit_clients: tuple[int, ...]
    _skeleton: VisionTransformer

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return len(self.data.pools.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of the model's input."""
        grid = models.patch_grid(self._skeleton)
        return grid.channels, grid.rows * grid.patch, grid.columns * grid.patch

    def model(self, weights: Mapping[str, Tensor] | None = None) -> VisionTransformer:
        """Return a fresh model in evaluation mode, with these weights, else with the scenario's initial ones."""
        model = copy.deepcopy(self._skeleton)
        if weights is not None:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(weights[name])
        return model

    def initial_weights(self) -> dict[str, Tensor]:
        """Return the parameters that the server starts from, in the model's order."""
        return {name: parameter.detach().clone() for name, parameter in self._skeleton.named_parameters()}

    def defenses_of(self, client: int) -> tuple[PlannedDefense, ...]:
        """Return the defenses that a client carries, in order of application."""
        return tuple(planned for planned in self.defenses if client in planned.clients)

    def cautions_of(self, client: int) -> tuple[str, ...]:
        """Return the doubts about a client: what its defenses state about themselves on this model, and a batch cut short."""
        stated = [
            f"{planned.info.name}: {text}"
            for planned in self.defenses_of(client)
            for text in _cautions(planned, self._skeleton)
        ]
        asked, held = self.scenario.training.batch_size, len(self.data.partition[client])
        if asked > held:
            stated.append(
                f"training.batch_size is {asked}, but the client has {held} samples: its batches are as small"
            )
        return tuple(stated)


def make(scenario: Scenario) -> Plan:
    """Build and check the plan of a scenario.

    Raises:
        ScenarioError: anything that the scenario names or combines does not work, with its YAML path.
        PluginError: an installed plug-in breaks the contract.
    """
    from fedsim.federation.strategy import check_strategy

    attacks = tuple(_plan_attack(index, scenario) for index in range(len(scenario.attacks)))
    _refuse_equal(attacks)
    defenses = tuple(_plan_defense(index, scenario) for index in range(len(scenario.defenses)))
    clients = scenario.federation.clients
    audit_rounds = select_rounds(scenario.audit.rounds, scenario.federation.rounds)
    audit_clients = select_clients(scenario.audit.clients, clients, scenario.seed, "audit.clients")
    check_strategy(scenario)
    data = load_data(scenario.data, clients, scenario.seed)
    _check_mixup(scenario, data)
    channels, height, _ = data.pools.train.read([0]).images.shape[1:]
    skeleton = models.build(scenario.model, len(data.pools.class_names), height, scenario.seed)
    normalization = models.normalization(skeleton)
    if len(normalization.mean) != channels:
        raise ScenarioError("data", f"pictures of {channels} channels do not fit {scenario.model.name}.")
    with seeded(scenario.seed, "defenses"):
        for planned in defenses:
            with _blaming(planned, "prepare_model"):
                planned.defense.prepare_model(skeleton)
    for planned in defenses:
        _cautions(planned, skeleton)
    return Plan(scenario, attacks, defenses, data, normalization, audit_rounds, audit_clients, skeleton.eval())


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
    attack = plugins.build("attacks", Attack, part.name, part.params, where)
    missing = sorted(attack.needs - set(scenario.threat.grants))
    if missing:
        granted = ", ".join(scenario.threat.grants) or "none"
        raise ScenarioError(
            f"{where}.name",
            f"{part.name} needs the grant {', '.join(missing)}; threat.grants has {granted}. "
            "Grant it, or leave the attack out.",
        )
    return PlannedAttack(index, plugins.find("attacks", part.name, where), attack, part.label)


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


def _plan_defense(index: int, scenario: Scenario) -> PlannedDefense:
    part, where = scenario.defenses[index], f"defenses.{index}"
    defense = plugins.build("defenses", Defense, part.name, part.params, where)
    chosen = select_clients(part.clients, scenario.federation.clients, scenario.seed, f"{where}.clients")
    return PlannedDefense(index, plugins.find("defenses", part.name, where), defense, frozenset(chosen))


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
