"""Skill: what a score is worth beyond the best guess that never saw the update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Direction = Literal["higher", "lower"]


class Control(NamedTuple):
    """One blind guess and its score."""

    name: str
    value: float


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
