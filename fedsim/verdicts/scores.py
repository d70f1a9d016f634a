"""One attempt by one metric: its score beside its controls, and the level of leakage that it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fedsim.metrics.ratings import Level, rate, relative, scale
from fedsim.metrics.skill import Control, Direction, best_control, blind, floor_control, skill
from fedsim.recording.records import Attempted, BestExample, Record, RecordedScore, Trial

WRONG_UPDATE = "wrong_update"
CHANCE = "chance"


class Scored(NamedTuple):
    """One attempt by one metric.

    Args:
        record: the attempt on one update or on several, or a trial of a calibration.
        score: by this metric.
        value: of the score.
        best: the best blind control of the same attempt.
        floor: the best control that knows something of the truth.
        level: what the attempt shows.
        guessed: what it would show beside the blind guesses that look at no update at all. Where this is more than `level`, the
            same attack finds as much in another client's update.
        severity: the skill behind the level, in units of the metric's thresholds, which luck is looked for in: beyond the
            guesses that look at no update, as those on other clients' updates are measured; None without a control.
        example: the image of a batch that shows more than the batch's mean does; None elsewhere.
    """

    record: Attempted | Trial
    score: RecordedScore
    value: float
    best: Control | None
    floor: Control | None
    level: Level
    guessed: Level
    severity: float | None
    example: BestExample | None

    @property
    def skill(self) -> float | None:
        """How far the value is beyond the best blind control."""
        return None if self.best is None else skill(self.value, self.best.value, self.score.worse)

    @property
    def attempt(self) -> Record:
        """The attempt on a client's update; to be asked for where it is no trial of a calibration."""
        assert isinstance(self.record, Record)
        return self.record

    @property
    def is_alike(self) -> bool:
        """Whether it would be a leak, did the same attack not find as much in another client's update."""
        return self.level == "none" and self.guessed in ("leaks", "partial")


def scored(records: Iterable[Attempted | Trial], metric: str) -> list[Scored]:
    """Return the attempts that have a value by this metric."""
    found = []
    for record in records:
        score = record.scores.get(metric)
        if score is not None and score.value is not None:
            found.append(_scored(record, metric, score, score.value))
    return found


def _scored(record: Attempted | Trial, metric: str, score: RecordedScore, value: float) -> Scored:
    best = rated_by(metric, record.controls, score.worse)
    floor = None if scale(metric).is_luck else floor_control(metric, record.controls, score.worse)
    others = best
    if best is not None and best.name == WRONG_UPDATE:
        others = rated_by(metric, _without_wrong_update(record.controls), score.worse) or best

    def rated(control: Control | None) -> Level:
        return rate(
            metric, value, control.value if control else None, score.worse, None if floor is None else floor.value
        )

    level = rated(best)
    guessed = level if others is best else rated(others)
    severity = None
    if others is not None and level != "unrated":
        severity = relative(metric, skill(value, others.value, score.worse), others.value)
    example = record.best_example.get(metric)
    if example is None or level == "leaks":
        return Scored(record, score, value, best, floor, level, guessed, severity, None)
    shown = rate(metric, _without_luck(example, score.worse), example.control, score.worse, example.floor)
    if rate(metric, example.value, example.control, score.worse, example.floor) == "leaks":
        guessed = "leaks"
    if shown == "leaks" or (shown, level) == ("partial", "none"):
        gained = skill(example.value, example.control, score.worse) - example.luck
        return Scored(record, score, value, best, floor, shown, guessed, gained, example)
    return Scored(record, score, value, best, floor, level, guessed, severity, None)


def _without_luck(example: BestExample, worse: Direction) -> float:
    return example.value - example.luck if worse == "higher" else example.value + example.luck


def _without_wrong_update(controls: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    return {name: values for name, values in controls.items() if name != WRONG_UPDATE}


def rated_by(metric: str, controls: Mapping[str, Mapping[str, float]], worse: Direction) -> Control | None:
    """Return the blind control that a score is measured from; None when none has the metric.

    Of images and features that is the one that leaks most. Labels are measured from `chance`, the expected recall of a blind
    guess: one guess on a small batch, and another client's labels, are right by luck. Records older than `chance` have the
    better of `prior` and `uniform` instead.
    """
    guesses = blind(controls)
    if scale(metric).is_luck:
        guesses = _without_wrong_update(guesses)
        guesses = {CHANCE: guesses[CHANCE]} if metric in guesses.get(CHANCE, {}) else guesses
    return best_control(metric, guesses, worse)


def blind_severity(one: Scored, metric: str) -> float | None:
    """Return the severity of the same attack on another client's update, which can learn nothing; None without one."""
    value = one.record.controls.get(WRONG_UPDATE, {}).get(metric)
    others = _without_wrong_update(blind(one.record.controls))
    best = best_control(metric, others, one.score.worse)
    if value is None or best is None or scale(metric).ceiling == best.value:
        return None
    return relative(metric, skill(value, best.value, one.score.worse), best.value)
