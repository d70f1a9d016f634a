"""What a run folder holds: the report's only source, so that a report is a pure function of the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from fedsim.recording.observed import Captured
from fedsim.recording.records import Calibration, EvaluationRecord, MechanismRecord, Record, Round, ViewRecord

_MOST_CLIENTS = 100_000  # beyond it a scenario's number of clients is no number of table rows


@dataclass(frozen=True)
class RunData:
    """All that a report is made from.

    Args:
        folder: the run folder; artifacts are read from it.
        scenario: the resolved scenario as plain data; empty when it cannot be read.
        scenario_text: the same as text; None when it cannot be read.
        environment: what environment.json says; empty when it cannot be read.
        rounds: lines of rounds.jsonl, by round.
        records: lines of records.jsonl of one update each, by round and client.
        notes: what was noted when the run was made, and what is missing or damaged, one sentence each.
        calibrations: lines of calibrations.jsonl, by round.
        captured: what was captured of an observed app; None for a simulated run, or where that cannot be read.
        evaluations: lines of evaluations.jsonl, by round.
        views: lines of records.jsonl of several updates each, by round.
        mechanisms: lines of mechanisms.jsonl, by client.
    """

    folder: Path
    scenario: Mapping[str, Any]
    scenario_text: str | None
    environment: Mapping[str, Any]
    rounds: tuple[Round, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...]
    calibrations: tuple[Calibration, ...] = ()
    captured: Captured | None = None
    evaluations: tuple[EvaluationRecord, ...] = ()
    views: tuple[ViewRecord, ...] = ()
    mechanisms: tuple[MechanismRecord, ...] = ()

    @property
    def is_observed(self) -> bool:
        """Whether somebody else's app was observed, of which the scenario's defaults say nothing."""
        return self.environment.get("origin") == "observed"

    @property
    def has_originals(self) -> bool:
        """Whether it is known what the clients trained on: derived of a simulated run, told by the team of an observed app."""
        return not self.is_observed or bool(self.part("audit").get("truth"))

    @property
    def name(self) -> str:
        """The scenario's name; the folder's where an observed app has no scenario."""
        return str(self.scenario.get("name") or (self.folder.resolve().name if self.is_observed else "run"))

    def part(self, name: str) -> Mapping[str, Any]:
        """Return one part of the scenario, such as `federation`; empty when it is missing or not a mapping."""
        value = self.scenario.get(name)
        return value if isinstance(value, dict) else {}

    @property
    def sees_sums(self) -> bool:
        """Whether attacks saw the weighted sum of each round alone, as under secure aggregation."""
        return self.part("threat").get("sees") == "aggregate"

    @property
    def planned_rounds(self) -> int | None:
        """How many rounds the scenario asks for; None for an observed app, which has a plan of its own."""
        if self.is_observed:
            return None
        value = self.part("federation").get("rounds")
        return value if _is_count(value) else None

    @property
    def planned_clients(self) -> int | None:
        """How many clients the scenario has; of an observed app, those seen."""
        if self.is_observed:
            return self.captured.clients[-1] + 1 if self.captured else None
        value = self.part("federation").get("clients")
        return value if _is_count(value) and value <= _MOST_CLIENTS else None

    @property
    def is_audited(self) -> bool:
        """Whether the scenario names an attack; also where that is not known."""
        return self.scenario.get("attacks") != []

    @property
    def refuted(self) -> frozenset[int]:
        """The clients of which a claimed budget is refuted, so that no budget of theirs counts."""
        return frozenset(line.client for line in self.mechanisms if line.status == "refuted")

    @property
    def grants(self) -> tuple[str, ...]:
        """What the threat model grants the attacker."""
        stated = self.part("threat").get("grants")
        if isinstance(stated, list):
            return tuple(str(grant) for grant in stated)
        return self.records[0].grants if self.records else ()


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
