"""Parts of a scenario that compute something: the schedule of the learning rate, against torch's own schedulers."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import ScenarioError
from fedsim.planning.inputs import run_id
from fedsim.scenario import SchedulePart, parse


def rates(scheduler, rounds):
    """Return the learning rates that a scheduler of torch gives to an optimizer of rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made, found = scheduler(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimizer is taken
        for _ in range(rounds):
            found.append(optimizer.param_groups[0]["lr"])
            made.step()
    return found


@given(
    name=st.sampled_from(["constant", "cosine", "linear", "step"]),
    rounds=st.integers(1, 40),
    warmup=st.integers(0, 8),
    final=st.floats(0, 0.9),
    every=st.integers(1, 9),
    factor=st.floats(0.3, 0.9),
)
def test_a_schedule_is_that_of_torch_behind_a_warm_up(name, rounds, warmup, final, every, factor):
    lr = torch.optim.lr_scheduler
    decays = {
        "constant": ({}, lambda o: lr.ConstantLR(o, 1.0)),
        "cosine": ({"final": final}, lambda o: lr.CosineAnnealingLR(o, rounds, final)),
        "linear": ({"final": final}, lambda o: lr.LinearLR(o, 1.0, final, rounds)),
        "step": ({"every": every, "factor": factor}, lambda o: lr.StepLR(o, every, factor)),
    }
    own, decay = decays[name]
    schedule = SchedulePart(name=name, warmup_rounds=warmup, **own)
    first = rates(lambda o: lr.LinearLR(o, 1 / (warmup + 1), 1.0, warmup), warmup) if warmup else []
    expected = [*first, *rates(decay, rounds)]
    found = [schedule.share(round, warmup + rounds) for round in range(1, warmup + rounds + 1)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12) and min(found) > 0


def test_without_a_schedule_the_rate_is_the_stated_one_exactly_and_a_name_alone_is_a_schedule():
    plain = parse({"training": {"learning_rate": 0.1}}, "test")
    assert [plain.learning_rate(round) for round in (1, 2, 3)] == [0.1] * 3
    stated = parse({"training": {"learning_rate": 0.1, "schedule": "constant"}}, "test")
    assert stated.resolved() == plain.resolved() == parse(plain.resolved(), "again").resolved()
    assert run_id(stated) == run_id(plain)
    cosine = parse({"federation": {"rounds": 4}, "training": {"learning_rate": 0.1, "schedule": "cosine"}}, "test")
    assert cosine.training.schedule == SchedulePart(name="cosine")
    assert run_id(cosine) != run_id(plain)
    assert cosine.learning_rate(3) == pytest.approx(0.05)
    assert parse(cosine.resolved(), "again").resolved() == cosine.resolved()


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("cosin", "training.schedule"),
        ({"name": "step"}, "training.schedule: schedule 'step' needs every, the rounds between two steps."),
        ({"name": "cosine", "every": 2}, "training.schedule: every does not belong to schedule 'cosine'."),
        ({"final": 0.1}, "training.schedule: final does not belong to schedule 'constant'."),
        ({"name": "linear", "final": 1}, "training.schedule.final: expected a number below 1, got 1."),
        ({"name": "step", "every": 0}, "training.schedule.every: expected at least 1, got 0."),
        ({"name": "step", "every": 1, "factor": 0}, "training.schedule.factor: expected a number above 0, got 0."),
        ({"name": "linear", "warm_up": 1}, "training.schedule.warm_up: unknown key. Did you mean 'warmup_rounds'?"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(schedule, says):
    with pytest.raises(ScenarioError) as caught:
        parse({"training": {"schedule": schedule}}, "test")
    assert str(caught.value).startswith(says), str(caught.value)
