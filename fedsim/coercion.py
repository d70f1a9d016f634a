"""Plain values to annotated types: lax about numbers written as text, strict about booleans."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic

from fedsim.errors import ScenarioError, nearest
from fedsim.faults import shown

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "nothing"}
_LARGEST = 10**60  # of a whole number; Python writes none of more than 4300 digits


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """Return a YAML value as the type that an annotation names.

    Numbers may be given as text (YAML 1.1 reads 1e-4 as one); booleans are no numbers.

    Raises:
        ScenarioError: the value does not fit.
    """
    wants_bool = _mentions_bool(annotation)
    # YAML can write .inf and .nan; the records of a run, which are JSON, cannot.
    config = pydantic.ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ScenarioError(where, f"expected a number of at most {_LARGEST:.0e}, got {shown(value)}.")
    try:
        if wants_bool or not _holds_bool(value):
            return pydantic.TypeAdapter(annotation, config=config).validate_python(value, strict=wants_bool)
    except pydantic.ValidationError:
        pass
    guess = nearest(value, _literals(annotation)) if isinstance(value, str) else ""
    raise ScenarioError(where, f"expected {describe(annotation)}, got {shown(value)}.{guess}")


def _mentions_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_mentions_bool(inner) for inner in typing.get_args(annotation))


def _holds_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and any(map(_holds_bool, value)))


def _literals(annotation: Any) -> list[str]:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return [value for value in inner if isinstance(value, str)]
    return [value for part in inner for value in _literals(part)]


def describe(annotation: Any) -> str:
    """Return in words what fits a type."""
    inner, origin = typing.get_args(annotation), typing.get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(shown, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, inner))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return "a list, each item " + " or ".join(describe(part) for part in inner if part is not Ellipsis)
    if origin is Mapping:
        return "a mapping"
    if inspect.isclass(annotation):
        return _WORDS.get(annotation, annotation.__name__)
    return str(annotation)
