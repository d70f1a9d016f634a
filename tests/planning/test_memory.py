"""What is worked out once for a plan: not again while it lives, and nothing of it stays after."""

import gc
import weakref

import pytest

from fedsim.audit import coverage, noise
from fedsim.planning import preparation as planning
from fedsim.planning.memory import per_plan


@pytest.fixture
def counted():
    calls = []

    @per_plan(most=2)
    def work(plan, number, *, factor=1):
        calls.append((plan.scenario.seed, number, factor))
        return [number * factor]

    return work, calls


def test_a_result_is_worked_out_once_for_each_plan_and_argument(tiny_plan, counted):
    (work, calls), one, other = counted, tiny_plan(), tiny_plan(seed=7)
    assert work(one, 1) is work(one, 1)
    assert work(one, 1, factor=2) == [2] and work(other, 1) == [1] and work(one, 1) == [1]
    assert calls == [(one.scenario.seed, 1, 1), (one.scenario.seed, 1, 2), (7, 1, 1)]


def test_of_each_plan_the_latest_results_are_kept(tiny_plan, counted):
    (work, calls), plan = counted, tiny_plan()
    for number in (1, 2, 1, 3, 1, 2):
        work(plan, number)
    assert [number for _, number, _ in calls] == [1, 2, 3, 2]


def test_results_are_kept_up_to_their_size_and_the_latest_always(tiny_plan):
    calls = []

    @per_plan(most=5, size=len)
    def work(plan, count):
        calls.append(count)
        return "x" * count

    plan = tiny_plan()
    for count in (2, 3, 2, 3, 1, 2, 9, 9, 3):
        work(plan, count)
    assert calls == [2, 3, 1, 2, 9, 3]


def test_what_raises_is_tried_again(tiny_plan):
    answers = iter([ValueError("not yet"), 5])

    @per_plan(most=2)
    def work(plan):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    plan = tiny_plan()
    with pytest.raises(ValueError, match="not yet"):
        work(plan)
    assert (work(plan), work(plan)) == (5, 5)


def test_a_plan_whose_defenses_were_tried_for_noise_is_not_kept_alive(tiny_scenario):
    plan = planning.make(tiny_scenario(defenses=[{"name": "quantization"}]))
    assert not noise.adds_noise(plan, plan.defenses[0], 0, 1)
    assert not coverage._adds_noise(plan, 0)
    kept = weakref.ref(plan)
    del plan
    gc.collect()
    assert kept() is None
