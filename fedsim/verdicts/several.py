"""What attacks on several updates at once show: all of a round, of a client, or of the run.

They have no calibration yet, so that one which finds nothing is inconclusive, never resisted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.metrics import luck
from fedsim.metrics.ratings import scale
from fedsim.metrics.skill import Control
from fedsim.recording.records import ViewRecord
from fedsim.verdicts.judge import Verdict, kind_of
from fedsim.verdicts.scores import Scored, scored
from fedsim.verdicts.significance import pooled_control, significance

_UNPROVEN = "nothing shows that the attack works here, as attacks on several updates are not calibrated"


@dataclass(frozen=True)
class ViewEntry:
    """One attack on several updates, by one metric.

    Args:
        attack: its label, else its name.
        is_control: whether it never looks at the updates.
        scope: `client`, `round` or `run`.
        kind: what it recovers, in the report's words; `nothing` where nothing was scored.
        metric: the first of its kind; None where nothing was scored.
        mean: of all its attempts.
        best: the mean of the best blind controls.
        attempts: how many were made, and of these failed and were refused.
        verdict: what may be claimed.
        reason: why, where no leak was found.
        decider: where most was found, in words; None where nothing was scored.
    """

    attack: str
    is_control: bool
    scope: str
    kind: str
    metric: str | None
    mean: float | None
    best: Control | None
    attempts: tuple[int, int, int]
    verdict: Verdict
    reason: str
    decider: str | None

    @property
    def is_leak(self) -> bool:
        """Whether anything leaks."""
        return not self.is_control and self.verdict in ("leaks", "partial")

    def write(self, value: float | None) -> str:
        """Return a value of its metric as text; nothing without one."""
        return "" if value is None or self.metric is None else scale(self.metric).write(value)

    @property
    def written(self) -> str:
        """What leaks, in one clause."""
        part = "part of " if self.verdict == "partial" else ""
        assert self.metric is not None
        return (
            f"{self.attack} finds {part}the {self.kind} behind {self.decider} together "
            f"({scale(self.metric).title} {self.write(self.mean)} on average)"
        )


def view_entries(records: Sequence[ViewRecord]) -> list[ViewEntry]:
    """Return one entry per attack and kind of finding, in the order in which the attacks first occur."""
    by_attack: dict[tuple[str, str], list[ViewRecord]] = {}
    for record in records:
        by_attack.setdefault(record.attack.key, []).append(record)
    return [entry for own in by_attack.values() for entry in _of_attack(own)]


def _of_attack(records: Sequence[ViewRecord]) -> list[ViewEntry]:
    first: dict[str, tuple[str, list[Scored]]] = {}
    for metric in dict.fromkeys(name for record in records for name in record.scores):
        found = scored(records, metric)
        if found:
            first.setdefault(kind_of(metric), (metric, found))
    if not first:
        return [_entry(records, "nothing", None, None, None, "inconclusive", _unscored(records), None)]
    entries = []
    for kind, (metric, found) in first.items():
        shown = significance(found, metric, luck.BlindSkills.of(()))
        verdict: Verdict = "inconclusive"
        if shown.level == "leaks" or shown.level == "partial":
            verdict = shown.level
        decider = shown.decider.record
        assert isinstance(decider, ViewRecord)
        mean = sum(one.value for one in found) / len(found)
        control = pooled_control(found, metric)
        best = None if control is None or shown.decider.best is None else Control(shown.decider.best.name, control)
        reason = "" if verdict != "inconclusive" else _UNPROVEN
        entries.append(_entry(records, kind, metric, mean, best, verdict, reason, decider.place))
    return entries


def _entry(
    records: Sequence[ViewRecord],
    kind: str,
    metric: str | None,
    mean: float | None,
    best: Control | None,
    verdict: Verdict,
    reason: str,
    decider: str | None,
) -> ViewEntry:
    attack, statuses = records[0].attack, [record.status for record in records]
    if attack.is_control:
        verdict, reason = "inconclusive", "it is a control, which never looks at the updates"
    attempts = len(records), statuses.count("failed"), statuses.count("refused")
    return ViewEntry(
        attack.title,
        attack.is_control,
        records[0].view.scope,
        kind,
        metric,
        mean,
        best,
        attempts,
        verdict,
        reason,
        decider,
    )


def _unscored(records: Sequence[ViewRecord]) -> str:
    message = next((record.message for record in records if record.message), None)
    if message is not None:
        return f"no finding: {message}"
    if any(record.found is not None for record in records):
        return "the data of an observed app are not known, so what it found is shown and not scored"
    return "its finding could not be scored"
