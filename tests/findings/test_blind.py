import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.findings import blind
from fedsim.metrics.image import psnr
from fedsim.metrics.label import label_recall


def pictures(seed: int, count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_image_controls_have_the_shape_of_the_truth() -> None:
    true = pictures(0)
    for guess in (blind.grey(true), blind.own_mean(true), blind.dataset_mean(true, pictures(1).mean(dim=0))):
        assert guess.shape == true.shape


def test_grey_is_one_half_everywhere() -> None:
    assert torch.equal(blind.grey(pictures(0)), torch.full((4, 3, 8, 8), 0.5))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_own_mean_is_the_best_flat_image(seed: int) -> None:
    true = pictures(seed)
    best = blind.own_mean(true)
    assert torch.allclose(best.var(dim=(2, 3)), torch.zeros(4, 3), atol=1e-12)
    for guess in (blind.grey(true), best + 0.01):
        assert all(psnr(b, t, 1.0) > psnr(g, t, 1.0) for b, g, t in zip(best, guess, true, strict=True))


def expected_recall(guess: tuple[int, ...], prior: dict[int, float]) -> float:
    size, total = len(guess), 0.0
    for batch in itertools.product(prior, repeat=size):
        chance = 1.0
        for label in batch:
            chance *= prior[label]
        total += chance * label_recall(torch.tensor(guess), torch.tensor(batch))
    return total


@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.integers(1, 9), min_size=2, max_size=3), size=st.integers(1, 3))
def test_no_other_blind_guess_expects_more(weights: list[int], size: int) -> None:
    prior = {label: weight / sum(weights) for label, weight in enumerate(weights)}
    best = max(expected_recall(g, prior) for g in itertools.combinations_with_replacement(prior, size))
    reached = 0.0
    for batch in itertools.product(prior, repeat=size):
        chance = 1.0
        for label in batch:
            chance *= prior[label]
        reached += chance * blind.blind_recall(torch.tensor(batch), prior)
    assert reached == pytest.approx(best)


@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.integers(1, 9), min_size=2, max_size=3), size=st.integers(1, 3))
def test_the_expected_recall_is_that_of_the_best_guess_over_all_batches(weights: list[int], size: int) -> None:
    prior = {label: weight / sum(weights) for label, weight in enumerate(weights)}
    best = max(expected_recall(g, prior) for g in itertools.combinations_with_replacement(prior, size))
    assert blind.expected_recall(size, prior) == pytest.approx(best)


def test_chance_is_neither_never_nor_always_at_batch_one() -> None:
    assert blind.expected_recall(1, {0: 0.5, 1: 0.5}) == 0.5
    assert blind.expected_recall(1, {0: 0.75, 1: 0.25}) == 0.75
    assert blind.expected_recall(3, {7: 1.0}) == 1.0


def test_one_label_of_c_equally_frequent_classes_is_guessed_once_in_c() -> None:
    prior = blind.uniform(torch.arange(10).repeat(3))
    assert [blind.blind_recall(torch.tensor([c]), prior) for c in range(10)] == pytest.approx([0.1] * 10)


def test_a_skewed_prior_guesses_the_frequent_class() -> None:
    prior = blind.frequencies(torch.tensor([0, 0, 0, 1]))
    assert prior == {0: 0.75, 1: 0.25}
    assert blind.blind_recall(torch.tensor([0, 0]), prior) == 1.0
    assert blind.blind_recall(torch.tensor([1]), prior) == 0.0


def test_the_same_label_for_every_image_is_the_prior() -> None:
    guess = blind.same_label(blind.frequencies(torch.tensor([0, 0, 0, 2])), 2, 4)
    assert guess.tolist() == [[0.75, 0.0, 0.25, 0.0]] * 2


def test_a_class_that_the_guesser_does_not_know_is_missed() -> None:
    assert blind.blind_recall(torch.tensor([7]), blind.uniform(torch.tensor([0, 1]))) == 0.0
