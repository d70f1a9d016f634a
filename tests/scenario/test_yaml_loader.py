"""YAML without surprises: what SafeLoader takes without a word is refused with the place."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import ScenarioError
from fedsim.scenario import yaml_loader

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
        ("%YAML 1." + "9" * 5000 + "\n--- a", "Exceeds the limit"),
        ('a: "\\UFFFFFFFF"', "Python int too large"),
    ],
)
def test_what_is_no_yaml_is_refused_in_one_line(text, reason):
    message = refusal(text)
    assert message.startswith(f"here: not valid YAML: {reason}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: !!bool x", "seed: line 1: !!bool before 'x'. Leave the tag out."),
        ("!!bool x", "here: line 1: !!bool before 'x'."),
        ("!!bool x: 1", "x: line 1: !!bool before 'x'."),
        ("a: !!int ''", "a: line 1: !!int before ''."),
        ("a: !!int '-'", "a: line 1: !!int before '-'."),
        ("a: !!int x", "a: line 1: !!int before 'x'."),
        ("a: !!int 1.5", "a: line 1: !!int before '1.5'."),
        ("a: !!float x", "a: line 1: !!float before 'x'."),
        ("a: !!null x", "a: line 1: !!null before 'x'."),
        ("a: [!!int {}]", "a.0: line 1: !!int before a mapping."),
        ("a: !!float [1]", "a: line 1: !!float before a list."),
        ("a: !!str {=: x}", "a: line 1: !!str before a mapping."),
        ("a: !!seq x", "a: line 1: !!seq before one value."),
        ("a: !!map [x]", "a: line 1: !!map before a list."),
        ("a: !!timestamp 2001-99-99", "a: expected text, a number"),
        ("a: !!omap [b: 1]", "a: expected text, a number"),
        ("? !!set {a}\n: 1", "(key): expected text, a number"),
        (f"a: !{'k' * 9999} x", "a: expected text, a number, true, false, a list or a mapping, got !!!kkkk"),
    ],
)
def test_a_tag_that_does_not_fit_its_value_is_refused_with_its_place(text, message):
    assert refusal(text).startswith(message)
    assert len(refusal(text)) < 300


def test_a_tag_that_fits_its_value_is_read():
    assert yaml_loader.parse("[!!int 3, !!float 3, !!float 1.5, !!str 3, !!bool on, !!null ~]", "here") == (
        [3, 3.0, 1.5, "3", True, None]
    )


@pytest.mark.parametrize(
    "text",
    ["1" + "0" * 400, "0x" + "f" * 99999, "0b" + "1" * 99999, "1" + ":59" * 3000, "-1.0" + "0" * 999],
    ids=len,
)
def test_a_number_that_no_run_can_hold_is_refused_before_it_is_computed(text):
    message = f"a.0: expected a number of at most 100 characters, got {text[:20]}... ({len(text)} characters)."
    assert refusal(f"a: [{text}]") == message


def test_a_float_that_overflows_is_not_finite():
    assert refusal("a: 1.0e+999") == "a: expected a finite number, got 1.0e+999."


def bomb(levels, line):
    return "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {line.format(*[f'*a{n - 1}'] * 9)}" for n in range(1, levels))])


HOSTILE = {
    "flow lists": "a: " + "[" * 100_000,
    "flow mappings": "a: " + "{a: " * 100_000,
    "block lists": "- " * 100_000 + "1",
    "keys in keys": "? " * 100_000 + "1",
    "closed mappings": "a: " + "{a: " * 260 + "1" + "}" * 260,
    "aliases of lists": bomb(11, "[{}, {}, {}, {}, {}, {}, {}, {}, {}]"),
    "aliases of mappings": bomb(11, "{{a: {}, b: {}, c: {}, d: {}, e: {}, f: {}, g: {}, h: {}}}"),
    "merged mappings": bomb(11, "{{<<: [{}, {}, {}, {}, {}, {}, {}, {}, {}]}}"),
    "aliases of aliases": "\n".join(["a0: &a0 1", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000))]),
    "one alias again and again": "a: &a {k: [1, 2, 3]}\nb: [" + "*a, " * 100_000 + "]",
    "items": "[" + "1," * 200_000 + "]",
    "keys": "\n".join(f"k{n}: 1" for n in range(40_000)),
    "anchors": "[" + ",".join(f"&a{n} x" for n in range(40_000)) + "]",
    "one text": "a: " + "x" * 1_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_text_that_would_never_end_is_refused_within_seconds(text):
    started = time.process_time()
    message = refusal(text)
    assert time.process_time() - started < 4  # one on a machine that does nothing else
    assert any(says in message for says in ("nested too deeply", "keys and values, each counted", "500000 at most"))
    assert len(message) < 500


@given(depth=st.integers(1, 49))
def test_nesting_that_the_limit_allows_is_read(depth):
    assert yaml_loader.parse("[" * depth + "]" * depth, "here") is not None


def test_an_alias_may_be_used_often_as_long_as_its_values_stay_few():
    value = yaml_loader.parse("a: &a {k: [1, 2, 3]}\nb: [" + "*a, " * 1000 + "]", "here")
    assert value["b"] == [{"k": [1, 2, 3]}] * 1000


def test_a_long_key_is_not_repeated_whole():
    message = refusal(f'? "{"k" * 100_000}"\n: 1\n' * 2)
    assert message.startswith("kkk") and "... (100000 characters): given twice" in message
    assert len(message) < 500


def test_text_that_utf_8_cannot_hold_is_refused():
    assert refusal('a: ["\\uD800"]') == "a.0: expected text that UTF-8 can hold, got '\\ud800'."


def test_what_is_no_plain_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.yaml").write_bytes(b"#\n" * 250_001)
    (tmp_path / "utf-16.yaml").write_text("a: 1", encoding="utf-16")
    for path, reason in (
        (tmp_path / "pipe", "a pipe or a device, no file."),
        ("/dev/zero", "a pipe or a device, no file."),
        ("/dev/null", "a pipe or a device, no file."),
        (tmp_path / "large.yaml", "more than 500000 bytes, and a scenario may have 500000 at most."),
        (tmp_path / "utf-16.yaml", "not UTF-8 text"),
        ("a\0b", "no file can have this name."),
        (f"/{'a' * 9999}", "cannot be read: File name too long."),
    ):
        with pytest.raises(ScenarioError) as caught:
            yaml_loader.read(Path(path))
        assert reason in str(caught.value)
        assert len(str(caught.value)) < 500


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert yaml_loader.read(tmp_path / "marked.yaml") == {"a": 1}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    (tmp_path / "good.yaml").write_text("a: é", encoding="utf-8")
    assert yaml_loader.read(tmp_path / "good.yaml") == {"a": "é"}
    for name, reason in (("none", "no such file."), ("latin.yaml", "not UTF-8 text"), ("", "cannot be read: Is a dir")):
        with pytest.raises(ScenarioError) as caught:
            yaml_loader.read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
