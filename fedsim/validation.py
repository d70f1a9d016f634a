"""What pydantic found wrong with a value, in fedsim's words: what is expected, what was given."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import pydantic
from pydantic import BaseModel, WrapValidator

from fedsim.errors import nearest, printable

_LONGEST = 80  # characters of a value in a message
_LARGEST = 10**60  # from here on the number of bits is shown; Python writes no number of more than 4300 digits

# pydantic's type of error -> what was expected; braces are filled from the error's context.
_EXPECTED = MappingProxyType(
    {
        "bool_type": "true or false",
        "dict_type": "a mapping",
        "finite_number": "a finite number",
        "float_parsing": "a number",
        "float_type": "a number",
        "greater_than": "a number above {gt:g}",
        "greater_than_equal": "at least {ge:g}",
        "int_from_float": "a whole number",
        "int_parsing": "a whole number",
        "int_parsing_size": "a smaller number",
        "int_type": "a whole number",
        "invalid_key": "text as a key",
        "less_than": "a number below {lt:g}",
        "less_than_equal": "at most {le:g}",
        "list_type": "a list",
        "literal_error": "{expected}",
        "model_type": "a mapping",
        "string_type": "text",
        "string_unicode": "text that UTF-8 can hold",
        "tuple_type": "a list",
        "too_long": "at most {max_length} items",
    }
)


class Fault(NamedTuple):
    """One fault: the keys that lead to it, and a message of one line."""

    path: tuple[str, ...]
    message: str


def shown(value: Any) -> str:
    """Return a value as a message shows it: as YAML would write it, text in quotes, at most 80 characters."""
    text = _written(value, _LONGEST)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _written(value: Any, room: int) -> str:
    """Return a value as YAML would write it; what comes after more than `room` characters is left out."""
    if room <= 0:
        return "..."
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, dict):
        return "{" + _joined((f"{printable(str(key), room)}: " for key in value), value.values(), room) + "}"
    if isinstance(value, list):
        return "[" + _joined(itertools.repeat(""), value, room) + "]"
    return repr(value[: room + 1] if isinstance(value, str) else value)


def _joined(keys: Iterable[str], values: Iterable[Any], room: int) -> str:
    written = ""
    for key, value in zip(keys, values, strict=False):
        if len(written) > room:
            break
        written += (", " if written else "") + key
        written += _written(value, room - len(written) - 1)
    return written


def worded(expected: str) -> WrapValidator:
    """Return an annotation that gives one message for a value that fits no branch of a union."""

    def validate(value: Any, proceed: Callable[[Any], Any]) -> Any:
        try:
            return proceed(value)
        except pydantic.ValidationError:
            raise ValueError(f"expected {expected}, got {shown(value)}") from None

    return WrapValidator(validate)


def of(error: pydantic.ValidationError, model: type[BaseModel], most: int | None = None) -> list[Fault]:
    """Return the faults of plain data that was to become a `model`, in the order of its fields, and `most` at most."""
    schema = model.model_json_schema()
    return list(dict.fromkeys(_fault(detail, schema) for detail in error.errors(include_url=False)[:most]))


def _fault(detail: Any, schema: dict[str, Any]) -> Fault:
    path = tuple(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] == "extra_forbidden":
        allowed = _keys_at(path[:-1], schema)
        advice = _elsewhere(path[-1], schema) if len(path) == 1 else ""
        advice = advice or nearest(path[-1], allowed)
        if {"name", "params"} <= set(allowed) and "'params'" not in advice:
            advice += f" A parameter belongs under params: {{name: ..., params: {{{path[-1]}: ...}}}}."
        return Fault(path, f"unknown key.{advice} Allowed: {', '.join(allowed)}.")
    if detail["type"] == "missing":
        return Fault(path, "missing, and it has no default.")
    return Fault(path, message(detail))


def message(detail: Any) -> str:
    """Return one of pydantic's details as expectation and value."""
    if detail["type"] == "value_error":
        return detail["msg"].removeprefix("Value error, ").rstrip(".") + "."  # type: ignore[no-any-return]
    given, context = detail["input"], detail.get("ctx", {})
    if detail["type"] not in _EXPECTED:
        return f"{detail['msg']}, got {shown(given)}."
    expected = _EXPECTED[detail["type"]].format(**context)
    advice = " Leave the key out for its default." if given is None else ""
    if detail["type"] == "literal_error" and isinstance(given, str):
        advice = nearest(given, re.findall("'([^']*)'", expected))
    return f"expected {expected}, got {shown(given)}.{advice}"


def _keys_at(path: Sequence[str], schema: dict[str, Any]) -> list[str]:
    """Return the keys allowed at a path, read off the JSON schema."""
    node = schema
    for key in path:
        node = node.get("items", {}) if key.isdecimal() else node.get("properties", {}).get(key, {})
        options = [node, *node.get("anyOf", [])]
        reference = next((option["$ref"] for option in options if "$ref" in option), None)
        if reference:
            node = schema["$defs"][reference.rsplit("/", 1)[1]]
    return list(node.get("properties", {}))


def _elsewhere(key: str, schema: dict[str, Any]) -> str:
    """Return advice for a key that stands at the top and belongs into a part."""
    found = [part for part in schema["properties"] if key in _keys_at((part,), schema)]
    return f" Did you mean {found[0]}.{key}?" if found else ""
