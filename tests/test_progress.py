import threading
from collections.abc import Callable

import pytest

from fedsim.progress import Step, advance, listening


def clock(*times: float) -> Callable[[], float]:
    left = list(times)
    return lambda: left.pop(0)


def heard(*calls: tuple[int, int], interval: float = 0.5, times: tuple[float, ...]) -> list[Step]:
    told: list[Step] = []
    with listening(told.append, interval, clock(*times)):
        for done, total in calls:
            advance(done, total)
    return told


def test_without_a_listener_nothing_happens() -> None:
    advance(1, 2, 0.5)


def test_a_listener_hears_what_is_told_inside_and_nothing_after() -> None:
    told: list[Step] = []
    with listening(told.append, interval=0.0):
        advance(1, 2, 0.5)
        advance(2, 2)
    advance(3, 3)
    assert [step[:3] for step in told] == [(1, 2, 0.5), (2, 2, None)]


def test_steps_that_follow_too_soon_are_left_out() -> None:
    calls = [(done, 9) for done in range(1, 7)]
    told = heard(*calls, times=(0.0, 0.1, 0.49, 0.5, 0.9, 1.0))
    assert [step.done for step in told] == [1, 4, 6]


def test_the_time_left_is_that_of_the_pace_since_the_first_step() -> None:
    told = heard((10, 100), (40, 100), (100, 100), (100, 90), times=(5.0, 11.0, 23.0, 24.0))
    assert [step.seconds_left for step in told] == [None, 6.0 * 60 / 30, 0.0, 0.0]


def test_without_a_pace_no_time_is_left() -> None:
    told = heard((50, 100), (50, 100), (0, 100), times=(0.0, 1.0, 2.0))
    assert [step.seconds_left for step in told] == [None, None, None]


def test_an_inner_listener_takes_the_place_of_the_outer_one() -> None:
    outer, inner = list[Step](), list[Step]()
    with listening(outer.append, interval=0.0):
        with listening(inner.append, interval=0.0):
            advance(1, 3)
        advance(2, 3)
    assert [step.done for step in inner] == [1]
    assert [step.done for step in outer] == [2]


def test_a_listener_is_not_heard_of_in_other_threads() -> None:
    told: list[Step] = []
    with listening(told.append, interval=0.0):
        other = threading.Thread(target=advance, args=(1, 2))
        other.start()
        other.join()
    assert told == []


def test_a_sink_that_raises_leaves_the_attack_alone_and_is_told_at_the_end() -> None:
    calls, done = list[Step](), list[int]()

    def sink(step: Step) -> None:
        calls.append(step)
        raise OSError("no terminal")

    with pytest.raises(OSError, match="no terminal"), listening(sink, interval=0.0):
        for step in range(3):
            advance(step, 3)
            done.append(step)
    assert done == [0, 1, 2]
    assert len(calls) == 1


def test_the_error_of_an_attack_goes_before_that_of_a_sink() -> None:
    def sink(step: Step) -> None:
        raise OSError("no terminal")

    with pytest.raises(RuntimeError, match="out of luck"), listening(sink, interval=0.0):
        advance(1, 3)
        raise RuntimeError("out of luck")
