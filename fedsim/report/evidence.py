"""What a run folder holds, as typed lines: the report's only source, so that a report is a pure function of the folder.

A run may have been killed, or still be running: what is there counts, what is missing or damaged becomes a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic

from fedsim import observed, yaml_loader
from fedsim.errors import RunFolderError, ScenarioError
from fedsim.lines import SCHEMA
from fedsim.metrics.skill import Control, Direction
from fedsim.observed import Captured, EmptyCaptureError
from fedsim.recording import RunFolder

Controls = Mapping[str, Mapping[str, float]]


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


class RecordedScore(_Line):
    """One metric of one attempt; `value` is None when the metric was unavailable."""

    value: float | None = None
    per_example: tuple[float, ...] | None = None
    worse: Direction
    unavailable: str | None = None

    @property
    def examples(self) -> tuple[float, ...]:
        """One value per true picture; the mean alone where the record holds no more."""
        if self.value is None:
            return ()
        return self.per_example or (self.value,)


class RecordedFilm(_Line):
    """How one attempt went, iteration by iteration: its own loss, and the PSNR that the auditor computed afterwards."""

    steps: tuple[int, ...] = pydantic.Field(min_length=1)
    losses: tuple[float | None, ...]
    psnr: tuple[float, ...]
    control: Control | None = None
    shown: tuple[int, ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> RecordedFilm:
        if not len(self.steps) == len(self.losses) == len(self.psnr):
            raise ValueError("expected as many losses and PSNR values as steps")
        return self


class BestExample(_Line):
    """The picture of a batch that a finding shows best, beside controls of the same picture."""

    index: int
    value: float
    control: float
    floor: float | None = None
    luck: float = 0.0


class Found(_Line):
    """What an attempt on an observed app found, which nobody can score: numbers, and labels by class."""

    pictures: int | None = None
    labels: dict[int, int] | None = None
    soft_labels: dict[int, int] | None = None
    features: int | None = None


class Record(_Line):
    """One line of records.jsonl: one attack on one client's update of one round."""

    run: str | None = None
    round: int
    client: int
    attack: PluginUse
    defenses: tuple[PluginUse, ...] = ()
    grants: tuple[str, ...] = ()
    status: Literal["found", "failed", "refused"]
    inapplicable: tuple[str, ...] | None = None
    scores: dict[str, RecordedScore] = {}
    controls: dict[str, dict[str, float]] = {}
    best_example: dict[str, BestExample] = {}
    cautions: tuple[str, ...] = ()
    message: str | None = None
    trace: dict[str, Any] = {}
    seconds: float | None = None
    seed: int | None = None
    artifacts: dict[str, str] = {}
    film: RecordedFilm | None = None
    found: Found | None = None


class Calibration(_Line):
    """One line of calibrations.jsonl: one attack on updates that the auditor made itself, without a defense."""

    round: int
    attack: PluginUse
    status: Literal["found", "failed", "refused"]
    message: str | None = None
    pictures: int = 0
    updates: int = 0
    scores: dict[str, RecordedScore] = {}
    controls: dict[str, dict[str, float]] = {}
    best_example: dict[str, BestExample] = {}


class Budget(_Line):
    """What differential privacy promises one client after its rounds so far; None when no finite epsilon holds."""

    epsilon: float | None
    delta: float
    neighbors: str


class Round(_Line):
    """One line of rounds.jsonl: the global model after a round; round 0 is before the training."""

    round: int
    accuracy: float | None = None
    loss: float | None = None
    participants: tuple[int, ...] = ()
    failed: dict[int, str] = {}
    epsilon: dict[int, Budget] = {}
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


_AnyLine = TypeVar("_AnyLine", Record, Round, Calibration)


@dataclass(frozen=True)
class Evidence:
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
        return value if isinstance(value, int) else None

    @property
    def planned_clients(self) -> int | None:
        """How many clients the scenario has; of an observed app, those seen."""
        if self.is_observed:
            return self.captured.clients[-1] + 1 if self.captured else None
        value = self.part("federation").get("clients")
        return value if isinstance(value, int) else None

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


def read(folder: Path) -> Evidence:
    """Return what a run folder holds.

    Raises:
        RunFolderError: no such folder, nothing of a run in it, an observed app of which nothing was captured, or lines of a
            schema that this version does not know.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such folder. Give the folder of a run, as in runs/quickstart-1.")
    names = ("scenario.yaml", "environment.json", "rounds.jsonl", "records.jsonl")
    if not any((folder / name).exists() for name in names):
        raise RunFolderError(f"{folder}: not a run folder; expected one of {', '.join(names)} in it.")
    notes: list[str] = []
    environment = _environment(folder / "environment.json", notes)
    is_observed = environment.get("origin") == "observed"
    absent = {name for name in names if is_observed and not (folder / name).exists()}
    scenario, text = ({}, None) if "scenario.yaml" in absent else _scenario(folder / "scenario.yaml", notes)
    rounds = [] if "rounds.jsonl" in absent else _lines(folder / "rounds.jsonl", Round, notes)
    is_without = _is_without_audit(folder, scenario) or "records.jsonl" in absent
    records = [] if is_without else _lines(folder / "records.jsonl", Record, notes)
    captured = _captured(folder, bool(records), notes) if is_observed else None
    calibrated = folder / "calibrations.jsonl"
    calibrations = _lines(calibrated, Calibration, notes) if calibrated.exists() else []
    return Evidence(
        folder=folder,
        scenario=scenario,
        scenario_text=text,
        environment=environment,
        rounds=tuple(sorted(rounds, key=lambda line: line.round)),
        records=tuple(sorted(records, key=lambda line: (line.round, line.client))),
        notes=(*_stated_notes(folder / "inputs.json"), *notes),
        calibrations=tuple(sorted(calibrations, key=lambda line: line.round)),
        captured=captured,
    )


def _stated_notes(path: Path) -> list[str]:
    """Return what the run noted when it was made, such as how given weights were fitted; none where that is not known."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    stated = value.get("notes") if isinstance(value, dict) else None
    return [note for note in stated if isinstance(note, str)] if isinstance(stated, list) else []


def _captured(folder: Path, is_audited: bool, notes: list[str]) -> Captured | None:
    """Return what was captured of an observed app.

    Raises:
        EmptyCaptureError: nothing was, so there is nothing to show.
    """
    try:
        captured = observed.read(RunFolder(folder))
    except EmptyCaptureError as error:
        if not is_audited:
            raise
        notes.append(str(error))
    except RunFolderError as error:
        notes.append(str(error))
    else:
        notes += [f"{count} replies were not captured: {reason}." for reason, count in captured.skipped]
        return captured
    return None


def _is_without_audit(folder: Path, scenario: Mapping[str, Any]) -> bool:
    return scenario.get("attacks") == [] and not (folder / "records.jsonl").exists()


def _scenario(path: Path, notes: list[str]) -> tuple[dict[str, Any], str | None]:
    try:
        value = yaml_loader.read(path)
    except ScenarioError as error:
        notes.append(f"{path.name}: {error.message}")
        return {}, None
    if not isinstance(value, dict):
        notes.append(f"{path.name}: not a mapping.")
        return {}, None
    return value, path.read_text(encoding="utf-8")


def _environment(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name}: no such file.")
        return {}
    except (OSError, ValueError):
        notes.append(f"{path.name}: not readable as JSON.")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name}: not a mapping.")
        return {}
    return value


def _lines(path: Path, kind: type[_AnyLine], notes: list[str]) -> list[_AnyLine]:
    if not path.exists():
        notes.append(f"{path.name}: no such file; nothing of it was recorded.")
        return []
    *complete, rest = path.read_bytes().split(b"\n")
    if rest.strip():
        notes.append(
            f"{path.name}: the last line is half-written and left out; the run was stopped, or is still writing."
        )
    found = []
    for number, line in enumerate(complete, 1):
        if line.strip():
            parsed = _parsed(line, kind, f"{path.name}, line {number}", notes)
            found += [] if parsed is None else [parsed]
    return found


def _parsed(line: bytes, kind: type[_AnyLine], where: str, notes: list[str]) -> _AnyLine | None:
    try:
        # NaN and infinity are not JSON, but Python writes and reads them: here they mean "no value".
        value = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        notes.append(f"{where}: not JSON; left out.")
        return None
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, int) and schema != SCHEMA:
        raise RunFolderError(
            f"{where}: schema {schema}, this version of fedsim reads {SCHEMA}. Use the one that wrote it."
        )
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "line"
        notes.append(f"{where}: {field}: {first['msg']}; left out.")
        return None
