"""Where the audit's tasks run: on worker processes that may die, or in this process. Attacks have processes of their own.

On other machines they run with `fedsim.audit.ray_tasks`.
"""

from __future__ import annotations

import multiprocessing
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from fedsim.audit.attack_process import AttackProcess
from fedsim.audit.work import Tell, Work
from fedsim.audit.worker_process import Do, WorkerProcess
from fedsim.planning.plan import Plan
from fedsim.recording.run_folder import RunFolder


@runtime_checkable
class Executor(Protocol):
    """A place where tasks run; as a context, it waits at its end for what was submitted.

    All that is shared with whoever does the work is the run folder. A task fails alone: if its process dies, its future holds
    `WorkerDiedError`, and the next task finds another one.
    """

    @property
    def room(self) -> int:
        """How many tasks to submit at once: more would only wait in memory."""
        ...

    def submit(self, do: Do, /, *given: Any) -> Future[Any]:
        """Have `do` called with a `Work` and what is given; what it returns or raises is in the future."""
        ...

    def abandon(self) -> None:
        """End all work at once; nothing more is submitted."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Workers:
    """A pool of worker processes: for each a thread that asks it and waits for its answer.

    Args:
        count: processes at most.
        folder: the run.
        tell: called with each step of an attack, in the threads; None where nobody watches.
    """

    def __init__(self, count: int, folder: Path, tell: Tell | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers = [WorkerProcess(context, folder, tell) for _ in range(count)]
        # The last one that had something to do is the first to be asked again: it has started.
        self._free: queue.LifoQueue[WorkerProcess] = queue.LifoQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(count, "worker")

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown()
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.end()

    @property
    def room(self) -> int:
        """Two tasks per worker keep all of them busy."""
        return 2 * len(self._workers)

    def submit(self, do: Do, /, *given: Any) -> Future[Any]:
        """Have a worker call `do`, in the order of submission."""
        return self._threads.submit(self._run, do, given)

    def _run(self, do: Do, given: tuple[Any, ...]) -> Any:
        worker = self._free.get()
        try:
            return worker.run(do, *given)
        finally:
            self._free.put(worker)

    def abandon(self) -> None:
        """End all workers at once."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.hang_up()


class InThisProcess:
    """Does each task at once, where it is submitted, and its attack in a process beside this one.

    Args:
        plan: the run's plan.
        folder: the run.
        tell: called with each step of an attack; None where nobody watches.
    """

    def __init__(self, plan: Plan, folder: RunFolder, tell: Tell | None = None) -> None:
        self._attacks = AttackProcess(plan, folder)
        self._work = Work(plan, folder, self._attacks, tell)

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attacks.end()

    @property
    def room(self) -> int:
        """One task after another."""
        return 1

    def submit(self, do: Do, /, *given: Any) -> Future[Any]:
        """Call `do` now; its exception is kept in the future."""
        future: Future[Any] = Future()
        try:
            future.set_result(do(self._work, *given))
        except Exception as error:  # noqa: BLE001  (as everywhere: exceptions travel in the future)
            future.set_exception(error)
        return future

    def abandon(self) -> None:
        """End the process for attacks."""
        self._attacks.end()
