"""What attacks and defenses have in common: a documented, frozen dataclass whose fields are YAML parameters."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml

from fedsim import plugins
from fedsim.errors import ScenarioError
from fedsim.scenario import yaml_loader
from fedsim.testing.isolation import Fault, Faults, expect

_LINK = re.compile(r"https?://\S+")
# A year, "et al.", an identifier or a link: what a citation of a paper has, and a sentence about an own idea has not.
_PAPER = re.compile(r"https?://|\b(19|20)\d\d\b|\bet al\b|\barxiv\b|\bdoi\b", re.IGNORECASE)
_SCALARS = (bool, int, float, str, type(None))
_NESTED = (list, tuple, dict, Sequence, Mapping, typing.Union, types.UnionType)


def check_contract(plugin: Any, contract: type[Any], params: Mapping[str, Any], faults: Faults) -> Any:
    """Check what needs no run, and return the configured instance.

    Args:
        plugin: a class, or an instance that says how the class is configured.
        contract: `Attack` or `Defense`.
        params: parameters that differ from the defaults, or from the instance.
        faults: takes what is wrong and does not keep the rest from being checked.
    """
    cls: type[Any] = plugin if inspect.isclass(plugin) else type(plugin)
    who = cls.__qualname__
    with faults.of("documentation"):
        _check_docstring(cls)
    with faults.of("citation"):
        _check_citation(cls)
    expect(issubclass(cls, contract), f"{who} is not a subclass of {contract.__qualname__}.")
    _check_class(cls, faults)
    expect(not inspect.isabstract(cls), f"{who} leaves abstract methods open: {', '.join(_abstract(cls))}.")
    required = [parameter.name for parameter in plugins.parameters(cls) if parameter.required]
    expect(
        not required,
        f"{who}.{', '.join(required)} has no default; a scenario may name the plug-in alone.",
    )
    try:
        defaults = cls()
    except ValueError as error:
        raise Fault(f"{who}: the default values are refused: {error}") from error
    configured = dataclasses.replace(defaults if inspect.isclass(plugin) else plugin, **params)
    for instance in (defaults, configured):
        with faults.of("copies"):
            _check_copies(instance)
        with faults.of("YAML"):
            _check_yaml(instance)
    _check_refusals(configured, faults)
    return configured


def _check_class(cls: type, faults: Faults) -> None:
    who = cls.__qualname__
    with faults.of("decoration"):
        decorated = "__dataclass_params__" in vars(cls)
        expect(decorated, f"{who} is not decorated itself; put @dataclass(frozen=True, kw_only=True) before the class.")
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        with faults.of(f"order of {field.name}"):
            is_named = field.kw_only is True
            expect(is_named, f"{who}.{field.name} is positional; use @dataclass(frozen=True, kw_only=True).")
        with faults.of(f"type of {field.name}"):
            expect(
                _is_yaml(hints[field.name]),
                f"{who}.{field.name}: YAML cannot express {field.type}. Use bool, int, float, str, None, Literal, and "
                "lists, tuples or mappings of these.",
            )


def _abstract(cls: type) -> list[str]:
    return sorted(getattr(cls, "__abstractmethods__", ()))


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise Fault(
            f"{cls.__qualname__}: annotations cannot be read at run time: {error}. Import what they name outside of "
            "TYPE_CHECKING."
        ) from error


def _is_yaml(annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return all(isinstance(value, _SCALARS) for value in arguments)
    if origin is Annotated:
        return _is_yaml(arguments[0])
    if origin in _NESTED:
        return all(_is_yaml(argument) for argument in arguments if argument is not Ellipsis)
    return annotation in _SCALARS


def _check_docstring(cls: type) -> None:
    module = inspect.getmodule(cls)
    text = (inspect.getdoc(module) if module else None) or ""
    citation = getattr(cls, "citation", None)
    named = _names_a_paper(text) or (isinstance(citation, str) and _names_a_paper(citation))
    expect(
        bool(text.strip()) and (not named or bool(_LINK.search(text))),
        f"{cls.__qualname__}: the docstring of its module lacks {'a link to the paper (http...)' if named else 'a line'}; "
        'its first line is what "fedsim list" prints.',
    )


def _check_citation(cls: type) -> None:
    citation = getattr(cls, "citation", None)
    expect(
        isinstance(citation, str)
        and bool(citation.strip())
        and (not _names_a_paper(citation) or bool(_LINK.search(citation))),
        f"{cls.__qualname__}.citation must be a text with a link (http...) where it names a paper, which the report prints; "
        f"got {citation!r}.",
    )


def _names_a_paper(text: str) -> bool:
    return bool(_PAPER.search(text))


def _check_copies(instance: Any) -> None:
    who = type(instance).__qualname__
    try:
        pickled = pickle.loads(pickle.dumps(instance))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Fault(f"{who} cannot be pickled, so it cannot travel to another process: {error}") from error
    expect(pickled == instance, f"{who} differs from itself after pickling.")
    expect(copy.deepcopy(instance) == instance, f"{who} differs from its deep copy.")


def _check_yaml(instance: Any) -> None:
    cls = type(instance)
    try:
        text = yaml_loader.dump(dataclasses.asdict(instance))
        read = plugins.configure(cls, yaml_loader.parse(text, cls.__qualname__), cls.__qualname__)
    except (yaml.YAMLError, ScenarioError) as error:
        raise Fault(f"{cls.__qualname__}: its parameters do not survive a scenario file: {error}") from error
    expect(read == instance, f"{cls.__qualname__}: a scenario file turns {instance} into {read}.")


def _check_refusals(instance: Any, faults: Faults) -> None:
    """Check that numbers outside a field's range are refused in the way that leads to a YAML path."""
    cls = type(instance)
    names = {field.name for field in dataclasses.fields(cls)}
    for name, hint in _hints(cls).items():
        for value in _probes(hint) if name in names else ():
            with faults.of(f"refusals of {name}"):
                _check_refusal(instance, name, value)


def _check_refusal(instance: Any, name: str, value: int | float) -> None:
    cls = type(instance)
    names = {field.name for field in dataclasses.fields(cls)}
    try:
        dataclasses.replace(instance, **{name: value})
    except ValueError as error:
        named = str(error).partition(": ")[0]
        expect(
            named in names,
            f"{cls.__qualname__} refuses {name}={value} with {str(error)!r}; begin the message with the field: "
            f'"{name}: expected ..., got {value}.".',
        )
    else:
        is_number = not math.isnan(value)
        expect(is_number, f"{cls.__qualname__} accepts {name}=nan; raise ValueError in __post_init__.")


def _probes(annotation: Any) -> Iterator[float]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = {annotation, *(typing.get_args(annotation) if is_union else ())}
    if float in kinds:
        yield from (math.nan, math.inf, -math.inf, -1.0, 0.0)
    if int in kinds:
        yield from (-1, 0)
