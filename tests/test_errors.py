"""Errors that a user can mend: what they say, and that they survive the way back from a worker."""

import pickle

import pytest

from fedsim import errors
from fedsim.errors import FedsimError, ScenarioError, nearest


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
        errors.AttackRefusedError("one picture at a time"),
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
