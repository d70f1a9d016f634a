import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from descent_cases import objective, one_gradient, pictures, tiny
from fedsim_attacks.matching.attempt import FRAMES
from fedsim_attacks.matching.input_gradients import DoubleBackward, Evaluation, ForwardDifference, InputGradients
from fedsim_attacks.matching.objective import Objective
from fedsim_attacks.matching.optimizers import Adam, Optimizer
from fedsim_attacks.matching.search import Iterates, RunSchedule, search
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.exchange import Images
from fedsim.progress import Step, listening

SHAPE = (1, 1, 1, 1)


@dataclass(frozen=True, eq=False)
class Script(InputGradients):
    """Gradients whose values are written down: step -> one a restart. The images' only pixel counts the steps."""

    lines: tuple[tuple[float, ...], ...] = ()

    def __call__(self, variables: Mapping[str, torch.Tensor], consensus: Images | None, progress: float) -> Evaluation:
        step = int(variables["images"].flatten()[0])
        return Evaluation(torch.tensor(self.lines[step], dtype=torch.float64), dict(variables))

    def one(self, *_: object) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        raise NotImplementedError

    many = one


class Count(Optimizer):
    """Adds one, and remembers the factors."""

    def __init__(self) -> None:
        self.factors: list[float] = []

    def step(self, variables: Mapping[str, torch.Tensor], evaluate: object, factor: float) -> Evaluation:
        self.factors.append(factor)
        found: Evaluation = evaluate(variables)  # type: ignore[operator]
        with torch.no_grad():
            variables["images"].add_(1)
        return found


@functools.cache
def goal() -> Objective:
    return objective(*one_gradient(tiny(), pictures(0)), positions=True)


def run_schedule(
    steps: int, patience: int = 0, grows_at: float = 0.0, schedule: str = "constant", warm_up: float = 0.0
) -> RunSchedule:
    return RunSchedule(steps, schedule, warm_up, patience, grows_at, 0, steps)  # type: ignore[arg-type]


def told(lines: list[tuple[float, ...]], **how: float) -> list[Iterates]:
    variables: dict[str, torch.Tensor] = {"images": torch.nn.Parameter(torch.zeros(len(lines[0]), *SHAPE))}
    laps = run_schedule(len(lines) - 1, **how)  # type: ignore[arg-type]
    return search(Script(goal(), tuple(lines)), variables, Count(), laps, lambda _: None, lambda _: None)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_each_restart_keeps_its_iterate_of_least_objective(lines: list[tuple[float, float]]) -> None:
    for index, iterates in enumerate(told(lines)):
        own = [line[index] for line in lines]
        assert iterates.losses == own
        assert iterates.loss == min(own) == own[iterates.step]
        assert iterates.step == own.index(min(own))
        assert float(iterates.variables["images"]) == iterates.step


@settings(max_examples=30)
@given(
    before=st.lists(st.just(math.nan) | st.just(math.inf) | st.floats(0, 1), min_size=1, max_size=8),
    last=st.floats(0, 1),
)
def test_an_objective_that_is_no_number_is_never_the_best(before: list[float], last: float) -> None:
    (iterates,) = told([(value,) for value in [*before, last]])
    assert iterates.loss == min(value for value in [*before, last] if math.isfinite(value))


def test_a_run_whose_objective_is_never_a_number_keeps_its_start_and_loses_to_every_other() -> None:
    first, second = told([(math.nan, 5.0)] * 4)
    assert first.loss == math.inf > second.loss
    assert first.step == 0 and float(first.variables["images"]) == 0


def test_a_run_ends_after_its_patience_without_progress() -> None:
    lines = [(float(value),) for value in (9, 8, 7, 7, 7, 7, 7, 1)]
    assert len(told(lines, patience=3)[0].losses) == 6
    assert len(told(lines, patience=4)[0].losses) == 7
    assert told(lines, patience=5)[0].loss == 1
    assert told(lines)[0].loss == 1


def test_restarts_wait_for_the_last_of_them_that_makes_progress() -> None:
    lines = [(5.0, float(value)) for value in (9, 8, 7, 6, 5, 5, 5, 5)]
    assert len(told(lines, patience=2)[0].losses) == 7


@pytest.mark.parametrize(("grows_at", "kept"), [(0.0, 1), (0.5, 5), (0.45, 5), (1.0, 8)])
def test_what_came_before_the_objective_grew_a_term_is_forgotten(grows_at: float, kept: int) -> None:
    lines = [(float(value),) for value in (3, 0, 2, 2, 20, 10, 11, 12, 13)]
    assert told(lines, grows_at=grows_at)[0].step == kept


@pytest.mark.parametrize("steps", [0, 1, 5, FRAMES - 1, FRAMES, 100])
def test_frames_of_the_trajectory_are_spread_from_the_start_to_the_end(steps: int) -> None:
    (iterates,) = told([(float(steps - step),) for step in range(steps + 1)])
    shown = [step for step, _ in iterates.frames]
    assert shown[0] == 0 and shown[-1] == steps
    assert len(shown) == min(FRAMES, steps + 1)
    assert all(before < after for before, after in pairwise(shown))
    assert [float(images) for _, images in iterates.frames] == shown
    assert len(iterates.losses) == steps + 1


def test_the_rate_follows_the_schedule_and_the_last_step_does_not_move() -> None:
    variables: dict[str, torch.Tensor] = {"images": torch.nn.Parameter(torch.zeros(1, *SHAPE))}
    optimizer = Count()
    laps = run_schedule(4, schedule="cosine", warm_up=0.5)
    search(Script(goal(), ((1.0,),) * 5), variables, optimizer, laps, lambda _: None, lambda _: None)
    halves = [0.0, 0.5, 1.0, 1.0]
    assert optimizer.factors == pytest.approx([h * (1 + math.cos(math.pi * s / 4)) / 2 for s, h in enumerate(halves)])
    assert float(variables["images"].detach()) == 4


def test_what_is_kept_is_confined_and_the_restarts_agree_on_what_they_are() -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def confine(variables: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            variables["images"].clamp_(max=2)

    def agree(variables: dict[str, torch.Tensor]) -> Images:
        seen.append({name: tensor.detach().clone() for name, tensor in variables.items()})
        return variables["images"].detach().mean(0)

    variables: dict[str, torch.Tensor] = {"images": torch.nn.Parameter(torch.zeros(2, *SHAPE))}
    script = Script(goal(), ((3.0, 3.0), (2.0, 2.0), (1.0, 1.0)))
    runs = search(script, variables, Count(), run_schedule(5), confine, agree)
    assert [float(iterates.variables["images"]) for iterates in runs] == [2, 2]
    assert [float(at["images"].max()) for at in seen] == [0, 1, 2, 2, 2, 2]


def test_whoever_listens_hears_of_every_step_and_of_the_best_restart() -> None:
    steps: list[Step] = []
    with listening(steps.append, interval=0.0):
        told([(3.0, 4.0), (5.0, 2.0), (1.0, 9.0)])
    assert [(step.done, step.total, step.loss) for step in steps] == [(0, 2, 3.0), (1, 2, 2.0), (2, 2, 1.0)]


@pytest.mark.parametrize("input_gradients", [DoubleBackward, ForwardDifference])
def test_restarts_in_one_batch_go_the_way_that_they_go_alone(input_gradients: type[InputGradients]) -> None:
    found = input_gradients(goal())
    starts = 0.5 * torch.randn(3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(own: torch.Tensor) -> list[Iterates]:
        variables: dict[str, torch.Tensor] = {"images": torch.nn.Parameter(own.clone())}
        optimizer = Adam({"images": 0.01}, False, "images", 0.0, torch.Generator())
        return search(found, variables, optimizer, run_schedule(6), lambda _: None, lambda _: None)

    together = run(starts)
    for index, iterates in enumerate(together):
        (alone,) = run(starts[index : index + 1])
        assert iterates.losses == pytest.approx(alone.losses, rel=1e-2)
        assert iterates.losses[-1] < iterates.losses[0]
        torch.testing.assert_close(iterates.variables["images"], alone.variables["images"], atol=0.02, rtol=0)
