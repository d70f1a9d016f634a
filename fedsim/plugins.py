"""Plug-ins by name: entry points of installed distributions, or "module:Class" while developing.

First-party attacks, defenses and data sources come through the same door as anybody's: the entry-point groups
`fedsim.attacks`, `fedsim.defenses` and `fedsim.data`. Listing names imports nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import PydanticUserError

from fedsim.coercion import Parameters
from fedsim.errors import PluginError, ScenarioError, nearest, printable
from fedsim.validation import shown

Kind = Literal["attacks", "defenses", "evaluators", "data"]
_NOUN = {"attacks": "attack", "defenses": "defense", "evaluators": "evaluator", "data": "data source"}
_LONGEST_TARGET = 200  # characters of a "module:Class"
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclasses.dataclass(frozen=True)
class PluginInfo:
    """Where a plug-in comes from: enough to build it again, without having imported it.

    Args:
        kind: the group.
        name: its name in YAML.
        target: "module:Class".
        distribution: name of the installed distribution; None for a bare "module:Class".
        version: version of the distribution; for a bare "module:Class" a digest of its source file, so that an edit shows;
            "unknown" where there is neither.
    """

    kind: Kind
    name: str
    target: str
    distribution: str | None
    version: str


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One YAML parameter of a plug-in: its name, its type as written, its default (None for a required one)."""

    name: str
    type: str
    default: Any
    required: bool = False


class _Origin(NamedTuple):
    distribution: str | None
    version: str


def _origin(point: EntryPoint) -> _Origin:
    return _Origin(point.dist.name, point.dist.version) if point.dist else _Origin(None, "unknown")


def installed(kind: Kind) -> dict[str, PluginInfo]:
    """Return the plug-ins of one kind, by name, in alphabetical order.

    Raises:
        PluginError: two distributions offer the same name.
    """
    found: dict[str, PluginInfo] = {}
    # Each look at a distribution's name or version parses its metadata, with a whole README in it.
    origins: dict[int, _Origin] = {}
    for point in sorted(entry_points(group=f"fedsim.{kind}"), key=lambda p: p.name):
        origin = origins.get(id(point.dist)) or origins.setdefault(id(point.dist), _origin(point))
        info = PluginInfo(kind, point.name, point.value, *origin)
        other = found.setdefault(info.name, info)
        if (other.target, other.distribution) != (info.target, info.distribution):
            raise PluginError(
                f"{_NOUN[kind]} {info.name!r} is offered twice, by {other.distribution} ({other.target}) and by "
                f"{info.distribution} ({info.target}). Uninstall one of the two."
            )
    return found


def is_own(info: PluginInfo) -> bool:
    """Return whether a plug-in comes in the distribution of fedsim itself, whatever that is called."""
    return info.distribution is not None and info.distribution in _own_distributions()


@functools.cache
def _own_distributions() -> frozenset[str | None]:
    return frozenset(other.distribution for other in installed("data").values() if other.target.startswith("fedsim."))


def find(kind: Kind, name: str, where: str) -> PluginInfo:
    """Return the plug-in called `name`, which may also be a "module:Class".

    Raises:
        ScenarioError: there is none; names the nearest match and what is installed.
    """
    if ":" in name:
        if len(name) > _LONGEST_TARGET or not _TARGET.fullmatch(name):
            raise ScenarioError(where, f"expected a name, or 'module:Class', got {shown(name)}.")
        return PluginInfo(kind, name, name, None, _source_version(name.partition(":")[0]))
    known = installed(kind)
    if name not in known:
        raise ScenarioError(
            where,
            f"no {_NOUN[kind]} {shown(name)}.{nearest(name, known)} Installed: {', '.join(known) or 'none'} "
            '(run "fedsim list").',
        )
    return known[name]


def _source_version(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return "unknown"
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return "unknown"
    return f"source {hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:12]}"


def load(info: PluginInfo, contract: type, where: str) -> type:
    """Import the class behind `info` and check that it keeps the contract.

    Raises:
        ScenarioError: a "module:Class" that cannot be imported.
        PluginError: an entry point that cannot be imported, or a class outside the contract.
    """
    module_name, _, attribute = info.target.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        message = f"cannot import {info.target!r}: {printable(str(error), 500)}"
        if info.distribution is None:
            raise ScenarioError(
                where, f"{message}. A name with a colon means 'module:Class', importable here."
            ) from None
        raise PluginError(f"{where}: {message}. Reinstall {info.distribution}.") from error
    if not (inspect.isclass(cls) and issubclass(cls, contract)):
        raise PluginError(f"{where}: {info.target} is not a subclass of {contract.__module__}.{contract.__qualname__}.")
    if not _is_plain_dataclass(cls) or inspect.isabstract(cls):
        raise PluginError(f"{where}: {info.target} must be a concrete dataclass(frozen=True, kw_only=True).")
    for name, method in vars(contract).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            _check_parameters(cls, name, method, f"{where}: {info.target}")
    return cls


def _check_parameters(cls: type, name: str, method: Callable[..., Any], who: str) -> None:
    """Check that a method of a plug-in can be called as that of the contract is.

    Raises:
        PluginError: it takes other arguments, as one of an earlier version of the contract may.
    """
    try:
        inspect.signature(getattr(cls, name)).bind(*inspect.signature(method).parameters)
    except TypeError:
        own, expected = (", ".join(inspect.signature(function).parameters) for function in (getattr(cls, name), method))
        raise PluginError(f"{who}.{name} takes ({own}), this version of fedsim calls it with ({expected}).") from None


def _is_plain_dataclass(cls: Any) -> bool:
    # Looked up in the class itself: an undecorated subclass of a dataclass would lose its fields without a word.
    decorated = vars(cls).get("__dataclass_params__")
    return bool(decorated and decorated.frozen and all(field.kw_only for field in dataclasses.fields(cls)))


def parameters(cls: type) -> list[Parameter]:
    """Return the YAML parameters of a plug-in class, in order."""
    listed = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        default = None if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        written = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        listed.append(Parameter(field.name, written, default, _is_required(field)))
    return listed


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.lru_cache(maxsize=128)
def _typed(cls: type) -> Parameters:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    return Parameters(
        {field.name: hints[field.name] for field in fields}, [field.name for field in fields if _is_required(field)]
    )


def configure(cls: type, params: Mapping[str, Any], where: str) -> Any:
    """Build an instance from YAML parameters.

    Numbers may be given as strings (YAML 1.1 reads 1e-4 as one); booleans may not. A class may hold `renamed`, a mapping of
    former names to what is written instead: those are refused with it.

    Raises:
        ScenarioError: unknown, missing or wrongly typed parameters, or a value that the class refuses.
        PluginError: a field whose annotation does not resolve.
    """
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    for name in params:
        if name not in fields and (new := getattr(cls, "renamed", {}).get(name)):
            raise ScenarioError(f"{where}.{name}", f"has another name now: {new}.")
    try:
        values = _typed(cls).read(params, where)
    except (NameError, PydanticUserError) as error:
        raise PluginError(f"{where}: the type of a field of {cls.__qualname__} cannot be read: {error}.") from None
    try:
        return cls(**values)
    except ValueError as error:
        field_name, separator, message = str(error).partition(": ")
        if separator and field_name.partition(".")[0] in fields:
            raise ScenarioError(f"{where}.{field_name}", printable(message, 500)) from None
        raise ScenarioError(where, printable(str(error), 500)) from None


def build(kind: Kind, contract: type, name: str, params: Mapping[str, Any], where: str) -> Any:
    """Find, import and configure one plug-in; the parameters live at `{where}.params`, or beside the name for data.

    Raises:
        ScenarioError: unknown name or bad parameters.
        PluginError: a plug-in that breaks the contract.
    """
    cls = load(find(kind, name, f"{where}.name"), contract, f"{where}.name")
    return configure(cls, params, where if kind == "data" else f"{where}.params")
