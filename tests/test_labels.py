import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.labels import distributions, smooth, without_order


def test_smoothing_is_the_formula_written_out():
    hard = torch.tensor([1, 0])
    expected = torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]])
    torch.testing.assert_close(smooth(distributions(hard, 4), 0.2), expected)


@given(amount=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_cross_entropy_with_smoothed_labels_is_torchs_own_label_smoothing(amount, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(5, 7, generator=generator), torch.randint(7, (5,), generator=generator)
    own = nn.functional.cross_entropy(logits, smooth(distributions(labels, 7), amount))
    torch.testing.assert_close(own, nn.functional.cross_entropy(logits, labels, label_smoothing=amount))


@given(amount=st.floats(0, 0.99), labels=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_smoothed_labels_are_distributions_with_the_same_first_class(amount, labels):
    soft = smooth(distributions(torch.tensor(labels), 5), amount)
    assert bool((soft >= 0).all())
    assert soft.sum(1).tolist() == pytest.approx([1.0] * len(labels), abs=1e-6)
    assert soft.argmax(1).tolist() == labels


def test_soft_labels_stay_as_they_are():
    soft = torch.tensor([[0.25, 0.75]])
    assert distributions(soft, 2) is soft


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=6), order=st.randoms(use_true_random=False))
def test_labels_without_order_are_the_same_for_every_order(labels, order):
    shuffled = labels.copy()
    order.shuffle(shuffled)
    first, second = torch.tensor(labels), torch.tensor(shuffled)
    assert without_order(first).tolist() == without_order(second).tolist() == sorted(labels)
    soft = [smooth(distributions(one, 5), 0.3) for one in (first, second)]
    assert torch.equal(without_order(soft[0]), without_order(soft[1]))
    # One-hot rows come in the order of their classes, as hard labels do.
    assert torch.equal(without_order(soft[0]), smooth(distributions(without_order(first), 5), 0.3))
