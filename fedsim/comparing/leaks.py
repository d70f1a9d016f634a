"""What one run shows of each attacker: leakage, control and verdict by group of clients.

A group is the clients that carry the same defenses. Verdicts are those of the run's own report; of several on one group the
worst counts. What an attack did not show, because it is missing, failed, was refused or is not made for the update, is
inconclusive and never protection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedsim.metrics.ratings import plain, scale
from fedsim.metrics.skill import skill
from fedsim.metrics.table import METRICS
from fedsim.report.analysis import Analysis
from fedsim.report.naming import NO_DEFENSE
from fedsim.report.overview import Entry, entries
from fedsim.verdicts.judge import ORDER, Verdict, worst
from fedsim.verdicts.several import ViewEntry

DECIBEL = " dB"


class Attacker(NamedTuple):
    """An attack and what it is after."""

    attack: str
    kind: str

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.attack if self.kind == "nothing" else f"{self.attack}: {self.kind}"


@dataclass(frozen=True)
class Leak:
    """What one attacker shows of one group of clients in one run.

    Args:
        group: the defenses that the clients carry, or which updates an attack on several of them looks at.
        clients: those attacked.
        metric: which `value` is of; None where nothing was scored.
        value: mean over the attempts.
        control: of the best blind guess, on average.
        gained: `value` beyond `control`, in the direction of more leakage.
        verdict: the worst of the group and of its clients.
        reason: why, where no leak was found.
        decibels: how far the attempt that shows most, or the mean where that is more, is beyond its control; None where the
            metric that decides is not in decibels, or nothing was scored.
    """

    group: str
    clients: tuple[int, ...]
    metric: str | None
    value: float | None
    control: float | None
    gained: float | None
    verdict: Verdict
    reason: str
    decibels: float | None


def leaks(analysis: Analysis) -> dict[Attacker, list[Leak]]:
    """Return attacker -> what it shows of each group; controls, which look at no update, are none."""
    of_clients: dict[tuple[Attacker, str], list[Entry]] = {}
    for entry in analysis.entries:
        of_clients.setdefault((_attacker(entry), entry.summary.defenses), []).append(entry)
    found: dict[Attacker, list[Leak]] = {}
    for entry in entries(analysis.by_defense):
        if not entry.summary.is_control:
            own = of_clients.get((_attacker(entry), entry.summary.defenses), [])
            found.setdefault(_attacker(entry), []).append(_leak(entry, own))
    for view in analysis.views:
        if not view.is_control:
            found.setdefault(Attacker(view.attack, view.kind), []).append(_of_view(view))
    return found


def _attacker(entry: Entry) -> Attacker:
    return Attacker(entry.summary.attack, entry.kind)


def _leak(entry: Entry, own: Sequence[Entry]) -> Leak:
    shown, judged = entry.summary, [entry, *own]
    verdict = worst(one.verdict for one in judged)
    decider = next(one for one in judged if one.verdict == verdict)
    far = [gained for one in judged if one.verdict != "resisted" or one is entry for gained in _decibels(one)]
    return Leak(
        group=shown.defenses,
        clients=shown.clients,
        metric=shown.metric,
        value=shown.mean,
        control=None if shown.best is None else shown.best.value,
        gained=shown.skill,
        verdict=verdict,
        reason=decider.reason,
        decibels=max(far) if far and None not in far else None,  # type: ignore[type-var]
    )


def _decibels(entry: Entry) -> Iterator[float | None]:
    """Yield how far means and deciding attempts are beyond their controls; None for one that is not in decibels."""
    for summary in {id(one): one for one in (entry.summary, entry.judge)}.values():
        if summary.metric is None or scale(summary.metric).unit != DECIBEL:
            yield None
            continue
        yield summary.skill
        # What resisted did so with its single attempts too, luck set aside.
        if summary.peak is not None and entry.verdict != "resisted":
            example = summary.peak.example
            yield summary.peak.skill if example is None else example.value - example.control


def _of_view(view: ViewEntry) -> Leak:
    gained = None
    if view.metric is not None and view.mean is not None and view.best is not None:
        metric = METRICS.get(plain(view.metric))
        gained = skill(view.mean, view.best.value, metric.worse) if metric is not None else None
    return Leak(
        group=view.looks_at,
        clients=tuple(sorted({c for record in view.leaking for c in record.view.clients})),
        metric=view.metric,
        value=view.mean,
        control=None if view.best is None else view.best.value,
        gained=gained,
        verdict=view.verdict,
        reason=view.reason,
        decibels=None,
    )


def worst_of(found: Sequence[Leak]) -> Leak:
    """Return the group that leaks most, by verdict and then by skill."""
    return max(found, key=lambda leak: (ORDER.index(leak.verdict), leak.gained if leak.gained is not None else -1e9))


def carried(group: str) -> str:
    """Return what people call a group."""
    return "no defense" if group == NO_DEFENSE else group
