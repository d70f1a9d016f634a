"""pydantic's findings in fedsim's words."""

from typing import Annotated, Any, Literal

import pydantic
import pytest
from pydantic import ConfigDict, Field

from fedsim import validation
from fedsim.validation import shown, worded


class Inner(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 1


class Part(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid")

    whole: int = 1
    number: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1.0
    least: Annotated[int, Field(ge=2, lt=5)] = 2
    text: str = ""
    flag: Annotated[bool, Field(strict=True)] = False
    word: Literal["iid", "shards"] = "iid"
    items: list[Inner] = Field(default_factory=list)
    params: dict[str, Any] = Field(default_factory=dict)
    inner: Inner = Inner()
    form: Annotated[int | list[Inner], worded("a size or a list of sizes")] = 1
    must: int

    @pydantic.field_validator("text")
    @classmethod
    def _short(cls, text: str) -> str:
        if len(text) > 3:
            raise ValueError("at most three letters")
        return text


def found(**content):
    with pytest.raises(pydantic.ValidationError) as caught:
        Part.model_validate({"must": 1, **content})
    return [(".".join(fault.path), fault.message) for fault in validation.of(caught.value, Part)]


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        ({"whole": "x"}, "whole", "expected a whole number, got 'x'."),
        ({"whole": 1.5}, "whole", "expected a whole number, got 1.5."),
        ({"whole": [1]}, "whole", "expected a whole number, got [1]."),
        ({"whole": None}, "whole", "expected a whole number, got nothing. Leave the key out for its default."),
        ({"number": "x"}, "number", "expected a number, got 'x'."),
        ({"number": {}}, "number", "expected a number, got {}."),
        ({"number": 0}, "number", "expected a number above 0, got 0."),
        ({"number": 3}, "number", "expected at most 2, got 3."),
        ({"number": float("inf")}, "number", "expected a finite number, got inf."),
        ({"least": 1}, "least", "expected at least 2, got 1."),
        ({"least": 5}, "least", "expected a number below 5, got 5."),
        ({"text": 3}, "text", "expected text, got 3."),
        ({"text": "long"}, "text", "at most three letters."),
        ({"flag": 1}, "flag", "expected true or false, got 1."),
        ({"word": "idd"}, "word", "expected 'iid' or 'shards', got 'idd'. Did you mean 'iid'?"),
        ({"word": 3}, "word", "expected 'iid' or 'shards', got 3."),
        ({"items": {"size": 1}}, "items", "expected a list, got {size: 1}."),
        ({"items": [{"size": "x"}]}, "items.0.size", "expected a whole number, got 'x'."),
        ({"items": [{"siez": 1}]}, "items.0.siez", "unknown key. Did you mean 'size'? Allowed: size."),
        ({"params": []}, "params", "expected a mapping, got []."),
        ({"params": {3: 4}}, "params.3", "expected text, got 3."),
        ({"inner": 3}, "inner", "expected a mapping, got 3."),
        ({"inner": {"siez": 1}}, "inner.siez", "unknown key. Did you mean 'size'? Allowed: size."),
        ({"form": "x"}, "form", "expected a size or a list of sizes, got 'x'."),
        ({"form": [{"size": "x"}]}, "form", "expected a size or a list of sizes, got [{size: 'x'}]."),
    ],
)
def test_a_fault_says_what_is_expected_and_what_was_given(content, where, message):
    assert found(**content) == [(where, message)]


def test_a_missing_key_and_several_faults_come_in_the_order_of_the_fields():
    with pytest.raises(pydantic.ValidationError) as caught:
        Part.model_validate({"text": 1, "whole": "x", "xyz": 1})
    listed = validation.of(caught.value, Part)
    assert [fault.path for fault in listed] == [("whole",), ("text",), ("must",), ("xyz",)]
    assert listed[2].message == "missing, and it has no default."
    assert listed[3].message.startswith("unknown key. Allowed: whole, number, least, ")


def test_no_message_is_pydantics_own():
    for kind, expected in validation._EXPECTED.items():
        assert "Input should" not in expected, kind


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        (True, "true"),
        ("true", "'true'"),
        (1e-4, "0.0001"),
        ([1, "a", None], "[1, 'a', nothing]"),
        ({"a": {"b": [False]}}, "{a: {b: [false]}}"),
        (list(range(99)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, ..."),
    ],
)
def test_a_value_is_shown_as_yaml_would_write_it(value, text):
    assert shown(value)[:76] == text[:76]
    assert len(shown(value)) <= 80


def test_a_value_of_any_size_and_depth_is_shown_at_once():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, {"k" * 10**6: 1}, ["x"] * 10**6, "x" * 10**7, 10**5000, -(10**5000), {"\x1b[0m": "\x1b[0m"}):
        assert len(shown(value)) <= 80
        assert "\x1b" not in shown(value)
    assert shown(10**5000) == "a number of 16610 bits"
