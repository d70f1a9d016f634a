import multiprocessing
import os
import pickle

import pytest

from fedsim.audit import workers
from fedsim.audit.assessment import Task
from fedsim.audit.workers import StepPipe
from fedsim.exchange import View
from fedsim.progress import Step

CONTEXT = multiprocessing.get_context("spawn")


def test_steps_arrive_in_their_order_and_all_of_them_before_the_pipe_is_closed() -> None:
    sent = [(Task(View.of_update(1, done % 3), 0), Step(done, 50, None, None)) for done in range(50)]
    told: list[tuple[Task, Step]] = []
    with StepPipe(CONTEXT, lambda task, step: told.append((task, step))) as pipe:
        for task, step in sent:
            workers._send(pipe.sender, task, step)
    assert told == sent


def test_a_pipe_that_nobody_empties_loses_steps_and_never_waits() -> None:
    receiver, sender = CONTEXT.Pipe(duplex=False)
    os.set_blocking(sender.fileno(), False)
    for done in range(10_000):
        workers._send(sender, Task(View.of_update(1, 0), 0), Step(done, 10_000, 0.5, 1.0))
    arrived = []
    while receiver.poll():
        arrived.append(pickle.loads(receiver.recv_bytes())[1].done)
    assert 0 < len(arrived) < 10_000
    assert arrived == list(range(len(arrived))), "the rest is lost, and none of it in part"


def test_a_step_too_long_to_be_sent_in_one_piece_is_lost() -> None:
    receiver, sender = CONTEXT.Pipe(duplex=False)
    workers._send(sender, Task(View.of_update(1, 0), 0), Step(10**20_000, 1, None, None))
    assert not receiver.poll()


def test_a_parent_that_is_gone_is_no_matter_to_a_worker() -> None:
    receiver, sender = CONTEXT.Pipe(duplex=False)
    receiver.close()
    workers._send(sender, Task(View.of_update(1, 0), 0), Step(1, 2, None, None))


def test_an_error_inside_still_closes_the_pipe() -> None:
    with pytest.raises(RuntimeError), StepPipe(CONTEXT, lambda task, step: None) as pipe:
        raise RuntimeError
    assert pipe.sender.closed
