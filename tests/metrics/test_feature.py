import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.metrics.feature import feature_errors
from fedsim.metrics.unavailable import MetricUnavailableError


def features(seed: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_the_error_is_relative_to_the_length_of_the_true_row() -> None:
    assert feature_errors(torch.tensor([[3.0, 4.5]]), torch.tensor([[3.0, 4.0]])) == pytest.approx((0.1,))


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
def test_order_does_not_matter_and_an_exact_copy_has_no_error(seed: int, order: list[int]) -> None:
    true = features(seed)
    assert feature_errors(true[order], true) == (0.0,) * 4
    noisy = true + 0.1 * features(seed + 1)
    assert feature_errors(noisy[order], true) == feature_errors(noisy, true)


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_zeros_and_missing_rows_score_one_whatever_the_scale(seed: int, scale: float) -> None:
    true = scale * features(seed)
    assert feature_errors(torch.zeros(4, 6), true) == pytest.approx((1.0,) * 4)
    assert feature_errors(torch.zeros(0, 6), true) == (1.0,) * 4
    assert sorted(feature_errors(true[:1], true)) == [0.0, 1.0, 1.0, 1.0]


def test_a_row_of_the_wrong_sign_or_scale_is_not_recovered() -> None:
    true = features(0, 1)
    assert feature_errors(-true, true) == pytest.approx((2.0,))
    assert feature_errors(2 * true, true) == pytest.approx((1.0,))


@pytest.mark.parametrize(
    ("found", "true", "reason"),
    [(torch.ones(2, 5), features(0), "found features have 5 entries"), (features(0), torch.zeros(4, 6), "is zero")],
)
def test_what_cannot_be_compared_is_unavailable_with_the_reason(found, true, reason: str) -> None:
    with pytest.raises(MetricUnavailableError, match=reason):
        feature_errors(found, true)
