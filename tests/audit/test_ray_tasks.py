import pickle
from concurrent.futures import Future
from pathlib import Path

import duties
import pytest

from fedsim import ray_cluster
from fedsim.audit import carried, ray_tasks
from fedsim.audit.ray_tasks import TRIES, RayTasks, Runner, run_here
from fedsim.audit.worker_process import WorkerDiedError
from fedsim.audit.workers import Executor
from fedsim.errors import FedsimError, RunFolderError
from fedsim.ray_cluster import KilledError, LostError


class Nodes:
    """A cluster without Ray: it tells of one fate after another, and then runs what it is given in this process."""

    def __init__(self, *fates):
        self.fates, self.asked, self.slots_left, self.ended = list(fates), [], 3, []
        self.put_in = []

    def slots(self):
        if not self.slots_left:
            raise FedsimError("no node has 1 CPU")
        return self.slots_left

    def submit(self, function, given):
        self.asked.append(given)
        future = Future()
        fate = self.fates.pop(0) if self.fates else None
        if fate == "runs":
            return future
        if fate is not None:
            future.set_exception(fate)
        else:
            # As on a node, where all of it travels.
            function, given = pickle.loads(pickle.dumps((function, given)))
            future.set_result(pickle.loads(pickle.dumps(function(*given))))
        return future

    def put(self, content):
        self.put_in.append(content)
        return len(self.put_in) - 1

    def cancel(self):
        self.ended.append("cancelled")

    def close(self):
        self.ended.append("closed")


@pytest.fixture
def folder(tiny_plan, run_folder):
    return run_folder(tiny_plan())


@pytest.fixture
def workers_in_here(monkeypatch):
    """Do in this process what a worker process of a node does."""

    class Here:
        def run(self, do, *given):
            return do(None, *given)

    monkeypatch.setattr(ray_tasks, "_worker_of", lambda folder: Here())


@pytest.mark.usefixtures("workers_in_here")
def test_a_task_returns_or_raises_what_its_worker_does(folder):
    nodes = Nodes()
    assert isinstance(nodes, Runner)
    with RayTasks(nodes, folder.path) as executor:
        assert isinstance(executor, Executor) and executor.room == 6
        assert executor.submit(duties.give_back, 5).result() == 5
        assert isinstance(executor.submit(duties.fail, ZeroDivisionError("no")).exception(), ZeroDivisionError)
    assert nodes.ended == ["closed"] and nodes.asked[0][0] == str(folder.path)


@pytest.mark.usefixtures("workers_in_here")
def test_a_task_that_is_lost_with_its_node_runs_elsewhere(folder):
    nodes = Nodes(*[LostError("NodeDiedError: gone")] * (TRIES - 1))
    with RayTasks(nodes, folder.path) as executor:
        assert executor.submit(duties.give_back, 5).result(60) == 5
    assert len(nodes.asked) == TRIES and len(set(nodes.asked)) == 1


def test_a_task_that_is_lost_too_often_or_killed_for_memory_counts_as_one_that_its_process_dies_of(folder):
    nodes = Nodes(*[LostError("NodeDiedError: gone")] * TRIES, KilledError("no memory"))
    with RayTasks(nodes, folder.path) as executor:
        lost = executor.submit(duties.give_back, 5).exception(60)
        killed = executor.submit(duties.give_back, 5).exception(60)
    assert isinstance(lost, WorkerDiedError) and f"lost with its node {TRIES} times (NodeDiedError: gone)" in str(lost)
    assert isinstance(killed, WorkerDiedError) and str(killed) == "no memory" and len(nodes.asked) == TRIES + 1


def test_where_no_node_is_left_the_audit_ends_with_a_message_and_does_not_wait(folder):
    nodes = Nodes(LostError("NodeDiedError: gone"))
    nodes.slots_left = 0
    with RayTasks(nodes, folder.path) as executor:
        assert isinstance(executor.submit(duties.give_back, 5).exception(60), FedsimError)
        with pytest.raises(FedsimError, match="no node has 1 CPU"):
            _ = executor.room


def test_abandoned_tasks_end_and_nobody_waits_for_them(folder):
    nodes = Nodes("runs")
    with RayTasks(nodes, folder.path) as executor:
        waiting = executor.submit(duties.give_back, 5)
        executor.abandon()
        assert isinstance(waiting.exception(1), WorkerDiedError)
    assert nodes.ended == ["cancelled", "closed"]


# Nodes that do not see the run folder


class Worker:
    """Does in this process what a worker of a node does; it knows the folder that it works in."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def run(self, do, *given):
        return do(self.folder, *given)


def seen_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def make_artifact(folder, name):
    path = folder / "artifacts" / "round-0001" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())
    return seen_files(folder)


def lose(folder, name):
    make_artifact(folder, name)
    raise ZeroDivisionError


@pytest.fixture
def far(monkeypatch, folder):
    """A cluster whose nodes do not see the run folder, and fetch contents from the object store."""
    nodes = Nodes()
    monkeypatch.setattr(ray_tasks, "_sees", lambda path: False)
    monkeypatch.setattr(ray_tasks, "_worker_of", Worker)
    monkeypatch.setattr(ray_cluster, "fetch", lambda reference: nodes.put_in[reference])
    monkeypatch.setattr(ray_tasks, "_copy", None)
    folder.write(folder.path / "captures" / "index.jsonl", "{}\n")
    folder.write(folder.path / "captures" / "round-0001" / "client-000.safetensors", b"update")
    folder.write(folder.path / "report.html", "not for nodes")
    yield nodes
    if ray_tasks._copy is not None:
        ray_tasks._copy[1].remove()


def test_a_node_that_does_not_see_the_run_folder_is_sent_it_and_what_it_makes_returns(far, folder):
    update = folder.path / "captures" / "round-0001" / "client-000.safetensors"
    with RayTasks(far, folder.path) as executor:
        seen = executor.submit(make_artifact, "a.safetensors").result(60)
        assert "report.html" not in seen and {"scenario.yaml", "captures/round-0001/client-000.safetensors"} <= seen
        assert (folder.path / "artifacts" / "round-0001" / "a.safetensors").read_bytes() == b"a.safetensors"
        stored = len(far.put_in)
        # Each content is put into the store once, and a removed update leaves the copy.
        update.unlink()
        folder.write(folder.path / "captures" / "round-0002" / "global.safetensors", b"weights")
        seen = executor.submit(make_artifact, "b.png").result(60)
        assert "captures/round-0001/client-000.safetensors" not in seen and len(far.put_in) == stored + 2
    assert (folder.path / "artifacts" / "round-0001" / "b.png").read_bytes() == b"b.png"
    # The first task was asked twice: once without the files, which a node that sees the folder does not need.
    assert [given[3] is None for given in far.asked] == [True, False, False]


def test_what_a_task_raises_on_such_a_node_is_raised_here(far, folder):
    with RayTasks(far, folder.path) as executor:
        assert isinstance(executor.submit(lose, "a.png").exception(60), ZeroDivisionError)


def test_a_node_writes_nothing_but_artifacts(far, folder, monkeypatch):
    for name in ("scenario.yaml", "artifacts/../scenario.yaml", "../out", "/out"):
        monkeypatch.setattr(carried.Copy, "made", lambda self, name=name: {name: b"evil"})
        with RayTasks(far, folder.path) as executor:
            error = executor.submit(seen_files).exception(60)
        assert isinstance(error, RunFolderError), name
    assert (folder.path / "scenario.yaml").read_bytes() != b"evil" and not (folder.path.parent / "out").exists()


def test_copies_of_processes_that_were_killed_are_removed_and_those_in_use_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "fedsim-node-left" / "run").mkdir(parents=True)
    used = carried.Copy("run")
    other = carried.Copy("run")
    assert {place.name for place in tmp_path.iterdir()} == {used.path.parent.name, other.path.parent.name}
    used.remove()
    other.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_node_keeps_the_worker_of_a_run_and_ends_it_for_another(tiny_plan, run_folder, quick_workers):
    first, second = (run_folder(tiny_plan(), name) for name in ("first", "second"))
    try:
        told = [run_here(str(one.path), duties.tell_process, ()).result for one in (first, first, second)]
        assert told[0] == told[1] != told[2]
    finally:
        ray_tasks._end_worker()
