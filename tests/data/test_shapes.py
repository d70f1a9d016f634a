"""Procedural shapes: pure in (seed, split, sample), one class per kind and color, learnable."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.photos import Photos
from fedsim.data.shapes import KINDS, MOST_CLASSES, Shapes, _coverage, describe, draw
from fedsim.seeds import numpy_generator


def test_all_classes_differ_and_the_first_twelve_in_kind_and_in_color():
    described = [describe(label) for label in range(MOST_CLASSES)]
    assert len(set(described)) == MOST_CLASSES == 144
    colors, kinds = zip(*described[:12], strict=True)
    assert len(set(colors)) == len(set(kinds)) == 12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(8, 40))
def test_a_sample_is_a_pure_function_of_seed_split_and_number(seed, index, size):
    pools = Shapes(image_size=size, samples=10**6 + 1, classes=100).load(seed)
    once, again = pools.train.fetch([index]), pools.train.fetch([0, index])[1:]
    assert torch.equal(once, again)
    assert once.shape == (1, 3, size, size)
    assert int(pools.train.labels[index]) == index % 100


def test_pools_do_not_repeat_each_other():
    pools = Shapes(image_size=16, samples=30, test_samples=30, auxiliary_samples=30).load(0)
    pictures = torch.cat([pool.fetch(range(30)) for pool in (pools.train, pools.test, pools.auxiliary)])
    assert len({picture.numpy().tobytes() for picture in pictures}) == 90


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_inside_the_image_and_antialiased(kind):
    for seed in range(5):
        coverage = _coverage(KINDS[kind], 48, np.random.default_rng(seed))
        assert 0.02 < coverage.mean() < 0.6
        assert ((coverage > 0.02) & (coverage < 0.98)).any()
        assert coverage.max() == 1.0


def test_the_ring_has_a_hole():
    whole = _coverage(KINDS["disc"], 64, np.random.default_rng(0))
    ring = _coverage(KINDS["ring"], 64, np.random.default_rng(0))
    assert ring.sum() / whole.sum() == pytest.approx(1 - 0.55**2, abs=0.02)


def test_images_have_a_textured_background():
    picture = draw(0, 64, numpy_generator(0, "picture"))
    corners = np.concatenate([picture[:6, :6].reshape(-1), picture[-6:, -6:].reshape(-1)])
    assert corners.std() > 2


@pytest.mark.parametrize("color,strongest,weakest", [("red", 0, 2), ("green", 1, 0), ("cyan", 2, 0), ("blue", 2, 1)])
def test_the_color_family_decides_the_hue_of_the_shape(color, strongest, weakest):
    label = next(label for label in range(12) if describe(label)[0] == color)
    for seed in range(5):
        picture = draw(label, 64, numpy_generator(seed, "picture")).astype(float)
        saturation = picture.max(-1) - picture.min(-1)
        shape = picture[saturation > np.quantile(saturation, 0.97)].mean(0)
        assert shape[strongest] > shape[weakest] + 40


@pytest.mark.parametrize("classes", [1, 145])
def test_a_number_of_classes_that_cannot_be_drawn_is_refused(classes):
    with pytest.raises(ValueError, match=f"classes: expected 2 to 144, got {classes}"):
        Shapes(classes=classes)


def test_nearest_class_means_tell_classes_apart():
    pools = Shapes(samples=600, test_samples=200).load(1)
    train, test = pools.train.read(range(600)), pools.test.read(range(200))

    def hue(images):
        return (images - images.mean(1, keepdim=True)).clamp(min=0.15).mean((2, 3))

    means = torch.stack([hue(train.images)[train.labels == label].mean(0) for label in range(10)])
    guessed = torch.cdist(hue(test.images), means).argmin(1)
    assert float((guessed == test.labels).float().mean()) > 0.3


@pytest.mark.parametrize("source", [Shapes, Photos])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"image_size": 100_000}, "image_size: expected at most 2048 pixels, got 100000"),
        ({"image_size": 10**30}, "image_size: expected at most 2048 pixels"),
        ({"samples": 10**9}, "samples: expected at most 2000000, got 1000000000"),
        ({"test_samples": 10**30}, "test_samples: expected at most 2000000"),
        ({"auxiliary_samples": 3_000_000}, "auxiliary_samples: expected at most 2000000"),
        (
            {"image_size": 1024, "samples": 10_000},
            "samples: 10000 images of 1024 x 1024 pixels are 29.3 GiB, and 8 GiB are allowed",
        ),
    ],
)
def test_pools_that_no_memory_holds_are_refused_before_they_are_drawn(source, params, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        source(**params)
