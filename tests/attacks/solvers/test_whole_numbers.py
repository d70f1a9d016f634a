"""Whole numbers of a sum: the nearest ones, also to numbers so large that floats have no digits left for the sum."""

import itertools

import torch
from fedsim_attacks.solvers.whole_numbers import largest_remainder, onto_simplex
from hypothesis import given
from hypothesis import strategies as st

numbers = st.lists(st.floats(-1e9, 1e9, width=32), min_size=2, max_size=5)


@given(numbers, st.integers(0, 50))
def test_they_are_whole_at_least_zero_and_sum_to_the_total(values, total):
    found = largest_remainder(torch.tensor(values), total)
    assert float(found.sum()) == total
    assert bool((found >= 0).all()) and torch.equal(found, found.round())


@given(st.lists(st.floats(-3, 6), min_size=2, max_size=4), st.integers(0, 6))
def test_no_other_whole_numbers_of_the_sum_are_nearer(values, total):
    expected = torch.tensor(values, dtype=torch.float64)
    found = largest_remainder(expected, total)
    others = (
        torch.tensor(one, dtype=torch.float64)
        for one in itertools.product(range(total + 1), repeat=len(values))
        if sum(one) == total
    )
    nearest = min(float((one - expected).square().sum()) for one in others)
    assert float((found - expected).square().sum()) <= nearest + 1e-9


@given(numbers, st.integers(1, 50))
def test_the_projection_sums_to_the_total_and_does_not_change_with_a_shift(values, total):
    expected = torch.tensor(values, dtype=torch.float64)
    projected = onto_simplex(expected, total)
    assert bool((projected >= 0).all())
    torch.testing.assert_close(projected.sum(), torch.tensor(float(total), dtype=torch.float64))
    torch.testing.assert_close(onto_simplex(expected + 3, total), projected, rtol=1e-6, atol=1e-5)
