"""Reasons to doubt the numbers: cautions that attacks and defenses gave, and what the run as a whole cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.errors import without_numbers
from fedsim.metrics.ratings import scale
from fedsim.report.evidence import Evidence, Record
from fedsim.report.glance import clients_named, enumerated
from fedsim.report.summaries import Naming, Summary

_FEW = 10


@dataclass(frozen=True)
class Caution:
    """One reason for doubt and the records that carry it.

    Args:
        number: what the tables refer to it by, from 1.
        text: the sentence, as the first record gives it.
        varies: whether other records give the same sentence with other numbers.
        count: how many records carry it.
        attacks: the attacks in question.
        clients: the clients in question, ascending.
    """

    number: int
    text: str
    varies: bool
    count: int
    attacks: tuple[str, ...]
    clients: tuple[int, ...]


class Cautions:
    """All cautions of a run, numbered in the order of the records; sentences that differ in numbers alone are one."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._naming = Naming(records)
        self._carriers: dict[str, list[tuple[str, Record]]] = {}
        for record in records:
            for text in record.cautions:
                self._carriers.setdefault(without_numbers(text), []).append((text, record))
        self._numbers = {pattern: number for number, pattern in enumerate(self._carriers, 1)}

    def listed(self) -> list[Caution]:
        """Return every caution once."""
        found = []
        for pattern, carriers in self._carriers.items():
            records = [record for _, record in carriers]
            found.append(
                Caution(
                    number=self._numbers[pattern],
                    text=carriers[0][0],
                    varies=len({text for text, _ in carriers}) > 1,
                    count=len({id(record) for record in records}),
                    attacks=tuple(dict.fromkeys(self._naming.attack(record) for record in records)),
                    clients=tuple(sorted({record.client for record in records})),
                )
            )
        return found

    def of_record(self, record: Record) -> list[int]:
        """Return the numbers of a record's cautions."""
        return sorted({self._numbers[without_numbers(text)] for text in record.cautions})

    def of_attack(self, client: int, attack: str) -> list[int]:
        """Return the numbers of the cautions on one attack on one client."""
        numbers = {
            self._numbers[pattern]
            for pattern, carriers in self._carriers.items()
            for _, record in carriers
            if record.client == client and self._naming.attack(record) == attack
        }
        return sorted(numbers)


def limits(evidence: Evidence, summaries: Sequence[Summary]) -> list[str]:
    """Return what this run cannot show, one sentence each."""
    return [
        *_unfinished(evidence),
        *_unaudited(evidence),
        *_unavailable(summaries),
        *_few_examples(summaries),
        *_warned(evidence),
    ]


def _warned(evidence: Evidence) -> list[str]:
    """Return what the strategy warned of while it aggregated; each warning stands at the round in which it came first."""
    return [
        f"Warning of the strategy, {f'round {line.round}' if line.round else 'before the training'}: {text}"
        for line in evidence.rounds
        for text in line.warnings
    ]


def _unfinished(evidence: Evidence) -> list[str]:
    planned = evidence.planned_rounds
    done = max((line.round for line in evidence.rounds), default=0)
    if planned is None or done >= planned:
        return []
    return [f"The run is not complete: {done} of {planned} rounds are recorded. It goes on with --resume."]


def _unaudited(evidence: Evidence) -> list[str]:
    audited = {record.client for record in evidence.records}
    missing = [client for client in range(evidence.planned_clients or 0) if client not in audited]
    if not audited or not missing:
        return []
    return [f"No record of {clients_named(missing)}: not audited, or never sampled. That says nothing about leakage."]


def _unavailable(summaries: Sequence[Summary]) -> list[str]:
    reasons: dict[tuple[str, str], int] = {}
    for summary in summaries:
        if summary.metric is not None and summary.unavailable:
            key = (summary.metric, summary.unavailable)
            reasons[key] = reasons.get(key, 0) + summary.attempts
    return [
        f"{scale(metric).title} is unavailable in {count} record{'s' if count != 1 else ''}: {reason.rstrip('.')}."
        for (metric, reason), count in reasons.items()
    ]


def _few_examples(summaries: Sequence[Summary]) -> list[str]:
    counts = [summary.examples for summary in summaries if summary.mean is not None]
    if not counts or min(counts) >= _FEW:
        return []
    few = sorted({count for count in counts if count < _FEW})
    if few == [1]:
        return ["Some means rest on 1 example only, and have no interval."]
    but = ", and those of 1 example have none" if few[0] == 1 else ""
    return [f"Some means rest on {enumerated(few)} examples only: their intervals are rough and too narrow{but}."]
