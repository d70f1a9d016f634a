"""Where the audit's tasks run: on worker processes that may die, or in this process; attacks always in one of their own.

The run folder is all that workers share with their parent, and a pipe of steps for whoever watches. Whatever runs tasks, a
worker or this process, has another process for attacks. That one may hang, die, or leave threads and children behind: it is
ended with all of them when time is up and when the attempt is over. It reads the run folder and never writes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import torch

from fedsim import plugins
from fedsim.audit import assessment, attempt, calibration, evaluation
from fedsim.audit.assessment import Task
from fedsim.audit.attempt import Attempt, Made
from fedsim.audit.evaluation import Question
from fedsim.errors import FedsimError
from fedsim.exchange import Finding, View
from fedsim.planning import preparation as planning
from fedsim.planning.plan import Plan
from fedsim.progress import Step, listening
from fedsim.recording.records import AnyRecord, Calibration, EvaluationRecord
from fedsim.recording.run_folder import RunFolder

Tell = Callable[[Task, Step], None]
"""What is done with each step of the attack that a task runs."""


StartMethod = Literal["fork", "spawn"]
"""How the process for attacks is made: as a copy of the one that runs tasks, or from nothing, which takes seconds."""

Make = Callable[[Any], Made]
"""A function of this module that runs an attack, in the process for attacks."""


class AttackDiedError(Exception):
    """The process of an attack ended before the attack did."""


class AttackTimeoutError(Exception):
    """An attack took longer than it may.

    Args:
        seconds: how long it may take.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"took longer than audit.attack_timeout ({seconds:g} s)")
        self.seconds = seconds


class _Work(NamedTuple):
    plan: Plan
    folder: RunFolder
    attacks: AttackProcess
    tell: Tell | None


_work: _Work | None = None

# What a pipe takes as a whole or not at all, less the length that `Connection` writes before it.
_ONE_PIECE = select.PIPE_BUF - 4
_END = b""
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def start_method() -> StartMethod:
    """Return how this process may make one for attacks.

    A copy of a process has neither the threads that autograd starts for accelerators nor its CUDA context, and Ray's threads
    may hold locks for ever in one; elsewhere than on Linux, system libraries may refuse to work in it.
    """
    ray = sys.modules.get("ray")
    is_safe = sys.platform == "linux" and not torch.accelerator.is_available() and not (ray and ray.is_initialized())
    return "fork" if is_safe else "spawn"


def start_worker(folder: str, lifeline: Connection, steps: Connection | None = None) -> None:
    """Prepare a worker process: its plan is made from the folder, and it ends with its parent's end of the lifeline.

    Steps of attacks go to the sending end of a `StepPipe`, if there is one.
    """
    global _work
    opened, attacks = RunFolder.open(Path(folder)), AttackProcess(start_method())
    threading.Thread(target=_end_with_parent, args=(lifeline, attacks), daemon=True).start()
    # Before multiprocessing waits for the children of this process, as it does at its end.
    Finalize(None, attacks.end, exitpriority=1)
    torch.set_num_threads(1)
    tell = None if steps is None else functools.partial(_send, steps)
    _work = _Work(planning.of_folder(opened), opened, attacks, tell)


def _end_with_parent(lifeline: Connection, attacks: AttackProcess) -> None:
    """Exit when the parent is gone or wants no more: its workers would otherwise wait for ever, or work for nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel, lifeline])
        try:
            attacks.kill()
        finally:
            os._exit(1)


def attack(task: Task) -> None:
    """Run one attack on one update in a process of its own, and store its finding, or that it took too long.

    Raises:
        AttackDiedError: its process died, of the attack or for want of memory.
    """
    assert _work is not None
    plan, folder, planned = _work.plan, _work.folder, _work.plan.attacks[task.attack]
    if attempt.stored(folder, task.view, planned) is not None:
        return
    with _telling(task) as tell:
        try:
            made = _work.attacks.call(
                _made, task, plan.scenario.audit.attack_timeout, tell, plugins.is_own(planned.info)
            )
        except AttackTimeoutError as error:
            attempt.store_failure(plan, folder, task.view, planned, str(error), error.seconds)
        else:
            attempt.store(folder, task.view, planned, made.content)


def _made(task: Task) -> Made:
    assert _work is not None
    return attempt.make(_work.plan, _work.folder, task.view, _work.plan.attacks[task.attack])


@contextlib.contextmanager
def _telling(task: Task) -> Iterator[Callable[[Step], None] | None]:
    """Give whom to tell the steps of a task's attack; what that raises is raised at the end, since the attack goes on."""
    assert _work is not None
    if _work.tell is None:
        yield None
        return
    tell: Callable[[Step], None] = functools.partial(_work.tell, task)
    failed: list[Exception] = []

    def told(step: Step) -> None:
        try:
            if not failed:
                tell(step)
        except Exception as error:  # noqa: BLE001  (a listener's fault is none of the attack: raised once that has ended)
            failed.append(error)

    yield told
    if failed:
        raise failed[0]


def assess(task: Task, partner: View | None) -> AnyRecord:
    """Return the record of a stored finding, with the partner's as the wrong-update control.

    Where a finding is gone, or an edited plug-in has made it one of another version, it is made again first.

    Raises:
        AttackDiedError: the process of that attack died.
    """
    assert _work is not None
    _work.folder.refresh()
    for view in (task.view, partner):
        if view is not None:
            attack(replace(task, view=view))
    return assessment.assess(_work.plan, _work.folder, task, partner)


def calibrate(task: Task) -> Calibration:
    """Return the line of the calibration of an attack in a round, at the global weights of the task's client.

    Raises:
        AttackDiedError: the attack's process died.
    """
    assert _work is not None
    _work.folder.refresh()
    plan, folder, planned, attacks = _work.plan, _work.folder, _work.plan.attacks[task.attack], _work.attacks

    def attack(index: int) -> Attempt:
        make, limit = functools.partial(_tried, index), plan.scenario.audit.attack_timeout
        try:
            made = attacks.call(make, task, limit, None, plugins.is_own(planned.info))
        except AttackTimeoutError as error:
            return Attempt("failed", Finding(), str(error), error.seconds, 0)
        tried: Attempt = pickle.loads(made.content)
        return tried

    return calibration.calibrate(plan, folder, task.view.round, task.view.clients[0], planned, attack)


def _tried(index: int, task: Task) -> Made:
    assert _work is not None
    planned = _work.plan.attacks[task.attack]
    tried = calibration.attack(_work.plan, _work.folder, task.view.round, task.view.clients[0], planned, index)
    return Made(tried.status, pickle.dumps(tried))


def evaluate(question: Question) -> EvaluationRecord:
    """Return the line of an evaluation, made in the process for attacks; one that takes too long has failed.

    Raises:
        AttackDiedError: its process died.
    """
    assert _work is not None
    _work.folder.refresh()
    plan, folder = _work.plan, _work.folder
    try:
        limit, is_own = plan.scenario.audit.attack_timeout, plugins.is_own(plan.evaluators[question.evaluator].info)
        made = _work.attacks.call(_evaluated, question, limit, None, is_own)
    except AttackTimeoutError as error:
        return evaluation.failure(plan, folder, question, str(error), error.seconds)
    line: EvaluationRecord = pickle.loads(made.content)
    return line


def _evaluated(question: Question) -> Made:
    assert _work is not None
    line = evaluation.evaluate(_work.plan, _work.folder, question)
    return Made(line.status, pickle.dumps(line))


class AttackProcess:
    """A process that runs one attempt, made when it is needed and ended afterwards, so that no attack meets what another left.

    A plug-in may replace functions of torch, or of other plug-ins, for the rest of its process. Where a process is made from
    nothing, in seconds, it is kept from one attempt to the next of fedsim's own plug-ins as long as none fails.

    It leads a session of its own, so that it is ended together with the processes that attacks have started.

    Args:
        method: how it is made; a copy works with the plan of the process that it is a copy of.
    """

    def __init__(self, method: StartMethod) -> None:
        self._method = method
        self._process: BaseProcess | None = None
        self._requests: Connection | None = None
        self._exit = -1

    def call(
        self, make: Make, task: Any, timeout: float | None, tell: Callable[[Step], None] | None, is_own: bool
    ) -> Made:
        """Return what `make` makes of a task in the process for attacks.

        Args:
            make: a function of this module.
            task: its argument.
            timeout: seconds that it may take; None for no limit.
            tell: called with every step of the attack, while this waits.
            is_own: whether the attack comes with fedsim itself.

        Raises:
            AttackTimeoutError: it took longer; the process has been ended.
            AttackDiedError: the process died.
            Exception: what `make` raised.
        """
        try:
            made = self._call(make, task, timeout, tell)
        except BaseException:
            self.end()
            raise
        if self._method == "fork" or made.status == "failed" or not is_own:
            self.end()
        return made

    def _call(self, make: Make, task: Any, timeout: float | None, tell: Callable[[Step], None] | None) -> Made:
        if self._process is None:
            self._start()
            # Its imports are not the attack's.
            self._receive(None)
        assert self._requests is not None
        try:
            self._requests.send((make, task, tell is not None))
        except OSError:
            raise AttackDiedError from None
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            answer = self._receive(until)
            if answer is None:
                assert timeout is not None
                raise AttackTimeoutError(timeout)
            if isinstance(answer, Made):
                return answer
            if isinstance(answer, BaseException):
                raise answer
            assert tell is not None
            tell(answer)

    def _receive(self, until: float | None) -> Any:
        """Return what the process says next; None where it says nothing until then."""
        assert self._requests is not None
        ready = wait([self._requests, self._exit], None if until is None else max(0.0, until - time.monotonic()))
        if not ready:
            return None
        if self._exit in ready:
            self.kill()
            # Without a look, this would wait for children that hold the other end of the pipe and were not found.
            if not self._requests.poll():
                raise AttackDiedError
        try:
            return self._requests.recv()
        except (EOFError, OSError):
            raise AttackDiedError from None

    def _start(self) -> None:
        assert _work is not None
        fork = self._method == "fork"
        context: ForkContext | SpawnContext = (
            multiprocessing.get_context("fork") if fork else multiprocessing.get_context("spawn")
        )
        self._requests, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, str(_work.folder.path.absolute())), name="attacks")
        if not fork:
            # Starting the tracker lets the signal through again, so that comes first.
            resource_tracker.ensure_running()
        # Inherited: an interruption from the keyboard is the parent's to deal with.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of threads, which the copy is without; see `start_method`.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._process, self._exit = process, _exit_of(process)

    def kill(self) -> None:
        """End the process and what it has started, without waiting for it."""
        process = self._process
        if process is None or process.pid is None:
            return
        elsewhere = _descendants(process.pid)
        # It leads no group yet where it has only just begun.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        for descendant in elsewhere:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(descendant, signal.SIGKILL)

    def end(self) -> None:
        """End the process, if there is one, and what it has started."""
        if self._process is None:
            return
        self.kill()
        self._process.join()
        if self._exit != self._process.sentinel:
            os.close(self._exit)
        assert self._requests is not None
        self._requests.close()
        self._process = self._requests = None


def _descendants(process: int) -> list[int]:
    """Return what a process has started, and so on, in whatever session; where the system lists it, else nothing."""
    found = []
    with contextlib.suppress(OSError):
        for listed in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, listed.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _exit_of(process: BaseProcess) -> int:
    """Return a handle that is ready once the process has ended; the plain one waits for its children as well."""
    assert process.pid is not None
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return process.sentinel


def _serve(requests: Connection, folder: str) -> None:
    """Run attacks for the process that made this one, until it ends this one."""
    os.setsid()
    if sys.platform == "linux":
        # So that it ends with its maker, even where that is killed while an attack does not let go.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        # By its full name: an attack may change the working directory.
        _answer_all(requests, RunFolder(Path(folder)))
    except EOFError:
        pass
    except BaseException:  # noqa: BLE001  (the last word of this process)
        traceback.print_exc()
    finally:
        # Not by the usual way out, which waits for the threads that attacks have left behind.
        os._exit(1)


def _answer_all(requests: Connection, folder: RunFolder) -> None:
    global _work
    torch.set_num_threads(1)
    plan = planning.of_folder(folder) if _work is None else _work.plan
    _work = _Work(plan, folder, AttackProcess("spawn"), None)
    me = os.getpid()
    requests.send("ready")
    while True:
        make, task, is_watched = requests.recv()
        answer = _answer_to(make, task, requests.send if is_watched else None)
        if os.getpid() != me:
            # A copy of this process, which the attack has made and not ended.
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        requests.send(answer)


def _answer_to(make: Make, task: Any, tell: Callable[[Step], None] | None) -> Made | BaseException:
    assert _work is not None
    _work.folder.refresh()
    try:
        with listening(tell) if tell else contextlib.nullcontext():
            return make(task)
    except BaseException as error:  # noqa: BLE001  (raised again in the process that asked)
        error.add_note("".join(traceback.format_exception(error)))
        return error


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
    """Runs each task at once, where it was submitted, and its attack in a process beside this one."""

    def __init__(self, plan: Plan, folder: RunFolder, method: StartMethod, tell: Tell | None = None) -> None:
        self._work = _Work(plan, folder, AttackProcess(method), tell)

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

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the process for attacks."""
        self._work.attacks.end()
