"""What a client's hooks are given, and what they may note."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.testing import client_context


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 100)), min_size=1, max_size=8))
def test_what_is_logged_counts_as_its_weighted_mean(notes):
    context = client_context(logged={})
    for value, weight in notes:
        context.log("error", value, weight)
    expected = sum(value * weight for value, weight in notes) / sum(weight for _, weight in notes)
    assert context.logged["error"].mean == pytest.approx(expected, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_finite_number_is_not_logged(value):
    context = client_context(logged={})
    with pytest.raises(ValueError, match=r"log: error is (nan|inf), expected a finite number"):
        context.log("error", value)
    with pytest.raises(ValueError, match="log: the weight of error is"):
        context.log("error", 1.0, 0)
    assert not context.logged
