"""`--set a.b=c`, the values of a sweep, and file paths of a scenario: what happens to plain data before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.errors import ScenarioError, printable
from fedsim.scenario import yaml_loader
from fedsim.validation import shown

# The keys that name files; a source's parameter of another name is its own business.
_PATHS = (
    ("data", "path"),
    ("data", "test_path"),
    ("data", "root"),
    ("model", "pretrained"),
    ("model", "pretrained", "file"),
)

# Parts of which a scenario may give the name alone; a setting that does leaves their other keys as they are.
_NAMED = ("data", "model")


class Assignment(NamedTuple):
    """A value for one key of a scenario.

    Args:
        key: as in `--set`: names and indices with dots between them.
        value: as YAML gives it.
        where: names its origin in messages, as in `--over training.batch_size`.
    """

    key: str
    value: Any
    where: str


def apply(raw: dict[str, Any], override: str, defaults: Mapping[str, Any], folder: Path) -> list[str]:
    """Set one `a.b=value` in place; lists that the scenario leaves to their default are changed from there.

    Args:
        raw: the scenario as plain data.
        override: the key, an equals sign, the value as YAML.
        defaults: the default scenario as plain data.
        folder: of the scenario file; paths are relative to the working directory first, then to it.

    Returns:
        Notes on what was dropped because the data source was exchanged.

    Raises:
        ScenarioError: not of the form a.b=value, or the key leads nowhere.
    """
    return assign(raw, parsed(override), defaults, folder)


def parsed(override: str) -> Assignment:
    """Return what one `a.b=value` assigns.

    Raises:
        ScenarioError: not of this form, or the value is no YAML.
    """
    key, separator, text = override.partition("=")
    keys = key.split(".")
    if not separator or not all(keys):
        raise ScenarioError(f"--set {override}", "expected a.b=value, as in training.batch_size=4.")
    limits = yaml_loader.SCENARIO
    _check_depth(keys, f"--set {key}")
    value = yaml_loader.parse(text, f"--set {key}", limits._replace(depth=limits.depth - len(keys)))
    return Assignment(key, value, f"--set {key}")


def assignments(changes: Any, where: str) -> tuple[Assignment, ...]:
    """Return what a mapping from keys to values assigns, as `set` of a sweep file or of a phase holds it.

    Raises:
        ScenarioError: it is no mapping.
    """
    if not isinstance(changes, dict):
        raise ScenarioError(where, f"expected keys of the scenario with values, got {shown(changes)}.")
    return tuple(Assignment(str(key), value, f"{where}: {printable(str(key), 80)}") for key, value in changes.items())


def _check_depth(keys: Sequence[str], where: str) -> None:
    if len(keys) >= yaml_loader.SCENARIO.depth:
        raise ScenarioError(
            where, f"{len(keys)} keys inside one another, and {yaml_loader.SCENARIO.depth} are too many."
        )


def assign(raw: dict[str, Any], assignment: Assignment, defaults: Mapping[str, Any], folder: Path) -> list[str]:
    """Assign a value to one key in place; see `apply`.

    Raises:
        ScenarioError: the key is none, or leads nowhere.
    """
    key, given, where = assignment
    keys = key.split(".")
    if not all(keys):
        raise ScenarioError(where, "expected a key such as training.batch_size.")
    _check_depth(keys, where)
    if key in _NAMED and isinstance(given, str):
        keys.append("name")
    value = _with_paths(keys, copy.deepcopy(given), [Path.cwd(), folder])
    node = _descend(raw, keys[:-1], defaults, where)
    if isinstance(node, list):
        node[_index(node, keys[-1], where)] = value
        return []
    exchanged = keys == ["data", "name"] and node.get("name", defaults["data"]["name"]) != value
    node[keys[-1]] = value
    return _drop_foreign(node, str(value)) if exchanged else []


def _descend(raw: dict[str, Any], keys: Sequence[str], defaults: Any, where: str) -> Any:
    node: Any = raw
    for position, key in enumerate(keys):
        if isinstance(node, list):
            node, defaults = node[_index(node, key, where)], None
        else:
            defaults = defaults.get(key) if isinstance(defaults, dict) else None
            if node.get(key) is None:
                node[key] = copy.deepcopy(defaults) if isinstance(defaults, list) else {}
            node = node[key]
        if not isinstance(node, dict | list):
            raise ScenarioError(where, f"{printable('.'.join(keys[: position + 1]), 80)} is a value, not a mapping.")
    return node


def _index(node: list[Any], key: str, where: str) -> int:
    if not key.isdecimal() or len(key) > 9 or int(key) >= len(node):
        raise ScenarioError(where, f"{shown(key)} is not an index of a list of {len(node)}.")
    return int(key)


def _drop_foreign(data: dict[str, Any], name: str) -> list[str]:
    """Drop parameters of the old source that the new one does not have, so that `--set data.name=...` suffices."""
    from fedsim import plugins
    from fedsim.source import Source

    cls = plugins.load(plugins.find("data", name, "data.name"), Source, "data.name")
    known = {"name", "partition", *(parameter.name for parameter in plugins.parameters(cls))}
    foreign = [key for key in data if key not in known]
    for key in foreign:
        del data[key]
    return [f"data.name is now {name!r}: dropped {', '.join(foreign)}, which it does not have"] if foreign else []


def resolve_paths(raw: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Make the file paths in plain data absolute, in place: in the first folder that holds them, else in the first.

    Raises:
        ScenarioError: a path that no file system can have.
    """
    for *parts, key in _PATHS:
        node: Any = raw
        for part in parts:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(key), str):
            node[key] = _absolute(node[key], folders, ".".join([*parts, key]))


def _absolute(text: str, folders: Sequence[Path], where: str) -> str:
    try:
        tried = [(folder / Path(text).expanduser()).resolve() for folder in folders]
        return str(next((path for path in tried if path.exists()), tried[0]))
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ScenarioError(where, f"{shown(text)} cannot be a path: {reason}.") from None


def _with_paths(keys: Sequence[str], value: Any, folders: Sequence[Path]) -> Any:
    """Resolve the file paths that one override brings, by wrapping it into the scenario it stands for."""
    wrapped = value
    for key in reversed(keys):
        wrapped = {key: wrapped}
    resolve_paths(wrapped, folders)
    for key in keys:
        wrapped = wrapped[key]
    return wrapped
