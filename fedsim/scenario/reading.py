"""A scenario from plain data, and from a YAML file with `--set a.b=c` applied and file paths resolved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from fedsim import validation
from fedsim.errors import ScenarioError, printable
from fedsim.scenario import overrides, yaml_loader
from fedsim.scenario.fields import named
from fedsim.scenario.overrides import Assignment
from fedsim.scenario.parts import AttackPart, Scenario
from fedsim.validation import shown

PHASES = "phases"
"""The key of a scenario file under which its phases stand."""

_MOST_FAULTS = 20  # told at once


def parse(raw: Any, source: str) -> Scenario:
    """Build a scenario from plain data.

    Raises:
        ScenarioError: one line per fault, each starting with its YAML path; `source` names the data itself.
    """
    if not isinstance(raw, dict):
        raise ScenarioError(source, f"expected a mapping such as 'name: my-run', got {shown(raw)}.")
    if PHASES in raw:
        raise ScenarioError(
            PHASES,
            f"{source} runs in phases, each a run of its own, and one run is wanted here. Give the file to fedsim run or "
            "fedsim check, or leave phases out.",
        )
    return _validated(Scenario, raw, ())


def parse_attack(raw: Any, where: str) -> AttackPart:
    """Build one item of `attacks` from plain data: its mapping, or its name alone.

    Raises:
        ScenarioError: see `parse`; `where` comes first in every path.
    """
    part = named(raw)
    if not isinstance(part, dict):
        raise ScenarioError(where, f"expected a name or {{name: ..., params: ...}}, got {shown(raw)}.")
    return _validated(AttackPart, part, (where,))


_AnyPart = TypeVar("_AnyPart", bound=pydantic.BaseModel)


def _validated(model: type[_AnyPart], raw: dict[str, Any], path: tuple[str, ...]) -> _AnyPart:
    try:
        return model.model_validate(raw)
    except pydantic.ValidationError as error:
        listed = validation.of(error, model, _MOST_FAULTS)
        found = [(".".join((*path, *fault.path)), fault.message) for fault in listed]
        others = [f"{printable(where, 80)}: {message}" for where, message in found[1:]]
        if error.error_count() > _MOST_FAULTS:
            others.append(f"{error.error_count() - _MOST_FAULTS} more faults.")
        raise ScenarioError(found[0][0], "\n".join([found[0][1], *others])) from None


def load(
    path: Path, settings: Sequence[str] = (), assignments: Sequence[Assignment] = ()
) -> tuple[Scenario, list[str]]:
    """Read a scenario file and apply `a.b=value` settings, then the assignments of a sweep.

    File paths inside the file are relative to the file; those in a setting to the working directory first, then to the
    file. Both become absolute, so that the resolved scenario runs from anywhere.

    Returns:
        The scenario, and notes on what a setting replaced beyond its own key.

    Raises:
        ScenarioError: see `parse`; also a setting that is not of the form a.b=value, or a file with phases.
    """
    return _loaded(_read(path), path, settings, assignments)


def load_phase(path: Path, settings: Sequence[str], assignments: Sequence[Assignment]) -> tuple[Scenario, list[str]]:
    """Read the scenario of one phase: that of the file without its phases, with settings, then the phase's own assignments.

    Returns:
        See `load`.

    Raises:
        ScenarioError: see `load`.
    """
    raw = _read(path)
    raw.pop(PHASES, None)
    return _loaded(raw, path, settings, assignments)


def stated_phases(path: Path) -> Any:
    """Return what a scenario file holds under `phases`, unchecked; None where it has none.

    Raises:
        ScenarioError: the file is no scenario.
    """
    raw = _read(path)
    if PHASES not in raw:
        return None
    return [] if raw[PHASES] is None else raw[PHASES]


def _read(path: Path) -> dict[str, Any]:
    if (path / "scenario.yaml").is_file():
        raise ScenarioError(
            str(path),
            f"a run folder, no scenario file. To go on with it: fedsim run --resume {path}; to run the same again: "
            f"fedsim run {path / 'scenario.yaml'}.",
        )
    raw = yaml_loader.read(path)
    if raw is None:
        raise ScenarioError(str(path), 'the file is empty; "fedsim init" writes one to start from.')
    if not isinstance(raw, dict):
        raise ScenarioError(str(path), f"expected a mapping such as 'name: my-run', got {shown(raw)}.")
    if [*raw] == ["sweep"]:
        raise ScenarioError(str(path), f"a sweep file, no scenario. Run it with: fedsim sweep {path}.")
    return raw


def _loaded(
    raw: dict[str, Any], path: Path, settings: Sequence[str], assignments: Sequence[Assignment]
) -> tuple[Scenario, list[str]]:
    raw.setdefault("name", _name_of(path))
    # A setting may change what belongs to the name.
    raw |= {part: named(raw[part]) for part in ("data", "model") if part in raw}
    raw |= {
        part: [named(item) for item in raw[part]] for part in ("defenses", "attacks") if isinstance(raw.get(part), list)
    }
    folder = path.resolve().parent
    overrides.resolve_paths(raw, [folder])
    notes: list[str] = []
    for setting in settings:
        notes += overrides.apply(raw, setting, Scenario().resolved(), folder)
    for assignment in assignments:
        notes += overrides.assign(raw, assignment, Scenario().resolved(), folder)
    return parse(raw, str(path)), notes


def _name_of(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "run"
