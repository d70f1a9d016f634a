"""The audit: which updates, which attacks, which process; one record per attempt.

Attempts (the attack itself) and assessments (scores and controls) are separate tasks joined by a stored finding, since
the wrong-update control of one client is another client's finding. Tasks run in this process, on a pool or on a cluster,
attacks in processes beside these (see `fedsim.audit.workers`). A task that a process dies of is tried again alone, and has
failed where a second process dies of it. Records are appended as they come and put into canonical order at the end, so the
number of processes leaves no trace.
"""

from __future__ import annotations

import functools
import queue
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Literal, NamedTuple

from fedsim import ray_cluster
from fedsim.audit import attempt, calibration, evaluation
from fedsim.audit.assessment import Task
from fedsim.audit.attack_process import AttackDiedError
from fedsim.audit.evaluation import Question
from fedsim.audit.partners import Partners, ViewPartners
from fedsim.audit.ray_tasks import RayTasks
from fedsim.audit.results import Results
from fedsim.audit.retention import Retention
from fedsim.audit.work import Work
from fedsim.audit.worker_process import WorkerDiedError
from fedsim.audit.workers import Executor, InThisProcess, Workers
from fedsim.errors import FedsimError
from fedsim.exchange import View
from fedsim.planning.plan import Plan
from fedsim.progress import Step
from fedsim.recording.records import AnyRecord, Calibration
from fedsim.recording.run_folder import RunFolder
from fedsim.views import views

_Kind = Literal["attempt", "assess", "calibrate", "evaluate"]


class Running(NamedTuple):
    """An attack under way that tells how far it has come."""

    view: View
    attack: str
    step: Step


class _Place(NamedTuple):
    """One attack on single updates of one round."""

    round: int
    attack: int


class _Event(NamedTuple):
    kind: Literal["rounds", "attempt", "assess", "calibrate", "evaluate", "step", "closed", "abandoned"]
    rounds: tuple[int, ...] = ()
    task: Task | Question | None = None
    future: Future[Any] | None = None
    step: Step | None = None


class Auditor:
    """Audits the captures of one run, round by round as they become complete.

    As a context it ends its workers at once when an exception leaves the block; what has a record stays.

    Args:
        plan: the run's plan.
        folder: the run; attempts that already have a record are left alone.
        on_record: called with every new record, in the order of completion.
        on_total: called with the number of records that the rounds seen so far will have.
        on_running: called with all attacks under way whenever one has come further or has ended; None where nobody watches.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        on_record: Callable[[AnyRecord], None] | None = None,
        on_total: Callable[[int], None] | None = None,
        on_running: Callable[[tuple[Running, ...]], None] | None = None,
    ) -> None:
        # A view of its own: the run's writes go on in other threads while this one reads the index.
        self._plan, self._folder = plan, RunFolder(folder.path)
        self._on_record, self._on_total, self._on_running = on_record, on_total, on_running
        self._events: queue.Queue[_Event] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._results = Results(plan, self._folder)
        self._unevaluated: deque[Question] = deque()
        self._asked = set(self._results.evaluations)
        self._unrecorded: dict[_Place, set[Task]] = {}
        self._uncalibrated: deque[Task] = deque()
        self._partners: dict[Task, View | None] = {}
        self._audited: set[int] = set()
        self._retention = Retention(plan, self._folder, self._results.records)
        self._unfinished: Counter[int] = Counter()
        self._todo: dict[Task, None] = {}
        self._attempted: set[Task] = set()
        self._unassessed: set[Task] = set()
        self._needed_by: dict[Task, list[Task]] = {}
        self._ready: deque[Task] = deque()
        self._suspects: deque[tuple[_Kind, Task | Question]] = deque()
        self._is_trial = False
        self._fatal: set[Task] = set()
        self._running = 0
        self._attacking: dict[Task, Step | None] = {}
        self._total = 0

    def __enter__(self) -> Auditor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._thread is not None:
            self._events.put(_Event("abandoned"))
            self._thread.join()

    def add_round(self, round: int) -> None:
        """Tell that every capture of a round is on disk."""
        self._events.put(_Event("rounds", rounds=(round,)))

    def redo(self) -> None:
        """Forget what an audit by hand makes again; see `Results.forget`.

        To be called before the first round is added, by whoever has locked the folder.

        Raises:
            RunFolderError: an attack would look at updates that were removed.
        """
        self._retention.refuse_removed()
        self._asked -= self._results.forget()

    def rescore(self) -> None:
        """Forget all records, but no finding: what clients trained on is told in another way now. To be called as `redo` is."""
        self._results.forget_scores()

    def start(self) -> None:
        """Audit on worker processes, beside whatever this process does, until `finish`."""
        self._thread = threading.Thread(target=self._work_and_keep_error, name="auditor", daemon=True)
        self._thread.start()

    def finish(self) -> list[AnyRecord]:
        """Wait until all rounds added so far are audited; returns all records of the run, in canonical order.

        Raises:
            RunFolderError: a capture is missing or corrupted; what was audited before is saved.
        """
        self._events.put(_Event("closed"))
        if self._thread is None:
            self._work_and_keep_error()
        else:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results.settle()

    # The loop: one thread, one queue of events

    def _work_and_keep_error(self) -> None:
        try:
            if self._thread is not None:
                # Workers inherit it: an interruption from the keyboard is the parent's to deal with. Starting the tracker
                # lets the signal through again, so that comes first.
                resource_tracker.ensure_running()
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            with self._executor() as executor:
                try:
                    self._work(executor)
                except BaseException:
                    executor.abandon()
                    raise
        except BaseException as error:  # noqa: BLE001  (handed over to the thread that calls finish)
            self._error = error

    def _executor(self) -> Executor:
        part, is_watched = self._plan.scenario.audit, self._on_running is not None
        if part.executor == "ray":
            ray_cluster.require("audit.executor: ray", "audit.executor: processes")
            return RayTasks(ray_cluster.Cluster(ray_cluster.Share(part.task_cpus, part.task_gpus)), self._folder.path)
        processes = part.processes
        if processes == 0:
            return InThisProcess(self._plan, self._folder, self._hear if is_watched else None)
        return Workers(processes, self._folder.path, self._step if is_watched else None)

    def _step(self, task: Task, step: Step) -> None:
        self._events.put(_Event("step", task=task, step=step))

    def _work(self, executor: Executor) -> None:
        closed = False
        while not (closed and not self._running and not self._waiting()):
            event = self._events.get()
            if event.kind == "closed":
                closed = True
                self._ask(range(self._plan.scenario.federation.rounds + 1))
                self._plan_wide()
            elif event.kind == "abandoned":
                executor.abandon()
                return
            elif event.kind == "rounds":
                self._plan_rounds(event.rounds)
                # What a round sends out is the global model after the one before.
                self._ask([round - 1 for round in event.rounds])
            elif event.kind == "step":
                assert isinstance(event.task, Task) and event.step is not None
                self._hear(event.task, event.step)
            else:
                self._take(event)
            self._submit(executor)
        self._retention.end(self._audited)

    def _waiting(self) -> bool:
        return bool(self._todo or self._ready or self._suspects or self._uncalibrated or self._unevaluated)

    def _ask(self, rounds: Iterable[int]) -> None:
        """Plan the evaluations after these rounds whose weights are there."""
        if not self._plan.evaluators:
            return
        self._folder.refresh()
        for round in rounds:
            for planned in self._plan.evaluators:
                question = Question(round, planned.index)
                is_due = round in planned.rounds and question not in self._asked
                if is_due and evaluation.has_weights(self._plan, self._folder, round):
                    self._asked.add(question)
                    self._unevaluated.append(question)

    def _plan_rounds(self, rounds: Iterable[int]) -> None:
        self._folder.refresh()
        for round in rounds:
            captured = self._folder.captured(round)
            wanted = self._plan.audit_clients if round in self._plan.audit_rounds else ()
            audited = [client for client in wanted if client in captured]
            others = audited if len(audited) > 1 else captured
            partners: dict[int, View | None] = {}
            chosen = Partners(self._plan)
            for planned in self._plan.attacks:
                if self._plan.scope_of(planned.attack) != "update":
                    continue
                seen = {client: View.of_update(round, client) for client in audited}
                tasks = {
                    client: Task(view, planned.index)
                    for client, view in seen.items()
                    if self._plan.is_run(planned, view)
                }
                self._total += len(tasks)
                for client, task in tasks.items():
                    if task in self._results.records:
                        continue
                    if client not in partners:
                        partner = chosen.of(round, client, others)
                        partners[client] = None if partner is None else View.of_update(round, partner)
                    self._partners[task] = partners[client]
                    self._unfinished[round] += 1
                    self._add(task)
                if tasks:
                    place = _Place(round, planned.index)
                    self._unrecorded[place] = {task for task in tasks.values() if task not in self._results.records}
                    self._calibrate_if_complete(place)
            self._end_if_finished(round)
        self._audited.update(rounds)
        if self._on_total:
            self._on_total(self._total)

    def _plan_wide(self) -> None:
        """Plan attacks on several updates at once, once all rounds are there: one view is the wrong update of another."""
        wide = [planned for planned in self._plan.attacks if self._plan.scope_of(planned.attack) != "update"]
        if not wide:
            return
        self._folder.refresh()
        captured = {
            round: self._folder.captured(round) for round in sorted(self._audited.intersection(self._plan.audit_rounds))
        }
        wanted: set[Task] = set()
        partners = ViewPartners(self._plan, self._folder)
        for planned in wide:
            scope = self._plan.scope_of(planned.attack)
            seen = views(scope, captured, self._plan.audit_clients, self._plan.sees_sums)
            tasks = {view: Task(view, planned.index) for view in seen if self._plan.is_run(planned, view)}
            wanted.update(tasks.values())
            self._total += len(tasks)
            for view, task in tasks.items():
                if task not in self._results.records:
                    self._partners[task] = partners.of(view, seen)
                    self._add(task)
        self._results.keep_views(wanted, ("client", "round", "run"))
        if self._on_total:
            self._on_total(self._total)

    def _add(self, task: Task) -> None:
        self._unassessed.add(task)
        needed = self._needed(task)
        self._todo.update(dict.fromkeys(needed))
        for one in needed:
            self._needed_by.setdefault(one, []).append(task)

    def _needed(self, task: Task) -> list[Task]:
        partner = self._partners[task]
        return [task] if partner is None else [task, Task(partner, task.attack)]

    def _calibrate_if_complete(self, place: _Place) -> None:
        """Calibrate an attack in a round once all its records of the round are there, where a verdict may rest on it."""
        if self._unrecorded[place]:
            return
        own = self._results.of_round(place.round, place.attack)
        planned = self._plan.attacks[place.attack]
        for client in calibration.clients_to_calibrate(self._plan, planned, own):
            task = Task(View.of_update(place.round, client), place.attack)
            if not self._results.is_calibrated(task):
                self._unfinished[place.round] += 1
                self._uncalibrated.append(task)

    def _end_if_finished(self, round: int, done: int = 0) -> None:
        """Let go of the updates of a round once nothing more looks at them; `done` of its tasks have ended just now."""
        self._unfinished[round] -= done
        if not self._unfinished[round]:
            self._retention.end_round(round)

    def _hear(self, task: Task, step: Step) -> None:
        if task in self._attacking:
            self._attacking[task] = step
            self._tell_running()

    def _tell_running(self) -> None:
        if self._on_running:
            names = [planned.title for planned in self._plan.attacks]
            told = [(task, step) for task, step in self._attacking.items() if step is not None]
            self._on_running(tuple(Running(task.view, names[task.attack], step) for task, step in told))

    def _take(self, event: _Event) -> None:
        assert event.task is not None and event.future is not None
        self._running -= 1
        if event.kind == "attempt" and isinstance(event.task, Task) and self._attacking.pop(event.task) is not None:
            self._tell_running()
        is_trial, self._is_trial = self._is_trial, False
        error = event.future.exception()
        if isinstance(error, WorkerDiedError | AttackDiedError):
            kind: _Kind = event.kind if event.kind in ("assess", "calibrate", "evaluate") else "attempt"
            if is_trial:
                self._blame(kind, event.task, str(error) or "its process died")
            else:
                self._suspects.append((kind, event.task))
            return
        result = event.future.result()
        if isinstance(event.task, Question):
            self._results.add_evaluation(event.task, result)
        elif event.kind == "assess":
            self._results.add(event.task, result)
            if self._on_record:
                self._on_record(result)
            if event.task.view.client is not None:
                place = _Place(event.task.view.round, event.task.attack)
                self._unrecorded[place].discard(event.task)
                self._calibrate_if_complete(place)
                self._end_if_finished(place.round, done=1)
        elif event.kind == "calibrate":
            self._calibrated(event.task, result)
        else:
            self._found(event.task)

    def _calibrated(self, task: Task, line: Calibration) -> None:
        self._results.add_calibration(task, line)
        self._end_if_finished(task.view.round, done=1)

    def _found(self, task: Task) -> None:
        self._attempted.add(task)
        waiting = self._unassessed.intersection(self._needed_by.pop(task, ()))
        ready = sorted(task for task in waiting if self._attempted.issuperset(self._needed(task)))
        self._unassessed.difference_update(ready)
        self._ready.extend(ready)

    def _blame(self, kind: _Kind, task: Task | Question, reason: str) -> None:
        """Store that an attempt failed as its process died or did not start, alone; its assessment may be what kills."""
        if isinstance(task, Question):
            self._results.add_evaluation(task, evaluation.failure(self._plan, self._folder, task, reason))
            return
        planned = self._plan.attacks[task.attack]
        if kind == "calibrate":
            place = (task.view.round, task.view.clients[0])
            self._calibrated(task, calibration.failure(self._plan, self._folder.run, *place, planned, reason))
            return
        if task in self._fatal:
            raise FedsimError(
                f"audit: the process that scores {planned.title} on {task.view} dies, though the attack is left out."
            )
        self._fatal.add(task)
        attempt.store_failure(self._plan, self._folder, task.view, planned, reason)
        if kind == "assess":
            self._ready.append(task)
        else:
            self._found(task)

    def _submit(self, executor: Executor) -> None:
        if self._suspects:
            if not self._running:
                self._is_trial = True
                self._start(executor, *self._suspects.popleft())
            return
        if not self._is_trial:
            self._fill(executor)

    def _fill(self, executor: Executor) -> None:
        room = executor.room
        while self._running < room and (self._ready or self._todo or self._uncalibrated or self._unevaluated):
            if self._ready:
                self._start(executor, "assess", self._ready.popleft())
            elif self._unevaluated:
                self._start(executor, "evaluate", self._unevaluated.popleft())
            elif self._uncalibrated:
                self._start(executor, "calibrate", self._uncalibrated.popleft())
            else:
                task = next(iter(self._todo))
                del self._todo[task]
                self._start(executor, "attempt", task)

    def _start(self, executor: Executor, kind: _Kind, task: Task | Question) -> None:
        self._running += 1
        if isinstance(task, Question):
            future: Future[Any] = executor.submit(Work.evaluate, task)
        elif kind == "assess":
            future = executor.submit(Work.assess, task, self._partners[task])
        elif kind == "calibrate":
            future = executor.submit(Work.calibrate, task)
        else:
            self._attacking[task] = None
            future = executor.submit(Work.attack, task)
        future.add_done_callback(functools.partial(self._done, kind, task))

    def _done(self, kind: _Kind, task: Task | Question, future: Future[Any]) -> None:
        self._events.put(_Event(kind, task=task, future=future))
