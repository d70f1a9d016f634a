"""What tests give workers to do, and a worker that dies in the middle of a message; importable in worker processes."""

import os
import signal
import struct
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import processes

from fedsim.audit.assessment import Task
from fedsim.audit.attempt import Made
from fedsim.audit.work import Work
from fedsim.audit.worker_process import _Worker
from fedsim.planning.plan import Plan
from fedsim.progress import Step, advance
from fedsim.recording.run_folder import RunFolder

TORN = "torn"
"""What a worker of `start_torn_worker` cannot give back."""


def give_back(work: Work, value: object) -> object:
    return value


def tell_process(work: Work) -> int:
    return os.getpid()


def give_a_lock(work: Work) -> object:
    """Return what cannot be sent."""
    return threading.Lock()


def fail(work: Work, error: BaseException) -> None:
    raise error


def die(work: Work) -> None:
    os._exit(0)


def walk(work: Work, task: Task, steps: int) -> str:
    """Tell steps, where somebody watches."""
    for done in range(steps):
        if work._tell is not None:
            work._tell(task, Step(done, steps, None, None))
    return "watched" if work._tell is not None else "alone"


def wait_in_an_attack(work: Work, task: Task, note: str) -> None:
    """Never return: the attack waits, and so does a child of it that has its own session."""
    work._attacks.call(_wait, note, is_own=False, tell=lambda step: work._tell(task, step))


def _wait(plan: Plan, folder: RunFolder, note: str) -> Made:
    if os.fork() == 0:
        os.setsid()
        Path(note).write_text(f"{os.getppid()} {os.getpid()}")
        advance(0, 1)
    threading.Event().wait()
    return Made("found", b"")


def leave_in_an_attack(work: Work, task: Task, note: str) -> None:
    """Never return: the attack waits, and so do a child in its session and a child of that one in a session of its own."""
    work._attacks.call(_leave, note, is_own=False, tell=lambda step: work._tell(task, step))


def _leave(plan: Plan, folder: RunFolder, note: str) -> Made:
    attack = os.getpid()
    if os.fork() == 0:
        os.setpgid(0, 0)
        if os.fork() == 0:
            os.setsid()
            Path(note).write_text(f"{attack} {os.getppid()} {os.getpid()}")
            advance(0, 1)
    threading.Event().wait()
    return Made("found", b"")


def find_nothing(plan: Plan, folder: RunFolder) -> Made:
    return Made("found", b"")


def hang(*given: object) -> None:
    """Be a process for attacks that never says anything."""
    threading.Event().wait()


def start_hung_worker(note: str, *given: object) -> None:
    """Be a worker that never says anything; its number is in the note."""
    Path(f"{note}.new").write_text(str(os.getpid()))
    Path(f"{note}.new").rename(note)
    threading.Event().wait()


def step_and_wait(plan: Plan, folder: RunFolder) -> Made:
    """Be an attack that takes a step and never ends."""
    advance(0, 1)
    threading.Event().wait()
    return Made("found", b"")


def start_torn_worker(environment: Mapping[str, str], folder: str, *given: object) -> None:
    processes._take(environment)
    tasks, answers, is_watched = given
    _Torn(tasks, answers).work(Path(folder), is_watched)


class _Torn(_Worker):
    def _send(self, message: object) -> None:
        if getattr(message, "result", None) == TORN:
            _tear(self._answers)
        super()._send(message)


def _tear(connection: Connection) -> None:
    """Announce a message, begin it and die."""
    os.write(connection.fileno(), struct.pack("!i", 1_000_000) + b"x" * 1_000)
    os.kill(os.getpid(), signal.SIGKILL)
