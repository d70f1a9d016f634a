"""Intervals of shares and means are those of SciPy."""

import pytest
import torch
from fedsim_defenses.evaluators._intervals import mean, share
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats


@given(right=st.integers(0, 40), wrong=st.integers(0, 40).filter(bool))
def test_intervals_of_shares_are_those_of_wilson_and_of_means_normal(right, wrong):
    values = torch.tensor([True] * right + [False] * wrong)
    found = share("share", values)
    expected = stats.binomtest(right, right + wrong).proportion_ci(0.95, method="wilson")
    assert found["share, 95% from"] == pytest.approx(expected.low, abs=1e-6)
    assert found["share, 95% to"] == pytest.approx(expected.high, abs=1e-6)
    assert (found["share, 95% from"] == 0.0) == (right == 0) and found["share, 95% to"] < 1
    if 0 < right:
        numbers = values.double()
        low, high = stats.norm.interval(0.95, float(numbers.mean()), stats.sem(numbers.numpy()))
        assert mean("mean", numbers)["mean, 95% from"] == pytest.approx(low)
        assert mean("mean", numbers)["mean, 95% to"] == pytest.approx(high)
    assert set(mean("mean", torch.ones(1))) == {"mean"}
