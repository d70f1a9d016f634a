"""The phases that a scenario file states: each a scenario of its own, made from the rest of the file by what the phase sets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.errors import ScenarioError, nearest
from fedsim.planning import inputs
from fedsim.planning import preparation as planning
from fedsim.planning.inputs import Inputs
from fedsim.planning.plan import Plan
from fedsim.scenario import Assignment, Scenario, load_phase, stated_phases
from fedsim.scenario.overrides import assignments
from fedsim.validation import shown

MOST = 20
"""Phases of one scenario."""

_KEYS = ("name", "set")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_START = "model.pretrained"
_REFUSED = {
    "name": "it is made of the scenario's and the phase's. Leave it out",
    "phases": "a phase has none of its own. Leave it out",
}


@dataclass(frozen=True)
class Phase:
    """One phase.

    Args:
        name: as the file states it.
        folder: the name of its run folder.
        scenario: what is run; where it continues, without the weights that it starts from.
        continues: whether it starts from the global model of the phase before.
    """

    name: str
    folder: str
    scenario: Scenario
    continues: bool


def read(path: Path, settings: Sequence[str] = ()) -> tuple[list[Phase], list[str]]:
    """Return the phases of a scenario file, none where it states none, and notes on what settings replaced.

    Args:
        path: the file.
        settings: `a.b=value`, which go before what a phase sets.

    Raises:
        ScenarioError: a phase is none; the message names it.
    """
    stated = stated_phases(path)
    if stated is None:
        return [], []
    if not isinstance(stated, list) or not 1 <= len(stated) <= MOST:
        raise ScenarioError(
            "phases",
            f"expected a list of 1 to {MOST} phases such as {{name: first, set: {{...}}}}, got "
            f"{'nothing' if stated in (None, []) else shown(stated)}.",
        )
    base, notes = load_phase(path, settings, ())
    found: list[Phase] = []
    for index, one in enumerate(stated):
        name, changes = _checked(one, f"phases.{index}")
        if name in [phase.name for phase in found]:
            raise ScenarioError(f"phases.{index}.name", f"{name} is the name of a phase before. Choose another.")
        continues = index > 0 and not any(_sets_start(change) for change in changes)
        own = [Assignment("name", f"{base.name}-{name}", f"phases.{index}")]
        if continues:
            own.append(Assignment(_START, False, f"phases.{index}"))
        with_changes = (*changes, *own)
        try:
            scenario, told = load_phase(path, settings, with_changes)
        except ScenarioError as error:
            raise _of_phase(error, name) from None
        notes += told
        found.append(Phase(name, f"{index + 1}-{name}", scenario, continues))
    return found, list(dict.fromkeys(notes))


def _checked(stated: Any, where: str) -> tuple[str, tuple[Assignment, ...]]:
    if not isinstance(stated, Mapping):
        raise ScenarioError(where, f"expected a mapping such as {{name: first, set: {{...}}}}, got {shown(stated)}.")
    for key in stated:
        if key not in _KEYS:
            raise ScenarioError(
                f"{where}.{key}", f"unknown key.{nearest(str(key), _KEYS)} Allowed: {', '.join(_KEYS)}."
            )
    name = stated.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ScenarioError(
            f"{where}.name",
            "expected 1 to 40 letters, digits, dots, dashes and underscores, a letter or digit first, got "
            f"{shown(name)}.",
        )
    changes = assignments(stated.get("set", {}), f"{where}.set")
    for change in changes:
        if change.key in _REFUSED:
            raise ScenarioError(change.where, f"{_REFUSED[change.key]}.")
    return name, changes


def _sets_start(change: Assignment) -> bool:
    if change.key == "model":
        return isinstance(change.value, Mapping) and "pretrained" in change.value
    return change.key == _START or change.key.startswith(f"{_START}.")


def check(phases: Sequence[Phase]) -> list[tuple[Plan, Inputs]]:
    """Check all phases as `fedsim check` does, and that what one ends with fits the one that starts from it.

    Returns:
        The plan of each, and its inputs, for which every image has been read; nothing is trained.

    Raises:
        FedsimError: the first that cannot run; its phase is named.
    """
    found: list[tuple[Plan, Inputs]] = []
    for phase in phases:
        try:
            plan = planning.make(phase.scenario, trains=False, before=found[-1][0] if phase.continues else None)
            found.append((plan, inputs.of(plan)))
        except ScenarioError as error:
            raise _of_phase(error, phase.name) from None
    return found


def _of_phase(error: ScenarioError, name: str) -> ScenarioError:
    return ScenarioError(error.where, f"{error.message} (in the phase {name})")
