"""YAML as researchers expect it: duplicate keys are refused, and errors name the path or the line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fedsim.errors import ScenarioError

_TAG = "tag:yaml.org,2002:"
_UNICODE_BREAK = re.compile("[\x85\u2028\u2029]")
_PLAIN = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge"))


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates: `name: 2026-01-31` is text, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str, source: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ScenarioError: not YAML, a duplicate key, or an alias inside itself; `source` names the text in the message.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, source, (), (), set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise ScenarioError(source, f"not valid YAML: {where}{reason}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ScenarioError(source, f"not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise ScenarioError(source, "not valid YAML: nested too deeply.") from None


def _check(node: yaml.Node, source: str, path: tuple[str, ...], above: tuple[int, ...], seen: set[int]) -> None:
    """Refuse what SafeLoader takes without a word, all through the document."""
    if id(node) in above:
        raise ScenarioError(".".join(path) or source, f"line {_line(node)}: this alias contains itself.")
    if id(node) in seen:
        return
    seen.add(id(node))
    _check_is_plain(node, ".".join(path) or source)
    inner: list[tuple[str, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        inner = [(str(index), item) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, path)
        inner = [(str(key.value), value) for key, value in node.value]
    for key, item in inner:
        _check(item, source, (*path, key), (*above, id(node)), seen)


def _check_is_plain(node: yaml.Node, where: str) -> None:
    """Refuse types and numbers that JSON, and so the records of a run, cannot hold."""
    if node.tag not in _PLAIN:
        allowed = "text, a number, true, false, a list or a mapping"
        raise ScenarioError(where, f"expected {allowed}, got !!{node.tag.removeprefix(_TAG)}.")
    if node.tag == _TAG + "float" and node.value[-3:].lower() in ("inf", "nan"):
        raise ScenarioError(where, f"expected a finite number, got {node.value}.")


def _check_keys(node: yaml.MappingNode, path: tuple[str, ...]) -> None:
    """Refuse two equal keys, of which the last would win."""
    lines: dict[tuple[str, str], int] = {}
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
        name = (key.tag, key.value)
        if name in lines:
            both = " and ".join(dict.fromkeys(f"line {number}" for number in (lines[name], _line(key))))
            raise ScenarioError(".".join((*path, key.value)), f"given twice, in {both}. Keep one of the two.")
        lines[name] = _line(key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def read(path: Path) -> Any:
    """Return the value of a YAML file.

    Raises:
        ScenarioError: the file is missing, unreadable or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ScenarioError(str(path), "no such file.") from None
    except UnicodeDecodeError:
        raise ScenarioError(str(path), "not UTF-8 text, so no YAML.") from None
    except OSError as error:
        raise ScenarioError(str(path), f"cannot be read: {error.strerror}.") from None
    return parse(text, str(path))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that escapes the line breaks which only Unicode knows: plain and single-quoted text folds them to spaces."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TAG + "str", value, style='"' if _UNICODE_BREAK.search(value) else None)


_Dumper.add_representer(str, _text)


def dump(value: Any) -> str:
    """Return `value` as YAML, keys in the given order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
