"""Cells as Ray tasks, on a stand-in for Ray: Ray itself takes half a minute to start."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedsim import ray_cluster
from fedsim.errors import FedsimError
from fedsim.sweeping import launchers
from fedsim.sweeping.launchers import LAUNCHERS, run_to_end
from fedsim.sweeping.manifest import SweepFolder


class RayError(Exception):
    """What Ray raises where a task is lost."""


class Ray(ModuleType):
    """Takes tasks, and has each end as its test says: in words, in an error, or not at all."""

    def __init__(self):
        super().__init__("ray")
        self.exceptions = ModuleType("ray.exceptions")
        self.exceptions.RayError = RayError
        self.options, self.given, self.results, self.cancelled, self.is_up = {}, [], {}, [], True

    def remote(self, **options):
        self.options = options
        return self._decorated

    def _decorated(self, function):
        assert function is run_to_end
        task = ModuleType("task")
        task.remote = lambda *given: self.given.append(given) or len(self.given)
        return task

    def wait(self, references, timeout):
        assert timeout == 0, "a look never waits"
        ready = [reference for reference in references if reference in self.results]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference):
        if isinstance(self.results[reference], Exception):
            raise self.results[reference]
        return self.results[reference]

    def cancel(self, reference, force):
        self.cancelled.append((reference, force))

    def shutdown(self):
        self.is_up = False


@pytest.fixture
def ray(monkeypatch):
    """Return a stand-in for Ray that is installed."""
    made = Ray()
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setitem(sys.modules, "ray.exceptions", made.exceptions)
    monkeypatch.setattr(ray_cluster, "require", lambda where, instead: None)
    monkeypatch.setattr(ray_cluster, "connect", lambda cpus: True)
    return made


def test_each_cell_is_a_ray_task_of_one_processor_that_is_not_run_twice(ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    launcher = LAUNCHERS["ray"](2)
    going, done, lost = [launcher.start(SweepFolder(Path("sweep")), name) for name in ("a", "b", "c")]
    assert ray.options == {"num_cpus": 1, "max_retries": 0}
    assert ray.given == [(str(tmp_path / "sweep"), name) for name in ("a", "b", "c")], "any machine finds the folder"
    ray.results = {2: "its process ended with exit code 1", 3: RayError("the node\n died")}
    assert [task.ended() for task in (going, done, lost)] == [
        None,
        "its process ended with exit code 1",
        "its Ray task failed: the node died",
    ]
    going.end()
    assert ray.cancelled == [(1, True)], "its worker dies, and the cell with it"
    launcher.close()
    assert not ray.is_up


class Cell:
    """A cell that ends at the second look, or is interrupted there."""

    def __init__(self, sweep, folder):
        self.looks, self.name = 0, f"{sweep.path}/{folder}"

    def ended(self):
        self.looks += 1
        if self.looks > 1 and self.name == "sweep/stuck":
            raise KeyboardInterrupt
        return "its process ended with exit code 0" if self.looks > 1 else None

    def end(self):
        self.ended_by.append(self.name)


def test_a_task_runs_its_cell_to_the_end_and_leaves_nothing_of_it(monkeypatch):
    monkeypatch.setattr(launchers, "LocalTask", Cell)
    monkeypatch.setattr(launchers, "_PAUSE", 0.0)
    monkeypatch.setattr(Cell, "ended_by", [], raising=False)
    assert run_to_end("sweep", "cell") == "its process ended with exit code 0"
    with pytest.raises(KeyboardInterrupt):
        run_to_end("sweep", "stuck")
    assert Cell.ended_by == ["sweep/cell", "sweep/stuck"]


def test_without_ray_the_message_names_the_launcher_that_does_without(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FedsimError, match=r"^--launcher ray: Ray is not installed here\..*or use --launcher local\.$"):
        LAUNCHERS["ray"](1)
