import importlib.metadata
import math
import re

import pytest

from fedsim.errors import PluginError
from fedsim.registry import Registry


def registry(**own: float) -> Registry[float]:
    return Registry("constant", "fedsim.tests.constants", own, lambda part: isinstance(part, float), "a number")


def offer(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    points = [importlib.metadata.EntryPoint(name, target, "fedsim.tests.constants") for name, target in targets.items()]
    monkeypatch.setattr("fedsim.registry.entry_points", lambda group: points)


def test_built_in_parts_offered_ones_and_those_of_a_module_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, tau="math:tau", broken="no_such_module:x")
    known = registry(one=1.0)
    assert known.names == ["one", "broken", "tau"]  # nothing is imported for the list
    assert [known.find(name) for name in ("one", "tau", "math:pi")] == [1.0, math.tau, math.pi]


def test_an_unknown_name_is_refused_with_the_nearest_and_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, tau="math:tau")
    message = "no constant 'ones'. Did you mean 'one'? Known: one, tau."
    with pytest.raises(ValueError, match=re.escape(message)):
        registry(one=1.0).find("ones")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:x", "cannot import the constant 'no_such_module:x' with a colon"),
        ("math:no_such_name", "cannot import the constant 'math:no_such_name'"),
        ("math:sqrt", "is builtin_function_or_method; expected a number"),
        ("fractions:Fraction", "is a class; expected a number"),
    ],
)
def test_what_is_no_part_is_refused(target: str, message: str) -> None:
    with pytest.raises(PluginError, match=re.escape(message)):
        registry().find(target)


def test_a_name_is_not_offered_twice_and_never_replaces_a_built_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, one="math:tau")
    with pytest.raises(PluginError, match=r"'one' of an unknown distribution .* is built in"):
        registry(one=1.0).find("one")
    twice = [importlib.metadata.EntryPoint("x", f"math:{name}", "g") for name in ("tau", "pi")]
    monkeypatch.setattr("fedsim.registry.entry_points", lambda group: twice)
    with pytest.raises(PluginError, match="'x' is offered twice"):
        registry(one=1.0).find("one")
