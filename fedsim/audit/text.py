"""Text of plug-ins, such that every file can hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedsim.errors import printable

_LONGEST = 2_000  # characters of a message or a caution


def cut(value: str) -> str:
    """Return text that every file can hold: cut where it is too long, with its length said, and lone surrogates escaped."""
    text = encodable(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... (cut, of {len(text):,} characters)"


def shown(value: str) -> str:
    """Return text that a terminal can show too: as `cut`, with control characters escaped."""
    return printable(value, _LONGEST)


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON holds them."""
    held: dict[str, Any] = json.loads(json.dumps(params, default=str))
    return held


def encodable(value: str) -> str:
    """Return text with lone surrogates escaped, whatever class of text it was."""
    return str.__str__(value).encode("utf-8", "backslashreplace").decode()
