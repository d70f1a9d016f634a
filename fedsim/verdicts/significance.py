"""What several attempts by one metric show, luck set aside: Holm's correction, and a binomial bound on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.metrics import luck
from fedsim.metrics.ratings import ORDER as LEVELS
from fedsim.metrics.ratings import Level, rate, scale
from fedsim.verdicts.scores import CHANCE, Scored


@dataclass(frozen=True)
class Significance:
    """What several attempts by one metric show, luck set aside.

    Args:
        level: the worst level that luck does not explain; `none` where luck explains all, `unrated` without a rating.
        decider: the attempt that decides the level; the one of the largest skill where none leaks.
        lucky: attempts above the threshold of a partial leak that luck explains.
    """

    level: Level
    decider: Scored
    lucky: int


def significance(found: Sequence[Scored], metric: str, blind: luck.BlindSkills) -> Significance:
    """Return what attempts by one metric show.

    Args:
        found: the attempts, at least one.
        metric: name of the metric.
        blind: severities of the same attack and metric on other clients' updates, all over the run.
    """
    written = scale(metric)
    if written.is_luck:
        return _pooled(found, metric)
    by_severity = sorted(found, key=lambda one: (one.severity is not None, one.severity or 0.0, one.value))
    rated = [one for one in by_severity if one.severity is not None]
    tests = by_luck(rated, blind, written.scatter)
    levels = {id(one): one.level if is_kept else "none" for one, is_kept in zip(rated, luck.holm(tests), strict=True)}
    for level in ("leaks", "partial"):
        hit = [one for one in rated if levels[id(one)] == level]
        if hit:
            return Significance(level, hit[-1], 0)
    lucky = sum(one.level in ("leaks", "partial") for one in rated)
    # None alone, but too many together: how often blind attempts get there bounds how many may by luck. Means are counted, not
    # the best image of each, as of the blind attempts.
    chance = (1 + blind.beyond(written.partial or 0.0)) / (2 + len(blind.ascending))
    means = lucky - sum(one.example is not None for one in rated)
    if means > 0 and luck.binomial(float(means), len(rated), chance) <= luck.JOINT_SIGNIFICANCE:
        return Significance("partial", by_severity[-1], 0)
    return Significance("none" if rated else "unrated", by_severity[-1], lucky)


def by_luck(rated: Sequence[Scored], blind: luck.BlindSkills, scatter: float) -> list[float]:
    """Return the probability that luck gives what each attempt shows; the best image is the best of the whole batch."""
    single = luck.exceedance([one.severity or 0.0 for one in rated], blind, scatter)
    return [
        min(1.0, chance * (1 if one.example is None else len(one.score.examples)))
        for one, chance in zip(rated, single, strict=True)
    ]


def _pooled(found: Sequence[Scored], metric: str) -> Significance:
    """Rate what is guessed right by luck on all examples together: a single guess may be lucky, many are not.

    So many may be right in a single attempt, which the mean over all of them hides.
    """
    examples = [value for one in found for value in one.score.examples]
    worse = found[0].score.worse
    sign = 1 if worse == "higher" else -1
    top = max(found, key=lambda one: sign * one.value)
    control = pooled_control(found, metric)
    mean = sum(examples) / len(examples)
    level = rate(metric, mean, control, worse)
    is_lucky = level in ("leaks", "partial") and by_chance(found, metric, control) > luck.SIGNIFICANCE
    kept = luck.holm([by_chance([one], metric, None if one.best is None else one.best.value) for one in found])
    alone = [one for one, is_kept in zip(found, kept, strict=True) if is_kept and one.level in ("leaks", "partial")]
    decider = max(alone, key=lambda one: (one.level == "leaks", sign * one.value), default=top)
    together: Level = "none" if is_lucky else level
    if alone and LEVELS.index(decider.level) > LEVELS.index(together):
        return Significance(decider.level, decider, 0)
    return Significance(together, top, len(found) if is_lucky else 0)


def pooled_control(found: Sequence[Scored], metric: str) -> float | None:
    """Return the mean of the blind control that attempts are rated by, weighted by their examples."""
    pairs = [(one.best.value, len(one.score.examples)) for one in found if one.best is not None]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def by_chance(found: Sequence[Scored], metric: str, control: float | None) -> float:
    """Return the probability that a blind guesser gets so many right, by a binomial bound.

    A label distribution counts as guessed right where its error is small enough for a partial leak; how often a blind guess
    does that is at most about how often it names the right class.
    """
    if control is None:
        return 1.0
    examples = [value for one in found for value in one.score.examples]
    written = scale(metric)
    if written.counts_hits:
        return luck.binomial(float(sum(examples)), len(examples), control)
    known = [one.record.controls.get(CHANCE, {}) for one in found]
    chances = [values[written.hit_chance] for values in known if written.hit_chance in values]
    # Of C classes, an even guess has an error of 1 - 1 / C.
    chance = sum(chances) / len(chances) if chances else 1.0 - min(control, 1.0)
    bound = control * (1 - (written.partial or 0.0))
    hits = sum(value <= bound for value in examples)
    return luck.binomial(float(hits), len(examples), chance)
