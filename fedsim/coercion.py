"""Plain values to the types of parameters: lax about numbers written as text, strict about booleans."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic_core import PydanticKnownError

from fedsim import validation
from fedsim.errors import ScenarioError, nearest, printable
from fedsim.validation import shown

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    types.NoneType: "nothing",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
    Any: "anything",
}
_LARGEST = 10**60  # of a whole number; Python writes none of more than 4300 digits
_OF_TYPE = (
    "_type",
    "_parsing",
    "_from_float",
    "_instance_of",
)  # ends of pydantic's types of error: another type is needed


class Parameters:
    """What a plug-in or a strategy may be given: the types of its parameters, all checked together.

    Numbers may be given as text (YAML 1.1 reads 1e-4 as one); booleans are no numbers, and numbers no booleans.

    Args:
        annotations: name -> type.
        required: those that must be given.
    """

    def __init__(self, annotations: Mapping[str, Any], required: Collection[str] = ()) -> None:
        self._annotations = dict(annotations)
        # By alias, since a parameter may have the name of something that every pydantic model has, such as `copy`.
        fields: dict[str, Any] = {
            f"parameter_{place}": (
                _checked(annotation),
                pydantic.Field(alias=name) if name in required else pydantic.Field(default=None, alias=name),
            )
            for place, (name, annotation) in enumerate(annotations.items())
        }
        # YAML can write .inf and .nan; the records of a run, which are JSON, cannot.
        config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
        self._model = pydantic.create_model("Parameters", __config__=config, **fields)

    def read(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the given values as what the parameters must be.

        Raises:
            ScenarioError: an unknown or missing parameter, or a value of another type; tells all of them.
        """
        try:
            read = self._model.model_validate(dict(values))
        except pydantic.ValidationError as error:
            found: dict[str, str] = {}
            for detail in error.errors(include_url=False):
                path, message = self._fault(detail, values)
                found.setdefault(".".join([*([where] if where else []), *map(str, path)]), message)
            first, *others = found.items()
            listed = [first[1], *(f"{printable(place, 80)}: {message}" for place, message in others)]
            raise ScenarioError(first[0], "\n".join(listed)) from None
        names = {field.alias: name for name, field in self._model.model_fields.items()}
        return {name: getattr(read, names[name]) for name in values}

    def _fault(self, detail: Any, values: Mapping[str, Any]) -> tuple[list[Any], str]:
        """Return where one of pydantic's details is, and what is expected there."""
        kind, (name, *rest) = detail["type"], detail["loc"]
        if name not in self._annotations:
            allowed = ", ".join(self._annotations) or "none"
            return [name], f"unknown parameter.{nearest(str(name), self._annotations)} Allowed: {allowed}."
        if name not in values:
            return [name], "missing; this parameter has no default."
        annotation, value, path = self._annotations[name], values[name], [name]
        is_whole = True
        for part in rest:
            inner = _inner(annotation, part)
            if part == "[key]" or inner is None or not _has(value, part):
                is_whole = False
                break
            annotation, value, path = inner, value[part], [*path, part]
        if rest and rest[-1] == "[key]":
            return path, validation.message(detail)
        if kind == "value_error" or (is_whole and not _is_choice(annotation) and not kind.endswith(_OF_TYPE)):
            return path, validation.message(detail)
        guess = nearest(value, _literals(annotation)) if isinstance(value, str) else ""
        return path, f"expected {describe(annotation)}, got {shown(value)}.{guess}"


def coerce(value: Any, annotation: Any, where: str) -> Any:
    """Return one value as the type that an annotation names; see `Parameters`.

    Raises:
        ScenarioError: the value does not fit.
    """
    place, _, name = where.rpartition(".")
    return Parameters({name: annotation}).read({name: value}, place)[name]


def _checked(annotation: Any) -> Any:
    """Return an annotation whose numbers refuse booleans and whose booleans refuse numbers, at any depth."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is bool:
        return Annotated[bool, pydantic.Strict()]
    if annotation in (int, float) or (origin is Literal and not any(isinstance(value, bool) for value in inner)):
        return Annotated[annotation, pydantic.BeforeValidator(_no_boolean)]
    if origin is Annotated:
        return Annotated[(_checked(inner[0]), *inner[1:])]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_checked, inner))]  # noqa: UP007  (of a number of types known only here)
    if inspect.isclass(origin) and issubclass(origin, Collection):
        return origin[tuple(map(_checked, inner))]  # type: ignore[index]
    return annotation


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"expected a number of at most {_LARGEST:.0e}, got {shown(value)}")
    return value


def _branches(annotation: Any) -> list[Any]:
    """Return the types of a union, or the one type, each without what is annotated to it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _branches(inner[0])
    if origin in (typing.Union, types.UnionType):
        return [branch for part in inner for branch in _branches(part)]
    return [annotation]


def _is_choice(annotation: Any) -> bool:
    branches = _branches(annotation)
    return len(branches) > 1 or typing.get_origin(branches[0]) is Literal


def _inner(annotation: Any, part: Any) -> Any:
    """Return the type of an item of a list or mapping; None where that is not the one type it may have."""
    branches = [branch for branch in _branches(annotation) if branch is not types.NoneType]
    if len(branches) != 1:
        return None
    origin, inner = typing.get_origin(branches[0]), typing.get_args(branches[0])
    if not inspect.isclass(origin) or not issubclass(origin, Collection) or not inner:
        return None
    if issubclass(origin, tuple) and inner[-1] is not Ellipsis:
        return inner[part] if isinstance(part, int) and part < len(inner) else None
    return inner[1] if issubclass(origin, Mapping) else inner[0]


def _has(value: Any, part: Any) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, Sequence) and isinstance(part, int) and part < len(value)


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
    if origin is Annotated:
        return describe(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, inner))
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "a mapping" if inner[1] is Any else f"a mapping of {describe(inner[0])} to {describe(inner[1])}"
    if inspect.isclass(origin) and issubclass(origin, tuple) and Ellipsis not in inner:
        return f"a list of {len(inner)} items: {', '.join(map(describe, inner))}"
    if inspect.isclass(origin) and issubclass(origin, Collection):
        return f"a list, each item {describe(inner[0])}"
    return _WORDS.get(annotation) or (annotation.__name__ if inspect.isclass(annotation) else str(annotation))
