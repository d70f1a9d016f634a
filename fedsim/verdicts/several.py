"""What attacks on several updates at once show: all of a round, of a client, or of the run.

They have no calibration yet, so that one which finds nothing is inconclusive, never resisted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedsim.findings.kinds import gravest
from fedsim.metrics import luck
from fedsim.metrics.ratings import ORDER as LEVELS
from fedsim.metrics.ratings import scale
from fedsim.metrics.skill import Control
from fedsim.recording.records import Attempted, ViewRecord
from fedsim.verdicts.judge import Verdict, kind_of
from fedsim.verdicts.scores import WRONG_UPDATE, Scored, scored
from fedsim.verdicts.significance import Significance, pooled_control, significance

_UNPROVEN = "nothing shows that the attack works here, as attacks on several updates are not calibrated"
_PLURAL = {"client": "clients", "round": "rounds", "run": "runs"}


@dataclass(frozen=True)
class ViewEntry:
    """One attack on several updates, by the metric of a kind that shows most.

    Args:
        attack: what reports call it.
        is_control: whether it never looks at the updates.
        defenses: those that any of the clients carries, as reports name them.
        scope: `client`, `round` or `run`.
        is_sum: whether the sum of a round alone was seen.
        kind: what it recovers, in the report's words; `nothing` where nothing was scored and that is not stated.
        attempts: how many were made, and of these failed and were refused.
        metric: the one that decides; None where nothing was scored.
        mean: of all its attempts.
        best: the mean of the best blind controls.
        verdict: what may be claimed.
        reason: why, where no leak was found.
        decider: the attempt that shows most; None where nothing was scored.
        leaking: the attempts that leak.
    """

    attack: str
    is_control: bool
    defenses: str
    scope: str
    is_sum: bool
    kind: str
    attempts: tuple[int, int, int]
    metric: str | None = None
    mean: float | None = None
    best: Control | None = None
    verdict: Verdict = "inconclusive"
    reason: str = ""
    decider: Scored | None = None
    leaking: tuple[ViewRecord, ...] = ()

    @property
    def looks_at(self) -> str:
        """What it looks at, in words."""
        if self.is_sum:
            return "the sum of a round" if self.scope == "round" else "the sums of all rounds"
        return f"all of a {self.scope}"

    @property
    def is_leak(self) -> bool:
        """Whether anything leaks."""
        return self.verdict in ("leaks", "partial")

    @property
    def place(self) -> str | None:
        """Where most was found, in words; None where nothing was scored."""
        return None if self.decider is None else _view_of(self.decider).place

    @property
    def peak(self) -> tuple[float, float | None]:
        """What was found there, and what the best blind guess reaches: of the image that shows most, where that decides."""
        assert self.decider is not None
        example = self.decider.example
        if example is not None:
            return example.value, example.control
        return self.decider.value, None if self.decider.best is None else self.decider.best.value

    def write(self, value: float | None) -> str:
        """Return a value of its metric as text; nothing without one."""
        return "" if value is None or self.metric is None else scale(self.metric).write(value)

    @property
    def where(self) -> str:
        """Which of the views leak, in words: all of them, or how many, and the one where most was found."""
        total = self.attempts[0]
        counted = f"{len(self.leaking)} of {total} {_PLURAL[self.scope] if total > 1 else self.scope}"
        return f"{counted}, most in {self.place}"

    @property
    def written(self) -> str:
        """What leaks, in one clause."""
        value, control = self.peak
        part = "part of " if self.verdict == "partial" else ""
        beside = "" if control is None else f" where the best blind guess reaches {self.write(control)}"
        what = scale(str(self.metric)).title
        picture = "one image at " if self.decider is not None and self.decider.example is not None else ""
        return f"{self.attack} finds {part}the {self.kind} of {self.where}: {picture}{what} {self.write(value)}{beside}"


def _title(record: Attempted) -> str:
    return record.attack.title


def _carried(record: Attempted) -> str:
    return " + ".join(use.name for use in record.defenses)


def view_entries(
    records: Sequence[ViewRecord],
    name: Callable[[Attempted], str] = _title,
    defenses: Callable[[Attempted], str] = _carried,
) -> list[ViewEntry]:
    """Return one entry per attack and kind of finding, in the order in which the attacks first occur.

    Args:
        records: the attempts.
        name: what reports call the attack of a record.
        defenses: what reports call the defenses of a record.
    """
    by_attack: dict[tuple[str, str], list[ViewRecord]] = {}
    for record in records:
        by_attack.setdefault(record.attack.key, []).append(record)
    found = []
    for own in by_attack.values():
        first, statuses = own[0], [record.status for record in own]
        sought = gravest(first.attack.recovers)
        empty = ViewEntry(
            attack=name(first),
            is_control=first.attack.is_control,
            defenses=", ".join(dict.fromkeys(filter(None, map(defenses, own)))),
            scope=first.view.scope,
            is_sum=first.view.is_sum,
            kind="nothing" if sought is None else sought.name,
            attempts=(len(own), statuses.count("failed"), statuses.count("refused")),
            reason=_unscored(own),
        )
        found += [_without_claims_of_controls(entry) for entry in _of_attack(own, empty)]
    return found


def _without_claims_of_controls(entry: ViewEntry) -> ViewEntry:
    if not entry.is_control:
        return entry
    reason = "it is a control, which never looks at the updates"
    return replace(entry, verdict="inconclusive", reason=reason, leaking=())


def _of_attack(records: Sequence[ViewRecord], empty: ViewEntry) -> list[ViewEntry]:
    by_kind: dict[str, list[tuple[str, list[Scored], Significance]]] = {}
    for metric in dict.fromkeys(metric for record in records for metric in record.scores):
        found = scored(records, metric)
        if found:
            shown = significance(found, metric, luck.BlindSkills.of(()))
            by_kind.setdefault(kind_of(metric), []).append((metric, found, shown))
    entries = []
    for kind, judged in by_kind.items():
        # Of metrics that show equally much, the first one; one that is not rated never stands for one that is.
        metric, found, shown = max(judged, key=lambda one: LEVELS.index(one[2].level))
        verdict, reason = _judged(metric, shown, empty.attempts[1])
        obstacles = _view_of(shown.decider).inapplicable
        if verdict == "inconclusive" and obstacles:
            reason = "; ".join(obstacles)
        control = pooled_control(found, metric)
        leaking = tuple(_view_of(one) for one in found if one.level in ("leaks", "partial"))
        entries.append(
            replace(
                empty,
                kind=kind,
                metric=metric,
                mean=sum(one.value for one in found) / len(found),
                best=None
                if control is None or shown.decider.best is None
                else Control(shown.decider.best.name, control),
                verdict=verdict,
                reason=reason,
                decider=shown.decider,
                leaking=() if verdict == "inconclusive" else leaking or (_view_of(shown.decider),),
            )
        )
    return entries or [empty]


def _judged(metric: str, shown: Significance, failed: int) -> tuple[Verdict, str]:
    written = scale(metric)
    if shown.level == "leaks":
        return "leaks", ""
    if shown.level == "partial":
        has_wrong = WRONG_UPDATE in shown.decider.record.controls
        if has_wrong or written.is_luck:
            return "partial", ""
        return "inconclusive", (
            f"{written.title} is {written.write(shown.decider.value)} in {_view_of(shown.decider).place}, a little beyond a "
            "blind guess, and no other view shows what the attack finds where it cannot know"
        )
    if shown.level == "unrated":
        return "inconclusive", f"{written.title} is shown and not rated, or was scored beside no control"
    if shown.lucky:
        return "inconclusive", "luck explains what it found"
    return "inconclusive", f"{failed} attempts failed" if failed else _UNPROVEN


def _view_of(one: Scored) -> ViewRecord:
    assert isinstance(one.record, ViewRecord)
    return one.record


def _unscored(records: Sequence[ViewRecord]) -> str:
    message = next((record.message for record in records if record.message), None)
    if message is not None:
        return f"no finding: {message}"
    if any(record.found is not None for record in records):
        return "the data of an observed app are not known, so what it found is shown and not scored"
    return "its finding could not be scored"
