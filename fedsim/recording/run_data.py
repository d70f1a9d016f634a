"""What a run folder holds, as typed lines: the report's only source, so that a report is a pure function of the folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

import pydantic

from fedsim.defense import is_meaningful
from fedsim.metrics.skill import Direction
from fedsim.recording.observed import Captured
from fedsim.recording.records import Count, EvaluationLine, Value

_MOST_CLIENTS = 100_000  # beyond it a scenario's number of clients is no number of table rows


class _Line(pydantic.BaseModel):
    # Fields that a later version adds are ignored; a change of meaning changes the schema number instead.
    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")


class PluginUse(_Line):
    """An attack or a defense as a record names it."""

    name: str
    label: str | None = None
    params: dict[str, Any] = {}
    version: str | None = None
    distribution: str | None = None
    citation: str | None = None
    is_control: bool = False
    recovers: tuple[str, ...] = ()
    adds_noise: bool = False
    is_strategy: bool = False

    @functools.cached_property
    def key(self) -> tuple[str, str]:
        """What tells this plug-in and its parameters from others: its name, and the parameters as text."""
        return self.name, json.dumps(self.params, sort_keys=True, default=str)


class RecordedScore(_Line):
    """One metric of one attempt; `value` is None when the metric was unavailable."""

    value: Value | None = None
    per_example: tuple[Value, ...] | None = None
    worse: Direction
    unavailable: str | None = None

    @property
    def examples(self) -> tuple[float, ...]:
        """One value per true picture; the mean alone where the record holds no more."""
        if self.value is None:
            return ()
        return self.per_example or (self.value,)


class TrajectoryControl(_Line):
    """The best control of a trajectory."""

    name: str
    value: Value


class RecordedTrajectory(_Line):
    """How one attempt went, iteration by iteration: its own loss, and the PSNR that the auditor computed afterwards."""

    steps: tuple[Count, ...] = pydantic.Field(min_length=1)
    losses: tuple[Value | None, ...]
    psnr: tuple[Value, ...]
    control: TrajectoryControl | None = None
    shown: tuple[Count, ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> RecordedTrajectory:
        if not len(self.steps) == len(self.losses) == len(self.psnr):
            raise ValueError("expected as many losses and PSNR values as steps")
        return self


class BestExample(_Line):
    """The picture of a batch that a finding shows best, beside controls of the same picture."""

    index: Count
    value: Value
    control: Value
    floor: Value | None = None
    luck: Value = 0.0


class Found(_Line):
    """What an attempt on an observed app found, which nobody can score: numbers, and labels by class."""

    pictures: int | None = None
    labels: dict[int, int] | None = None
    soft_labels: dict[int, int] | None = None
    features: int | None = None


class TrainedOn(_Line):
    """What a client whose defenses may change its pictures really trained on, and `unknown`, why that is not known."""

    inputs: Count | None = None
    other_pictures: bool = False
    other_labels: bool = False
    unknown: str | None = None


class Workload(_Line):
    """How much a client trained on in a round: see `fedsim.applicability.Workload`."""

    pictures: Count
    batch_size: Count
    steps: Count


class Record(_Line):
    """One line of records.jsonl: one attack on one client's update of one round."""

    run: str | None = None
    round: Count
    client: Count
    attack: PluginUse
    defenses: tuple[PluginUse, ...] = ()
    grants: tuple[str, ...] = ()
    workload: Workload | None = None
    status: Literal["found", "failed", "refused"]
    inapplicable: tuple[str, ...] | None = None
    scores: dict[str, RecordedScore] = {}
    controls: dict[str, dict[str, Value]] = {}
    best_example: dict[str, BestExample] = {}
    cautions: tuple[str, ...] = ()
    message: str | None = None
    trace: dict[str, Any] = {}
    seconds: Value | None = None
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**64)] | None = None
    artifacts: dict[str, str] = {}
    trajectory: RecordedTrajectory | None = pydantic.Field(None, alias="film")  # as records have always named it
    found: Found | None = None
    trained_on: TrainedOn | None = None


class Trial(_Line):
    """One attack on one update that the auditor made itself, without a defense."""

    status: Literal["found", "failed", "refused"]
    message: str | None = None
    scores: dict[str, RecordedScore] = {}
    controls: dict[str, dict[str, Value]] = {}
    best_example: dict[str, BestExample] = {}


class Calibration(_Line):
    """One line of calibrations.jsonl: one attack on updates that the auditor made itself, without a defense."""

    run: str | None = None
    round: Count
    attack: PluginUse
    grants: tuple[str, ...] = ()
    workload: Workload | None = None
    status: Literal["found", "failed", "refused"]
    message: str | None = None
    trials: tuple[Trial, ...] = ()


class Budget(_Line):
    """What differential privacy promises one client after its rounds so far; None when no finite epsilon holds."""

    epsilon: Value | None
    delta: Value
    neighbors: str

    @property
    def is_meaningful(self) -> bool:
        """Whether it is a guarantee worth the name."""
        return is_meaningful(self.epsilon, self.delta)


class Round(_Line):
    """One line of rounds.jsonl: the global model after a round; round 0 is before the training."""

    round: Count
    accuracy: Value | None = None
    loss: Value | None = None
    participants: tuple[Count, ...] = ()
    failed: dict[Count, str] = {}
    epsilon: dict[Count, Budget] = {}
    seconds: Value | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunData:
    """All that a report is made from.

    Args:
        folder: the run folder; artifacts are read from it.
        scenario: the resolved scenario as plain data; empty when it cannot be read.
        scenario_text: the same as text; None when it cannot be read.
        environment: what environment.json says; empty when it cannot be read.
        rounds: lines of rounds.jsonl, by round.
        records: lines of records.jsonl, by round and client.
        notes: what was noted when the run was made, and what is missing or damaged, one sentence each.
        calibrations: lines of calibrations.jsonl, by round.
        captured: what was captured of an observed app; None for a simulated run, or where that cannot be read.
        evaluations: lines of evaluations.jsonl, by round.
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
    evaluations: tuple[EvaluationLine, ...] = ()

    @property
    def is_observed(self) -> bool:
        """Whether somebody else's app was observed, of which the scenario's defaults say nothing."""
        return self.environment.get("origin") == "observed"

    @property
    def name(self) -> str:
        """The scenario's name; the folder's where an observed app has no scenario."""
        return str(self.scenario.get("name") or (self.folder.resolve().name if self.is_observed else "run"))

    def part(self, name: str) -> Mapping[str, Any]:
        """Return one part of the scenario, such as `federation`; empty when it is missing or not a mapping."""
        value = self.scenario.get(name)
        return value if isinstance(value, dict) else {}

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
    def grants(self) -> tuple[str, ...]:
        """What the threat model grants the attacker."""
        stated = self.part("threat").get("grants")
        if isinstance(stated, list):
            return tuple(str(grant) for grant in stated)
        return self.records[0].grants if self.records else ()


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
