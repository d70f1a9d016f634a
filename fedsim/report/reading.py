"""From the files of a run folder to typed lines, each checked.

A run may have been killed, or still be running: what is there counts, what is missing or damaged becomes a note.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic
from pydantic import BaseModel

from fedsim.errors import RunFolderError, ScenarioError
from fedsim.recording import files, observed
from fedsim.recording.headers import IndexLine, RemovedLine, client_key
from fedsim.recording.observed import Captured, EmptyCaptureError
from fedsim.recording.records import (
    SCHEMA,
    AnyRecord,
    Attempted,
    Calibration,
    EvaluationRecord,
    MechanismRecord,
    PluginUse,
    Record,
    Round,
    ViewRecord,
    as_record,
)
from fedsim.recording.run_data import RunData
from fedsim.recording.run_folder import PHASES, RunFolder
from fedsim.scenario import yaml_loader

_AnyLine = TypeVar("_AnyLine", bound=BaseModel)


def read(folder: Path) -> RunData:
    """Return what a run folder holds.

    Raises:
        RunFolderError: no such folder, nothing of a run in it, an observed app of which nothing was captured, or lines of a
            schema that this version does not know.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such folder. Give the folder of a run, as in runs/quickstart-1.")
    names = ("scenario.yaml", "environment.json", "rounds.jsonl", "records.jsonl")
    if not any((folder / name).exists() for name in names):
        if (folder / PHASES).exists():
            RunFolder.open(folder)  # says which folders it holds
        raise RunFolderError(f"{folder}: not a run folder; expected one of {', '.join(names)} in it.")
    reader = _Reader(folder)
    environment = reader.mapping("environment.json")
    is_observed = environment.get("origin") == "observed"
    absent = {name for name in names if is_observed and not (folder / name).exists()}
    scenario, text = ({}, None) if "scenario.yaml" in absent else reader.scenario()
    rounds = [] if "rounds.jsonl" in absent else reader.lines("rounds.jsonl", Round.model_validate)
    is_without_audit = scenario.get("attacks") == [] and not (folder / "records.jsonl").exists()
    records = [] if is_without_audit or "records.jsonl" in absent else reader.lines("records.jsonl", as_record)
    has_calibrations = (folder / "calibrations.jsonl").exists()
    calibrations = (
        reader.distinct(reader.lines("calibrations.jsonl", Calibration.model_validate)) if has_calibrations else []
    )
    has_evaluations = (folder / "evaluations.jsonl").exists()
    evaluations = (
        reader.distinct(reader.lines("evaluations.jsonl", EvaluationRecord.model_validate)) if has_evaluations else []
    )
    has_mechanisms = (folder / "mechanisms.jsonl").exists()
    mechanisms = (
        reader.distinct(reader.lines("mechanisms.jsonl", MechanismRecord.model_validate)) if has_mechanisms else []
    )
    found = RunData(
        folder=folder,
        scenario=scenario,
        scenario_text=text,
        environment=environment,
        rounds=tuple(sorted((line for _, line in reader.distinct(rounds)), key=lambda line: line.round)),
        records=(),
        notes=(),
        captured=reader.captured(bool(records)) if is_observed else None,
        evaluations=tuple(sorted((line for _, line in evaluations), key=lambda line: line.round)),
    )
    own = list(reader.belonging(found, reader.distinct(records)))
    single = sorted((line for line in own if isinstance(line, Record)), key=lambda line: (line.round, line.client))
    several = sorted((line for line in own if isinstance(line, ViewRecord)), key=lambda line: line.round)
    calibrated = sorted(reader.calibrations_of(found, calibrations), key=lambda line: line.round)
    checked = sorted(reader.mechanisms_of(mechanisms), key=lambda line: (line.client, line.round))
    reader.captures(found)
    notes = (*reader.stated_notes(), *reader.notes)
    return replace(
        found,
        records=tuple(single),
        views=tuple(several),
        calibrations=tuple(calibrated),
        mechanisms=tuple(checked),
        notes=notes,
    )


class _Reader:
    """Reads a run folder; what is missing or damaged becomes a note.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._uses: dict[str, PluginUse] = {}
        self.notes: list[str] = []

    def _content(self, name: str) -> bytes | None:
        """Return the content of a file; None, without a note, where it is not there."""
        return files.read(self._folder / name, self._folder)

    def _note(self, error: Exception) -> None:
        # The same folder under another name gives the same report.
        self.notes.append(str(error).replace(f"{self._folder}/", ""))

    def scenario(self) -> tuple[dict[str, Any], str | None]:
        """Return scenario.yaml as plain data and as text."""
        name = "scenario.yaml"
        try:
            content = self._content(name)
            if content is None:
                self.notes.append(f"{name}: no such file.")
                return {}, None
            text = content.decode("utf-8")
            value = yaml_loader.parse(text, name, yaml_loader.RESOLVED)
        except UnicodeDecodeError:
            self.notes.append(f"{name}: not UTF-8 text, so no YAML.")
            return {}, None
        except ScenarioError as error:
            self.notes.append(f"{error}" if error.where == name else f"{name}: {error}")
            return {}, None
        except RunFolderError as error:
            self._note(error)
            return {}, None
        if not isinstance(value, dict):
            self.notes.append(f"{name}: not a mapping.")
            return {}, None
        return value, text

    def mapping(self, name: str, is_needed: bool = True) -> dict[str, Any]:
        """Return a JSON file that holds a mapping; empty where it does not."""
        try:
            content = self._content(name)
            value = {} if content is None else files.parse_json(content)
        except RunFolderError as error:
            self._note(error)
            return {}
        except ValueError as error:
            reason = "not readable as JSON" if str(error) == "not JSON" else error
            self.notes.append(f"{name}: {reason}.")
            return {}
        if content is None and is_needed:
            self.notes.append(f"{name}: no such file.")
        if not isinstance(value, dict):
            self.notes.append(f"{name}: not a mapping.")
            return {}
        return value

    def lines(self, name: str, parse: Callable[[Any], _AnyLine]) -> list[tuple[str, _AnyLine]]:
        """Return the complete lines of a JSON Lines file that are what they must be, each with its place."""
        try:
            content = self._content(name)
        except RunFolderError as error:
            self._note(error)
            return []
        if content is None:
            self.notes.append(f"{name}: no such file; nothing of it was recorded.")
            return []
        *complete, rest = content.split(b"\n")
        if rest.strip():
            self.notes.append(
                f"{name}: the last line is half-written and left out; the run was stopped, or is still writing."
            )
        numbered = [(f"{name}, line {number}", line) for number, line in enumerate(complete, 1) if line.strip()]
        return [(where, line) for where, text in numbered for line in self._parsed(text, parse, where)]

    def _parsed(self, line: bytes, parse: Callable[[Any], _AnyLine], where: str) -> Iterator[_AnyLine]:
        try:
            # NaN and infinity are not JSON, but Python writes and reads them: here they mean "no value".
            value = files.parse_json(line, constant=lambda _: None)
        except ValueError as error:
            self.notes.append(f"{where}: {error}; left out.")
            return
        schema = value.get("schema") if isinstance(value, dict) else None
        if isinstance(schema, int) and schema != SCHEMA:
            raise RunFolderError(
                f"{where}: schema {schema}, this version of fedsim reads {SCHEMA}. Use the one that wrote it."
            )
        try:
            yield self._shared(parse(value))
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "line"
            self.notes.append(f"{where}: {field}: {first['msg'].removeprefix('Value error, ')}; left out.")

    def _shared(self, line: _AnyLine) -> _AnyLine:
        """Return a line whose attack and defenses are the same objects in all lines that state the same ones."""
        if not isinstance(line, Attempted | Calibration):
            return line
        shared: dict[str, Any] = {"attack": self._use(line.attack)}
        if isinstance(line, Attempted):
            shared["defenses"] = tuple(self._use(use) for use in line.defenses)
        return cast(_AnyLine, line.model_copy(update=shared))

    def _use(self, use: PluginUse) -> PluginUse:
        return self._uses.setdefault(use.model_dump_json(), use)

    def captured(self, is_audited: bool) -> Captured | None:
        """Return what was captured of an observed app.

        Raises:
            EmptyCaptureError: nothing was, so there is nothing to show.
        """
        try:
            captured = observed.read(RunFolder(self._folder))
        except EmptyCaptureError as error:
            if not is_audited:
                raise
            self._note(error)
        except RunFolderError as error:
            self._note(error)
        else:
            self.notes += [f"{count} replies were not captured: {reason}." for reason, count in captured.skipped]
            return captured
        return None

    def stated_notes(self) -> list[str]:
        """Return what the run noted when it was made, such as how given weights were fitted."""
        stated = self.mapping("inputs.json", is_needed=False).get("notes")
        return [note for note in stated if isinstance(note, str)] if isinstance(stated, list) else []

    def distinct(self, numbered: list[tuple[str, _AnyLine]]) -> list[tuple[str, _AnyLine]]:
        """Leave out what another line tells already, so that nothing is counted twice."""
        first: dict[str, str] = {}
        kept = []
        for where, line in numbered:
            before = first.setdefault(_place(line), where)
            if before == where:
                kept.append((where, line))
            else:
                self.notes.append(f"{where}: tells of the same as {before}; left out.")
        return kept

    def belonging(self, found: RunData, records: list[tuple[str, AnyRecord]]) -> Iterator[AnyRecord]:
        """Yield the records of this run, of what took part in it."""
        run = self.mapping("inputs.json", is_needed=False).get("run")
        took_part = {line.round: {*line.participants, *line.failed} for line in found.rounds}
        is_simulated = found.environment.get("origin") == "simulated"
        rounds, clients = (found.planned_rounds, found.planned_clients) if is_simulated else (None, None)
        for where, record in records:
            whose = record.view.clients if isinstance(record, ViewRecord) else (record.client,)
            place = (
                record.place if isinstance(record, ViewRecord) else f"client {record.client} in round {record.round}"
            )
            known = took_part.get(record.round, {*whose})
            if isinstance(record, ViewRecord) and took_part:
                known = {client for round in record.view.rounds for client in took_part.get(round, ())}
            if isinstance(run, str) and record.run != run:
                self.notes.append(f"{where}: of the run {record.run}, this one is {run}; left out.")
            elif (rounds is not None and record.round > rounds) or (clients is not None and max(whose) >= clients):
                self.notes.append(f"{where}: of {place}, which the scenario does not have; left out.")
            elif not known.issuperset(whose):
                self.notes.append(f"{where}: of {place}, which took no part as rounds.jsonl says; left out.")
            else:
                yield record

    def calibrations_of(self, found: RunData, lines: list[tuple[str, Calibration]]) -> Iterator[Calibration]:
        """Yield the calibrations of this run, at the weights of one of its rounds."""
        run = self.mapping("inputs.json", is_needed=False).get("run")
        rounds = found.planned_rounds if found.environment.get("origin") == "simulated" else None
        for where, line in lines:
            if isinstance(run, str) and line.run != run:
                self.notes.append(f"{where}: of the run {line.run}, this one is {run}; left out.")
            elif line.round < 1 or (rounds is not None and line.round > rounds):
                self.notes.append(f"{where}: of round {line.round}, which the scenario does not have; left out.")
            elif not line.trials and line.status == "found":
                self.notes.append(
                    f"{where}: written by an earlier fedsim, so it proves nothing; fedsim audit makes it again."
                )
            else:
                yield line

    def mechanisms_of(self, lines: list[tuple[str, MechanismRecord]]) -> Iterator[MechanismRecord]:
        """Yield the checked budgets of this run."""
        run = self.mapping("inputs.json", is_needed=False).get("run")
        for where, line in lines:
            if isinstance(run, str) and line.run != run:
                self.notes.append(f"{where}: of the run {line.run}, this one is {run}; left out.")
            else:
                yield line

    def captures(self, found: RunData) -> None:
        """Note what the captures lack of what the rounds tell."""
        name = "captures/index.jsonl"
        wanted = {
            client_key(line.round, client): (line.round, client)
            for line in found.rounds
            for client in line.participants
        }
        if not wanted:
            return
        if not (self._folder / name).exists():
            self.notes.append(f"{name}: gone, so no update of this run can be attacked again.")
            return
        index = self.lines(name, IndexLine.model_validate)
        failed = {line.key for _, line in index if line.failed is not None}
        captured = {line.key for _, line in index if line.sha256 is not None}
        gone = self._removed(len(wanted))
        for key, (round, client) in wanted.items():
            place = f"client {client} in round {round}"
            if key in failed:
                self.notes.append(f"{name}: says that {place} failed, and rounds.jsonl that it took part.")
            elif key in gone:
                continue
            elif key not in captured or not (self._folder / "captures" / f"{key}.safetensors").exists():
                self.notes.append(
                    f"captures/{key}.safetensors: missing, though rounds.jsonl says that {place} took part."
                )

    def _removed(self, updates: int) -> set[str]:
        """Return the keys of the updates that an audit has removed, with a note that says how many."""
        name = "captures/removed.jsonl"
        told = self.lines(name, RemovedLine.model_validate) if (self._folder / name).exists() else []
        removed = {client_key(line.round, client) for _, line in told for client in line.clients}
        gone = {key for key in removed if not (self._folder / "captures" / f"{key}.safetensors").exists()}
        if gone:
            self.notes.append(
                f"{len(gone)} of {updates} updates were removed after their audit (audit.keep_updates); added attacks cannot "
                "look at them."
            )
        return gone


def _place(line: BaseModel) -> str:
    """Return what a line tells of: no two lines of a file tell of the same."""
    if isinstance(line, IndexLine):
        return line.key
    if isinstance(line, Round):
        return str(line.round)
    if isinstance(line, EvaluationRecord):
        return json.dumps([line.round, line.evaluator.name, line.evaluator.params], sort_keys=True)
    if isinstance(line, MechanismRecord):
        return f"{line.client}, {line.position}"
    if isinstance(line, Attempted):
        attack, view = line.attack, line.view.model_dump() if isinstance(line, ViewRecord) else None
        named = [attack.name, attack.params, attack.is_plain, attack.label]
        return json.dumps([line.round, line.client, view, *named], sort_keys=True)
    assert isinstance(line, Calibration)
    attack = line.attack
    workload = None if line.workload is None else line.workload.model_dump()
    return json.dumps([line.round, attack.name, attack.params, line.grants, workload], sort_keys=True)
