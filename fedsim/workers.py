"""Where the audit's tasks run: on worker processes that may die, or in this process.

The run folder is all that workers share with their parent, and a pipe of steps for whoever watches.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import select
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

from fedsim import assessment, attempt
from fedsim import plan as planning
from fedsim.assessment import Record, Task
from fedsim.errors import FedsimError
from fedsim.plan import Plan
from fedsim.progress import Step, listening
from fedsim.recording import RunFolder

Tell = Callable[[Task, Step], None]
"""What is done with each step of the attack that a task runs."""


class _Work(NamedTuple):
    plan: Plan
    folder: RunFolder
    tell: Tell | None


_work: _Work | None = None

# What a pipe takes as a whole or not at all, less the length that `Connection` writes before it.
_ONE_PIECE = select.PIPE_BUF - 4
_END = b""


def start_worker(folder: str, lifeline: Connection, steps: Connection | None = None) -> None:
    """Prepare a worker process: its plan is made from the folder, and it ends with its parent's end of the lifeline.

    Steps of attacks go to the sending end of a `StepPipe`, if there is one.
    """
    global _work
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(1)
    opened = RunFolder.open(Path(folder))
    _work = _Work(planning.of_folder(opened), opened, None if steps is None else functools.partial(_send, steps))


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
    tell = _work.tell
    with listening(functools.partial(tell, task)) if tell else contextlib.nullcontext():
        attempt.run(_work.plan, _work.folder, task.round, task.client, _work.plan.attacks[task.attack])


def assess(task: Task, partner: int | None) -> Record:
    """Return the record of a stored finding, with the partner's as the wrong-update control."""
    assert _work is not None
    _work.folder.refresh()
    return assessment.assess(_work.plan, _work.folder, task, partner)


def _send(steps: Connection, task: Task, step: Step) -> None:
    """Send a step if it can be sent at once and in one piece, so that a death in the middle leaves no half of it."""
    message = pickle.dumps((task, step))
    if len(message) <= _ONE_PIECE:
        # A full pipe, or a parent that is gone: steps may be lost.
        with contextlib.suppress(OSError):
            steps.send_bytes(message)


class StepPipe:
    """Carries the steps of attacks from workers to their parent; no worker ever waits for it.

    Args:
        context: that the workers are made with.
        tell: called in a thread of its own with each step that arrives.
    """

    def __init__(self, context: SpawnContext, tell: Tell) -> None:
        self._receiver, self.sender = context.Pipe(duplex=False)
        # Of the pipe itself, so for the workers' copies too.
        os.set_blocking(self.sender.fileno(), False)
        self._tell = tell
        self._thread = threading.Thread(target=self._receive, name="steps", daemon=True)

    def __enter__(self) -> StepPipe:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.set_blocking(self.sender.fileno(), True)
        self.sender.send_bytes(_END)
        self._thread.join()
        self.sender.close()
        self._receiver.close()

    def _receive(self) -> None:
        while (message := self._receiver.recv_bytes()) != _END:
            self._tell(*pickle.loads(message))


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

    def __init__(self, plan: Plan, folder: RunFolder, tell: Tell | None = None) -> None:
        self._work = _Work(plan, folder, tell)

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
