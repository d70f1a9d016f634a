"""The process for attacks: how one is made, what it is asked, its limits, and how it ends with all that it has started.

An attack may hang, take too much memory, die, or leave threads and children behind. Its process is ended with all of them
when it is beyond a limit and when the attempt is over. It reads the run folder and never writes; what it writes elsewhere is
its own, up to a size. None of this is a sandbox: an attack is code that the user has chosen to run.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from fedsim import process_tree
from fedsim.audit.attempt import LARGEST_FILE, Made
from fedsim.planning import preparation as planning
from fedsim.planning.plan import Plan
from fedsim.process_tree import Leader
from fedsim.progress import Step, listening
from fedsim.recording.run_folder import RunFolder
from fedsim.scenario import AuditPart

StartMethod = Literal["fork", "spawn"]
"""How the process for attacks is made: as a copy of the one that runs tasks, or from nothing, which takes seconds."""

Make = Callable[..., Made]
"""A function that runs an attack: it takes the plan, the run folder and what it is about; another process finds it by name."""

START_LIMIT = 1800.0
"""Seconds that a process of the audit may take to start: imports, and a plan with its data from a slow disk, take minutes."""

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_LOOK = 0.1  # seconds between two looks at the memory
_LOOKS_SHARE = 10  # a look takes longer, the more memory is held: a tenth of the time at most
_MEBIBYTE = 2**20
_KILLED = 10.0  # seconds that a killed process may take: beyond, it waits for a disk or a device that may never answer


class AttackDiedError(Exception):
    """The process of an attack ended before the attack did."""


class AttackLimitError(Exception):
    """An attack went beyond a limit of the audit.

    Args:
        message: which one.
        seconds: what it has taken.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


def start_method() -> StartMethod:
    """Return how this process may make one for attacks.

    A copy of a process has neither the threads that autograd starts for accelerators nor its CUDA context, and Ray's threads
    may hold locks for ever in one; elsewhere than on Linux, system libraries may refuse to work in it.
    """
    ray = sys.modules.get("ray")
    is_safe = sys.platform == "linux" and not torch.accelerator.is_available() and not (ray and ray.is_initialized())
    return "fork" if is_safe else "spawn"


class AttackProcess:
    """A process that runs one attempt, made when it is needed and ended afterwards, so that no attack meets what another left.

    A plug-in may replace functions of torch, or of other plug-ins, for the rest of its process. Where a process is made from
    nothing, in seconds, it is kept from one attempt to the next of fedsim's own plug-ins as long as none fails.

    It leads a session of its own, so that it is ended together with the processes that attacks have started.

    Args:
        plan: of the attempts, and of their limits; a process made from nothing makes the same from the folder.
        folder: the run.
        private: connections of this process of which a copy must hold no end: who listens to them waits for the last holder.
        report: called with the process once it has been made, before it runs an attack, and with None once it has ended; so
            somebody else may end what it has started, should this process be killed.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        private: Sequence[Connection] = (),
        report: Callable[[Leader | None], None] | None = None,
    ) -> None:
        self._plan, self._folder, self._private, self._report = plan, folder, tuple(private), report
        self._method = start_method()
        self._process: BaseProcess | None = None
        self._requests: Connection | None = None
        self._exit = -1

    def call(self, make: Make, *about: Any, is_own: bool, tell: Callable[[Step], None] | None = None) -> Made:
        """Return what `make` makes in the process for attacks.

        Args:
            make: see `Make`.
            about: its arguments after the plan and the folder.
            is_own: whether the attack comes with fedsim itself.
            tell: called with every step of the attack, while this waits.

        Raises:
            AttackLimitError: it took too long, or used too much memory; the process has been ended.
            AttackDiedError: the process died, or did not start in time.
            Exception: what `make` raised.
        """
        try:
            made = self._call(make, about, tell)
        except BaseException:
            self.end()
            raise
        if self._method == "fork" or made.status == "failed" or not is_own:
            self.end()
        return made

    def _call(self, make: Make, about: tuple[Any, ...], tell: Callable[[Step], None] | None) -> Made:
        if self._process is None:
            self._start()
            # Its imports are not the attack's.
            self._receive(None)
        assert self._process is not None and self._process.pid is not None and self._requests is not None
        watch = _Watch(self._process.pid, self._plan.scenario.audit)
        try:
            self._requests.send((make, about, tell is not None))
        except OSError:
            raise AttackDiedError from None
        while True:
            answer = self._receive(watch)
            if isinstance(answer, Made):
                watch.look_at_memory()
                return answer
            if isinstance(answer, BaseException):
                raise answer
            assert tell is not None
            tell(answer)
            # However fast the steps come.
            watch.look()

    def _receive(self, watch: _Watch | None) -> Any:
        """Return what the process says next, under watch of its limits, or of how long it may take to start."""
        assert self._requests is not None
        while not (ready := wait([self._requests, self._exit], watch.pause() if watch else START_LIMIT)):
            if watch is None:
                raise AttackDiedError(f"its process did not start within {START_LIMIT:g} s")
            watch.look()
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
        fork = self._method == "fork"
        context: ForkContext | SpawnContext = (
            multiprocessing.get_context("fork") if fork else multiprocessing.get_context("spawn")
        )
        self._requests, theirs = context.Pipe()
        copied = (self._plan, (self._requests, *self._private)) if fork else (None, ())
        process = context.Process(
            target=_serve, args=(theirs, str(self._folder.path.absolute()), *copied), name="attacks"
        )
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
        self._process, self._exit = process, exit_of(process)
        assert process.pid is not None
        if self._report is not None:
            self._report(process_tree.leader(process.pid))

    def kill(self) -> None:
        """End the process and what it has started, without waiting for it."""
        process = self._process
        if process is None or process.pid is None:
            return
        elsewhere = process_tree.descendants(process.pid)
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
        if reap(self._process, self._exit) and self._report is not None:
            self._report(None)
        if self._exit != self._process.sentinel:
            os.close(self._exit)
        assert self._requests is not None
        self._requests.close()
        self._process = self._requests = None


class _Watch:
    """Watches that an attempt stays within its limits, from when it begins.

    What counts as its memory is what the process and its descendants hold (see `process_tree.memory`), less what the process
    held when the attempt began. So pages that a copy shares with its maker do not count until one of them changes them, though
    children that it forks add their part of these. The last look is taken when the attempt has ended, at what it has left.

    Not seen is a peak that is over by the next look: the one that the system notes (VmHWM) counts files as well, which it can
    drop, and no page that a copy has changed. Nor is the memory of a GPU seen, or of children whose parent has ended.

    Args:
        process: of the attempt.
        limits: how long it may take and how much memory it may use.
    """

    def __init__(self, process: int, limits: AuditPart) -> None:
        self._process, self._seconds, self._memory = process, limits.attack_timeout, limits.attack_memory
        self._before = 0 if self._memory is None else process_tree.memory(process)
        self._began = time.monotonic()
        self._next_look = self._began

    def pause(self) -> float | None:
        """Return the seconds until there may be something to see; None where there is no limit."""
        due = [] if self._memory is None else [self._next_look]
        if self._seconds is not None:
            due.append(self._began + self._seconds)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def look(self) -> None:
        """Look at what the attempt has used.

        Raises:
            AttackLimitError: it is more than it may use.
        """
        now = time.monotonic()
        if self._seconds is not None and now >= self._began + self._seconds:
            raise AttackLimitError(f"took longer than audit.attack_timeout ({self._seconds:g} s)", self._seconds)
        if now >= self._next_look:
            self.look_at_memory()

    def look_at_memory(self) -> None:
        """Look at the memory that the attempt uses, whenever the last look was.

        Raises:
            AttackLimitError: it is more than it may use.
        """
        if self._memory is None:
            return
        now = time.monotonic()
        used = process_tree.memory(self._process) - self._before
        if used > self._memory * _MEBIBYTE:
            raise AttackLimitError(
                f"used more than audit.attack_memory ({self._memory} MiB)", float(f"{now - self._began:.4g}")
            )
        seen = time.monotonic()
        self._next_look = seen + max(_LOOK, _LOOKS_SHARE * (seen - now))


def reap(process: BaseProcess, handle: int) -> bool:
    """Wait until a process that was killed has ended, and return whether it has in time; `handle` is its `exit_of`."""
    if handle == process.sentinel:
        # Children that were not found make this take all its time.
        process.join(_KILLED)
        return not process.is_alive()
    if not wait([handle], _KILLED):
        return False
    process.join()
    return True


def exit_of(process: BaseProcess) -> int:
    """Return a handle that is ready once the process has ended; the plain one waits for its children as well."""
    assert process.pid is not None
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return process.sentinel


def _serve(requests: Connection, folder: str, plan: Plan | None, private: Sequence[Connection]) -> None:
    """Run attacks for the process that made this one, until it ends this one."""
    for connection in private:
        connection.close()
    os.setsid()
    _limit_files()
    if sys.platform == "linux":
        # So that it ends with its maker, even where that is killed while an attack does not let go.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        # By its full name: an attack may change the working directory.
        _answer_all(requests, RunFolder(Path(folder)), plan)
    except EOFError:
        pass
    except BaseException:  # noqa: BLE001  (the last word of this process)
        traceback.print_exc()
    finally:
        # Not by the usual way out, which waits for the threads that attacks have left behind.
        os._exit(1)


def _limit_files() -> None:
    """Let no file grow beyond `LARGEST_FILE` by this process and those that it starts; writing on is an OSError."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    known = [limit for limit in (before, hard) if limit != resource.RLIM_INFINITY]
    least = min([LARGEST_FILE, *known])
    resource.setrlimit(resource.RLIMIT_FSIZE, (least, least))


def _answer_all(requests: Connection, folder: RunFolder, plan: Plan | None) -> None:
    torch.set_num_threads(1)
    known = plan or planning.of_folder(folder)
    me = os.getpid()
    requests.send("ready")
    while True:
        make, about, is_watched = requests.recv()
        folder.refresh()
        answer = _answer_to(make, (known, folder, *about), requests.send if is_watched else None)
        if os.getpid() != me:
            # A copy of this process, which the attack has made and not ended.
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        requests.send(answer)


def _answer_to(make: Make, given: tuple[Any, ...], tell: Callable[[Step], None] | None) -> Made | BaseException:
    try:
        with listening(tell) if tell else contextlib.nullcontext():
            return make(*given)
    except BaseException as error:  # noqa: BLE001  (raised again in the process that asked)
        error.add_note("".join(traceback.format_exception(error)))
        return error
