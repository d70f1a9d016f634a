"""One attempt by one metric: its score beside its controls, and the level of leakage that it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fedsim.metrics.ratings import Level, rate, relative, scale
from fedsim.metrics.skill import Control, Direction, best_control, blind, floor_control, skill
from fedsim.report.evidence import BestExample, Calibration, Record, RecordedScore

WRONG_UPDATE = "wrong_update"
CHANCE = "chance"


class Scored(NamedTuple):
    """One attempt by one metric.

    Args:
        record: the attempt.
        score: by this metric.
        value: of the score.
        best: the best blind control of the same attempt.
        floor: the best control that knows something of the truth.
        level: what the attempt shows.
        severity: the skill behind the level, in units of the metric's thresholds; None without a control.
        example: the picture of a batch that shows more than the batch's mean does; None elsewhere.
    """

    record: Record | Calibration
    score: RecordedScore
    value: float
    best: Control | None
    floor: Control | None
    level: Level
    severity: float | None
    example: BestExample | None

    @property
    def skill(self) -> float | None:
        """How far the value is beyond the best blind control."""
        return None if self.best is None else skill(self.value, self.best.value, self.score.worse)


def scored(records: Iterable[Record | Calibration], metric: str) -> list[Scored]:
    """Return the attempts that have a value by this metric."""
    found = []
    for record in records:
        score = record.scores.get(metric)
        if score is not None and score.value is not None:
            found.append(_scored(record, metric, score, score.value))
    return found


def _scored(record: Record | Calibration, metric: str, score: RecordedScore, value: float) -> Scored:
    best = rated_by(metric, record.controls, score.worse)
    floor = None if scale(metric).is_luck else floor_control(metric, record.controls, score.worse)
    control = None if best is None else best.value
    level = rate(metric, value, control, score.worse, None if floor is None else floor.value)
    severity = None
    if best is not None and level != "unrated":
        severity = relative(metric, skill(value, best.value, score.worse), best.value)
    example = record.best_example.get(metric)
    if example is not None and level != "leaks":
        shown = rate(metric, _without_luck(example, score.worse), example.control, score.worse, example.floor)
        if shown == "leaks":
            gained = skill(example.value, example.control, score.worse) - example.luck
            return Scored(record, score, value, best, floor, "leaks", gained, example)
    return Scored(record, score, value, best, floor, level, severity, None)


def _without_luck(example: BestExample, worse: Direction) -> float:
    return example.value - example.luck if worse == "higher" else example.value + example.luck


def rated_by(metric: str, controls: Mapping[str, Mapping[str, float]], worse: Direction) -> Control | None:
    """Return the blind control that a score is measured from; None when none has the metric.

    Of pictures and features that is the one that leaks most. Labels are measured from `chance`, the expected recall of a blind
    guess: one guess on a small batch, and another client's labels, are right by luck. Records older than `chance` have the
    better of `prior` and `uniform` instead.
    """
    guesses = blind(controls)
    if scale(metric).is_luck:
        guesses = {name: values for name, values in guesses.items() if name != WRONG_UPDATE}
        guesses = {CHANCE: guesses[CHANCE]} if metric in guesses.get(CHANCE, {}) else guesses
    return best_control(metric, guesses, worse)


def blind_severity(one: Scored, metric: str) -> float | None:
    """Return the severity of the same attack on another client's update, which can learn nothing; None without one."""
    value = one.record.controls.get(WRONG_UPDATE, {}).get(metric)
    others = {name: values for name, values in blind(one.record.controls).items() if name != WRONG_UPDATE}
    best = best_control(metric, others, one.score.worse)
    if value is None or best is None or scale(metric).ceiling == best.value:
        return None
    return relative(metric, skill(value, best.value, one.score.worse), best.value)
