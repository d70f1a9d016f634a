"""The grid of a sweep: from `--over` and sweep files to cells, each a scenario of its own.

An axis is one key with several values, or several named settings of any keys. A setting of the sweep takes one value of each
axis; a cell is a setting with a seed. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim import shipped
from fedsim.errors import ScenarioError, nearest
from fedsim.scenario import Assignment, Scenario, identifying, load, yaml_loader
from fedsim.scenario.overrides import assignments, parsed
from fedsim.validation import shown

MOST_CELLS = 10_000
"""Cells of one sweep: generous, but no typing error of a few values passes it."""

_SECTION = "sweep"
_KEYS = ("scenario", "set", "settings", "over", "seeds")
_LONGEST_NAME = 60
_LONGEST_SLUG = 60
_DIGEST = 10  # characters: enough for the cells of one folder

# What decides how a cell is run, and nothing that it records.
_INLINE = (
    Assignment("engine", "inline", "sweep"),
    Assignment("audit.processes", 0, "sweep"),
)
_REFUSED = {
    "seed": "a sweep repeats each setting with seeds of its own. Use --seeds",
    "name": "it names the sweep as a whole, and its settings have names of their own. Leave it out",
}


@dataclass(frozen=True)
class Setting:
    """A value of an axis, or one of each axis together.

    Args:
        name: what people read.
        assignments: what it changes in the scenario.
    """

    name: str
    assignments: tuple[Assignment, ...] = ()

    @property
    def changes(self) -> dict[str, Any]:
        """Key -> value."""
        return {assignment.key: assignment.value for assignment in self.assignments}


Axis = tuple[Setting, ...]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        setting: which values it takes.
        seed: its seed.
        scenario: what is run.
        digest: of all in the scenario that decides what the run records.
    """

    setting: Setting
    seed: int
    scenario: Scenario
    digest: str

    @property
    def folder(self) -> str:
        """The name of its run folder: readable, and told apart by the digest."""
        slug = re.sub(r"[^A-Za-z0-9._=-]+", "-", self.setting.name)[:_LONGEST_SLUG].strip("-._") or "run"
        return f"{slug}-s{self.seed}-{self.digest}"


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file states.

    Args:
        scenario: the name of a shipped scenario, or a path.
        common: what is changed for all settings alike.
        axes: of the grid.
        seeds: how many; None where it does not say.
    """

    scenario: str
    common: tuple[Assignment, ...]
    axes: tuple[Axis, ...]
    seeds: int | None


def axis(text: str) -> Axis:
    """Return the axis that one `--over` names: `key=a,b,c`, or `@FILE` with named settings.

    Raises:
        ScenarioError: it is neither, or two of its values are equal.
    """
    if text.startswith("@"):
        return named_settings(yaml_loader.read(Path(text[1:])), f"--over {text}")
    key, separator, values = text.partition("=")
    where = f"--over {key}"
    if not separator or not all(key.split(".")):
        raise ScenarioError(f"--over {text}", "expected key=a,b,c, as in training.batch_size=1,4,16, or @FILE.")
    # The commas between values are those of a YAML list: lists, mappings and quoted text may hold others.
    given = yaml_loader.parse(f"[{values}\n]", where)
    if not isinstance(given, list) or not given:
        raise ScenarioError(where, "expected values with commas between them, got none.")
    return _values(key, given, where)


def _values(key: str, values: Sequence[Any], where: str) -> Axis:
    texts = [json.dumps(value, sort_keys=True) for value in values]
    for position, text in enumerate(texts):
        if text in texts[:position]:
            raise ScenarioError(where, f"{shown(values[position])} is given twice. Keep one of the two.")
    names = [f"{_short(key)}={_written(value)}" for value in values]
    return tuple(
        Setting(name if names.count(name) == 1 else f"{name} ({position})", (Assignment(key, value, where),))
        for position, (name, value) in enumerate(zip(names, values, strict=True), 1)
    )


def _short(key: str) -> str:
    """Return the last part of a key where that says enough."""
    last = key.rpartition(".")[2]
    return key if last == "name" or last.isdecimal() else last


def _written(value: Any) -> str:
    """Return a value as people read it: of a list of plug-ins their names."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        text = " + ".join(str(item["name"]) for item in value)
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        text = " + ".join(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."


def named_settings(content: Any, where: str) -> Axis:
    """Return the axis of a mapping from names to what each changes.

    Raises:
        ScenarioError: it is no such mapping.
    """
    if not isinstance(content, dict) or not content:
        raise ScenarioError(
            where, f"expected names with what each sets, as in 'none: {{defenses: []}}', got {shown(content)}."
        )
    found = []
    for name, changes in content.items():
        text = " ".join(str(name).split())
        if not text or len(text) > _LONGEST_NAME or not text.isprintable():
            raise ScenarioError(where, f"expected a name of 1 to {_LONGEST_NAME} characters, got {shown(name)}.")
        found.append(Setting(text, assignments(changes, f"{where}: {text}")))
    if len({setting.name for setting in found}) < len(found):
        raise ScenarioError(where, "two settings have the same name. Give each its own.")
    return tuple(found)


def sweep_file(path: Path) -> SweepFile | None:
    """Return what a sweep file states; None where the file has no `sweep`, so that it is a scenario.

    Raises:
        ScenarioError: it cannot be read, or is no sweep file.
    """
    content = yaml_loader.read(path)
    if not isinstance(content, dict) or _SECTION not in content:
        return None
    if len(content) > 1:
        others = ", ".join(str(key) for key in content if key != _SECTION)
        raise ScenarioError(str(path), f"a sweep file holds sweep alone; put {others} into the scenario that it names.")
    section = content[_SECTION]
    if not isinstance(section, dict):
        raise ScenarioError(_SECTION, f"expected a mapping with {', '.join(_KEYS)}, got {shown(section)}.")
    for key in section:
        if key not in _KEYS:
            raise ScenarioError(
                f"{_SECTION}.{key}", f"unknown key.{nearest(str(key), _KEYS)} Allowed: {', '.join(_KEYS)}."
            )
    named = section.get("scenario")
    if not isinstance(named, str):
        raise ScenarioError(f"{_SECTION}.scenario", f"expected the name or the path of a scenario, got {shown(named)}.")
    seeds = section.get("seeds")
    if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1):
        raise ScenarioError(f"{_SECTION}.seeds", f"expected how many, at least 1, got {shown(seeds)}.")
    beside = path.resolve().parent / named
    return SweepFile(
        str(beside) if beside.is_file() else named,
        assignments(section.get("set", {}), f"{_SECTION}.set"),
        tuple(_axes_of(section)),
        seeds,
    )


def _axes_of(section: Mapping[str, Any]) -> Iterator[Axis]:
    if "settings" in section:
        yield named_settings(section["settings"], f"{_SECTION}.settings")
    over = section.get("over", {})
    if not isinstance(over, dict):
        raise ScenarioError(f"{_SECTION}.over", f"expected keys with lists of values, got {shown(over)}.")
    for key, values in over.items():
        where = f"{_SECTION}.over.{key}"
        if not isinstance(values, list) or not values:
            raise ScenarioError(where, f"expected a list of values, got {shown(values)}.")
        yield _values(str(key), values, where)


def settings(axes: Sequence[Axis], alone: str) -> list[Setting]:
    """Return the settings of a grid: one value of each axis, in the order given, the last axis fastest.

    Args:
        axes: of the grid.
        alone: the name of the only setting where there is no axis.

    Raises:
        ScenarioError: two axes set the same key, or one that belongs to the sweep.
    """
    keys: dict[str, tuple[int, str]] = {}
    for position, one in enumerate(axes):
        for assignment in itertools.chain.from_iterable(setting.assignments for setting in one):
            key, where = assignment.key, assignment.where
            if key in _REFUSED:
                raise ScenarioError(where, f"{_REFUSED[key]}.")
            for known, (other, before) in keys.items():
                if other != position and _overlap(known, key):
                    raise ScenarioError(
                        where, f"sets {key}, and {before} sets {known}; one would undo the other. Give one of them."
                    )
            keys.setdefault(key, (position, where))
    if not axes:
        return [Setting(alone)]
    return [
        Setting(
            ", ".join(setting.name for setting in chosen),
            tuple(itertools.chain.from_iterable(setting.assignments for setting in chosen)),
        )
        for chosen in itertools.product(*axes)
    ]


def _overlap(one: str, other: str) -> bool:
    """Return whether one key is the other, or leads to it."""
    short, long = sorted((one.split("."), other.split(".")), key=len)
    return long[: len(short)] == short


def cells(
    named: str, overrides: Sequence[str], common: Sequence[Assignment], axes: Sequence[Axis], seeds: int
) -> tuple[list[Cell], list[str]]:
    """Return the cells of a sweep, setting by setting, and notes on what settings replaced beyond their own keys.

    Args:
        named: the scenario's file, or the name of a shipped one.
        overrides: `a.b=value` of `--set`, which go before what a sweep file says.
        common: what a sweep file changes for all cells.
        axes: of the grid.
        seeds: how many; they count up from the scenario's own.

    Raises:
        ScenarioError: a cell is no scenario, there are too many, or two come to the same run.
    """
    path = shipped.find(named)
    count = seeds * math.prod(len(one) for one in axes)
    if count > MOST_CELLS:
        raise ScenarioError("--over", f"{count} cells, and a sweep may have {MOST_CELLS}. Give fewer values or seeds.")
    common = (*common, *map(parsed, overrides))
    first, _ = load(path, (), common)
    found: list[Cell] = []
    notes: dict[str, None] = {}
    for setting in settings(axes, first.name):
        for seed in range(first.seed, first.seed + seeds):
            # The seed comes last: a setting may exchange whatever holds it.
            changes = (*common, *setting.assignments, Assignment("seed", seed, "--seeds"), *_INLINE)
            scenario, told = _loaded(path, changes, setting.name)
            notes |= dict.fromkeys(told)
            found.append(Cell(setting, seed, scenario, digest_of(scenario)))
    _refuse_equal(found)
    return found, list(notes)


def _loaded(path: Path, changes: Sequence[Assignment], setting: str) -> tuple[Scenario, list[str]]:
    try:
        return load(path, (), changes)
    except ScenarioError as error:
        raise ScenarioError(error.where, f"{error.message} (in the setting {setting})") from None


def digest_of(scenario: Scenario) -> str:
    """Return a digest of all in a scenario that decides what its run records: engine and processes do not."""
    content = identifying(scenario)
    del content["engine"], content["audit"]["processes"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGEST]


def _refuse_equal(found: Sequence[Cell]) -> None:
    first: dict[str, Cell] = {}
    for cell in found:
        other = first.setdefault(cell.digest, cell)
        if other is not cell:
            raise ScenarioError(
                "--over",
                f"the settings {other.setting.name} and {cell.setting.name} come to the same run. Leave one of them out.",
            )


def digest_of_grid(found: Sequence[Cell]) -> str:
    """Return a digest of a whole grid, whatever the order of its cells."""
    return hashlib.sha256(" ".join(sorted(cell.digest for cell in found)).encode()).hexdigest()[:_DIGEST]
