"""YAML values as the types of a signature."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from fedsim import coercion
from fedsim.coercion import Parameters, describe
from fedsim.errors import ScenarioError


def coerce(value, annotation):
    return coercion.coerce(value, annotation, "here.p")


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, 3),
        ("3", int, 3),
        (3.0, int, 3),
        (3, float, 3.0),
        ("1e-4", float, 1e-4),
        ("1e-4", float | None, 1e-4),
        (None, float | None, None),
        (None, Optional[float], None),  # noqa: UP045  (as other people's signatures write it)
        ("text", str, "text"),
        (True, bool, True),
        (False, bool | None, False),
        ("l2", Literal["l2", "cosine"], "l2"),
        ([1, "2"], list[int], [1, 2]),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([1, 2], tuple[int, int], (1, 2)),
        ([True, 3], Any, [True, 3]),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ({"a": "1e-1", "b": 2}, Mapping[str, float], {"a": 0.1, "b": 2.0}),
        ({"a": ["1"]}, dict[str, tuple[int, ...]], {"a": (1,)}),
        ([True, "1e-1"], list[bool | float], [True, 0.1]),
        ([True], tuple[bool, ...], (True,)),
        ("a.txt", Path | None, Path("a.txt")),
    ],
)
def test_values_that_fit_become_the_type(value, annotation, expected):
    found = coerce(value, annotation)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("x", int, "here.p: expected a whole number, got 'x'."),
        (1.5, int, "here.p: expected a whole number, got 1.5."),
        (None, int, "here.p: expected a whole number, got nothing."),
        (True, int, "here.p: expected a whole number, got true."),
        (True, float | None, "here.p: expected a number or nothing, got true."),
        (3, list[int], "here.p: expected a list, each item a whole number, got 3."),
        ([1, True], list[int], "here.p.1: expected a whole number, got true."),
        ([[1], [True]], list[list[int]], "here.p.1.0: expected a whole number, got true."),
        ([1, "x"], list[int] | None, "here.p.1: expected a whole number, got 'x'."),
        (
            [1, "x"],
            list[int] | int,
            "here.p: expected a list, each item a whole number or a whole number, got [1, 'x'].",
        ),
        ([1, "x"], Sequence[int], "here.p.1: expected a whole number, got 'x'."),
        (True, Literal[1, 2], "here.p: expected one of 1, 2, got true."),
        (True, str, "here.p: expected text, got true."),
        (3, str, "here.p: expected text, got 3."),
        (1, bool, "here.p: expected true or false, got 1."),
        ("true", bool, "here.p: expected true or false, got 'true'."),
        (1, bool | None, "here.p: expected true or false or nothing, got 1."),
        ([1], list[bool], "here.p.0: expected true or false, got 1."),
        (float("nan"), float, "here.p: expected a finite number, got nan."),
        ("inf", float, "here.p: expected a finite number, got 'inf'."),
        ([float("inf")], list[float], "here.p.0: expected a finite number, got inf."),
        ("l3", Literal["l2", "cosine"], "here.p: expected one of 'l2', 'cosine', got 'l3'. Did you mean 'l2'?"),
        (["l3"], list[Literal["l2"]], "here.p.0: expected one of 'l2', got 'l3'. Did you mean 'l2'?"),
        ("cosin", Literal["cosine"] | None, "here.p: expected one of 'cosine' or nothing, got 'cosin'. Did you mean"),
        ([1, 2, 3], tuple[int, int], "here.p: expected at most 2 items, got [1, 2, 3]."),
        ([1], tuple[int, str], "here.p: expected a list of 2 items: a whole number, text, got [1]."),
        ([1, 2], tuple[int, str], "here.p.1: expected text, got 2."),
        (3, dict[str, float], "here.p: expected a mapping of text to a number, got 3."),
        ({"a": "x"}, dict[str, float], "here.p.a: expected a number, got 'x'."),
        ({"a": [1, "x"]}, Mapping[str, list[int]], "here.p.a.1: expected a whole number, got 'x'."),
        ({3: 1.0}, dict[str, float], "here.p.3: expected text, got 3."),
        (0, Annotated[int, Field(ge=1)], "here.p: expected at least 1, got 0."),
        ("x", Annotated[int, Field(ge=1)], "here.p: expected a whole number, got 'x'."),
        (3, Path | None, "here.p: expected Path or nothing, got 3."),
    ],
)
def test_values_that_do_not_fit_are_refused_in_words_where_they_are(value, annotation, message):
    with pytest.raises(ScenarioError) as caught:
        coerce(value, annotation)
    assert str(caught.value).startswith(message)


def test_all_faults_are_told_at_once_by_their_place():
    parameters = Parameters({"steps": int, "rate": float, "copy": bool}, required=["rate"])
    with pytest.raises(ScenarioError) as caught:
        parameters.read({"steps": "many", "stepps": 3, 4: 5}, "attacks.0.params")
    assert str(caught.value).splitlines() == [
        "attacks.0.params.steps: expected a whole number, got 'many'.",
        "attacks.0.params.rate: missing; this parameter has no default.",
        "attacks.0.params.stepps: unknown parameter. Did you mean 'steps'? Allowed: steps, rate, copy.",
        "attacks.0.params.4: unknown parameter. Allowed: steps, rate, copy.",
    ]
    assert parameters.read({"copy": True, "rate": "1e-4"}, "here") == {"copy": True, "rate": 1e-4}


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_and_its_text_are_the_same_number(number):
    assert coerce(number, float) == coerce(repr(number), float) == number


@given(number=st.integers(-(2**63), 2**63))
def test_a_whole_number_and_its_text_are_the_same_number(number):
    assert coerce(number, int) == coerce(str(number), int) == number


def test_types_without_words_are_named():
    assert describe(Path) == "Path"
    assert describe(dict[str, Any]) == "a mapping"
    assert describe(list) == "a list" and describe(dict) == "a mapping"


@pytest.mark.parametrize("value", [10**60 + 1, -(10**61), 10**5000], ids=int.bit_length)
def test_whole_numbers_are_those_that_can_be_written(value):
    with pytest.raises(ScenarioError, match=r"^here\.p: expected a number of at most 1e\+60, got "):
        coerce(value, int)
    assert coerce(10**60, int) == 10**60
