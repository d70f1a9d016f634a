"""Processes that start from nothing, as far as they can tell: copies of a server that has imported fedsim once."""

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerProcess, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fedsim.audit import worker_process
from fedsim.cli import main

_PRELOADED = ["__main__", "processes", "fedsim.simulation", "fedsim.report"]


class ServedContext(SpawnContext):
    """Makes processes as `spawn` does, but for that they share their imports; none has the type checks of the tests."""

    Process = ForkServerProcess

    def __init__(self) -> None:
        multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)


def command(*arguments: str | Path, log: str | Path = os.devnull) -> BaseProcess:
    """Start the command line, with both outputs in a file."""
    process = ServedContext().Process(target=_command, args=(dict(os.environ), [*map(str, arguments)], log))
    process.start()
    return process


def module(*arguments: str | Path, path: Path, cwd: Path) -> str:
    """Run a module as `python -m` does, with a folder first on its path, and return what it printed; fails where that fails."""
    with tempfile.NamedTemporaryFile("r") as log:
        given = dict(os.environ), [*map(str, arguments)], str(path), cwd, log.name
        process = ServedContext().Process(target=_module, args=given)
        process.start()
        process.join()
        printed = log.read()
    assert process.exitcode == 0, printed
    return printed


def elsewhere(code: str, **given: object) -> object:
    """Run code in another process, whose hashes of text are others; returns what it calls `found`."""
    with ProcessPoolExecutor(1, mp_context=ServedContext()) as pool:
        return pool.submit(_found, code, given).result()


def is_running(process: int) -> bool:
    """Return whether a process of this number runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what another process does; fails where that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.01)


def start_worker(environment: Mapping[str, str], *arguments: Any) -> None:
    """Prepare a worker of an audit in the environment of the process that asks for it, which the server may not have."""
    _take(environment)
    worker_process.start_worker(*arguments)


def _command(environment: Mapping[str, str], arguments: list[str], log: str | Path) -> None:
    _take(environment)
    _print_to(log)
    sys.argv = ["fedsim", *arguments]
    main()


def _module(environment: Mapping[str, str], arguments: list[str], path: str, cwd: Path, log: str) -> None:
    _take(environment)
    _print_to(log)
    os.chdir(cwd)
    sys.path.insert(0, path)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _print_to(log: str | Path) -> None:
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _found(code: str, given: dict[str, object]) -> object:
    exec(code, given)
    return given["found"]


def _take(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
