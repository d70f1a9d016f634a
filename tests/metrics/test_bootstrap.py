import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

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


def resampled_means(values: list[float]) -> np.ndarray:
    data = np.asarray(values)
    drawn = data[generator().integers(0, len(data), (2000, len(data)))]
    return np.sort(drawn, axis=1).mean(axis=1)


def test_the_interval_is_bias_corrected_and_accelerated() -> None:
    values = sorted(float(value) for value in generator(4).gamma(1.0, size=12))
    means, mean = resampled_means(values), np.mean(values)
    bias = ndtri(((means < mean).mean() + (means <= mean).mean()) / 2)
    deviations = np.asarray(values) - mean
    # For a mean the jackknife's acceleration is the sample's skewness over 6 sqrt(n).
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    z = bias + ndtri([0.025, 0.975])
    expected = np.quantile(means, ndtr(bias + z / (1 - acceleration * z)))
    assert interval(values, generator()) == pytest.approx(tuple(expected))
    assert interval(values, generator()) != pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=0.01)


@given(st.permutations([0.1, 0.2, 0.3]))
def test_values_in_another_order_have_the_same_interval(values: list[float]) -> None:
    # Sums of floats depend on the order; with three values one resample in five is such a permutation.
    same, other = (
        interval([0.1, 0.2, 0.3], generator(), resamples=20_000),
        interval(values, generator(), resamples=20_000),
    )
    assert other == pytest.approx(same)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6))
def test_the_interval_lies_among_the_values(values: list[float]) -> None:
    low, high = interval(values, generator(), resamples=200)
    assert low <= high
    assert low >= min(values) - 1e-9 * abs(min(values)) and high <= max(values) + 1e-9 * abs(max(values))


def test_values_that_differ_by_next_to_nothing_have_the_percentile_interval() -> None:
    values = [0.0, 0.0, 1e-200]
    assert interval(values, generator()) == pytest.approx(tuple(np.quantile(resampled_means(values), [0.025, 0.975])))


def test_many_values_have_the_percentile_interval() -> None:
    values = [float(value) for value in generator(5).gamma(1.0, size=1001)]
    low, high = interval(values, generator(), resamples=300)
    means = [np.mean(generator(seed).choice(values, len(values))) for seed in range(300)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=0.02)


@pytest.mark.parametrize(("arguments", "name"), [({"level": 1.0}, "level"), ({"resamples": 0}, "resamples")])
def test_senseless_arguments_are_refused(arguments: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        interval([1.0, 2.0], generator(), **arguments)
