import math

import pytest
import torch
from fedsim_attacks.matching.distances import (
    DISTANCES,
    TopK,
    cosine,
    layer_l2,
    relative_l2,
    row_cosine,
    sign_cosine,
    tensor_cosine,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SCALED = {name for name, distance in DISTANCES.own.items() if distance.is_scaled}


def drawn(seed: int, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2 + index, generator=generator) for index in range(count)]


@pytest.mark.parametrize("distance", sorted(set(DISTANCES.own) - {"sign"}))
@settings(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_equal_gradients_have_no_distance(distance: str, seed: int) -> None:
    assert float(DISTANCES.own[distance](drawn(seed), drawn(seed))) == pytest.approx(0, abs=1e-6)


@settings(max_examples=30)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_distances_of_directions_are_blind_to_scale(scale: float, seed: int) -> None:
    observed, other = drawn(seed), drawn(seed + 1)
    for name in set(DISTANCES.own) - SCALED:
        plain, scaled = (float(DISTANCES.own[name]([f * t for t in other], observed)) for f in (1.0, scale))
        assert scaled == pytest.approx(plain, abs=1e-5)


@settings(max_examples=30)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_distances_of_lengths_see_the_scale_and_are_in_units_of_the_observed_one(scale: float, seed: int) -> None:
    observed, other = drawn(seed), drawn(seed + 1)
    assert float(relative_l2([scale * o for o in observed], observed)) == pytest.approx(
        (scale - 1) ** 2, rel=1e-3, abs=1e-6
    )
    for name in SCALED:
        plain, both = (
            float(DISTANCES.own[name]([f * t for t in other], [f * o for o in observed])) for f in (1.0, scale)
        )
        assert both == pytest.approx(plain, rel=1e-4)


def test_values_are_those_computed_by_hand() -> None:
    observed = [torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 12.0]])]  # norms 5 and 12, together 13
    found = [torch.tensor([4.0, 3.0]), torch.tensor([[0.0, -12.0]])]
    assert float(relative_l2(found, observed)) == pytest.approx((2 + 24**2) / 169)
    assert float(layer_l2(found, observed)) == pytest.approx((math.sqrt(2) + 24) / 13)
    assert float(cosine(found, observed)) == pytest.approx(1 - (24 - 144) / 169)
    assert float(tensor_cosine(found, observed)) == pytest.approx((1 - 24 / 25 + 2) / 2)


def test_signs_agree_as_far_as_their_softened_ones_do() -> None:
    observed = [torch.tensor([5.0, -0.1, 2.0, 0.0])]
    soft = [math.tanh(value) for value in (1.0, 1.0, 1.0)]  # entries in units of their mean magnitude
    agreeing = 1 - sum(soft) / math.sqrt(3 * sum(value**2 for value in soft))
    assert agreeing == pytest.approx(0)
    assert float(sign_cosine([torch.tensor([1.0, -1.0, 1.0, 0.0]) * 0.3], observed)) == pytest.approx(0, abs=1e-6)
    assert float(sign_cosine([torch.tensor([1.0, 1.0, 1.0, 0.0])], observed)) == pytest.approx(1 - 1 / 3)
    assert float(sign_cosine([-10 * observed[0].sign()], observed)) == pytest.approx(2, abs=1e-6)


def test_an_update_of_signs_alone_is_matched_by_signs_as_well_as_the_whole() -> None:
    observed, found = drawn(3), drawn(4)
    signs = [tensor.sign() for tensor in observed]
    assert float(sign_cosine(found, observed)) == pytest.approx(float(sign_cosine(found, signs)))


def test_row_cosines_are_averaged_over_rows_and_batches() -> None:
    observed = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]])
    found = torch.tensor([[[5.0, 0.0], [0.0, -1.0], [4.0, 3.0]]])
    assert float(row_cosine(found, observed)) == pytest.approx((0 + 2 + 1 - 24 / 25) / 3)
    assert float(row_cosine(found[0], observed[0])) == pytest.approx((0 + 2 + 1 - 24 / 25) / 3)


@settings(max_examples=30)
@given(scale=st.floats(0.01, 100), flipped=st.integers(0, 5), seed=st.integers(0, 1000))
def test_each_row_that_points_elsewhere_counts_the_same(scale: float, flipped: int, seed: int) -> None:
    observed = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed))
    found = scale * torch.logspace(-3, 0, 5)[:, None] * observed
    found[:, :flipped] *= -1
    assert float(row_cosine(found, observed)) == pytest.approx(2 * flipped / 5, abs=1e-4)


@pytest.mark.parametrize("distance", sorted(DISTANCES.own))
@pytest.mark.parametrize("at", ["zero", "the observed one"])
def test_slopes_are_finite_at_zero_and_at_the_observed_gradient(distance: str, at: str) -> None:
    observed = drawn(0)
    found = [(torch.zeros_like(o) if at == "zero" else o.clone()).requires_grad_() for o in observed]
    value = DISTANCES.own[distance](found, observed)
    assert bool(torch.isfinite(value))
    assert all(bool(torch.isfinite(slope).all()) for slope in torch.autograd.grad(value, found))


@pytest.mark.parametrize("distance", sorted(DISTANCES.own))
def test_slopes_are_finite_where_the_observed_gradient_is_zero_in_a_tensor(distance: str) -> None:
    observed = [*drawn(0, 1), torch.zeros(2, 2)]
    found = [tensor.clone().requires_grad_() for tensor in drawn(1)[:1]] + [torch.ones(2, 2, requires_grad=True)]
    value = DISTANCES.own[distance](found, observed)
    assert bool(torch.isfinite(value))
    slopes = torch.autograd.grad(value, found, materialize_grads=True)
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)


@pytest.mark.parametrize("distance", sorted(DISTANCES.own))
def test_gradients_of_other_tensors_than_the_observed_are_refused(distance: str) -> None:
    for count in (1, 4):
        with pytest.raises(ValueError):
            DISTANCES.own[distance](drawn(0, count), drawn(0, 2))


@pytest.mark.parametrize("distance", ["cosine", "tensor_cosine"])
@settings(max_examples=30)
@given(seed=st.integers(0, 1000))
def test_slopes_of_cosines_are_those_of_autograd(distance: str, seed: int) -> None:
    found = [tensor.double().requires_grad_() for tensor in drawn(seed)]
    observed = [tensor.double() for tensor in drawn(seed + 1)]
    assert torch.autograd.gradcheck(lambda *tensors: DISTANCES.own[distance](tensors, observed), found)


def test_a_row_without_a_gradient_has_a_finite_slope() -> None:
    observed, found = torch.ones(1, 3, 4), torch.ones(1, 3, 4)
    observed[:, 0] = found[:, 1] = 0
    found.requires_grad_()
    value = row_cosine(found, observed)
    (slope,) = torch.autograd.grad(value, found)
    assert float(value.detach()) == pytest.approx(2 / 3)
    assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("distance", sorted(DISTANCES.own))
def test_a_step_down_the_slope_comes_nearer(distance: str) -> None:
    observed, found = drawn(0), [tensor.requires_grad_() for tensor in drawn(1)]
    value = DISTANCES.own[distance](found, observed)
    slopes = torch.autograd.grad(value, found)
    moved = [f.detach() - 0.01 * s for f, s in zip(found, slopes, strict=True)]
    assert float(DISTANCES.own[distance](moved, observed)) < float(value.detach())


@settings(max_examples=30)
@given(share=st.floats(0.001, 1), seed=st.integers(0, 1000))
def test_the_largest_entries_of_each_tensor_are_kept(share: float, seed: int) -> None:
    observed = drawn(seed, 3)
    top = TopK.of(observed, share)
    for kept, whole in zip(top(observed), observed, strict=True):
        count = max(1, math.ceil(share * whole.numel()))
        assert torch.equal(kept.abs().sort().values, whole.flatten().abs().sort().values[-count:])


def test_entries_of_another_gradient_are_taken_at_the_same_places() -> None:
    observed = [torch.tensor([[1.0, -9.0], [0.5, 4.0]])]
    found = [torch.tensor([[10.0, 20.0], [30.0, 40.0]])]
    assert sorted(TopK.of(observed, 0.5)(found)[0].tolist()) == [20.0, 40.0]
    assert TopK.of(observed, 1e-9)(found)[0].tolist() == [20.0]
