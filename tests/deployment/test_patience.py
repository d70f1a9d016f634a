import sys
from datetime import timedelta
from importlib import metadata

import pytest
from flwr.supercore.corestate import in_memory_corestate
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from fedsim.deployment import patience


class Clock:
    """The time of a state, which passes when a test says so."""

    def __init__(self, monkeypatch):
        self.time = in_memory_corestate.now()
        monkeypatch.setattr(in_memory_corestate, "now", lambda: self.time)

    def pass_by(self, seconds):
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def claimed(monkeypatch):
    """Return a function: the state of a node with a task that a process has claimed, its number, token and clock."""

    def claim():
        clock, state = Clock(monkeypatch), InMemoryNodeState(InMemoryObjectStore())
        task = state.create_task("flwr-clientapp", run_id=1)
        token = state.claim_task(task)
        assert token is not None
        return state, task, token, clock

    monkeypatch.setattr(
        in_memory_corestate.InMemoryCoreState, "claim_task", in_memory_corestate.InMemoryCoreState.claim_task
    )
    return claim


def test_a_process_has_time_to_start(claimed):
    state, _, token, clock = claimed()
    clock.pass_by(60)
    assert state.get_task_by_token(token) is None, "with Flower alone it is lost: without that, this module can go"
    patience.give_time()
    state, _, token, clock = claimed()
    clock.pass_by(patience.START - 1)
    assert state.get_task_by_token(token) is not None
    clock.pass_by(2)
    assert state.get_task_by_token(token) is None


def test_a_process_at_work_is_lost_as_soon_as_ever(claimed):
    patience.give_time()
    state, task, token, clock = claimed()
    assert state.activate_task(task)
    clock.pass_by(61)
    assert state.get_task_by_token(token) is None


def test_a_claimed_task_is_claimed_by_nobody_else(claimed):
    patience.give_time()
    state, task, _, _ = claimed()
    assert state.claim_task(task) is None


def test_the_program_is_run_with_its_own_arguments(monkeypatch):
    seen = []

    def program():
        seen.append(list(sys.argv))

    class Point:
        def load(self):
            return program

    monkeypatch.setattr(metadata, "entry_points", lambda group, name: [Point()] if name == "flower-supernode" else [])
    monkeypatch.setattr(patience, "give_time", lambda: seen.append("time"))
    monkeypatch.setattr(sys, "argv", ["patience", "/bin/flower-supernode", "--insecure"])
    patience.main()
    assert seen == ["time", ["/bin/flower-supernode", "--insecure"]]


@pytest.mark.parametrize("given", [[], ["python", "-V"]])
def test_another_program_is_refused_with_those_that_can_be_run(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["patience", *given])
    with pytest.raises(SystemExit, match="one of flower-superlink, flower-supernode"):
        patience.main()
