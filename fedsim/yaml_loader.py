"""YAML as researchers expect it: duplicate keys are refused, and errors name the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedsim.errors import ScenarioError


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader keeps the last of two equal keys without a word; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                line = key_node.start_mark.line + 1
                raise ScenarioError(str(key), f"line {line}: this key is given twice. Keep one of the two.")
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse(text: str, source: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ScenarioError: not YAML, or a duplicate key; `source` names the text in the message.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ScenarioError(source, f"not valid YAML: {' '.join(str(error).split())}") from None


def read(path: Path) -> Any:
    """Return the value of a YAML file.

    Raises:
        ScenarioError: the file is missing, unreadable or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ScenarioError(str(path), "no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(str(path), f"cannot be read as UTF-8 text: {error}") from None
    return parse(text, str(path))


def dump(value: Any) -> str:
    """Return `value` as YAML, keys in the given order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
