"""Square Attack: squares of the paper's sizes, changes within epsilon, margins that never rise."""

import math

import pytest
import torch
from fedsim_defenses._evasion import margin
from fedsim_defenses._square import side, square
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.seeds import seeded, torch_generator


def network(channels=3, size=8):
    with seeded(0, "network"):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, 5))


@settings(max_examples=30)
@given(
    epsilon=st.floats(0.01, 1.0),
    queries=st.integers(0, 12),
    share=st.floats(0.01, 1.0),
    count=st.integers(0, 4),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_what_is_found_is_within_epsilon_and_in_the_range_of_pixels(epsilon, queries, share, count, channels, seed):
    images = torch.rand(count, channels, 8, 8, generator=torch_generator(seed))
    labels = torch.zeros(count, dtype=torch.long)
    options = {"queries": queries, "share": share}
    found, again = (
        square(network(channels), images, labels, epsilon, generator=torch_generator(seed, "draw"), **options)
        for _ in range(2)
    )
    assert torch.equal(found, again) and found.shape == images.shape
    if count:
        assert (found - images).abs().max() <= epsilon + 1e-6
        assert found.min() >= 0 and found.max() <= 1


def test_more_queries_with_the_same_squares_never_lower_what_was_reached():
    model, images = network(), torch.rand(6, 3, 8, 8, generator=torch_generator(1))
    labels = model(images).argmax(1)
    reached = []

    class Watches(nn.Module):
        def forward(self, inputs):
            logits = model(inputs)
            if len(inputs) == len(labels):
                reached.append(margin(logits, labels).detach())
            return logits

    found = square(Watches(), images, labels, 0.01, queries=40, generator=torch_generator(2))
    assert (margin(model(found), labels) >= torch.stack(reached).amax(0) - 1e-6).all()


def test_changes_are_squares_of_plus_or_minus_epsilon_on_stripes():
    images = torch.full((2, 3, 8, 8), 0.5)
    start = square(network(), images, torch.zeros(2, dtype=torch.long), 0.1, queries=0, generator=torch_generator(0))
    assert torch.equal(start, start[:, :, :1, :].expand_as(start))
    assert ((start - images).abs() - 0.1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("query", "halvings"),
    [
        (0, 0),
        (10, 0),
        (11, 1),
        (50, 1),
        (51, 2),
        (201, 3),
        (501, 4),
        (1001, 5),
        (2001, 6),
        (4001, 7),
        (6001, 8),
        (8001, 9),
    ],
)
def test_sides_follow_the_schedule_of_the_paper(query, halvings):
    assert side(query, 10_000, 224, 224, 0.8) == max(1, round(math.sqrt(0.8 / 2**halvings) * 224))
    assert side(query // 10, 1000, 224, 224, 0.8) >= side(query, 10_000, 224, 224, 0.8)


def test_a_misclassified_image_is_left_as_it_is_found():
    model, images = network(), torch.rand(3, 3, 8, 8, generator=torch_generator(4))
    labels = (model(images).argmax(1) + 1) % 5
    start = square(model, images, labels, 1e-4, queries=0, generator=torch_generator(5))
    later = square(model, images, labels, 1e-4, queries=20, generator=torch_generator(5))
    assert torch.equal(start, later)
