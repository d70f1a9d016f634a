"""One worker process of the audit: how its parent asks it, and what runs in it.

A worker shares the run folder with its parent, and two pipes that nobody else holds: one for what it is to do, one for its
answers and the steps of attacks. So a worker that is killed while it writes spoils no message but its own, and its parent
reads the end of the pipe. A worker whose parent is gone, or has hung up, reads that end in the same way and exits.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedsim import process_tree
from fedsim.audit import attack_process
from fedsim.audit.assessment import Task
from fedsim.audit.attack_process import AttackProcess
from fedsim.audit.work import Tell, Work
from fedsim.errors import FedsimError
from fedsim.planning import preparation as planning
from fedsim.process_tree import Leader
from fedsim.progress import Step
from fedsim.recording.run_folder import RunFolder

Do = Callable[..., Any]
"""What a worker does: a function that takes its `Work` first; the worker finds it by name."""

_STARTS = 2  # the first death may be for want of memory that another process has given back since
_LEAVE = 30.0  # seconds: a worker that is hung up on exits at once, unless it hangs or the system is out of breath


class WorkerDiedError(Exception):
    """A worker process ended before what it was to do."""


class _Told(NamedTuple):
    task: Task
    step: Step


class _Answer(NamedTuple):
    result: Any = None
    error: BaseException | None = None


class _Attack(NamedTuple):
    leader: Leader | None


_Message = _Told | _Answer | _Attack


class WorkerProcess:
    """A worker process as its parent sees it: started when there is something to do, and again where it has died.

    A worker ends its attack and what that has started. One that is killed cannot, so its parent knows which attack it runs,
    and ends what is left of that (see `process_tree.end_session`).

    Args:
        context: that it is made with.
        folder: the run, of which it makes the plan.
        tell: called with each step of an attack, by whoever waits for the answer; None where nobody watches.
    """

    def __init__(self, context: SpawnContext, folder: Path, tell: Tell | None) -> None:
        self._context, self._folder, self._tell = context, folder, tell
        self._process: BaseProcess | None = None
        self._exit = -1
        self._answers: Connection | None = None
        self._attack: Leader | None = None
        # Whoever hangs up does so in another thread than the one that waits for an answer.
        self._lock = threading.Lock()
        self._tasks: Connection | None = None
        self._starting: BaseProcess | None = None
        self._is_wanted = True

    def run(self, do: Do, *given: Any) -> Any:
        """Return what the worker's `do` returns.

        Raises:
            WorkerDiedError: the worker died of it, or was hung up on.
            FedsimError: the worker dies as it starts, or does not start in time.
            Exception: what `do` raised.
        """
        try:
            if self._process is None:
                self._start()
            answer = self._ask(do, given)
        except BaseException:
            self.end()
            raise
        if answer.error is not None:
            raise answer.error
        return answer.result

    def _start(self) -> None:
        for _ in range(_STARTS):
            self._launch()
            try:
                self._hear(attack_process.START_LIMIT)
            except WorkerDiedError:
                self.end()
            else:
                with self._lock:
                    self._starting = None
                return
        raise FedsimError(
            "audit: worker processes die as they start. Use audit.processes: 0 to see why, on fewer to save memory. A script "
            'that calls fedsim.run does so under if __name__ == "__main__", since workers import it.'
        )

    def _launch(self) -> None:
        with self._lock:
            if not self._is_wanted:
                raise WorkerDiedError
            theirs, self._tasks = self._context.Pipe(duplex=False)
            self._answers, answers = self._context.Pipe(duplex=False)
            # Whether it tells steps is the worker's to know: none of them is sent where nobody watches.
            given = (str(self._folder), theirs, answers, self._tell is not None)
            process = self._context.Process(target=start_worker, args=given, name="worker")
            process.start()
            self._process = self._starting = process
            self._exit = attack_process.exit_of(process)
        # The worker must be the last holder of its ends.
        theirs.close()
        answers.close()

    def _ask(self, do: Do, given: tuple[Any, ...]) -> _Answer:
        with self._lock:
            assert self._tasks is not None
            try:
                self._tasks.send((do, given))
            except OSError:
                raise WorkerDiedError from None
        while isinstance(message := self._hear(), _Told):
            assert self._tell is not None
            self._tell(*message)
        return message

    def _hear(self, limit: float | None = None) -> _Told | _Answer:
        """Return what the worker says next, but for what it says of its attack, which is noted."""
        assert self._answers is not None
        try:
            while True:
                if not self._answers.poll(limit):
                    raise FedsimError(
                        f"audit: a worker process did not start within {limit:g} s. Use audit.processes: 0 to see why."
                    )
                message: _Message = self._answers.recv()
                if not isinstance(message, _Attack):
                    return message
                self._attack = message.leader
        except (EOFError, OSError):
            raise WorkerDiedError from None

    def hang_up(self) -> None:
        """Have the worker exit at once, whatever it does, and start no other; to be called from any thread."""
        with self._lock:
            self._is_wanted = False
            if self._tasks is not None:
                self._tasks.close()
            if self._starting is not None:
                # It may not listen yet, and has made nothing that outlives it.
                self._starting.kill()

    def end(self) -> None:
        """Have the worker exit, if there is one, and wait until it has; one that does not is killed."""
        with self._lock:
            if self._tasks is not None:
                self._tasks.close()
            starting, self._starting = self._starting, None
        if self._process is not None:
            if starting is not None or not wait([self._exit], _LEAVE):
                self._process.kill()
            if attack_process.reap(self._process, self._exit):
                self._end_attack()
            if self._exit != self._process.sentinel:
                os.close(self._exit)
        if self._answers is not None:
            self._answers.close()
        self._process = self._answers = self._attack = None

    def _end_attack(self) -> None:
        """End what is left of the attack that the worker ran when it ended, which it did just now."""
        assert self._answers is not None
        # It may have said of one what nobody has read; and a message that nobody can read is no longer of interest.
        with contextlib.suppress(Exception):
            while True:
                self._hear(0)
        if self._attack is not None:
            process_tree.end_session(self._attack)


def start_worker(folder: str, tasks: Connection, answers: Connection, is_watched: bool) -> None:
    """Be a worker, until the parent hangs up; see `WorkerProcess`."""
    _Worker(tasks, answers).work(Path(folder), is_watched)


class _Worker:
    """What runs in a worker process: one thread that does what it is to do, and one that listens for the parent."""

    def __init__(self, tasks: Connection, answers: Connection) -> None:
        self._tasks, self._answers = tasks, answers
        self._asked: queue.SimpleQueue[tuple[Do, tuple[Any, ...]]] = queue.SimpleQueue()
        self._attacks: AttackProcess | None = None

    def work(self, path: Path, is_watched: bool) -> None:
        threading.Thread(target=self._listen, name="listening", daemon=True).start()
        with contextlib.suppress(AttributeError):
            # This process may end at any time: what it prints must not wait for more.
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        folder = RunFolder.open(path)
        torch.set_num_threads(1)
        plan = planning.of_folder(folder)
        attacks = self._attacks = AttackProcess(plan, folder, private=(self._tasks, self._answers), report=self._report)
        work = Work(plan, folder, attacks, self._tell if is_watched else None)
        self._send(_Answer())
        try:
            while True:
                do, given = self._asked.get()
                self._answer(do, work, given)
        finally:
            # Python waits at its end for the processes that this one has made.
            attacks.end()

    def _listen(self) -> None:
        """Take what there is to do, and exit when the parent is gone or wants no more: it would be work for nothing."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._asked.put(self._tasks.recv())
        try:
            if self._attacks is not None:
                self._attacks.kill()
        finally:
            # Not by the usual way out: the other thread may be anywhere.
            os._exit(1)

    def _answer(self, do: Do, work: Work, given: tuple[Any, ...]) -> None:
        try:
            # To its bytes inside: a result that cannot be sent is a fault as well.
            self._send(_Answer(do(work, *given)))
        except BaseException as error:  # noqa: BLE001  (raised again in the parent)
            error.add_note("".join(traceback.format_exception(error)))
            self._send(_Answer(error=error))

    def _tell(self, task: Task, step: Step) -> None:
        self._send(_Told(task, step))

    def _report(self, attack: Leader | None) -> None:
        self._send(_Attack(attack))

    def _send(self, message: _Message) -> None:
        # A parent that is gone: the other thread will exit.
        with contextlib.suppress(OSError):
            self._answers.send(message)
