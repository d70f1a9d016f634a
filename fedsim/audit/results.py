"""What an audit has found so far: the lines of records, calibrations and evaluations, loaded, added to and put in order."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from fedsim.applicability import Workload
from fedsim.audit import attempt, calibration, evaluation, retention
from fedsim.audit.assessment import Task
from fedsim.audit.evaluation import Question
from fedsim.errors import RunFolderError
from fedsim.exchange import Scope, View
from fedsim.planning.plan import Plan
from fedsim.planning.planned import PlannedAttack
from fedsim.recording.json_lines import JsonLines
from fedsim.recording.records import AnyRecord, Calibration, EvaluationRecord, Line, Record, ViewRecord
from fedsim.recording.run_folder import RunFolder
from fedsim.views import views


class _Calibrated(NamedTuple):
    """What a calibration belongs to: one attack in one round on clients that train equally much."""

    round: int
    attack: int
    workload: Workload


class Results:
    """The lines of one run folder that belong to a plan.

    Args:
        plan: the run's plan.
        folder: the run.

    Attributes:
        records: by attempt.
        evaluations: by question.

    Raises:
        RunFolderError: a line is damaged, or of an attack that the plan does not have.
    """

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self._plan, self._folder = plan, folder
        # Plain variants that are not asked for any more are dropped.
        variants = {planned.info.name for planned in plan.attacks if planned.is_plain}
        kept = [one for one in folder.read_records() if not one.attack.is_plain or one.attack.name in variants]
        self.records = {_task_of(plan, record): record for record in kept}
        # What an earlier version made, or an audit with other grants, is made again.
        lines = [one for one in folder.read_calibrations() if not one.attack.is_plain or one.attack.name in variants]
        current = [
            line for line in lines if calibration.is_current(plan, line, _attack_of(plan, line, "calibrations.jsonl"))
        ]
        self._calibrations = {_calibrated_by(plan, line): line for line in current}
        self.evaluations = {
            question: line
            for line in folder.read_evaluations()
            if (question := evaluation.of_line(plan, line)) is not None
        }

    def add(self, task: Task, record: AnyRecord) -> None:
        """Keep a record, on disk at once."""
        self.records[task] = record
        self._folder.records.append(record.as_json())

    def add_calibration(self, task: Task, line: Calibration) -> None:
        """Keep the calibration of a task's attack, round and workload, on disk at once."""
        self._calibrations[self._calibrated(task)] = line
        self._folder.calibrations.append(line.as_json())

    def add_evaluation(self, question: Question, line: EvaluationRecord) -> None:
        """Keep an evaluation, on disk at once."""
        self.evaluations[question] = line
        self._folder.evaluations.append(line.as_json())

    def is_calibrated(self, task: Task) -> bool:
        """Return whether there is a calibration of a task's attack, round and workload."""
        return self._calibrated(task) in self._calibrations

    def of_round(self, round: int, attack: int) -> list[Record]:
        """Return the records of an attack on single updates of a round."""
        return [
            record
            for task, record in self.records.items()
            if (task.view.round, task.attack) == (round, attack) and isinstance(record, Record)
        ]

    def keep_views(self, wanted: Collection[Task], scopes: Sequence[Scope]) -> None:
        """Forget records of these scopes whose view is part of one that is wanted: fewer updates were there then."""
        for task in [task for task in self.records if task.view.scope in scopes and task not in wanted]:
            if any(other.attack == task.attack and _is_part(task.view, other.view) for other in wanted):
                del self.records[task]

    def settle(self) -> list[AnyRecord]:
        """Put the lines of all files into canonical order; returns the records."""
        self._settle(self._folder.records, self._in_order())
        self._settle(self._folder.calibrations, self._calibrations_in_order())
        self._settle(self._folder.evaluations, self._evaluations_in_order())
        return self._in_order()

    def forget(self) -> set[Question]:
        """Forget what an audit by hand makes again: failed attempts, those of a "module:Class" edited since, old labels.

        So are the records that lack a control because of one, and those of an earlier version that lack what verdicts rest on.

        Returns:
            The evaluations that are to be made again.
        """
        failed = {
            Task(view, planned.index)
            for planned, view in self._attempts()
            if attempt.forget_failure(self._folder, view, planned)
        }
        self._forget_records(failed)
        self._forget_calibrations()
        return self._forget_evaluations()

    def forget_scores(self) -> None:
        """Forget all records, to be scored anew against another truth; findings stay."""
        self.records.clear()
        self._folder.records.rewrite([])

    def _attempts(self) -> Iterator[tuple[PlannedAttack, View]]:
        """Yield each attack with each view that there may be a finding of: those of captures, and of records."""
        captured = {round: self._folder.captured(round) for round in self._folder.captured_rounds()}
        for planned in self._plan.attacks:
            scope = self._plan.scope_of(planned.attack)
            if scope == "update":
                yield from (
                    (planned, View.of_update(round, client))
                    for round, clients in captured.items()
                    for client in clients
                    if not self._folder.is_removed(round, client)
                )
            else:
                seen = views(scope, captured, self._plan.audit_clients, self._plan.sees_sums)
                yield from ((planned, view) for view in seen)
        yield from ((self._plan.attacks[task.attack], task.view) for task in self.records if task.view.client is None)

    def _forget_records(self, failed: Collection[Task]) -> None:
        """Forget the records that are to be made again.

        Args:
            failed: attempts of which the finding is forgotten.
        """
        places = {(task.view.round, task.attack) for task in failed}
        # A view's partner may be of another round.
        wide_failed = {task.attack for task in failed if task.view.client is None}

        def may_lack(task: Task) -> bool:
            return (task.view.round, task.attack) in places or (task.view.client is None and task.attack in wide_failed)

        stale = [
            task
            for task, record in self.records.items()
            if record.status == "failed"
            or ("wrong_update" not in record.controls and may_lack(task))
            or self._is_edited(self._plan.attacks[task.attack], record)
            or "workload" not in record.model_fields_set
        ]
        retention.refuse_removed(self._folder, self._plan, stale)
        for task in stale:
            del self.records[task]
        if stale:
            self._folder.records.rewrite(_as_json(self._in_order()))

    def _forget_calibrations(self) -> None:
        unsound = [
            place
            for place, line in self._calibrations.items()
            if line.status == "failed"
            or any(trial.status == "failed" for trial in line.trials)
            or self._is_edited(self._plan.attacks[place.attack], line)
        ]
        for place in unsound:
            del self._calibrations[place]
        self._settle(self._folder.calibrations, self._calibrations_in_order())

    def _forget_evaluations(self) -> set[Question]:
        unanswered = [question for question, line in self.evaluations.items() if line.status == "failed"]
        for question in unanswered:
            del self.evaluations[question]
        if unanswered:
            self._folder.evaluations.rewrite(_as_json(self._evaluations_in_order()))
        return set(unanswered)

    @staticmethod
    def _is_edited(planned: PlannedAttack, record: AnyRecord | Calibration) -> bool:
        is_renamed = (record.attack.label, record.attack.variant) != (planned.label, planned.variant)
        return is_renamed or (planned.info.distribution is None and record.attack.version != planned.info.version)

    def _in_order(self) -> list[AnyRecord]:
        return [record for _, record in sorted(self.records.items(), key=lambda item: item[0])]

    def _calibrations_in_order(self) -> list[Calibration]:
        return [line for _, line in sorted(self._calibrations.items(), key=lambda item: item[0])]

    def _evaluations_in_order(self) -> list[EvaluationRecord]:
        return [line for _, line in sorted(self.evaluations.items(), key=lambda item: item[0])]

    @staticmethod
    def _settle(file: JsonLines, lines: Sequence[Line]) -> None:
        """Put the lines of a file into canonical order, where they are not."""
        wanted = _as_json(lines)
        if wanted != file.read():
            file.rewrite(wanted)

    def _calibrated(self, task: Task) -> _Calibrated:
        return _Calibrated(task.view.round, task.attack, self._plan.workload_of(task.view.clients[0]))


def _is_part(view: View, other: View) -> bool:
    return set(view.rounds) <= set(other.rounds) and set(view.clients) <= set(other.clients)


def _as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    return [line.as_json() for line in lines]


def _task_of(plan: Plan, record: AnyRecord) -> Task:
    view = attempt.view_of(record.round, record.client, record.view if isinstance(record, ViewRecord) else None)
    return Task(view, _attack_of(plan, record, "records.jsonl"))


def _calibrated_by(plan: Plan, line: Calibration) -> _Calibrated:
    assert line.workload is not None
    workload = Workload(line.workload.pictures, line.workload.batch_size, line.workload.steps)
    return _Calibrated(line.round, _attack_of(plan, line, "calibrations.jsonl"), workload)


def _attack_of(plan: Plan, record: AnyRecord | Calibration, file: str) -> int:
    named = [
        (planned.info.name, json.loads(json.dumps(planned.params, default=str)), planned.is_plain)
        for planned in plan.attacks
    ]
    try:
        return named.index((record.attack.name, record.attack.params, record.attack.is_plain))
    except ValueError:
        raise RunFolderError(
            f"{file}: attack {record.attack.name!r} with these parameters is not in scenario.yaml. "
            "Delete the line, or the file, to audit again."
        ) from None
