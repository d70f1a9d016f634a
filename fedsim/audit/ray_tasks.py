"""The audit on a Ray cluster: each task of the audit is a Ray task, which has a worker process of its node do it.

So attacks run there exactly as they do on worker processes of this machine, in processes of their own and within the same
limits. All that nodes share is the run folder, at the same path; to a node that does not see it, its files are sent (see
`fedsim.audit.carried`). A task that is lost with its node is run elsewhere.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from fedsim import ray_cluster
from fedsim.audit.carried import Copy, Listing, Sender
from fedsim.audit.worker_process import Do, WorkerDiedError, WorkerProcess
from fedsim.ray_cluster import KilledError, LostError

TRIES = 3
"""How often a task is run that is lost with its node, before it counts as one that its process dies of."""


@runtime_checkable
class Runner(Protocol):
    """What `RayTasks` needs of a cluster: see `fedsim.ray_cluster.Cluster`."""

    def slots(self) -> int:
        """Return how many tasks run at once."""

    def submit(self, function: Do, given: tuple[Any, ...]) -> Future[Any]:
        """Run a function on some node."""

    def put(self, content: bytes) -> Any:
        """Put a content where all nodes can fetch it, and return a reference; it stays for as long as that does."""

    def cancel(self) -> None:
        """End all tasks at once."""

    def close(self) -> None:
        """Leave the cluster."""


class Answer(NamedTuple):
    """What a worker's `do` returned, or raised, and the files that it has made where the node does not see the run folder."""

    result: Any = None
    error: BaseException | None = None
    made: Mapping[str, bytes] | None = None


class NotSeenError(Exception):
    """The node does not see the run folder, and was sent none of its files."""


class RayTasks:
    """An executor whose tasks run on the nodes of a cluster; steps of attacks are not told from there.

    Args:
        cluster: where they run.
        folder: the run; nodes that do not see it at the same path are sent its files.
    """

    def __init__(self, cluster: Runner, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder.absolute()
        self._waiting: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._is_wanted = True
        self._sender, self._is_sent = Sender(cluster.put, self._folder), False
        # Submits what was lost again, and writes what nodes have made: not in the thread of Ray that tells of it.
        self._again = ThreadPoolExecutor(1, "again")

    @property
    def room(self) -> int:
        """How many tasks to submit at once, so that no node waits for one.

        Raises:
            FedsimError: no node is left on which a task fits.
        """
        return 2 * self._cluster.slots()

    def __enter__(self) -> RayTasks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_wanted:
            wait(list(self._waiting))
        self._again.shutdown(cancel_futures=True)
        self._cluster.close()

    def submit(self, do: Do, /, *given: Any) -> Future[Any]:
        """Have a node call `do`."""
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.add(future)
        self._run(future, do, given, 1)
        return future

    def abandon(self) -> None:
        """End all tasks at once."""
        with self._lock:
            self._is_wanted = False
        self._cluster.cancel()
        for future in list(self._waiting):
            self._settle(future, Answer(error=WorkerDiedError()))

    def _run(self, future: Future[Any], do: Do, given: tuple[Any, ...], count: int) -> None:
        try:
            if count > 1:
                # Ray would wait for a node that fits, for ever.
                self._cluster.slots()
            listing = self._sender.listing() if self._is_sent else None
            running = self._cluster.submit(run_here, (str(self._folder), do, given, listing))
        except Exception as error:  # noqa: BLE001  (as everywhere: exceptions travel in the future)
            self._settle(future, Answer(error=error))
        else:
            running.add_done_callback(functools.partial(self._ended, future, do, given, count))

    def _ended(self, future: Future[Any], do: Do, given: tuple[Any, ...], count: int, running: Future[Any]) -> None:
        error = running.exception()
        if isinstance(error, LostError) and count < TRIES and self._is_wanted:
            self._again.submit(self._run, future, do, given, count + 1)
        elif isinstance(error, LostError):
            self._settle(future, Answer(error=WorkerDiedError(f"it was lost with its node {count} times ({error})")))
        elif isinstance(error, KilledError):
            self._settle(future, Answer(error=WorkerDiedError(str(error))))
        elif error is not None:
            self._settle(future, Answer(error=error))
        else:
            self._answered(future, do, given, count, running.result())

    def _answered(self, future: Future[Any], do: Do, given: tuple[Any, ...], count: int, answer: Answer) -> None:
        if not self._is_wanted:
            return
        if isinstance(answer.error, NotSeenError):
            self._is_sent = True
            self._again.submit(self._run, future, do, given, count)
        elif answer.made:
            self._again.submit(self._keep, future, answer)
        else:
            self._settle(future, answer)

    def _keep(self, future: Future[Any], answer: Answer) -> None:
        try:
            self._sender.keep(answer.made or {})
        except Exception as error:  # noqa: BLE001  (exceptions travel in the future)
            answer = Answer(error=error)
        self._settle(future, answer)

    def _settle(self, future: Future[Any], answer: Answer) -> None:
        with self._lock:
            if future not in self._waiting:
                return
            self._waiting.remove(future)
        if answer.error is None:
            future.set_result(answer.result)
        else:
            future.set_exception(answer.error)


# On a node

_worker: tuple[tuple[str, str | None], WorkerProcess] | None = None
_copy: tuple[str, Copy] | None = None


def run_here(folder: str, do: Do, given: tuple[Any, ...], listing: Listing | None = None) -> Answer:
    """Have the worker process of this process of Ray do something; it is kept for the next task of the same run.

    Args:
        folder: the run.
        do: what to do.
        given: with what.
        listing: the files of the run, for a node that does not see its folder.

    Returns:
        What `do` returned or raised; `NotSeenError` where the run folder is not there, and no files of it are given.
    """
    try:
        if _sees(Path(folder)):
            return Answer(_worker_of(folder).run(do, *given))
        if listing is None:
            return Answer(error=NotSeenError())
        copy = _copy_of(folder)
        copy.update(listing, ray_cluster.fetch)
        return Answer(_worker_of(str(copy.path)).run(do, *given), made=copy.made())
    except Exception as error:  # noqa: BLE001  (raised again where the audit goes on)
        return Answer(error=error)


def _sees(folder: Path) -> bool:
    # A glance at the folder first: a network file system tells of new files once it is read.
    return folder.is_dir() and "scenario.yaml" in os.listdir(folder)


def _copy_of(folder: str) -> Copy:
    global _copy
    if _copy is None or _copy[0] != folder:
        if _copy is not None:
            _copy[1].remove()
        _copy = folder, Copy(Path(folder).name)
    return _copy[1]


def _worker_of(folder: str) -> WorkerProcess:
    global _worker
    # A worker sees the GPUs that its process of Ray had been given when it was started.
    key = folder, os.environ.get("CUDA_VISIBLE_DEVICES")
    if _worker is not None and _worker[0] == key:
        return _worker[1]
    _end_worker()
    _worker = key, WorkerProcess(multiprocessing.get_context("spawn"), Path(folder), None)
    return _worker[1]


def _end_worker() -> None:
    global _worker
    if _worker is not None:
        _worker[1].end()
    _worker = None


# Python would wait at its end for a worker that nobody has told to leave.
atexit.register(_end_worker)
