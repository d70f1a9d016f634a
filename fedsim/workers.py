"""Where the audit's tasks run: on worker processes that may die, or in this process.

The run folder is all that workers share with their parent.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedsim import assessment, attempt
from fedsim import plan as planning
from fedsim.assessment import Record, Task
from fedsim.errors import FedsimError
from fedsim.plan import Plan
from fedsim.recording import RunFolder


class _Work(NamedTuple):
    plan: Plan
    folder: RunFolder


_work: _Work | None = None


def start_worker(folder: str, lifeline: Connection) -> None:
    """Prepare a worker process: its plan is made from the folder, and it ends with its parent's end of the lifeline."""
    global _work
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(1)
    opened = RunFolder.open(Path(folder))
    _work = _Work(planning.of(opened.scenario()), opened)


def _end_with_parent(lifeline: Connection) -> None:
    """Exit when the parent is gone or wants no more: its workers would otherwise wait for ever, or work for nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel, lifeline])
        os._exit(1)


def attack(task: Task) -> None:
    """Run one attack on one update, and store its finding."""
    assert _work is not None
    _work.folder.refresh()
    attempt.run(_work.plan, _work.folder, task.round, task.client, _work.plan.attacks[task.attack])


def assess(task: Task, partner: int | None) -> Record:
    """Return the record of a stored finding, with the partner's as the wrong-update control."""
    assert _work is not None
    _work.folder.refresh()
    return assessment.assess(_work.plan, _work.folder, task, partner)


def _answer() -> None:
    """Show that a worker has started."""


class Workers(Executor):
    """A pool of worker processes that can be started again after one of them died."""

    def __init__(self, make: Callable[[], ProcessPoolExecutor]) -> None:
        self._make, self._pool = make, make()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` on a worker; that the pool is broken is kept in the future as well."""
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except BrokenProcessPool as error:
            future: Future[Any] = Future()
            future.set_exception(error)
            return future

    def restart(self) -> None:
        """Replace a broken pool.

        Raises:
            FedsimError: a new worker dies before it was given anything to do.
        """
        self._pool.shutdown()
        self._pool = self._make()
        try:
            self._pool.submit(_answer).result()
        except BrokenProcessPool:
            raise FedsimError(
                "audit: worker processes die as they start. Use audit.processes: 0 to see why, on fewer to save memory."
            ) from None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


class InThisProcess(Executor):
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
