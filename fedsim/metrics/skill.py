"""Skill: what a score is worth beyond the best guess that never saw the update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Direction = Literal["higher", "lower"]


FLOORS = frozenset({"own_mean"})
"""Controls that know something of the truth, so that they are no blind guess: each image's own mean color."""

CONTROL_TITLES = {
    "grey": "mid-grey",
    "own_mean": "own mean color, known from the truth: a floor",
    "dataset_mean": "mean of other data",
    "wrong_update": "same attack on another client's update",
    "prior": "class frequencies of other data",
    "uniform": "list of classes",
    "chance": "what a blind guess has on average",
}
"""What each control of a record is, for people."""


class Control(NamedTuple):
    """One control and its score."""

    name: str
    value: float


def blind(controls: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Return the controls that know nothing of the truth."""
    return {name: values for name, values in controls.items() if name not in FLOORS}


def floor_control(metric: str, controls: Mapping[str, Mapping[str, float]], worse: Direction) -> Control | None:
    """Return the best control that knows something of the truth; None when none has the metric."""
    return best_control(metric, {name: values for name, values in controls.items() if name in FLOORS}, worse)


def best_control(metric: str, controls: Mapping[str, Mapping[str, float]], worse: Direction) -> Control | None:
    """Return the control that leaks most by this metric, the first of several equal ones; None when none has it.

    Args:
        metric: name of the metric.
        controls: control -> metric -> value.
        worse: the direction that means more leakage.
    """
    scored = [Control(name, values[metric]) for name, values in controls.items() if metric in values]
    if not scored:
        return None
    return (max if worse == "higher" else min)(scored, key=lambda control: control.value)


def skill(value: float, control: float, worse: Direction) -> float:
    """Return how far `value` is beyond `control` in the leaking direction; negative when the control leaks more."""
    return value - control if worse == "higher" else control - value
