from concurrent.futures import Future

import duties
import pytest

from fedsim.audit import ray_tasks
from fedsim.audit.ray_tasks import TRIES, RayTasks, Runner, run_here
from fedsim.audit.worker_process import WorkerDiedError
from fedsim.audit.workers import Executor
from fedsim.errors import FedsimError
from fedsim.ray_cluster import KilledError, LostError


class Nodes:
    """A cluster without Ray: it tells of one fate after another, and then runs what it is given in this process."""

    def __init__(self, *fates):
        self.fates, self.asked, self.slots_left, self.ended = list(fates), [], 3, []

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
            future.set_result(function(*given))
        return future

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


def test_a_node_that_does_not_see_the_run_folder_says_so(tmp_path):
    for place in (tmp_path / "gone", tmp_path):
        error = run_here(str(place), duties.give_back, (1,)).error
        assert isinstance(error, FedsimError) and f"has no run folder at {place}" in str(error)


@pytest.mark.slow
def test_a_node_keeps_the_worker_of_a_run_and_ends_it_for_another(tiny_plan, run_folder, quick_workers):
    first, second = (run_folder(tiny_plan(), name) for name in ("first", "second"))
    try:
        told = [run_here(str(one.path), duties.tell_process, ()).result for one in (first, first, second)]
        assert told[0] == told[1] != told[2]
    finally:
        ray_tasks._end_worker()
