"""Many records in a few rows: summarized by client, or by the set of defenses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedsim.metrics.bootstrap import Interval, interval
from fedsim.metrics.ratings import Level, scale
from fedsim.metrics.skill import Control, Direction, floor_control, skill
from fedsim.recording.records import BestExample, Record
from fedsim.report.naming import Naming
from fedsim.seeds import numpy_generator
from fedsim.verdicts.judge import Judge, Verdict, kind_of
from fedsim.verdicts.scores import WRONG_UPDATE, Scored, rated_by, scored
from fedsim.verdicts.significance import significance

_BOOTSTRAP_SEED = 0


class Peak(NamedTuple):
    """The attempt that decides the verdict: of those that luck does not explain the one that leaked most.

    Control and floor are its own; None for labels, or where none was recorded. `example` is the image of its batch that shows
    more than the mean of the batch, where that decides.
    """

    round: int
    client: int
    value: float
    skill: float | None
    control: float | None
    floor: float | None = None
    example: BestExample | None = None


@dataclass(frozen=True)
class Summary:
    """All attempts of one attack in one group, by one metric.

    Args:
        clients: clients in the group, ascending.
        defenses: what they carry.
        attack: name of the attack.
        aware_key: of the attack, see `PluginUse`; a plain variant has that of the aware one.
        is_plain: whether it is the plain variant.
        metric: name of the metric; None when no attempt was scored.
        worse: the direction that means more leakage; None without a metric.
        attempts: number of records.
        failed: how many of them failed.
        refused: how many of them were refused.
        examples: scored images or labels.
        mean: over all examples; None when nothing was scored.
        spread: bootstrap interval of the mean; None for fewer than two examples.
        controls: control -> mean over the scored attempts.
        best: the blind control that the mean is rated by, the one that leaks most; None when none was recorded.
        floor: the control that knows something of the truth, such as the own mean color; None where there is none.
        beside: the wrong-update control where it is shown and not rated by; None otherwise.
        skill: `mean` beyond `best`.
        peak: the attempt that decides.
        unavailable: why the metric has no value.
        level: what the scores show, luck set aside.
        lucky: attempts beyond the threshold of a leak that luck explains.
        verdict: what may be claimed.
        reason: why, where no leak was found.
        is_open: whether that is something which no other attack's failure dispels; see `Judgment`.
        is_control: whether the attack never looks at the update.
    """

    clients: tuple[int, ...]
    defenses: str
    attack: str
    aware_key: tuple[str, str]
    is_plain: bool
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
    floor: Control | None = None
    level: Level = "unrated"
    lucky: int = 0
    verdict: Verdict = "inconclusive"
    reason: str = ""
    is_open: bool = False
    is_control: bool = False
    recovers: tuple[str, ...] = ()


def by_client(records: Sequence[Record], judge: Judge | None = None, naming: Naming | None = None) -> list[Summary]:
    """Return one summary per client, set of defenses, attack and metric.

    Args:
        records: attempts.
        judge: what verdicts rest on; the records alone where it is not given.
        naming: names of attacks and defenses; those of the records where it is not given.
    """
    naming = naming or Naming(records)
    return _summarize(records, naming, judge, lambda record: (str(record.client), naming.defenses(record)))


def by_defense(records: Sequence[Record], judge: Judge | None = None, naming: Naming | None = None) -> list[Summary]:
    """Return one summary per set of defenses, attack and metric; see `by_client`."""
    naming = naming or Naming(records)
    return _summarize(records, naming, judge, lambda record: (naming.defenses(record),))


def _summarize(
    records: Sequence[Record], naming: Naming, judge: Judge | None, key: Callable[[Record], tuple[str, ...]]
) -> list[Summary]:
    judge = judge or Judge.of_records(records)
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in sorted(records, key=lambda record: record.client):
        groups.setdefault((*key(record), naming.attack(record)), []).append(record)
    order = {group: position for position, group in enumerate(dict.fromkeys(group[:-1] for group in groups))}
    attacks = _places(records, naming)
    rows = []
    for group in sorted(groups, key=lambda group: (order[group[:-1]], attacks[group[-1]])):
        members = groups[group]
        metrics: list[str | None] = list(dict.fromkeys(metric for record in members for metric in record.scores))
        rows += [_summary(members, naming, judge, metric, group) for metric in metrics or [None]]
    return rows


def _places(records: Sequence[Record], naming: Naming) -> dict[str, tuple[int, bool]]:
    """Return the order of the attacks' names: as they first occur, a plain variant right behind the aware one."""
    first: dict[tuple[str, str], int] = {}
    for record in records:
        first.setdefault(record.attack.aware_key, len(first))
    return {naming.attack(record): (first[record.attack.aware_key], record.attack.is_plain) for record in records}


def _summary(
    members: Sequence[Record], naming: Naming, judge: Judge, metric: str | None, group: tuple[str, ...]
) -> Summary:
    facts: dict[str, Any] = {
        "clients": tuple(sorted({record.client for record in members})),
        "defenses": naming.defenses(members[0]),
        "attack": group[-1],
        "aware_key": members[0].attack.aware_key,
        "is_plain": members[0].attack.is_plain,
        "metric": metric,
        "attempts": len(members),
        "failed": sum(record.status == "failed" for record in members),
        "refused": sum(record.status == "refused" for record in members),
        "is_control": members[0].attack.is_control,
        "recovers": members[0].attack.recovers,
    }
    if metric is None:
        judgment = judge.judge(members, "", "unrated", 0, None)
        return Summary(**facts, worse=None, **judgment._asdict())
    recorded = [record.scores[metric] for record in members if metric in record.scores]
    worse = recorded[0].worse
    found = scored(members, metric)
    if not found:
        reasons = [score.unavailable for score in recorded if score.unavailable]
        judgment = judge.judge(members, kind_of(metric), "unrated", 0, metric)
        return Summary(
            **facts,
            worse=worse,
            unavailable=reasons[0] if reasons else "no value was recorded",
            **judgment._asdict(),
        )
    examples = [value for one in found for value in one.score.examples]
    mean = math.fsum(examples) / len(examples)
    controls = mean_controls(found, metric)
    as_controls = {name: {metric: value} for name, value in controls.items()}
    best = rated_by(metric, as_controls, worse)
    beside = WRONG_UPDATE in controls and scale(metric).is_luck
    shown = significance(found, metric, judge.severities(members[0].attack, metric))
    judgment = judge.judge(members, kind_of(metric), shown.level, shown.lucky, metric)
    return Summary(
        **facts,
        worse=worse,
        examples=len(examples),
        mean=mean,
        spread=interval(examples, numpy_generator(_BOOTSTRAP_SEED, "interval", *group, metric)),
        controls=controls,
        best=best,
        floor=None if scale(metric).is_luck else floor_control(metric, as_controls, worse),
        beside=Control(WRONG_UPDATE, controls[WRONG_UPDATE]) if beside else None,
        skill=None if best is None else skill(mean, best.value, worse),
        peak=_peak(shown.decider, metric),
        level=shown.level,
        lucky=shown.lucky,
        **judgment._asdict(),
    )


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


def _peak(one: Scored, metric: str) -> Peak:
    """Return an attempt as what decides; of labels its blind guess is all luck, so that it stands without a control."""
    best = None if scale(metric).is_luck else one.best
    return Peak(
        one.attempt.round,
        one.attempt.client,
        one.value,
        one.skill if best else None,
        best.value if best else None,
        one.floor.value if best and one.floor else None,
        one.example,
    )
