import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.metrics import matching
from fedsim.metrics.matching import assign, match, match_patches


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), found=st.integers(0, 5), true=st.integers(1, 5))
def test_an_assignment_uses_nothing_twice_and_as_much_as_it_can(seed: int, found: int, true: int) -> None:
    assigned = assign(np.random.default_rng(seed).random((found, true)))
    used = [row for row in assigned if row is not None]
    assert len(assigned) == true and len(used) == len(set(used)) == min(found, true)


def pictures(seed: int, count: int) -> torch.Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(5)))
def test_a_shuffled_copy_is_put_back_in_order(seed: int, order: list[int]) -> None:
    true = pictures(seed, 5)
    assert [order[index] for index in match(true[order], true)] == list(range(5))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_the_assignment_has_the_least_total_error_of_all_permutations(seed: int) -> None:
    found, true = pictures(seed, 4), pictures(seed + 1, 4)
    totals = {order: float((found[list(order)] - true).square().sum()) for order in itertools.permutations(range(4))}
    assert totals[match(found, true)] == pytest.approx(min(totals.values()))


def test_no_found_image_is_used_twice_and_the_rest_stays_unmatched() -> None:
    true = pictures(0, 4)
    assert match(true[[2, 1]], true) == (None, 1, 0, None)


def test_surplus_found_images_are_left_out() -> None:
    true = pictures(1, 2)
    assert match(torch.cat([pictures(2, 3), true]), true) == (3, 4)


def test_an_empty_finding_matches_nothing() -> None:
    assert match(torch.zeros(0, 3, 4, 4), pictures(0, 2)) == (None, None)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(8)))
def test_patches_come_back_to_their_places_across_the_images_of_a_batch(seed: int, order: list[int]) -> None:
    true = torch.rand(2, 4, 12, generator=torch.Generator().manual_seed(seed))
    shuffled = true.flatten(0, 1)[order].unflatten(0, (2, 4))
    assert torch.equal(match_patches(shuffled, true, (0, 1)), true)


def test_places_for_which_no_patch_was_found_are_grey() -> None:
    true = torch.rand(2, 4, 12, generator=torch.Generator().manual_seed(0))
    found = match_patches(true[1:].flip(1), true, (None, 0))
    assert torch.equal(found[1], true[1])
    assert torch.equal(found[0], torch.full((4, 12), 0.5))


def test_patches_of_a_very_large_batch_stay_within_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    true = torch.rand(3, 4, 12, generator=torch.Generator().manual_seed(0))
    found = true.flip(0, 1)[:2]  # of the last two images
    monkeypatch.setattr(matching, "_POOLED", 0)
    rows = match_patches(found, true, (None, 1, 0))
    assert torch.equal(rows[1:], true[1:])
    assert torch.equal(rows[0], torch.full((4, 12), 0.5))
