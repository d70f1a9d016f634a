"""Errors that a user can mend: what they say, and that they survive the way back from a worker."""

import pickle

import pytest

from fedsim import errors
from fedsim.errors import FedsimError, ScenarioError, nearest, printable, printable_lines


def test_a_scenario_error_begins_with_its_place():
    error = ScenarioError("attacks.0.name", "no attack 'x'.")
    assert str(error) == "attacks.0.name: no attack 'x'."
    assert (error.where, error.message) == ("attacks.0.name", "no attack 'x'.")
    assert str(ScenarioError("", "nothing.")) == "nothing."


@pytest.mark.parametrize(
    "error",
    [
        ScenarioError("a.b", "a: b: c"),
        errors.PluginError("twice"),
        errors.RunFolderError("run: gone"),
        errors.AttackRefusedError("one image at a time"),
    ],
)
def test_every_error_survives_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert isinstance(again, FedsimError)


@pytest.mark.parametrize(
    ("given", "allowed", "guess"),
    [
        ("grad_vit", ["label_recovery", "gradvit"], " Did you mean 'gradvit'?"),
        ("lables", ["labels", "training"], " Did you mean 'labels'?"),
        ("SGD", ["adamw", "sgd"], " Did you mean 'sgd'?"),
        ("fedavg", ["FedAvg", "FedProx"], " Did you mean 'FedAvg'?"),
        ("xyz", ["labels", "training"], ""),
        ("labels", [], ""),
        ("", ["labels"], ""),
    ],
)
def test_the_nearest_word_is_offered_when_one_is_near(given, allowed, guess):
    assert nearest(given, allowed) == guess
    assert nearest(given, iter(allowed)) == guess


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [
        ("plain é 図", 20, "plain é 図"),
        ("\x1b[31mred\x1b[0m", 20, "\\x1b[31mred\\x1b[0m"),
        ("\x9b31m", 20, "\\x9b31m"),
        ("a\nb\r\tc\x07", 20, "a\\nb\\r\\tc\\x07"),
        ("\u202eabc\u2066", 20, "\\u202eabc\\u2066"),
        ("\ud800", 20, "\\ud800"),
        ("\U000e0041", 20, "\\U000e0041"),
        ("k" * 5_000_000, 3, "kkk... (5000000 characters)"),
    ],
)
def test_text_for_the_terminal_is_escaped_and_cut_with_its_length_said(text, longest, expected):
    assert printable(text, longest) == expected
    assert printable(expected, 99) == expected


def test_lines_stay_lines_and_each_is_escaped_and_cut():
    assert printable_lines("a\n\x1b[2J\nb") == "a\n\\x1b[2J\nb"
    assert len(printable_lines("x" * 10**6)) < 2100


def test_the_place_of_an_error_is_one_printable_line():
    error = ScenarioError("a\nfedsim: fine\x1b[0m." + "k" * 10**6, "unknown key.")
    assert str(error).startswith("a\\nfedsim: fine\\x1b[0m.kkk")
    assert str(error).endswith("characters): unknown key.") and len(str(error)) < 400
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
