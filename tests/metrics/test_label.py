import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.findings.blind import blind_recall
from fedsim.labels import distributions
from fedsim.metrics.label import label_recall, recalled, soft_label_errors

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def counts(labels: list[int]) -> torch.Tensor:
    return torch.bincount(torch.tensor(labels, dtype=torch.int64), minlength=5)


@given(found=label_lists, true=label_lists)
def test_recall_of_no_more_labels_than_images_is_the_multiset_overlap(found: list[int], true: list[int]) -> None:
    found = found[: len(true)]
    overlap = int(torch.minimum(counts(found), counts(true)).sum())
    assert label_recall(torch.tensor(found), torch.tensor(true)) == pytest.approx(overlap / len(true))


@given(found=label_lists, true=label_lists, times=st.integers(2, 5))
def test_a_multiple_of_the_labels_scores_as_its_proportions(found: list[int], true: list[int], times: int) -> None:
    assert label_recall(torch.tensor(true * times), torch.tensor(true)) == 1.0
    padded = (found * len(true))[: len(true)]
    assert label_recall(torch.tensor(padded * times), torch.tensor(true)) == pytest.approx(
        label_recall(torch.tensor(padded), torch.tensor(true))
    )


@given(true=label_lists, times=st.integers(12, 20))
def test_naming_every_class_equally_often_scores_as_a_uniform_guess(true: list[int], times: int) -> None:
    uniform = blind_recall(torch.tensor(true), dict.fromkeys(range(5), 1 / 5))
    assert label_recall(torch.arange(5).repeat(times), torch.tensor(true)) == pytest.approx(uniform)


def test_surplus_labels_are_scaled_by_largest_remainders() -> None:
    # 5 labels for 4 images stand for 0.8, 1.6, 0.8 and 0.8 of them: one each, and class 3 keeps one of two.
    assert label_recall(torch.tensor([0, 3, 3, 7, 9]), torch.tensor([0, 3, 3, 7])) == 0.75


def test_labels_of_images_are_compared_with_blends_in_the_unit_of_images() -> None:
    blends = torch.tensor([0, 0, 3, 3, 3, 3, 7, 7])  # of four images, each blended twice
    assert label_recall(torch.tensor([0, 3, 3, 7]), blends, pictures=4) == 1.0
    assert label_recall(torch.tensor([0, 3]), blends, pictures=4) == 0.5
    assert label_recall(blends, blends, pictures=4) == 1.0
    assert label_recall(torch.tensor([0, 3, 3, 7]), blends) == 0.5


@given(found=label_lists, true=label_lists)
def test_recall_does_not_depend_on_the_order(found: list[int], true: list[int]) -> None:
    value = label_recall(torch.tensor(found), torch.tensor(true))
    assert value == label_recall(torch.tensor(sorted(found)), torch.tensor(sorted(true)))


@given(found=label_lists, true=label_lists)
def test_the_shares_of_the_labels_average_to_the_recall(found: list[int], true: list[int]) -> None:
    shares = recalled(torch.tensor(found), torch.tensor(true))
    assert len(shares) == len(true)
    assert abs(sum(shares) / len(true) - label_recall(torch.tensor(found), torch.tensor(true))) < 1e-12


def test_listing_every_label_is_not_rewarded() -> None:
    true = torch.tensor([3, 3])
    assert label_recall(torch.arange(10).repeat(2), true) == 0.1


def test_repeats_count() -> None:
    assert label_recall(torch.tensor([1, 1, 2, 0]), torch.tensor([1, 1, 1, 2])) == 0.75


def test_nothing_found_is_no_recall() -> None:
    assert label_recall(torch.zeros(0, dtype=torch.int64), torch.tensor([1, 2])) == 0.0


def test_a_soft_label_counts_as_its_most_probable_class() -> None:
    soft = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    assert label_recall(soft, torch.tensor([1, 0])) == 1.0
    assert label_recall(torch.tensor([1, 0]), soft) == 1.0


def soft_labels(seed: int, count: int = 4) -> torch.Tensor:
    return (3 * torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))).softmax(1)


def test_the_soft_label_error_is_the_largest_difference_of_a_probability() -> None:
    found, true = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.6, 0.4, 0.0]])
    assert soft_label_errors(found, true) == pytest.approx((0.2,))


def test_a_hard_true_label_counts_as_one_hot() -> None:
    found, hard = soft_labels(0), torch.tensor([4, 0, 1, 1])
    assert soft_label_errors(found, hard) == soft_label_errors(found, distributions(hard, 5))
    assert soft_label_errors(distributions(hard, 5)[[3, 1, 0, 2]], hard) == (0.0,) * 4


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
def test_the_sum_of_soft_label_errors_is_least_whatever_the_order(seed: int, order: list[int]) -> None:
    found, true = soft_labels(seed), soft_labels(seed + 1)
    totals = [float((found[list(way)] - true).abs().max(1).values.sum()) for way in itertools.permutations(range(4))]
    assert sum(soft_label_errors(found[order], true)) == pytest.approx(min(totals), rel=1e-5)


def test_missing_soft_labels_score_as_the_uniform_distribution() -> None:
    true = soft_labels(3)
    uniform = soft_label_errors(torch.full((4, 5), 0.2), true)
    assert soft_label_errors(torch.zeros(0, 5), true) == pytest.approx(uniform)
    assert soft_label_errors(true[:1], true) == pytest.approx((0.0, *uniform[1:]))
    assert soft_label_errors(torch.full((1, 5), 0.2), torch.tensor([3])) == pytest.approx((0.8,))
