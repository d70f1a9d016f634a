"""A plug-in of a scenario, found and configured: attacks, defenses, evaluators."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedsim import plugins
from fedsim.attack import Attack
from fedsim.defense import ClientContext, Defense, knowledge_of
from fedsim.errors import FedsimError, PluginError, told
from fedsim.evaluator import Evaluator
from fedsim.exchange import DefenseKnowledge
from fedsim.plugins import PluginInfo
from fedsim.recording.records import PLAIN, RecordedVariant
from fedsim.scenario import Grant
from fedsim.validation import shown


def _changed(plugin: Attack | Defense) -> dict[str, Any]:
    defaults = {parameter.name: parameter.default for parameter in plugins.parameters(type(plugin))}
    return {name: value for name, value in dataclasses.asdict(plugin).items() if value != defaults.get(name)}


@dataclass(frozen=True)
class PlannedAttack:
    """One attack of the scenario, or its plain variant.

    Args:
        index: position in the plan.
        info: where the class comes from.
        attack: the configured instance, as the scenario states it.
        label: what reports call it; None for its name.
        position: position in the scenario; the one in the plan where it is not given.
        variant: `plain`, which is not told of defenses, `aware` where there is a plain one beside it, or `only` where others
            have one and this has none; None where none is asked for.
    """

    index: int
    info: PluginInfo
    attack: Attack
    label: str | None = None
    position: int | None = None
    variant: RecordedVariant | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is the plain variant of the attack."""
        return self.variant == "plain"

    @property
    def title(self) -> str:
        """What people read: the label, else the name."""
        name = self.label or self.info.name
        return f"{name}{PLAIN}" if self.is_plain else name

    @property
    def where(self) -> str:
        """Its YAML path."""
        return f"attacks.{self.index if self.position is None else self.position}"

    @property
    def slug(self) -> str:
        """File name of its artifacts: position and name, so that one attack may run twice with other parameters."""
        position = self.index if self.position is None else self.position
        name = f"{position:02d}-{self.info.name.replace(':', '.')}"
        return f"{name}-plain" if self.is_plain else name

    @property
    def runs(self) -> Attack:
        """What is run: the plain variant takes every update for one without a defense."""
        return self.attack.plain() or self.attack if self.is_plain else self.attack

    @property
    def withheld(self) -> frozenset[Grant]:
        """Grants of the scenario that it does not get."""
        return frozenset({"defenses"}) if self.is_plain else frozenset()

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


@contextlib.contextmanager
def blaming(planned: PlannedDefense, hook: str) -> Iterator[None]:
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


def cautions(planned: PlannedDefense, model: nn.Module) -> tuple[str, ...]:
    """Return what a defense states about itself on a model.

    Raises:
        PluginError: see `blaming`; also where it states anything but texts.
    """
    with blaming(planned, "cautions"):
        return _texts(planned.defense.cautions(model))


def client_cautions(planned: PlannedDefense, context: ClientContext) -> tuple[str, ...]:
    """Return what a defense states about itself on one client.

    Raises:
        PluginError: see `cautions`.
    """
    with blaming(planned, "client_cautions"):
        return _texts(planned.defense.client_cautions(context))


def _texts(stated: Any) -> tuple[str, ...]:
    if not isinstance(stated, tuple | list) or not all(isinstance(text, str) for text in stated):
        raise TypeError(f"expected a tuple of texts, got {shown(stated)}")
    return tuple(stated)
