import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.metrics.membership import COIN, hits
from fedsim.metrics.unavailable import MetricUnavailableError


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([-2.0, -1e-9, 0.0, 1e-9, 3.0])), min_size=1))
def test_a_pair_counts_by_the_sign_and_no_choice_as_a_coin(pairs):
    firsts = torch.tensor([first for first, _ in pairs])
    found = torch.tensor([choice for _, choice in pairs])
    expected = tuple(COIN if c == 0 else 1.0 if (c > 0) is first else 0.0 for first, c in pairs)
    assert hits(found, firsts) == expected
    assert hits(-found, firsts) == tuple(1 - value for value in expected)


def test_pairs_that_were_not_chosen_between_count_as_a_coin():
    assert hits(torch.tensor([1.0]), torch.tensor([True, False, True])) == (1.0, COIN, COIN)
    assert hits(torch.tensor([]), torch.tensor([False])) == (COIN,)
    assert hits(torch.tensor([1.0, -1.0]), torch.tensor([True])) == (1.0,)


@pytest.mark.parametrize("firsts", [None, torch.tensor([], dtype=torch.bool)])
def test_without_candidates_it_is_unavailable(firsts):
    with pytest.raises(MetricUnavailableError, match="no candidates"):
        hits(torch.tensor([]), firsts)
