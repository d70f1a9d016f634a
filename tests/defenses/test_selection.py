import torch
from fedsim_defenses._selection import largest
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_of_equal_values_the_first_are_chosen_as_a_stable_sort_does(values, data):
    count = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda place: -values[place])[:count]
    found = largest(torch.tensor(values, dtype=torch.float32), count)
    assert found.nonzero()[:, 0].tolist() == sorted(expected)
