"""How much of a run its audit covers: what is missing of that which the scenario asks for, and how much it leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from fedsim.errors import ScenarioError
from fedsim.exchange import Scope as AttackScope
from fedsim.exchange import View
from fedsim.recording.records import AnyRecord, Record, ViewRecord
from fedsim.recording.run_data import RunData
from fedsim.scenario import Scenario, parse, select_clients, select_rounds
from fedsim.views import views

_SomeRecord = TypeVar("_SomeRecord", Record, ViewRecord)


@dataclass(frozen=True)
class Scope:
    """What was audited of what took place.

    Args:
        missing: (client, name of an attack) -> the rounds of which the audit was to make a record and there is none.
        clients: those that took part in any round, ascending; empty where nobody knows.
        rounds: those in which anybody took part, ascending.
        audited_clients: those of them of which there is a record.
        audited_rounds: those of them of which there is a record.
        missing_views: attempts on several updates of which the audit was to make a record and there is none.
    """

    missing: Mapping[tuple[int, str], tuple[int, ...]] = field(default_factory=dict)
    clients: tuple[int, ...] = ()
    rounds: tuple[int, ...] = ()
    audited_clients: tuple[int, ...] = ()
    audited_rounds: tuple[int, ...] = ()
    missing_views: int = 0

    @classmethod
    def of(cls, run: RunData) -> Scope:
        """Return the scope of the audit of a simulated run; an empty one for an observed app, whose verdicts claim nothing."""
        scenario = None if run.is_observed else _scenario(run)
        took_part = {line.round: line.participants for line in run.rounds if line.participants}
        if scenario is None or not scenario.attacks or not took_part:
            return cls()
        clients = sorted({client for participants in took_part.values() for client in participants})
        seen = [(record.client, record.round) for record in run.records if not record.attack.is_control]
        has_single = bool(seen)
        for line in run.views:
            # What a round shows says nothing of one client, where clients were to be attacked one by one.
            if not line.attack.is_control and (line.view.scope == "client" or not has_single):
                seen += [(client, round) for client in line.view.clients for round in line.view.rounds]
        audited = {client for client, _ in seen}, {round for _, round in seen}
        return cls(
            missing=_missing(run, scenario, took_part),
            missing_views=_missing_views(run, scenario, took_part),
            clients=tuple(clients),
            rounds=tuple(sorted(took_part)),
            audited_clients=tuple(client for client in clients if client in audited[0]),
            audited_rounds=tuple(round for round in sorted(took_part) if round in audited[1]),
        )

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing and nothing was left out."""
        return (
            not self.missing
            and not self.missing_views
            and self.clients == self.audited_clients
            and self.rounds == self.audited_rounds
        )

    @cached_property
    def lacking_clients(self) -> frozenset[int]:
        """Clients of which a record is missing."""
        return frozenset(client for client, _ in self.missing)

    def written(self) -> str:
        """Return in words what is missing or was left out; empty where nothing is."""
        parts = []
        if self.clients != self.audited_clients:
            parts.append(f"{len(self.audited_clients)} of {len(self.clients)} clients")
        if self.rounds != self.audited_rounds:
            parts.append(f"{len(self.audited_rounds)} of {len(self.rounds)} rounds")
        said = [f"audited are {' and '.join(parts)}"] if parts else []
        lost = sum(map(len, self.missing.values())) + self.missing_views
        if lost:
            said.append(f"{lost} attempts that the scenario asks for have no record")
        return "; ".join(said)


def _scenario(run: RunData) -> Scenario | None:
    """Return the scenario of a run; None where it cannot be read, which the report tells."""
    try:
        return parse(dict(run.scenario), "scenario.yaml")
    except ScenarioError:
        return None


def _missing(
    run: RunData, scenario: Scenario, took_part: Mapping[int, tuple[int, ...]]
) -> dict[tuple[int, str], tuple[int, ...]]:
    try:
        rounds = select_rounds(scenario.audit.rounds, scenario.federation.rounds)
        clients = select_clients(scenario.audit.clients, scenario.federation.clients, scenario.seed, "audit.clients")
        audited = frozenset(clients)
    except ScenarioError:
        return {}
    if scenario.threat.sees == "aggregate":
        return {}
    # By name alone: records hold all parameters of an attack, the scenario those that were given.
    asked = Counter(part.name for part in scenario.attacks) - Counter(name for name, _, _ in _wide(run))
    stated = [record for record in run.records if not record.attack.is_plain]
    found = Counter((record.round, record.client, record.attack.name) for record in stated)
    missing: dict[tuple[int, str], list[int]] = {}
    for round in sorted(took_part.keys() & set(rounds)):
        for client in audited.intersection(took_part[round]):
            for name, times in asked.items():
                lost = times - found[round, client, name]
                missing.setdefault((client, name), []).extend([round] * max(0, lost))
    for record in _lack_plain(scenario, run.records):
        missing.setdefault((record.client, record.attack.name), []).append(record.round)
    return {place: tuple(sorted(lost)) for place, lost in sorted(missing.items()) if lost}


def _lack_plain(scenario: Scenario, records: Sequence[_SomeRecord]) -> list[_SomeRecord]:
    """Return the records of views with a defense that lack one of the plain variant of their attack.

    A record that does not say whether there is a plain variant was made before anybody asked for one.
    """
    if "plain" not in scenario.audit.variants or "defenses" not in scenario.threat.grants:
        return []
    plain = {(record.attack.aware_key, _place(record)) for record in records if record.attack.is_plain}
    return [
        record
        for record in records
        if record.attack.variant in ("aware", None)
        and not record.attack.is_control
        and any(not use.is_strategy for use in record.defenses)
        and (record.attack.aware_key, _place(record)) not in plain
    ]


def _place(record: AnyRecord) -> View:
    if isinstance(record, ViewRecord):
        return record.view.as_view()
    return View.of_update(record.round, record.client)


def _wide(run: RunData) -> set[tuple[str, str, AttackScope]]:
    """Return name, parameters and scope of the attacks on several updates, as the records tell."""
    return {(*record.attack.key, record.view.scope) for record in run.views if not record.attack.is_plain}


def _missing_views(run: RunData, scenario: Scenario, took_part: Mapping[int, tuple[int, ...]]) -> int:
    """Return how many attempts on several updates are missing, of the attacks of which there is any.

    Where sums alone are seen, every attack looks at several, and one without any attempt lacks one a round.
    """
    try:
        rounds = select_rounds(scenario.audit.rounds, scenario.federation.rounds)
        clients = select_clients(scenario.audit.clients, scenario.federation.clients, scenario.seed, "audit.clients")
    except ScenarioError:
        return 0
    captured = {round: took_part[round] for round in sorted(took_part.keys() & set(rounds))}
    found = {(record.attack.key, record.view.as_view()) for record in run.views}
    is_sum = scenario.threat.sees == "aggregate"
    asked = Counter(part.name for part in scenario.attacks) - Counter(name for name, _, _ in _wide(run))
    lost = (asked.total() * len(captured) if is_sum else 0) + len(_lack_plain(scenario, run.views))
    return lost + sum(
        ((name, params), view) not in found
        for name, params, scope in _wide(run)
        for view in views(scope, captured, clients, is_sum)
    )
