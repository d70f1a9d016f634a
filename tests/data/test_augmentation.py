"""Augmentation of single images, against torchvision's own crops and mirror images."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from fedsim.data.augmentation import UNCHANGED, Placement, augmented, border, draw
from fedsim.seeds import derive


@given(height=st.integers(1, 40), width=st.integers(1, 40), count=st.integers(0, 4), seed=st.integers(0, 1000))
def test_images_are_those_of_torchvision(height, width, count, seed):
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    before = images.clone()
    placements = [draw(("flip", "crop"), height, width, derive(seed, use)) for use in range(count)]
    rows, columns = border(height), border(width)
    found = augmented(images, placements)
    assert found.shape == images.shape and torch.equal(images, before)
    for image, own, (down, right, is_flipped) in zip(images, found, placements, strict=True):
        padded = functional.pad(image, [columns, rows])
        expected = functional.crop(padded, rows + down, columns + right, height, width)
        assert torch.equal(own, functional.horizontal_flip(expected) if is_flipped else expected)


def test_the_border_is_four_of_32_pixels_and_never_nothing():
    assert [border(side) for side in (1, 8, 28, 32, 224)] == [1, 1, 4, 4, 28]


def test_every_place_is_as_likely_and_independent_of_the_mirror():
    drawn = np.array([draw(("flip", "crop"), 8, 16, derive(0, use)) for use in range(6000)], dtype=float)
    downs, rights, flips = drawn.T
    for values, places in ((downs, range(-1, 2)), (rights, range(-2, 3)), (flips, range(2))):
        assert set(values) == set(places)
        counts = np.unique(values, return_counts=True)[1]
        assert counts == pytest.approx([6000 / len(counts)] * len(counts), rel=0.1)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize(("kinds", "moves", "mirrors"), [(("flip",), False, True), (("crop",), True, False)])
def test_one_kind_alone_does_that_alone(kinds, moves, mirrors):
    drawn = [draw(kinds, 32, 32, derive(seed)) for seed in range(40)]
    assert any(placement[:2] != (0, 0) for placement in drawn) == moves
    assert any(placement.is_flipped for placement in drawn) == mirrors
    both = [draw(("crop", "flip"), 32, 32, derive(seed)) for seed in range(40)]
    assert both == [draw(("flip", "crop"), 32, 32, derive(seed)) for seed in range(40)]


def test_an_image_that_is_not_placed_is_left_alone():
    images = torch.rand(2, 3, 5, 5)
    assert augmented(images, [UNCHANGED, UNCHANGED]) is images
    assert torch.equal(augmented(images, [UNCHANGED, Placement(is_flipped=True)])[0], images[0])
