"""Where the cells of a sweep run: processes of this machine, or Ray tasks, each of which starts such a process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import fedsim
from fedsim import process_tree, ray_cluster
from fedsim.sweeping.manifest import SweepFolder

Name = Literal["local", "ray"]

# Parallel cells share the processors, and the order of a float sum depends on the number of threads.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PAUSE = 0.1
_KILLED = 10.0  # seconds that a killed process may take


@runtime_checkable
class Task(Protocol):
    """A cell under way."""

    def ended(self) -> str | None:
        """Return in words how it ended, should it have left no outcome; None while it goes on."""

    def end(self) -> None:
        """End it with all that it has started, at once."""


@runtime_checkable
class Launcher(Protocol):
    """Starts cells."""

    def start(self, sweep: SweepFolder, folder: str) -> Task:
        """Start a cell by the name of its run folder."""

    def close(self) -> None:
        """Give back what it holds, once all cells have ended."""


class LocalTask:
    """A cell in a process of this machine, which leads a session of its own and ends with this one.

    Args:
        sweep: the folder of the sweep.
        folder: the name of the cell's run folder.
    """

    def __init__(self, sweep: SweepFolder, folder: str) -> None:
        with sweep.log(folder).open("ab") as log:
            self._process = subprocess.Popen(
                # The working directory comes last on the path, as it does for `fedsim`.
                [sys.executable, "-P", "-m", "fedsim.sweeping.cell", str(sweep.path.absolute()), folder],
                # A pipe that nobody writes to: it ends with this process, however that ends.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
        self._leader = process_tree.leader(self._process.pid)

    def ended(self) -> str | None:
        """Return in words how it ended; None while it goes on."""
        code = self._process.poll()
        if code is None:
            return None
        self._close()
        return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"

    def end(self) -> None:
        """End it with all that it has started, at once."""
        process_tree.end_session(self._leader)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILLED)
        self._close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def _environment() -> dict[str, str]:
    """Return the environment of a cell: few threads, and this very fedsim where it is not installed."""
    package = str(Path(fedsim.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), package]))
    return {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": path}


class LocalLauncher:
    """Starts cells as processes of this machine."""

    def start(self, sweep: SweepFolder, folder: str) -> LocalTask:
        """Start a cell."""
        return LocalTask(sweep, folder)

    def close(self) -> None:
        """Hold nothing."""


def run_to_end(path: str, folder: str) -> str:
    """Run a cell in a process of this machine to its end, and return in words how that ended."""
    task = LocalTask(SweepFolder(Path(path)), folder)
    try:
        while (said := task.ended()) is None:
            time.sleep(_PAUSE)
        return said
    finally:
        task.end()


class _RayTask:
    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def ended(self) -> str | None:
        import ray
        from ray.exceptions import RayError

        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return str(ray.get(self._reference))
        except RayError as error:
            return f"its Ray task failed: {' '.join(str(error).split())}"

    def end(self) -> None:
        import ray

        # The worker dies, and with it the pipe that the cell's process lives on.
        ray.cancel(self._reference, force=True)


class RayLauncher:
    """Starts cells as Ray tasks of one processor each: on this machine, or on the cluster that RAY_ADDRESS names.

    The folder of the sweep must have the same path on all machines of the cluster.

    Args:
        jobs: processors to use on this machine.

    Raises:
        FedsimError: nothing answers at RAY_ADDRESS.
    """

    def __init__(self, jobs: int) -> None:
        ray_cluster.require("--launcher ray", "--launcher local")
        import ray

        ray_cluster.connect(jobs)
        self._run: Any = ray.remote(num_cpus=1, max_retries=0)(run_to_end)

    def start(self, sweep: SweepFolder, folder: str) -> _RayTask:
        """Start a cell."""
        return _RayTask(self._run.remote(str(sweep.path.absolute()), folder))

    def close(self) -> None:
        """Leave Ray."""
        import ray

        ray.shutdown()


LAUNCHERS: dict[str, Callable[[int], Launcher]] = {"local": lambda jobs: LocalLauncher(), "ray": RayLauncher}
"""Name -> a function: how many cells at once -> the launcher."""


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
