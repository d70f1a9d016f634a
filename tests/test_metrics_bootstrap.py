import math

import numpy as np
import pytest

from fedsim.metrics.bootstrap import interval


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_same_generator_state_gives_the_same_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert interval(values, generator()) == interval(values, generator())


def test_one_value_has_no_interval() -> None:
    assert interval([3.0], generator()) is None


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert interval([2.0] * 5, generator()) == (2.0, 2.0)


def test_the_interval_of_a_large_normal_sample_is_the_normal_one() -> None:
    values = generator(1).normal(5.0, 2.0, size=400)
    low, high = interval(list(values), generator(2))
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_a_higher_level_gives_a_wider_interval() -> None:
    values = list(generator(3).normal(size=30))
    narrow, wide = interval(values, generator(), level=0.5), interval(values, generator(), level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(("arguments", "name"), [({"level": 1.0}, "level"), ({"resamples": 0}, "resamples")])
def test_senseless_arguments_are_refused(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        interval([1.0, 2.0], generator(), **arguments)
