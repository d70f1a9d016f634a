"""What may be claimed of an attack on a client: it leaks, leaks in part, resisted, or cannot be known.

`leaks` and `partial` rest on scores beyond blind guesses that luck does not explain. `resisted` is a claim too: it needs an
attack that is made for this update, and proof that the attack works at this round's weights without the defense, on an
unprotected client of the run or in a calibration. Whatever lacks one of these is `inconclusive`, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fedsim.metrics import luck
from fedsim.metrics.ratings import SCALES, Level, leaves_no_room, rate, scale
from fedsim.report.evidence import Budget, Calibration, Evidence, PluginUse, Record
from fedsim.report.scores import CHANCE, Scored, blind_severity, rated_by, scored
from fedsim.report.trained import changed_inputs, metric_of

Verdict = Literal["leaks", "partial", "resisted", "inconclusive"]

ORDER: tuple[Verdict, ...] = ("resisted", "inconclusive", "partial", "leaks")
"""From the best to the worst for a client; what cannot be known is worse than what is known to be resisted."""

KINDS = ("pictures", "labels", "soft labels", "features")
"""What an attack may recover, the gravest first."""

CORRECTION = (
    f"Holm's correction over all attempts of a row, family-wise error rate {luck.SIGNIFICANCE:g}, "
    f"and a binomial bound on how many of them are beyond a blind guess, {luck.JOINT_SIGNIFICANCE:g}; "
    "labels by a binomial bound on all of them"
)
"""How luck among many rounds is dealt with, in words."""

_AttackKey = tuple[str, str]


class Judgment(NamedTuple):
    """A verdict and why."""

    verdict: Verdict
    reason: str


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of several verdicts; `inconclusive` when there is none."""
    return max(verdicts, key=ORDER.index, default="inconclusive")


def kind_of(metric: str) -> str:
    """Return what a metric measures, in the report's words."""
    recovers = scale(metric).recovers
    return "pictures" if recovers == "images" else recovers


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


def significance(found: Sequence[Scored], metric: str, blind_severities: Sequence[float]) -> Significance:
    """Return what attempts by one metric show.

    Args:
        found: the attempts, at least one.
        metric: name of the metric.
        blind_severities: of the same attack and metric on other clients' updates, all over the run.
    """
    written = scale(metric)
    if written.is_luck:
        return _pooled(found, metric)
    by_severity = sorted(found, key=lambda one: (one.severity is not None, one.severity or 0.0, one.value))
    rated = [one for one in by_severity if one.severity is not None]
    tests = [luck.exceedance(one.severity or 0.0, blind_severities, written.scatter) for one in rated]
    levels = {id(one): one.level if is_kept else "none" for one, is_kept in zip(rated, luck.holm(tests), strict=True)}
    for level in ("leaks", "partial"):
        hit = [one for one in rated if levels[id(one)] == level]
        if hit:
            return Significance(level, hit[-1], 0)
    lucky = sum(one.level in ("leaks", "partial") for one in rated)
    beyond = sum(severity >= (written.partial or 0.0) for severity in blind_severities)
    # None alone, but too many together: how often blind attempts get there bounds how many may by luck.
    chance = (1 + beyond) / (2 + len(blind_severities))
    if lucky and luck.binomial(float(lucky), len(rated), chance) <= luck.JOINT_SIGNIFICANCE:
        return Significance("partial", by_severity[-1], 0)
    return Significance("none" if rated else "unrated", by_severity[-1], lucky)


def _pooled(found: Sequence[Scored], metric: str) -> Significance:
    """Rate what is guessed right by luck on all examples together: a single guess may be lucky, many are not."""
    examples = [value for one in found for value in one.score.examples]
    worse = found[0].score.worse
    sign = 1 if worse == "higher" else -1
    top = max(found, key=lambda one: sign * one.value)
    control = pooled_control(found, metric)
    mean = sum(examples) / len(examples)
    level = rate(metric, mean, control, worse)
    if level in ("leaks", "partial") and not _is_beyond_luck(found, metric, control or 0.0):
        return Significance("none", top, len(found))
    return Significance(level, top, 0)


def pooled_control(found: Sequence[Scored], metric: str) -> float | None:
    """Return the mean of the blind control that attempts are rated by, weighted by their examples."""
    pairs = [(one.best.value, len(one.score.examples)) for one in found if one.best is not None]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def _is_beyond_luck(found: Sequence[Scored], metric: str, control: float) -> bool:
    """Return whether so many right guesses are unlikely for a blind guesser, by a binomial bound.

    A label distribution counts as guessed right where its error is small enough for a partial leak; how often a blind guess
    does that is at most about how often it names the right class.
    """
    examples = [value for one in found for value in one.score.examples]
    if metric == "label_recall":
        return luck.binomial(float(sum(examples)), len(examples), control) <= luck.SIGNIFICANCE
    known = [one.record.controls.get(CHANCE, {}) for one in found]
    chances = [values["label_recall"] for values in known if "label_recall" in values]
    # Of C classes, an even guess has an error of 1 - 1 / C.
    chance = sum(chances) / len(chances) if chances else 1.0 - min(control, 1.0)
    bound = control * (1 - (scale(metric).partial or 0.0))
    hits = sum(value <= bound for value in examples)
    return luck.binomial(float(hits), len(examples), chance) <= luck.SIGNIFICANCE


def _key(use: PluginUse) -> _AttackKey:
    return use.name, json.dumps(use.params, sort_keys=True, default=str)


@dataclass(frozen=True)
class Judge:
    """All that verdicts of one run rest on.

    Args:
        proofs: (attack, kind, round) -> what shows that the attack works there without a defense.
        calibrations: (attack, round) -> the calibration.
        budgets: client -> what is accounted for all its rounds.
        blind: (attack, metric) -> severities of the attack on other clients' updates.
    """

    proofs: Mapping[tuple[_AttackKey, str, int], str] = field(default_factory=dict)
    calibrations: Mapping[tuple[_AttackKey, int], Calibration] = field(default_factory=dict)
    budgets: Mapping[int, Budget] = field(default_factory=dict)
    blind: Mapping[tuple[_AttackKey, str], Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, evidence: Evidence) -> Judge:
        """Return the judge of what a run folder holds."""
        budgets = {client: budget for line in evidence.rounds for client, budget in line.epsilon.items()}
        return cls.of_records(evidence.records, evidence.calibrations, budgets)

    @classmethod
    def of_records(
        cls,
        records: Sequence[Record],
        calibrations: Sequence[Calibration] = (),
        budgets: Mapping[int, Budget] | None = None,
    ) -> Judge:
        """Return the judge of these records and calibrations."""
        proofs: dict[tuple[_AttackKey, str, int], str] = {}
        places: dict[tuple[_AttackKey, int], list[Record]] = {}
        severities: dict[tuple[_AttackKey, str], list[float]] = {}
        for record in records:
            key = _key(record.attack)
            if not record.defenses and record.status == "found" and not record.attack.is_control:
                places.setdefault((key, record.round), []).append(record)
            for metric in record.scores:
                for one in scored([record], metric):
                    severity = blind_severity(one, metric)
                    if severity is not None:
                        severities.setdefault((key, metric), []).append(severity)
        for calibration in calibrations:
            for kind, text in _leaks(calibration.scores, [calibration]).items():
                proofs[_key(calibration.attack), kind, calibration.round] = (
                    f"in round {calibration.round} the same attack leaks the {kind} of updates that the auditor made itself, "
                    f"without a defense ({text})"
                )
        for (key, round), members in places.items():
            names = dict.fromkeys(metric for record in members for metric in record.scores)
            for kind, text in _leaks(names, members).items():
                who = ", ".join(str(record.client) for record in members)
                proofs[key, kind, round] = (
                    f"in round {round} the same attack leaks the {kind} of unprotected clients (among {who}; {text})"
                )
        known = {(_key(calibration.attack), calibration.round): calibration for calibration in calibrations}
        return cls(proofs, known, budgets or {}, severities)

    def severities(self, use: PluginUse, metric: str) -> Sequence[float]:
        """Return the severities of an attack on other clients' updates, which can learn nothing."""
        return self.blind.get((_key(use), metric), ())

    def judge(self, members: Sequence[Record], kind: str, level: Level, lucky: int, metric: str | None) -> Judgment:
        """Return the verdict on several attempts of one attack by what they show together.

        Args:
            members: the attempts, failed and refused ones included.
            kind: what the attack is after, one of `KINDS`.
            level: what the scores show, luck set aside.
            lucky: attempts above the threshold that luck explains.
            metric: which the level is of; None where nothing was scored.
        """
        if level in ("leaks", "partial"):
            return Judgment(level, "")
        if lucky:
            are = "is" if lucky == 1 else "are"
            text = f"{lucky} of {len(members)} attempts {are} beyond a blind guess, and luck explains that"
            if metric is not None and scale(metric).is_luck:
                text = "more was found than a blind guess gives on average, and luck explains that"
            return Judgment("inconclusive", text)
        reasons: dict[str, int] = {}
        for record in members:
            reason = self._doubt(record, kind, metric_of(record, metric)) or changed_inputs(record, kind)
            if reason is not None:
                reasons[reason] = reasons.get(reason, 0) + 1
        if reasons:
            reason, count = max(reasons.items(), key=lambda item: item[1])
            share = "" if count == len(members) else f" ({count} of {len(members)} attempts)"
            return Judgment("inconclusive", f"{reason}{share}")
        first = members[0]
        return Judgment("resisted", self.proofs[_key(first.attack), kind, first.round])

    def _doubt(self, record: Record, kind: str, metric: str | None) -> str | None:
        """Return why an attempt that shows no leak is no proof of resistance; None where it is."""
        if record.attack.is_control:
            return "it is a control, which never looks at the update"
        if record.inapplicable:
            return "; ".join(record.inapplicable)
        if record.status != "found":
            what = "it was refused" if record.status == "refused" else "it failed"
            return f"{what}: {record.message}" if record.message else what
        if record.found is not None:
            return "the data of an observed app are not known, so what it found is shown and not scored"
        if metric is None or metric not in record.scores or record.scores[metric].value is None:
            return "its finding could not be scored"
        control = rated_by(metric, record.controls, record.scores[metric].worse)
        if control is None or scale(metric).partial is None:
            return (
                "it was scored beside no control"
                if control is None
                else f"{scale(metric).title} is shown and not rated"
            )
        if leaves_no_room(metric, control.value):
            return "a blind guess does as well"
        noise = self._noise(record)
        if noise is not None:
            return noise
        if (_key(record.attack), kind, record.round) not in self.proofs:
            return self._unproven(record, kind)
        return None

    def _noise(self, record: Record) -> str | None:
        noisy = [use.name for use in record.defenses if use.adds_noise]
        if not noisy:
            return None
        budget = self.budgets.get(record.client)
        if budget is not None and budget.is_meaningful:
            return None
        stated = "no finite epsilon"
        if budget is not None and budget.epsilon is not None:
            stated = f"an epsilon of {budget.epsilon:.3g} with a delta of {budget.delta:.3g}"
        drawn = f"this attack is blind to what {' + '.join(noisy)} drew or added"
        return f"{drawn}; {stated} is no guarantee against one that is not"

    def _unproven(self, record: Record, kind: str) -> str:
        start = "nothing shows that this attack works here without a defense: no unprotected client leaks to it, and"
        calibration = self.calibrations.get((_key(record.attack), record.round))
        if calibration is None:
            return f"{start} it was not calibrated"
        if calibration.status != "found":
            return f"{start} its calibration {'was refused' if calibration.status == 'refused' else 'failed'}"
        return f"{start} in its calibration the {kind} did not leak either"


def _leaks(metrics: Iterable[str], records: Sequence[Record | Calibration]) -> dict[str, str]:
    """Return the kinds that leak beyond luck in these attempts, with the score that shows it."""
    found: dict[str, str] = {}
    for metric in metrics:
        attempts = scored(records, metric)
        if metric in SCALES and attempts:
            shown = significance(attempts, metric, ())
            if shown.level == "leaks":
                written = scale(metric)
                value = shown.decider.example.value if shown.decider.example else shown.decider.value
                found.setdefault(kind_of(metric), f"{written.title} {written.write(value)}")
    return found
