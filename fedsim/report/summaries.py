"""Many records in a few rows: summarized by client, or by the set of defenses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedsim.metrics.bootstrap import Interval, interval
from fedsim.metrics.skill import Control, Direction, best_control, skill
from fedsim.report.evidence import PluginUse, Record, RecordedScore
from fedsim.report.ratings import Rating, leaves_no_room, rate, scale
from fedsim.seeds import numpy_generator

NO_DEFENSE = "none"
WRONG_UPDATE = "wrong_update"
CHANCE = "chance"
_BOOTSTRAP_SEED = 0


class Peak(NamedTuple):
    """The attempt that leaked most, with its own best control; that is None for labels, or where none was recorded."""

    round: int
    client: int
    value: float
    skill: float | None
    control: float | None


@dataclass(frozen=True)
class Summary:
    """All attempts of one attack in one group, by one metric.

    Args:
        clients: clients in the group, ascending.
        defenses: what they carry.
        attack: name of the attack.
        metric: name of the metric; None when no attempt was scored.
        worse: the direction that means more leakage; None without a metric.
        attempts: number of records.
        failed: how many of them failed.
        refused: how many of them were refused.
        examples: scored pictures or labels.
        mean: over all examples; None when nothing was scored.
        spread: bootstrap interval of the mean; None for fewer than two examples.
        controls: control -> mean over the scored attempts.
        best: the control that the mean is rated by, the one that leaks most; None when none was recorded.
        beside: the wrong-update control where it is shown and not rated by; None otherwise.
        skill: `mean` beyond `best`.
        peak: the attempt that leaked most.
        unavailable: why the metric has no value.
        rating: the verdict.
        is_control: whether the attack never looks at the update.
    """

    clients: tuple[int, ...]
    defenses: str
    attack: str
    metric: str | None
    worse: Direction | None
    attempts: int
    failed: int
    refused: int
    examples: int = 0
    mean: float | None = None
    spread: Interval | None = None
    controls: Mapping[str, float] | None = None
    best: Control | None = None
    beside: Control | None = None
    skill: float | None = None
    peak: Peak | None = None
    unavailable: str | None = None
    rating: Rating = "unrated"
    is_control: bool = False

    @property
    def why_unrated(self) -> str | None:
        """Why there is no verdict though there is a score beside a control."""
        if self.metric is None or self.best is None:
            return None
        own = self.peak.control if self.peak else None
        is_beaten = leaves_no_room(self.metric, self.best.value if own is None else own)
        return "a blind guess does as well" if is_beaten else None


@dataclass(frozen=True)
class Naming:
    """Names of attacks and defenses: the label, or parameters are added where one name stands for several settings."""

    records: Sequence[Record]

    def attack(self, record: Record) -> str:
        """Return the name of a record's attack."""
        return _named(record.attack, [other.attack for other in self.records])

    def defenses(self, record: Record) -> str:
        """Return the names of a record's defenses in order of application."""
        others = [use for other in self.records for use in other.defenses]
        return " + ".join(_named(use, others) for use in record.defenses) or NO_DEFENSE


def _named(use: PluginUse, others: Iterable[PluginUse]) -> str:
    if use.label:
        return use.label
    settings = [other.params for other in others if other.name == use.name]
    differing = [k for k, v in use.params.items() if any(other.get(k) != v for other in settings)]
    values = ", ".join(f"{key}={use.params[key]}" for key in differing)
    return f"{use.name} ({values})" if values else use.name


class Scored(NamedTuple):
    """One attempt by one metric, with its own best control."""

    record: Record
    score: RecordedScore
    value: float
    best: Control | None

    @property
    def skill(self) -> float | None:
        """How far the value is beyond the best control."""
        return None if self.best is None else skill(self.value, self.best.value, self.score.worse)


def scored(records: Iterable[Record], metric: str) -> list[Scored]:
    """Return the attempts that have a value by this metric."""
    found = []
    for record in records:
        score = record.scores.get(metric)
        if score is not None and score.value is not None:
            found.append(Scored(record, score, score.value, rated_by(metric, record.controls, score.worse)))
    return found


def rated_by(metric: str, controls: Mapping[str, Mapping[str, float]], worse: Direction) -> Control | None:
    """Return the control that a score is measured from; None when none has the metric.

    Of pictures and features that is the one that leaks most. Labels are measured from `chance`, the expected recall of a blind
    guess: one guess on a small batch, and another client's labels, are right by luck. Records older than `chance` have the
    better of `prior` and `uniform` instead.
    """
    if scale(metric).is_luck:
        blind = {name: values for name, values in controls.items() if name != WRONG_UPDATE}
        controls = {CHANCE: blind[CHANCE]} if metric in blind.get(CHANCE, {}) else blind
    return best_control(metric, controls, worse)


def by_client(records: Sequence[Record]) -> list[Summary]:
    """Return one summary per client, set of defenses, attack and metric."""
    naming = Naming(records)
    return _summarize(records, naming, lambda record: (str(record.client), naming.defenses(record)))


def by_defense(records: Sequence[Record]) -> list[Summary]:
    """Return one summary per set of defenses, attack and metric."""
    naming = Naming(records)
    return _summarize(records, naming, lambda record: (naming.defenses(record),))


def _summarize(records: Sequence[Record], naming: Naming, key: Callable[[Record], tuple[str, ...]]) -> list[Summary]:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in sorted(records, key=lambda record: record.client):
        groups.setdefault((*key(record), naming.attack(record)), []).append(record)
    order = {group: position for position, group in enumerate(dict.fromkeys(group[:-1] for group in groups))}
    attacks = list(dict.fromkeys(naming.attack(record) for record in records))
    rows = []
    for group in sorted(groups, key=lambda group: (order[group[:-1]], attacks.index(group[-1]))):
        members = groups[group]
        metrics: list[str | None] = list(dict.fromkeys(metric for record in members for metric in record.scores))
        rows += [_summary(members, naming, metric, group) for metric in metrics or [None]]
    return rows


def _summary(members: Sequence[Record], naming: Naming, metric: str | None, group: tuple[str, ...]) -> Summary:
    facts: dict[str, Any] = {
        "clients": tuple(sorted({record.client for record in members})),
        "defenses": naming.defenses(members[0]),
        "attack": group[-1],
        "metric": metric,
        "attempts": len(members),
        "failed": sum(record.status == "failed" for record in members),
        "refused": sum(record.status == "refused" for record in members),
        "is_control": members[0].attack.is_control,
    }
    if metric is None:
        return Summary(**facts, worse=None)
    recorded = [record.scores[metric] for record in members if metric in record.scores]
    worse = recorded[0].worse
    found = scored(members, metric)
    if not found:
        reasons = [score.unavailable for score in recorded if score.unavailable]
        return Summary(**facts, worse=worse, unavailable=reasons[0] if reasons else "no value was recorded")
    examples = [value for one in found for value in one.score.examples]
    mean = math.fsum(examples) / len(examples)
    controls = mean_controls(found, metric)
    best = rated_by(metric, {name: {metric: value} for name, value in controls.items()}, worse)
    beside = WRONG_UPDATE in controls and scale(metric).is_luck
    gained = None if best is None else skill(mean, best.value, worse)
    peak = _peak(found, metric, worse)
    return Summary(
        **facts,
        worse=worse,
        examples=len(examples),
        mean=mean,
        spread=interval(examples, numpy_generator(_BOOTSTRAP_SEED, "interval", *group, metric)),
        controls=controls,
        best=best,
        beside=Control(WRONG_UPDATE, controls[WRONG_UPDATE]) if beside else None,
        skill=gained,
        peak=peak,
        rating=_rating(metric, gained, best, peak),
    )


def _rating(metric: str, mean_skill: float | None, best: Control | None, peak: Peak) -> Rating:
    """Rate pictures and features by the worst attempt: what got out is out. Rate labels by the mean: guesses can be lucky."""
    if scale(metric).is_luck:
        return rate(metric, mean_skill, best.value if best else None)
    return rate(metric, peak.skill, peak.control)


def mean_controls(found: Sequence[Scored], metric: str) -> dict[str, float]:
    """Return each control's mean over the attempts that have it, weighted by their examples, as a mean score is."""
    means = {}
    for name in dict.fromkeys(name for one in found for name in one.record.controls):
        pairs = [
            (one.record.controls[name][metric], len(one.score.examples))
            for one in found
            if metric in one.record.controls.get(name, {})
        ]
        if pairs:
            means[name] = math.fsum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
    return means


def _peak(found: Sequence[Scored], metric: str, worse: Direction) -> Peak:
    """Return the worst attempt: by skill; by value for labels, whose blind guess is all luck, and for what has a best value."""
    sign, written = 1 if worse == "higher" else -1, scale(metric)
    by_skill = not written.is_luck and written.ceiling is None

    def leakage(one: Scored) -> tuple[float, float]:
        gained = one.skill if by_skill and one.skill is not None else -math.inf
        return gained, sign * one.value

    top = max(found, key=leakage)
    best = None if written.is_luck else top.best
    return Peak(
        top.record.round, top.record.client, top.value, top.skill if best else None, best.value if best else None
    )
