import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from fedsim_attacks.matching.multi_start import Chosen, Kind, Start, TriedStart, accept, choose_start
from hypothesis import given, settings
from hypothesis import strategies as st

IMAGES = 3


def start(value: float, kind: Kind = "noise") -> Start:
    return Start({"images": torch.full((1, IMAGES, 1, 2, 2), value)}, kind)


def numbered(kinds: Iterator[Kind]) -> Iterator[Start]:
    return (start(float(number), kind) for number, kind in enumerate(kinds, 1))


def values(found: Start) -> list[float]:
    return found.variables["images"][0, :, 0, 0, 0].tolist()


def chosen(objectives: list[float], kinds: list[Kind], enough: float) -> tuple[Chosen[Start], list[list[float]]]:
    seen: list[list[float]] = []

    def follow(here: Start, number: int) -> float:
        assert number == len(seen)
        seen.append(values(here))
        return objectives[number]

    others = numbered(itertools.cycle(kinds))
    return choose_start(start(0.0), others, follow, len(objectives), enough), seen


@settings(max_examples=50)
@given(
    objectives=st.lists(st.floats(0, 10), min_size=2, max_size=8),
    kinds=st.lists(st.sampled_from(["noise", "nearest"]), min_size=1, max_size=4),
    enough=st.floats(0, 10),
)
def test_trials_end_at_the_first_promising_one_and_the_best_is_chosen(
    objectives: list[float], kinds: list[Kind], enough: float
) -> None:
    found, seen = chosen(objectives, kinds, enough)
    first = next((place for place, objective in enumerate(objectives) if objective <= enough), len(objectives) - 1)
    assert found.reached == tuple(objectives[: first + 1])
    best = min(found.reached)
    assert found.end.objective == best
    assert values(found.end) == seen[found.reached.index(best)] or found.reached.count(best) > 1


def test_one_trial_follows_nothing() -> None:
    first = start(0.0)
    assert choose_start(first, iter(()), pytest.fail, 1, 0.0) == Chosen(first, ())


def test_a_trial_redraws_one_image_of_the_best_of_its_kind_in_turn() -> None:
    _, seen = chosen([5.0, 4.0, 9.0, 3.0, 8.0], ["noise"], 0.0)
    assert seen == [[0, 0, 0], [0, 1, 0], [0, 1, 2], [3, 1, 0], [3, 4, 0]]


def test_the_first_trial_of_a_kind_redraws_every_image() -> None:
    _, seen = chosen([1.0, 5.0, 4.0, 3.0], ["nearest"], 0.0)
    assert seen == [[0, 0, 0], [1, 1, 1], [1, 1, 2], [3, 1, 2]]


def test_a_trial_that_overflows_is_not_chosen() -> None:
    found, _ = chosen([math.inf, 7.0, math.inf], ["noise"], 0.0)
    assert found.end.objective == 7.0


def test_starts_near_to_the_images_are_followed_calmly() -> None:
    assert (start(0.0).pace, start(0.0, "nearest").pace) == (1.0, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("objectives", "limit", "end", "count"),
    [([3.0, 1.0, 0.5], 3, 1, 2), ([3.0, 2.0, 2.5], 3, 1, 3), ([2.0, 1.5], 1, 0, 1)],
)
def test_the_first_accepted_trial_is_followed_or_the_best_and_no_more_are_made(
    objectives: list[float], limit: int, end: int, count: int
) -> None:
    made: list[int] = []

    def trials() -> Iterator[TriedStart[int]]:
        for number, objective in enumerate(objectives):
            made.append(number)
            yield TriedStart(number, objective)

    found = accept(trials(), limit, 1.0)
    assert (found.end, len(found.reached), len(made)) == (end, count, count)
