"""What may be claimed of an attack on a client: it leaks, leaks in part, resisted, or cannot be known.

`leaks` and `partial` rest on scores beyond blind guesses that luck does not explain. `resisted` is a claim too: it needs a
client with a defense, an attack that is made for this update, and proof that the attack works without the defense: at this
round's weights, with the same grants, most of several updates leak that are as large as the client's, be they of unprotected
clients of the run or of a calibration. Whatever lacks one of these is `inconclusive`, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from fedsim.metrics import luck
from fedsim.metrics.ratings import PATCHES, Level, leaves_no_room, scale
from fedsim.metrics.table import METRICS
from fedsim.recording.records import Budget, Calibration, PluginUse, Record, RecordedWorkload, Trial
from fedsim.recording.run_data import RunData
from fedsim.verdicts.scope import Scope
from fedsim.verdicts.scores import Scored, blind_severity, rated_by, scored
from fedsim.verdicts.significance import by_chance, by_luck, pooled_control
from fedsim.verdicts.trained import changed_inputs, metric_of

Verdict = Literal["leaks", "partial", "resisted", "inconclusive"]

ORDER: tuple[Verdict, ...] = ("resisted", "inconclusive", "partial", "leaks")
"""From the best to the worst for a client; what cannot be known is worse than what is known to be resisted."""

CORRECTION = (
    f"Holm's correction over all attempts of a row, family-wise error rate {luck.SIGNIFICANCE:g}, "
    f"and a binomial bound on how many of them are beyond a blind guess, {luck.JOINT_SIGNIFICANCE:g}; "
    "labels by a binomial bound on all of them, and on each with Holm's correction; the best image of a batch counts as the "
    "best of as many attempts as the batch has images"
)
"""How luck among many rounds is dealt with, in words."""

FEWEST_TRIALS = 2
"""So many updates without a defense at least must have been attacked before their leaks prove anything."""

_AttackKey = tuple[str, str]
_NO_BLIND = luck.BlindSkills.of(())


class Judgment(NamedTuple):
    """A verdict and why.

    Args:
        verdict: what may be claimed.
        reason: why, where no leak was found.
        is_open: whether it is inconclusive for something that this attack met here, which no other attack's failure dispels.
    """

    verdict: Verdict
    reason: str
    is_open: bool = False


class _Doubt(NamedTuple):
    reason: str
    is_open: bool = False


class Place(NamedTuple):
    """Where a proof holds: one attack on updates of one kind.

    Args:
        attack: its name, parameters and variant.
        round: whose weights the clients got.
        workload: how much was trained on; None where the record does not say.
        grants: what the attack was told, in alphabetical order.
    """

    attack: _AttackKey
    round: int
    workload: RecordedWorkload | None
    grants: tuple[str, ...]


def place_of(line: Record | Calibration) -> Place:
    """Return the place that an attempt or a calibration belongs to."""
    return Place(line.attack.key, line.round, line.workload, tuple(sorted(line.grants)))


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of several verdicts; `inconclusive` when there is none."""
    return max(verdicts, key=ORDER.index, default="inconclusive")


def kind_of(metric: str) -> str:
    """Return the name of the kind that a metric measures; `other` for a metric that this version does not know."""
    kind = scale(metric).kind
    return "other" if kind is None else kind.name


@dataclass(frozen=True)
class Tried:
    """What an attack does to updates without a defense, at one place and of one kind.

    Args:
        leaking: how many of them it leaks from, luck set aside.
        trials: how many were attacked.
        made: how many of these the auditor made itself, and how many of those leak.
        median: the score in the middle, in words; None where nothing was scored.
    """

    leaking: int
    trials: int
    made: tuple[int, int]
    median: str | None

    @property
    def is_proof(self) -> bool:
        """Whether most leak: of all, and of those that the auditor made, which are as the client's in all but the defense."""
        made, leaking = self.made
        return self.trials >= FEWEST_TRIALS and 2 * self.leaking > self.trials and (not made or 2 * leaking > made)

    def written(self, kind: str) -> str:
        """Return it in words."""
        made, leaking = self.made
        clients = self.trials - made
        parts = [
            *([f"{leaking} of {made} that the auditor made itself"] if made else []),
            *([f"{self.leaking - leaking} of {clients} unprotected clients"] if clients else []),
        ]
        middle = f", {self.median} in the median" if self.median else ""
        return (
            f"{kind} leak from {self.leaking} of {self.trials} updates without a defense ({', '.join(parts)}{middle})"
        )


@dataclass(frozen=True)
class Judge:
    """All that verdicts of one run rest on.

    Args:
        tried: (place, kind) -> what the attack does there without a defense.
        calibrations: place -> the calibration.
        budgets: client -> what is accounted for all its rounds.
        refuted: clients of which a claimed budget is refuted, so that none of theirs counts.
        blind: (attack, metric) -> severities of the attack on other clients' updates.
        missing: (client, name of an attack) -> the rounds of which the audit was to make a record and there is none.
    """

    tried: Mapping[tuple[Place, str], Tried] = field(default_factory=dict)
    calibrations: Mapping[Place, Calibration] = field(default_factory=dict)
    budgets: Mapping[int, Budget] = field(default_factory=dict)
    blind: Mapping[tuple[_AttackKey, str], luck.BlindSkills] = field(default_factory=dict)
    missing: Mapping[tuple[int, str], Sequence[int]] = field(default_factory=dict)
    refuted: frozenset[int] = frozenset()

    @classmethod
    def of(cls, run: RunData, scope: Scope | None = None) -> Judge:
        """Return the judge of what a run folder holds.

        Args:
            run: what the folder holds.
            scope: what its audit covers; worked out where it is not given.
        """
        budgets = {client: budget for line in run.rounds for client, budget in line.epsilon.items()}
        missing = (scope or Scope.of(run)).missing
        found = cls.of_records(run.records, run.calibrations, budgets)
        return replace(found, missing=missing, refuted=run.refuted)

    @classmethod
    def of_records(
        cls,
        records: Sequence[Record],
        calibrations: Sequence[Calibration] = (),
        budgets: Mapping[int, Budget] | None = None,
    ) -> Judge:
        """Return the judge of these records and calibrations."""
        unprotected: dict[Place, list[Record]] = {}
        severities: dict[tuple[_AttackKey, str], list[float]] = {}
        for record in records:
            if not record.defenses and not record.inapplicable and not record.attack.is_control:
                unprotected.setdefault(place_of(record), []).append(record)
            for metric in record.scores:
                for one in scored([record], metric):
                    severity = blind_severity(one, metric)
                    if severity is not None:
                        severities.setdefault((record.attack.key, metric), []).append(severity)
        known = {place_of(calibration): calibration for calibration in calibrations}
        tried = {}
        for place in {**unprotected, **known}:
            made = known[place].trials if place in known else ()
            for kind, found in updates_without_defense(made, unprotected.get(place, ())).items():
                tried[place, kind] = found
        blind = {place: luck.BlindSkills.of(found) for place, found in severities.items()}
        return cls(tried, known, budgets or {}, blind)

    def severities(self, use: PluginUse, metric: str) -> luck.BlindSkills:
        """Return the severities of an attack on other clients' updates, which can learn nothing."""
        return self.blind.get((use.key, metric), _NO_BLIND)

    def is_proven(self, record: Record, kind: str) -> bool:
        """Return whether an attack is known to work on updates like that of an attempt, had it no defense."""
        tried = self.tried.get((place_of(record), kind))
        return record.workload is not None and tried is not None and tried.is_proof

    def judge(self, members: Sequence[Record], kind: str, level: Level, lucky: int, metric: str | None) -> Judgment:
        """Return the verdict on several attempts of one attack by what they show together.

        Args:
            members: the attempts, failed and refused ones included.
            kind: what the attack is after, a name in `fedsim.findings.kinds`.
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
            return Judgment("inconclusive", text, is_open=True)
        doubts: dict[_Doubt, int] = {}
        for record in members:
            doubt = self._doubt(record, kind, metric_of(record, metric))
            if doubt is not None:
                doubts[doubt] = doubts.get(doubt, 0) + 1
        if doubts:
            (reason, _), count = max(doubts.items(), key=lambda item: (item[0].is_open, item[1]))
            share = "" if count == len(members) else f" ({count} of {len(members)} attempts)"
            return Judgment("inconclusive", f"{reason}{share}", any(doubt.is_open for doubt in doubts))
        first = members[0]
        lacking = self._lacking(members)
        if lacking:
            return Judgment("inconclusive", lacking, is_open=not first.attack.is_control)
        unsure = too_few(members, metric)
        if unsure is not None:
            return Judgment("inconclusive", unsure, is_open=True)
        tried = self.tried[place_of(first), kind]
        return Judgment("resisted", f"with the same attack in round {first.round} {tried.written(kind)}")

    def _lacking(self, members: Sequence[Record]) -> str | None:
        """Return that the audit was to make records which are not there; None where all are."""
        clients, attack = sorted({record.client for record in members}), members[0].attack.name
        missing = sum(len(self.missing.get((client, attack), ())) for client in clients)
        if not missing:
            return None
        return f"no record of {missing} of the {missing + len(members)} attempts that the scenario asks for"

    def _doubt(self, record: Record, kind: str, metric: str | None) -> _Doubt | None:
        """Return why an attempt that shows no leak is no proof of resistance; None where it is."""
        unscored = self._unscored(record, metric)
        if unscored is not None or metric is None:
            return unscored
        (one,) = scored([record], metric)
        # Patches in their best places are beyond grey, which has no places, in whatever update they were found.
        if one.is_alike and (one.guessed == "leaks" or PATCHES not in metric):
            return _Doubt(
                "it finds as much in another client's update, so what it finds here need not be this client's", True
            )
        if not record.defenses:
            return _Doubt("the client carries no defense, and the attack fails nevertheless: it does not work here")
        if all(use.is_strategy for use in record.defenses):
            return _Doubt(
                "the client carries no defense but what the strategy does to all, and to the calibration as well"
            )
        noise = self._noise(record)
        if noise is not None:
            return _Doubt(noise)
        if not self.is_proven(record, kind):
            return _Doubt(self._unproven(record, kind))
        changed = changed_inputs(record, kind)
        return None if changed is None else _Doubt(changed)

    @staticmethod
    def _unscored(record: Record, metric: str | None) -> _Doubt | None:
        """Return why an attempt has no score that could be rated; None where it has one."""
        if record.attack.is_control:
            return _Doubt("it is a control, which never looks at the update")
        if record.inapplicable:
            return _Doubt("; ".join(record.inapplicable))
        if record.status != "found":
            what = "it was refused" if record.status == "refused" else "it failed"
            return _Doubt(f"{what}: {record.message}" if record.message else what, record.status == "failed")
        if record.found is not None:
            return _Doubt("the data of an observed app are not known, so what it found is shown and not scored")
        if metric is None or metric not in record.scores or record.scores[metric].value is None:
            return _Doubt("its finding could not be scored", True)
        control = rated_by(metric, record.controls, record.scores[metric].worse)
        if control is None:
            return _Doubt("it was scored beside no control", True)
        if scale(metric).partial is None:
            return _Doubt(f"{scale(metric).title} is shown and not rated")
        return _Doubt("a blind guess does as well", True) if leaves_no_room(metric, control.value) else None

    def _noise(self, record: Record) -> str | None:
        noisy = [use.name for use in record.defenses if use.adds_noise]
        if not noisy:
            return None
        budget = self.budgets.get(record.client)
        is_refuted = record.client in self.refuted
        if budget is not None and budget.is_meaningful and not is_refuted:
            return None
        stated = "no finite epsilon"
        if is_refuted:
            stated = "a claimed budget that its own draws refute"
        elif budget is not None and budget.epsilon is not None:
            stated = f"an epsilon of {budget.epsilon:.3g} with a delta of {budget.delta:.3g}"
        drawn = f"this attack is blind to what {' + '.join(noisy)} drew or added"
        return f"{drawn}; {stated} is no guarantee against one that is not"

    def _unproven(self, record: Record, kind: str) -> str:
        start = "nothing shows that this attack works here without a defense"
        if record.workload is None:
            return f"{start}: the record does not say how much the client trained on; audit again"
        place = place_of(record)
        size = (
            f"updates of {record.workload.pictures} images" if record.workload.pictures > 1 else "updates of an image"
        )
        tried, calibration = self.tried.get((place, kind)), self.calibrations.get(place)
        if calibration is not None and calibration.status != "found":
            return f"{start}: its calibration {'was refused' if calibration.status == 'refused' else 'failed'}"
        if tried is not None:
            few = f", and at least {FEWEST_TRIALS} are needed" if tried.trials < FEWEST_TRIALS else ""
            return f"{start}: {tried.written(kind)}{few}"
        return f"{start}: it was not calibrated on {size} as this client's, and no unprotected client has such"


def too_few(members: Sequence[Record], metric: str | None) -> str | None:
    """Return that too little was guessed to rule a leak out, where single guesses are right by luck; None where it is not so.

    That luck explains what is right does not say that nothing leaks: a coin is wrong half of the time. So what may be right in
    the long run, by an upper confidence bound, has to lie below the threshold of a partial leak.
    """
    if metric is None or not scale(metric).counts_hits:
        return None
    found = scored(members, metric)
    control, written = pooled_control(found, metric), scale(metric)
    if control is None or written.partial is None or written.ceiling is None:
        return None
    examples = [value for one in found for value in one.score.examples]
    most = luck.highest(float(sum(examples)), len(examples))
    threshold = control + written.partial * (written.ceiling - control)
    if most < threshold:
        return None
    guesses = f"{len(examples)} guess{'es are' if len(examples) > 1 else ' is'}"
    return (
        f"{guesses} too few to rule a leak out: {written.title} may be {written.write(most)} in the long run, and a leak "
        f"begins at {written.write(threshold)}"
    )


def updates_without_defense(made: Sequence[Trial], clients: Sequence[Record] = ()) -> dict[str, Tried]:
    """Return kind -> what an attack does to updates without a defense.

    Args:
        made: its trials on updates that the auditor made.
        clients: its attempts on unprotected clients.
    """
    trials: list[Trial | Record] = [*made, *clients]
    metrics = dict.fromkeys(metric for trial in trials for metric in trial.scores)
    found: dict[str, Tried] = {}
    for metric in metrics:
        attempts = scored(trials, metric)
        if metric not in METRICS or not attempts:
            continue
        leaking = _leaking(attempts, metric)
        written, values = scale(metric), sorted(one.value for one in attempts)
        median = f"{written.title} {written.write(values[(len(values) - 1) // 2])}"
        from_made = sum(id(trial) in leaking for trial in made)
        one = Tried(len(leaking), len(trials), (len(made), from_made), median)
        kind = kind_of(metric)
        # Any metric of a kind proves it.
        if kind not in found or (one.is_proof, one.leaking) > (found[kind].is_proof, found[kind].leaking):
            found[kind] = one
    return found


def _leaking(attempts: Sequence[Scored], metric: str) -> set[int]:
    """Return the identities of those among several trials that leak, luck set aside."""
    leaking = [one for one in attempts if one.level == "leaks"]
    if scale(metric).is_luck:
        # One guess may be right by luck, so that all of them are looked at together.
        kept = [by_chance(attempts, metric, pooled_control(attempts, metric)) <= luck.SIGNIFICANCE] * len(leaking)
    else:
        rated = [one for one in attempts if one.severity is not None]
        significant = luck.holm(by_luck(rated, _NO_BLIND, scale(metric).scatter))
        beyond = {id(one) for one, is_kept in zip(rated, significant, strict=True) if is_kept}
        kept = [id(one) in beyond for one in leaking]
    return {id(one.record) for one, is_kept in zip(leaking, kept, strict=True) if is_kept}
