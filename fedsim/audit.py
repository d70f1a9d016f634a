"""The audit: which updates, which attacks, which process; one record per attempt.

Attempts (the attack itself) and assessments (scores and controls) are separate tasks joined by a stored finding, since
the wrong-update control of one client is another client's finding. Tasks run in this process or on a pool; records are
appended as they come and put into canonical order at the end, so the number of processes leaves no trace.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from fedsim import assessment, attempt
from fedsim import plan as planning
from fedsim.assessment import Record, Task
from fedsim.errors import RunFolderError
from fedsim.plan import Plan
from fedsim.recording import RunFolder

_Kind = Literal["attempt", "assess"]


class _Event(NamedTuple):
    kind: Literal["rounds", "attempt", "assess", "closed"]
    rounds: tuple[int, ...] = ()
    task: Task | None = None
    future: Future[Any] | None = None


class Auditor:
    """Audits the captures of one run, round by round as they become complete.

    Args:
        plan: the run's plan.
        folder: the run; attempts that already have a record are left alone.
        on_record: called with every new record, in the order of completion.
        on_total: called with the number of records that the rounds seen so far will have.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        on_record: Callable[[Record], None] | None = None,
        on_total: Callable[[int], None] | None = None,
    ) -> None:
        # A view of its own: the run's writes go on in other threads while this one reads the index.
        self._plan, self._folder = plan, RunFolder(folder.path)
        self._on_record, self._on_total = on_record, on_total
        self._events: queue.Queue[_Event] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._records = {_task_of(plan, record): record for record in _checked(folder)}
        self._partners: dict[Task, int | None] = {}
        self._todo: dict[Task, None] = {}
        self._attempted: set[Task] = set()
        self._unassessed: set[Task] = set()
        self._ready: deque[Task] = deque()
        self._running = 0
        self._total = 0

    def add_round(self, round: int) -> None:
        """Tell that every capture of a round is on disk."""
        self._events.put(_Event("rounds", rounds=(round,)))

    def start(self) -> None:
        """Audit on worker processes, beside whatever this process does, until `finish`."""
        self._thread = threading.Thread(target=self._work_and_keep_error, name="auditor", daemon=True)
        self._thread.start()

    def finish(self) -> list[Record]:
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
        records = [record for _, record in sorted(self._records.items(), key=lambda item: item[0])]
        if records != self._folder.records.read():
            self._folder.records.rewrite(records)
        return records

    # The loop: one thread, one queue of events

    def _work_and_keep_error(self) -> None:
        try:
            with self._executor() as executor:
                try:
                    self._work(executor)
                except BaseException:
                    executor.shutdown(wait=False, cancel_futures=True)
                    raise
        except BaseException as error:  # noqa: BLE001  (handed over to the thread that calls finish)
            self._error = error

    def _executor(self) -> Executor:
        processes = self._plan.scenario.audit.processes
        if processes == 0:
            return _InThisProcess(self._plan, self._folder)
        return ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(str(self._folder.path),),
        )

    def _work(self, executor: Executor) -> None:
        closed = False
        while not (closed and not self._running and not self._todo and not self._ready):
            event = self._events.get()
            if event.kind == "closed":
                closed = True
            elif event.kind == "rounds":
                self._plan_rounds(event.rounds)
            else:
                self._take(event)
            self._submit(executor)

    def _plan_rounds(self, rounds: Iterable[int]) -> None:
        self._folder.refresh()
        for round in rounds:
            captured = self._folder.captured(round)
            wanted = self._plan.audit_clients if round in self._plan.audit_rounds else ()
            audited = [client for client in wanted if client in captured]
            others = audited if len(audited) > 1 else captured
            for planned in self._plan.attacks:
                tasks = [Task(round, client, planned.index) for client in audited]
                self._total += len(tasks)
                for task in tasks:
                    self._partners[task] = _partner(task.client, others)
                    if task not in self._records:
                        self._add(task)
        if self._on_total:
            self._on_total(self._total)

    def _add(self, task: Task) -> None:
        self._unassessed.add(task)
        self._todo.update(dict.fromkeys(self._needed(task)))

    def _needed(self, task: Task) -> list[Task]:
        partner = self._partners[task]
        return [task] if partner is None else [task, Task(task.round, partner, task.attack)]

    def _take(self, event: _Event) -> None:
        assert event.task is not None and event.future is not None
        self._running -= 1
        result = event.future.result()
        if event.kind == "assess":
            self._records[event.task] = result
            self._folder.records.append(result)
            if self._on_record:
                self._on_record(result)
            return
        self._attempted.add(event.task)
        ready = sorted(task for task in self._unassessed if self._attempted.issuperset(self._needed(task)))
        self._unassessed.difference_update(ready)
        self._ready.extend(ready)

    def _submit(self, executor: Executor) -> None:
        # Two per process keep every process busy; more would only wait in memory.
        room = 2 * max(1, self._plan.scenario.audit.processes)
        while self._running < room and (self._ready or self._todo):
            self._running += 1
            if self._ready:
                kind: _Kind = "assess"
                task = self._ready.popleft()
                future: Future[Any] = executor.submit(_assess, task, self._partners[task])
            else:
                kind, task = "attempt", next(iter(self._todo))
                del self._todo[task]
                future = executor.submit(_attempt, task)
            future.add_done_callback(functools.partial(self._done, kind, task))

    def _done(self, kind: _Kind, task: Task, future: Future[Any]) -> None:
        self._events.put(_Event(kind, task=task, future=future))


def _checked(folder: RunFolder) -> list[Record]:
    records = folder.records.read()
    for number, record in enumerate(records, 1):
        if record.get("schema") != assessment.SCHEMA:
            raise RunFolderError(
                f"{folder.records.path}: line {number} has schema {record.get('schema')!r}, this fedsim reads "
                f"{assessment.SCHEMA}. Delete the file to audit again."
            )
    return records


def _task_of(plan: Plan, record: Record) -> Task:
    known = [attempt.identity(planned) for planned in plan.attacks]
    named = [(i["name"], json.loads(json.dumps(i["params"], default=str))) for i in known]
    try:
        index = named.index((record["attack"]["name"], record["attack"]["params"]))
    except ValueError:
        raise RunFolderError(
            f"records.jsonl: attack {record['attack']['name']!r} with these parameters is not in scenario.yaml. "
            "Delete the line, or the file, to audit again."
        ) from None
    return Task(record["round"], record["client"], index)


def _partner(client: int, clients: Sequence[int]) -> int | None:
    """Return the next client, the last one's being the first; its finding is the wrong-update control."""
    others = [other for other in clients if other != client]
    return next((other for other in others if other > client), others[0] if others else None)


# What workers do; the folder is all that they share with the parent.


class _Work(NamedTuple):
    plan: Plan
    folder: RunFolder


_work: _Work | None = None


def _start_worker(folder: str) -> None:
    global _work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    opened = RunFolder.open(Path(folder))
    _work = _Work(planning.of(opened.scenario()), opened)


def _end_with_parent() -> None:
    """Exit when the parent is gone: a killed parent would otherwise leave its workers waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _attempt(task: Task) -> None:
    assert _work is not None
    _work.folder.refresh()
    attempt.run(_work.plan, _work.folder, task.round, task.client, _work.plan.attacks[task.attack])


def _assess(task: Task, partner: int | None) -> Record:
    assert _work is not None
    _work.folder.refresh()
    return assessment.assess(_work.plan, _work.folder, task, partner)


class _InThisProcess(Executor):
    """Runs each task at once, where it was submitted."""

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self._work = _Work(plan, folder)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` now; its exception is kept in the future."""
        global _work
        _work = self._work
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  (the contract of Executor: exceptions travel in the future)
            future.set_exception(error)
        return future
