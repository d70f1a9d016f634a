"""YAML as researchers expect it: duplicate keys are refused, and errors name the path or the line."""

from __future__ import annotations

import math
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedsim.errors import ScenarioError, printable
from fedsim.validation import shown

_TAG = "tag:yaml.org,2002:"
_UNICODE_BREAK = re.compile("[\x85\u2028\u2029]")
_PLAIN = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge"))
_LONGEST_NUMBER = 100  # characters


class Limits(NamedTuple):
    """How much a YAML text may hold, so that reading it takes seconds at most.

    Args:
        size: bytes of a file, or characters of a text.
        values: keys, values and lists together, each counted as often as aliases repeat it.
        depth: lists and mappings inside one another.
    """

    size: int
    values: int
    depth: int


SCENARIO = Limits(size=500_000, values=12_000, depth=50)
RESOLVED = Limits(size=50_000_000, values=500_000, depth=60)
"""Of a scenario that fedsim wrote: every default filled in, every alias written out."""


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates (`name: 2026-01-31` is text, as in YAML 1.2), that stops at the first value too many."""

    def __init__(self, text: str, source: str, limits: Limits) -> None:
        super().__init__(text)
        self._source, self._limits = source, limits
        self._values = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._values += 1
        self._depth += 1
        if self._depth > self._limits.depth:
            raise _too_deep(self._source, self.line + 1, self._limits)
        if self._values > self._limits.values:
            raise _too_many(self._source, self.line + 1, self._limits)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# What a text must look like to be of the type that its tag names; a float may be written without a dot.
_FORMS: dict[str, list[re.Pattern[str]]] = {}
for _resolvers in _Loader.yaml_implicit_resolvers.values():
    for _tag, _pattern in _resolvers:
        _FORMS.setdefault(_tag, []).append(_pattern)
_FORMS[_TAG + "float"] += _FORMS[_TAG + "int"]


def _too_many(where: str, line: int, limits: Limits) -> ScenarioError:
    return ScenarioError(
        where,
        f"line {line}: more than {limits.values} keys and values, each counted as often as aliases repeat it. "
        "Shorten the lists, or repeat less.",
    )


def _too_deep(where: str, line: int, limits: Limits) -> ScenarioError:
    return ScenarioError(
        where, f"line {line}: nested too deeply, on more than {limits.depth} levels. No key of a scenario needs ten."
    )


def parse(text: str, source: str, limits: Limits = SCENARIO) -> Any:
    """Return the value of a YAML text.

    Args:
        text: one YAML document.
        source: names the text in messages.
        limits: how much it may hold.

    Raises:
        ScenarioError: not YAML, a duplicate key, an alias inside itself, or more than the limits allow.
    """
    if len(text) > limits.size:
        raise _too_long(source, f"{len(text)} characters", limits)
    try:
        loader = _Loader(text, source, limits)
        node = loader.get_single_node()
        if node is None:
            return None
        _Check(source, limits, loader).visit(node, ())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = " ".join(part for part in (error.context, error.problem) if part)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        where, reason = "", " ".join(str(error).split())
    raise ScenarioError(source, f"not valid YAML: {where}{printable(reason, 200)}.")


def _too_long(source: str, size: str, limits: Limits) -> ScenarioError:
    return ScenarioError(
        source, f"{size}, and a scenario may have {limits.size} at most. Is this the file that you meant?"
    )


class _Extent(NamedTuple):
    """How much a node holds with its aliases written out."""

    values: int
    depth: int


class _Check:
    """Refuse what SafeLoader takes without a word, and what would become too large, all through a document."""

    def __init__(self, source: str, limits: Limits, loader: _Loader) -> None:
        self._source, self._limits, self._loader = source, limits, loader
        self._known: dict[int, _Extent] = {}
        self._open: set[int] = set()

    def visit(self, node: yaml.Node, path: tuple[str, ...]) -> _Extent:
        """Check a node with all that it holds, and return its extent; a node that an alias repeats is checked once."""
        where = ".".join(path) or self._source
        if id(node) in self._open:
            raise ScenarioError(where, f"line {_line(node)}: this alias contains itself.")
        if id(node) not in self._known:
            self._open.add(id(node))
            self._known[id(node)] = self._measured(node, path, where)
            self._open.remove(id(node))
        return self._known[id(node)]

    def _measured(self, node: yaml.Node, path: tuple[str, ...], where: str) -> _Extent:
        self._check_type(node, where)
        inner: list[tuple[str, yaml.Node]] = []
        if isinstance(node, yaml.SequenceNode):
            inner = [(str(index), item) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, path)
            for key, _ in node.value:
                self.visit(key, (*path, "(key)") if not isinstance(key, yaml.ScalarNode) else (*path, str(key.value)))
            inner = [(str(key.value), value) for key, value in node.value]
        extents = [self.visit(item, (*path, key)) for key, item in inner]
        values = 1 + sum(extent.values for extent in extents) + len(extents) * isinstance(node, yaml.MappingNode)
        depth = 1 + max((extent.depth for extent in extents), default=0)
        if values > self._limits.values:
            raise _too_many(where, _line(node), self._limits)
        if depth + len(path) > self._limits.depth:
            raise _too_deep(where, _line(node), self._limits)
        return _Extent(values, depth)

    def _check_type(self, node: yaml.Node, where: str) -> None:
        """Refuse types and numbers that JSON, and so the records of a run, cannot hold."""
        given = "!!" + printable(node.tag.removeprefix(_TAG), 60)
        if node.tag not in _PLAIN:
            raise ScenarioError(where, f"expected text, a number, true, false, a list or a mapping, got {given}.")
        kind = {_TAG + "seq": yaml.SequenceNode, _TAG + "map": yaml.MappingNode}.get(node.tag, yaml.ScalarNode)
        if not isinstance(node, kind):
            kinds: dict[type[yaml.Node], str] = {yaml.SequenceNode: "a list", yaml.MappingNode: "a mapping"}
            is_a = kinds.get(type(node), "one value")
            raise ScenarioError(where, f"line {_line(node)}: {given} before {is_a}. Leave the tag out.")
        if not isinstance(node, yaml.ScalarNode) or node.tag == _TAG + "merge":
            return
        text = str(node.value)
        if node.tag == _TAG + "str":
            _check_text(text, where)
        elif not any(form.match(text) for form in _FORMS[node.tag]):
            raise ScenarioError(where, f"line {_line(node)}: {given} before {shown(text)}. Leave the tag out.")
        elif node.tag in (_TAG + "int", _TAG + "float"):
            self._check_number(node, where)

    def _check_number(self, node: yaml.ScalarNode, where: str) -> None:
        if len(node.value) > _LONGEST_NUMBER:
            most = f"a number of at most {_LONGEST_NUMBER} characters"
            raise ScenarioError(where, f"expected {most}, got {node.value[:20]}... ({len(node.value)} characters).")
        if node.tag == _TAG + "float" and not math.isfinite(self._loader.construct_yaml_float(node)):
            raise ScenarioError(where, f"expected a finite number, got {node.value}.")


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ScenarioError(where, f"expected text that UTF-8 can hold, got {shown(text)}.") from None


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


def read(path: Path, limits: Limits = SCENARIO) -> Any:
    """Return the value of a YAML file.

    Raises:
        ScenarioError: the file is missing, no plain file, unreadable, too large or not YAML.
    """
    source = str(path)
    try:
        mode = path.stat().st_mode
        # A pipe or a device is refused before it is opened: it may never end.
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ScenarioError(source, "a pipe or a device, no file. Write the scenario to a file.")
        with path.open("rb") as file:
            content = file.read(limits.size + 1)
        if len(content) > limits.size:
            raise _too_long(source, f"more than {limits.size} bytes", limits)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ScenarioError(source, "no such file.") from None
    except UnicodeDecodeError:
        raise ScenarioError(source, "not UTF-8 text, so no YAML. Save it as UTF-8.") from None
    except OSError as error:
        raise ScenarioError(source, f"cannot be read: {error.strerror}.") from None
    except ValueError:
        raise ScenarioError(source, "no file can have this name.") from None
    return parse(text, source, limits)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that escapes the line breaks which only Unicode knows: plain and single-quoted text folds them to spaces."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_TAG + "str", value, style='"' if _UNICODE_BREAK.search(value) else None)


_Dumper.add_representer(str, _text)


def dump(value: Any) -> str:
    """Return `value` as YAML, keys in the given order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
