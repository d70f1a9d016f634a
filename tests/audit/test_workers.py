import functools
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import duties
import pytest
from processes import is_running, wait_until

from fedsim import process_tree
from fedsim.audit import attack_process, worker_process
from fedsim.audit.assessment import Task
from fedsim.audit.attack_process import AttackDiedError, AttackProcess
from fedsim.audit.worker_process import WorkerDiedError
from fedsim.audit.workers import Executor, InThisProcess, Workers
from fedsim.errors import FedsimError
from fedsim.exchange import View
from fedsim.progress import Step
from fedsim.recording.run_folder import RunFolder

TASK = Task(View.of_update(1, 0), 0)


@pytest.fixture
def folder(tiny_plan, run_folder, quick_workers) -> RunFolder:
    return run_folder(tiny_plan())


@pytest.mark.slow
def test_steps_arrive_in_their_order_and_all_of_them_before_the_answer(folder):
    told: list[tuple[Task, Step]] = []
    with Workers(1, folder.path, lambda task, step: told.append((task, step))) as workers:
        assert workers.submit(duties.walk, TASK, 500).result() == "watched"
        assert told == [(TASK, Step(done, 500, None, None)) for done in range(500)]


@pytest.mark.slow
def test_no_step_is_sent_where_nobody_watches(folder):
    with Workers(1, folder.path) as workers:
        assert workers.submit(duties.walk, TASK, 3).result() == "alone"


@pytest.mark.slow
def test_a_task_fails_alone_and_a_worker_that_died_of_one_is_replaced(folder):
    with Workers(1, folder.path) as workers:
        first = workers.submit(duties.tell_process).result()
        for error in (ValueError("no"), SystemExit(3), KeyboardInterrupt()):
            raised = workers.submit(duties.fail, error).exception()
            assert type(raised) is type(error) and raised.args == error.args
            assert "in fail" in raised.__notes__[0], "where it was raised"
        assert isinstance(workers.submit(duties.give_a_lock).exception(), TypeError)
        assert workers.submit(duties.tell_process).result() == first != os.getpid()
        dies, after = workers.submit(duties.die), workers.submit(duties.tell_process)
        assert isinstance(dies.exception(), WorkerDiedError)
        assert after.result() not in (first, os.getpid()) and not is_running(first)
    assert not is_running(after.result())


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_a_message_neither_blocks_nor_spoils_others(folder, monkeypatch):
    torn_worker = functools.partial(duties.start_torn_worker, dict(os.environ))
    monkeypatch.setattr("fedsim.audit.worker_process.start_worker", torn_worker)
    values = [duties.TORN if place % 3 == 1 else place for place in range(9)]
    with Workers(2, folder.path) as workers:
        futures = [workers.submit(duties.give_back, value) for value in values]
        for value, future in zip(values, futures, strict=True):
            if value == duties.TORN:
                assert isinstance(future.exception(), WorkerDiedError)
            else:
                assert future.result() == value


@pytest.mark.slow
def test_a_listener_that_fails_fails_the_task_that_told_it(folder):
    def fails(task: Task, step: Step) -> None:
        raise ZeroDivisionError

    with Workers(1, folder.path, fails) as workers:
        failed, after = workers.submit(duties.walk, TASK, 3), workers.submit(duties.give_back, "well")
        assert isinstance(failed.exception(), ZeroDivisionError) and after.result() == "well"


@pytest.mark.slow
def test_abandoned_workers_end_at_once_with_their_attacks_and_what_these_started(folder, tmp_path):
    note, begun = tmp_path / "note", threading.Event()
    with Workers(1, folder.path, lambda task, step: begun.set()) as workers:
        waiting = workers.submit(duties.wait_in_an_attack, TASK, str(note))
        never = workers.submit(duties.give_back, 1)
        begun.wait()
        workers.abandon()
        assert isinstance(waiting.exception(), WorkerDiedError) and never.cancelled()
    wait_until(lambda: not any(is_running(int(process)) for process in note.read_text().split()))


@pytest.mark.slow
@pytest.mark.skipif(not process_tree.tells_memory(), reason="this system lists no processes")
def test_what_the_attack_of_a_killed_worker_has_started_ends_with_it(folder, tmp_path):
    note, begun = tmp_path / "note", threading.Event()
    with Workers(1, folder.path, lambda task, step: begun.set()) as workers:
        worker = workers.submit(duties.tell_process).result()
        waiting = workers.submit(duties.leave_in_an_attack, TASK, str(note))
        assert begun.wait(60)
        left = [int(process) for process in note.read_text().split()]
        assert len(left) == 3 and all(map(is_running, left))
        os.kill(worker, signal.SIGKILL)
        assert isinstance(waiting.exception(), WorkerDiedError)
        wait_until(lambda: not any(map(is_running, left)))
        assert workers.submit(duties.give_back, "well").result() == "well"


def test_who_listens_hears_of_each_process_for_attacks_when_it_begins_and_when_it_has_ended(folder, tiny_plan):
    heard = []
    attacks = AttackProcess(tiny_plan(), folder, report=heard.append)
    for _ in range(2):
        attacks.call(duties.find_nothing, is_own=False)
    first, second = heard[::2]
    assert heard[1::2] == [None, None] and first.number != second.number and first.number != os.getpid()


@pytest.fixture
def hung_worker(tmp_path, quick_workers, monkeypatch) -> Path:
    """Let workers hang as they start; return where one of them writes its number."""
    note = tmp_path / "hung"
    monkeypatch.setattr(worker_process, "start_worker", functools.partial(duties.start_hung_worker, str(note)))
    return note


@pytest.mark.slow
def test_a_worker_that_hangs_as_it_starts_is_killed_and_ends_the_audit_with_a_message(folder, hung_worker, monkeypatch):
    with Workers(1, folder.path) as workers:
        started = workers.submit(duties.give_back, 1)
        wait_until(hung_worker.exists)
        workers.abandon()
        assert isinstance(started.exception(), WorkerDiedError), "nobody waits for one that is wanted no more"
    assert not is_running(int(hung_worker.read_text()))
    monkeypatch.setattr(attack_process, "START_LIMIT", 0.5)
    with Workers(1, folder.path) as workers:
        error = workers.submit(duties.give_back, 1).exception()
    assert isinstance(error, FedsimError) and "did not start within 0.5 s" in str(error)


@pytest.mark.slow
def test_a_worker_that_does_not_exit_is_killed(folder, monkeypatch):
    monkeypatch.setattr(worker_process, "_LEAVE", 0.1)
    with Workers(1, folder.path) as workers:
        worker = workers.submit(duties.tell_process).result()
        os.kill(worker, signal.SIGSTOP)
    assert not is_running(worker)


def test_a_process_for_attacks_that_hangs_as_it_starts_is_killed(folder, tiny_plan, monkeypatch):
    heard = []
    monkeypatch.setattr(attack_process, "_serve", duties.hang)
    monkeypatch.setattr(attack_process, "START_LIMIT", 0.2)
    with pytest.raises(AttackDiedError, match=r"did not start within 0\.2 s"):
        AttackProcess(tiny_plan(), folder, report=heard.append).call(duties.find_nothing, is_own=False)
    assert heard[-1] is None and not is_running(heard[0].number)


def test_workers_that_had_nothing_to_do_never_start(folder):
    with Workers(2, folder.path):
        pass


def test_in_this_process_tasks_run_where_they_are_submitted(folder, tiny_plan):
    with InThisProcess(tiny_plan(), folder) as executor:
        assert executor.submit(duties.tell_process).result() == os.getpid()
        assert isinstance(executor.submit(duties.fail, ValueError("no")).exception(), ValueError)


def test_both_places_are_executors(folder, tiny_plan):
    assert isinstance(Workers(1, folder.path), Executor) and isinstance(InThisProcess(tiny_plan(), folder), Executor)


def test_a_copy_for_attacks_lets_go_of_the_pipes_of_its_maker(folder, tiny_plan):
    class Heard(Exception):
        pass

    receiver, sender = multiprocessing.Pipe(duplex=False)

    def listen(step: Step) -> None:
        sender.close()
        # Would wait for the copy, if that had the other end.
        with pytest.raises(EOFError):
            receiver.recv()
        raise Heard

    attacks = AttackProcess(tiny_plan(), folder, private=(sender,))
    with pytest.raises(Heard):
        attacks.call(duties.step_and_wait, is_own=False, tell=listen)
