"""Reasons to doubt the numbers: cautions that attacks and defenses gave, and what the run as a whole cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.errors import without_numbers
from fedsim.metrics.ratings import scale
from fedsim.recording.records import Attempted, ViewRecord
from fedsim.recording.run_data import RunData
from fedsim.report.naming import Naming
from fedsim.report.overview import clients_named, enumerated
from fedsim.report.summaries import Summary
from fedsim.strategies.central_privacy import caution, is_central, unaccounted
from fedsim.verdicts.separation import of_run

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
    """All cautions of a run, numbered in the order of the records; sentences that differ in numbers alone are one.

    Args:
        records: those of the run.
        naming: names of its attacks.
    """

    def __init__(self, records: Sequence[Attempted], naming: Naming | None = None) -> None:
        naming = naming or Naming(records)
        numbers: dict[str, int] = {}
        self._of_text: dict[str, int] = {}
        self._carriers: dict[int, list[tuple[str, Attempted]]] = {}
        self._of_attack: dict[tuple[int | None, str], set[int]] = {}
        for record in records:
            of_attack = self._of_attack.setdefault((record.client, naming.attack(record)), set())
            for text in record.cautions:
                if text not in self._of_text:
                    self._of_text[text] = numbers.setdefault(without_numbers(text), len(numbers) + 1)
                number = self._of_text[text]
                self._carriers.setdefault(number, []).append((text, record))
                of_attack.add(number)
        self._listed = [self._caution(number, naming) for number in self._carriers]

    def listed(self) -> list[Caution]:
        """Return every caution once."""
        return self._listed

    def _caution(self, number: int, naming: Naming) -> Caution:
        carriers = self._carriers[number]
        records = [record for _, record in carriers]
        return Caution(
            number=number,
            text=carriers[0][0],
            varies=len({text for text, _ in carriers}) > 1,
            count=len({id(record) for record in records}),
            attacks=tuple(dict.fromkeys(naming.attack(record) for record in records)),
            clients=tuple(sorted({client for record in records for client in _clients_of(record)})),
        )

    def of_record(self, record: Attempted) -> list[int]:
        """Return the numbers of a record's cautions."""
        return sorted({self._of_text[text] for text in record.cautions})

    def of_attack(self, client: int, attack: str) -> list[int]:
        """Return the numbers of the cautions on one attack on one client."""
        return sorted(self._of_attack.get((client, attack), ()))


def _clients_of(record: Attempted) -> tuple[int, ...]:
    if isinstance(record, ViewRecord):
        return record.view.clients
    return () if record.client is None else (record.client,)


def limits(run: RunData, summaries: Sequence[Summary]) -> list[str]:
    """Return what this run cannot show, one sentence each."""
    return [
        *_unfinished(run),
        *_unaudited(run),
        *_sums(run),
        *_untold(run),
        *_central(run),
        *_unavailable(summaries),
        *_few_examples(summaries),
        *_warned(run),
    ]


def _warned(run: RunData) -> list[str]:
    """Return what the strategy warned of while it aggregated; each warning stands at the round in which it came first."""
    return [
        f"Warning of the strategy, {f'round {line.round}' if line.round else 'before the training'}: {text}"
        for line in run.rounds
        for text in line.warnings
    ]


def _unfinished(run: RunData) -> list[str]:
    planned = run.planned_rounds
    done = max((line.round for line in run.rounds), default=0)
    if planned is None or done >= planned:
        return []
    return [f"The run is not complete: {done} of {planned} rounds are recorded. It goes on with --resume."]


def _unaudited(run: RunData) -> list[str]:
    audited = {record.client for record in run.records}
    missing = [client for client in range(run.planned_clients or 0) if client not in audited]
    if not audited or not missing:
        return []
    return [f"No record of {clients_named(missing)}: not audited, or never sampled. That says nothing about leakage."]


def _untold(run: RunData) -> list[str]:
    """Return that no attack was told of the defenses, where clients carry some."""
    defended = [record for record in (*run.records, *run.views) if any(not use.is_strategy for use in record.defenses)]
    if not defended or any("defenses" in record.grants for record in defended):
        return []
    return [
        "Attacks were not told of the clients' defenses, and an attacker who knows them may find more. With the grant "
        "defenses each attack is run both ways."
    ]


def _sums(run: RunData) -> list[str]:
    """Return what sums of rounds do not show: who it was, and for how long they hide that."""
    if not run.sees_sums:
        return []
    separated = of_run(run)
    first: dict[int, list[int]] = {}
    for client, round in separated.items():
        if round is not None:
            first.setdefault(round, []).append(client)
    told = [f"{clients_named(clients)} from round {round} on" for round, clients in sorted(first.items())]
    whom = f"would tell apart {enumerated(told)}" if told else "tell no client apart"
    apart = f" Who took part when {whom}, if each client's contribution stayed the same." if separated else ""
    return [
        "Attacks saw sums over clients, as under an ideal secure aggregation: real protocols may reveal more. What leaks of a "
        f"sum need not be of a known client.{apart}"
    ]


def _central(run: RunData) -> list[str]:
    """Return from whom noise on the server protects: from observers of the global models, never from the server."""
    federation = run.part("federation")
    strategy = str(federation.get("strategy") or "")
    if run.is_observed or not is_central(strategy):
        return []
    stated = [line.global_model_epsilon for line in run.rounds if line.global_model_epsilon is not None]
    if stated:
        last = stated[-1]
        epsilon = "none that is finite" if last.epsilon is None else f"{last.epsilon:.3g}"
        released = (
            f"Against observers who get the global models and nothing else, the epsilon of these is {epsilon} (delta "
            f"{last.delta:g}, {last.neighbors}, sampling not counted)."
        )
    else:
        params = federation.get("strategy_params")
        reason = unaccounted(strategy, params if isinstance(params, dict) else {})
        released = f"None is stated against observers of the global models either{f': {reason}' if reason else ''}."
    return [f"{caution(strategy, run.sees_sums)} {released}"]


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
