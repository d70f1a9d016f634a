"""YAML values as the types of a signature."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.coercion import coerce, describe
from fedsim.errors import ScenarioError


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
    ],
)
def test_values_that_fit_become_the_type(value, annotation, expected):
    found = coerce(value, annotation, "here")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        ("x", int, "expected a whole number, got 'x'."),
        (1.5, int, "expected a whole number, got 1.5."),
        (None, int, "expected a whole number, got nothing."),
        (True, int, "expected a whole number, got true."),
        (True, float | None, "expected a number or nothing, got true."),
        ([1, True], list[int], "expected a list, each item a whole number, got [1, true]."),
        ([[True]], list[list[int]], "expected a list, each item a list, each item a whole number, got [[true]]."),
        (True, Literal[1, 2], "expected one of 1, 2, got true."),
        (True, str, "expected text, got true."),
        (3, str, "expected text, got 3."),
        (1, bool, "expected true or false, got 1."),
        ("true", bool, "expected true or false, got 'true'."),
        (1, bool | None, "expected true or false or nothing, got 1."),
        (float("nan"), float, "expected a number, got nan."),
        ("inf", float, "expected a number, got 'inf'."),
        ([float("inf")], list[float], "expected a list, each item a number, got [inf]."),
        ("l3", Literal["l2", "cosine"], "expected one of 'l2', 'cosine', got 'l3'. Did you mean 'l2'?"),
        ("cosin", Literal["cosine"] | None, "expected one of 'cosine' or nothing, got 'cosin'. Did you mean 'cosine'?"),
        ([1, 2, 3], tuple[int, int], "expected a list, each item a whole number or a whole number, got [1, 2, 3]."),
        ("x", Path | None, "expected Path or nothing"),
    ],
)
def test_values_that_do_not_fit_are_refused_in_words(value, annotation, message):
    if annotation == Path | None:
        assert coerce(value, annotation, "here") == Path("x")
        value = 3
    with pytest.raises(ScenarioError) as caught:
        coerce(value, annotation, "here")
    assert str(caught.value).startswith(f"here: {message}")


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_and_its_text_are_the_same_number(number):
    assert coerce(number, float, "here") == coerce(repr(number), float, "here") == number


@given(number=st.integers(-(2**63), 2**63))
def test_a_whole_number_and_its_text_are_the_same_number(number):
    assert coerce(number, int, "here") == coerce(str(number), int, "here") == number


def test_types_without_words_are_named():
    assert describe(Path) == "Path"
    assert describe(dict[str, int]) == "dict[str, int]"
    assert describe(Mapping[str, Any]) == "a mapping"


@pytest.mark.parametrize("value", [10**60 + 1, -(10**61), 10**5000], ids=int.bit_length)
def test_whole_numbers_are_those_that_can_be_written(value):
    with pytest.raises(ScenarioError, match=r"^here: expected a number of at most 1e\+60, got "):
        coerce(value, int, "here")
    assert coerce(10**60, int, "here") == 10**60
