"""YAML without surprises: what SafeLoader takes without a word is refused with the place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import yaml_loader
from fedsim.errors import ScenarioError

TEXT = st.text(st.characters(codec="utf-8"))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def refusal(text):
    with pytest.raises(ScenarioError) as caught:
        yaml_loader.parse(text, "here")
    return str(caught.value)


@given(value=PLAIN)
def test_what_is_dumped_is_read_again(value):
    assert yaml_loader.parse(yaml_loader.dump(value), "here") == value


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
def test_line_breaks_that_only_unicode_knows_survive(character):
    value = {f"a{character}b": [f"{character}c", f"d {character} e"]}
    assert yaml_loader.parse(yaml_loader.dump(value), "here") == value


def test_keys_are_dumped_in_the_given_order_and_letters_as_they_are():
    assert yaml_loader.dump({"b": "é", "a": [1]}) == "b: é\na:\n- 1\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("a: 1e-4", {"a": "1e-4"}),
        ("a: 1.0e-4", {"a": 1e-4}),
        ("a: 2026-01-31", {"a": "2026-01-31"}),
        ("a: 2026-13-41", {"a": "2026-13-41"}),
        ("a: on", {"a": True}),
        ("{a: 1, A: 2, 'a ': 3}", {"a": 1, "A": 2, "a ": 3}),
        ("{1: a, '1': b}", {1: "a", "1": "b"}),
        ("- {a: 1}\n- {a: 2}", [{"a": 1}, {"a": 2}]),
        ("a: &x {k: 1}\nb: *x\nc: *x", {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1}}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}", {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
    ],
)
def test_values_are_those_of_yaml(text, value):
    assert yaml_loader.parse(text, "here") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "a: given twice, in line 1 and line 3. Keep one of the two."),
        ("a: 1\n'a': 3", "a: given twice, in line 1 and line 2. Keep one of the two."),
        ("a:\n  - {}\n  - {b: {c: 1, c: 1}}", "a.1.b.c: given twice, in line 3. Keep one of the two."),
        ("1: a\n1: b", "1: given twice"),
        ("a: &x {b: *x}", "a.b: line 1: this alias contains itself."),
        ("&x [*x]", "0: line 1: this alias contains itself."),
        ("a: [1, .inf]", "a.1: expected a finite number, got .inf."),
        ("-.Inf", "here: expected a finite number, got -.Inf."),
        ("a: {b: .NaN}", "a.b: expected a finite number, got .NaN."),
        ("a: !!binary aGk=", "a: expected text, a number, true, false, a list or a mapping, got !!binary."),
        ("a: !!set {b}", "a: expected text, a number, true, false, a list or a mapping, got !!set."),
        ("!!python/object/apply:os.getcwd []", "here: expected text, a number"),
        ("a: !mine 3", "a: expected text, a number"),
    ],
)
def test_what_a_scenario_cannot_hold_is_refused_with_its_place(text, message):
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "line 1: while parsing a flow sequence expected"),
        ("a: 1\n\tb: 2", "line 2: while scanning for the next token"),
        ("a: 'b", "line 1: while scanning a quoted scalar"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        ("--- a\n--- b", "line 2: expected a single document in the stream"),
        ("{[1]: 2}", "line 1: while constructing a mapping found unhashable key"),
        ("a: 0x_", "invalid literal for int()"),
        ("a: \x00", "unacceptable character"),
        ("[" * 1500, "nested too deeply"),
    ],
)
def test_what_is_no_yaml_is_refused_in_one_line(text, reason):
    message = refusal(text)
    assert message.startswith(f"here: not valid YAML: {reason}")
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    (tmp_path / "good.yaml").write_text("a: é", encoding="utf-8")
    assert yaml_loader.read(tmp_path / "good.yaml") == {"a": "é"}
    for name, reason in (("none", "no such file."), ("latin.yaml", "not UTF-8 text"), ("", "cannot be read: Is a dir")):
        with pytest.raises(ScenarioError) as caught:
            yaml_loader.read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
