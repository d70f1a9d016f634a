"""What several test files share: a tiny scenario, and plug-ins that exist for tests alone.

Imports of fedsim and torch stand inside of functions: the process that hands tests out to workers needs neither, and workers
start only once it has read this file.
"""

from __future__ import annotations

import functools
import gc
import inspect
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import type_checks
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from fedsim.planning.plan import Plan
    from fedsim.recording.run_folder import RunFolder
    from fedsim.scenario import Scenario

# A loaded machine must not fail a test, nor must luck: `--hypothesis-profile explore` draws other examples each time.
settings.register_profile("fedsim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fedsim")

type_checks.install()

# No test needs an accelerator; beside one, processes for attacks start from nothing, without what a test has patched.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

STUBS = Path(__file__).parent / "stubs"
TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "engine": "inline",
    "data": {"name": "shapes", "samples": 48, "test_samples": 8, "auxiliary_samples": 8},
    "model": {"name": "vit_nano", "kwargs": {"depth": 1}},
    "federation": {"clients": 3, "rounds": 2},
    "attacks": [{"name": "stubs:Guess"}],
    "audit": {"processes": 0, "calibrate": "none"},
}


def pytest_configure(config: pytest.Config) -> None:
    """Compute on one thread where tests run, as clients and attacks do: the order of a float sum depends on it."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Spare the garbage collector a million objects that live until the end: modules, functions and tests."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """Check types anew in each test."""
    type_checks.begin_test()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what attacks train for themselves out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def without_waiting_for_the_disk() -> Iterator[None]:
    """Let the system write files when it likes: no test cuts the power, and each write would wait for milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render no report: it is made from the folder alone, has tests of its own, and takes longer than all the rest."""
    monkeypatch.setattr("fedsim.report.render", lambda path: path / "report.html")


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let audits of this test run each attack in a process of its own, as in the product."""
    monkeypatch.setattr("audits.is_isolated", True)


@pytest.fixture(scope="session")
def drawings() -> dict[tuple[str, str], bytes]:
    """Return the plots that have been drawn, by what they were drawn of."""
    return {}


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch, drawings: dict[tuple[str, str], bytes]) -> None:
    """Draw plots of the same records once in all tests, which takes longer than the rest of their reports."""
    from fedsim.report import plots
    from fedsim.report.naming import Naming

    def once(name: str, draw: Callable[..., bytes]) -> Callable[..., bytes]:
        @functools.wraps(draw)
        def drawn(*arguments: object) -> bytes:
            # What names stand for is told by their records, and not by where they lie in memory.
            told = [argument.records if isinstance(argument, Naming) else argument for argument in arguments]
            key = name, repr((plots.MOST_LINES, *told))
            if not drawings.get(key):
                drawings[key] = draw(*arguments)
            return drawings[key]

        return drawn

    for name, draw in inspect.getmembers(plots, inspect.isfunction):
        if draw.__module__ == plots.__name__ and not name.startswith("_"):
            monkeypatch.setattr(plots, name, once(name, draw))


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the audit's workers start in the environment of now without importing everything anew, which takes seconds."""
    from processes import ServedContext, start_worker

    start = functools.partial(start_worker, dict(os.environ))
    monkeypatch.setattr("fedsim.audit.worker_process.start_worker", start)
    contexts = {"spawn": ServedContext(), "fork": multiprocessing.get_context("fork")}
    monkeypatch.setattr("multiprocessing.get_context", contexts.__getitem__)


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `stubs` importable, here and in worker processes."""
    monkeypatch.syspath_prepend(STUBS)
    monkeypatch.setenv("PYTHONPATH", str(STUBS), prepend=os.pathsep)


@pytest.fixture
def tiny_scenario(stubs: None) -> Callable[..., Scenario]:
    """Return a function: parts of a scenario -> the tiny scenario with these parts merged in."""

    from fedsim.scenario import parse

    def make(**parts: Any) -> Scenario:
        content = dict(TINY)
        for name, part in parts.items():
            content[name] = {**TINY.get(name, {}), **part} if isinstance(part, dict) else part
        return parse(content, "tiny")

    return make


class Outcome(NamedTuple):
    """What came of a command: its exit code, what it wrote to standard error, and both outputs together."""

    code: int
    message: str
    output: str


@pytest.fixture
def fedsim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stubs: None) -> Callable[..., Outcome]:
    """Return a function: command-line arguments -> what came of them, in this process."""

    from fedsim.cli import main

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr("sys.argv", ["fedsim", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        output, message = capsys.readouterr()
        return Outcome(code, message, output + message)

    return run


@pytest.fixture
def tiny_plan(tiny_scenario: Callable[..., Scenario]) -> Callable[..., Plan]:
    """Return a function: parts of a scenario -> its plan, the very one that an inline client uses."""
    from fedsim.planning import preparation as planning

    return lambda **parts: planning.of(tiny_scenario(**parts))


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., RunFolder]:
    """Return a function: plan, name -> a new run folder."""
    from fedsim.recording.run_folder import RunFolder

    return lambda plan, name="run": RunFolder.create(tmp_path / name, plan.scenario)
