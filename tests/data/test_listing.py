"""Dividing stored images into pools, and turning them into squares."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedsim.data.decoding import GRAY
from fedsim.data.listing import Listing, check_column, pools, spread
from fedsim.data.shapes import Shapes
from fedsim.errors import ScenarioError


def listing(labels, encoded=None):
    """Images whose first pixel tells their number."""
    stored = encoded or [_image(number) for number in range(len(labels))]
    return Listing(
        labels=np.asarray(labels),
        name=lambda number: f"images.bin, {number},",
        open=lambda numbers: lambda index: stored[numbers[index]],
        where="data.path",
    )


def _image(number, size=(8, 8)):
    return Image.new("RGB", size, (number % 256, number // 256, 0))


def _numbers(pool):
    pixels = pool.fetch(range(len(pool)))[:, :, 0, 0].long()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


def _encode(image, format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


label_lists = st.lists(st.integers(0, 5), min_size=3, max_size=300)


@settings(deadline=None)
@given(label_lists, st.integers(1, 400), st.none() | st.integers(1, 400), st.none() | st.integers(1, 400))
def test_held_out_pools_are_disjoint_and_never_empty(labels, auxiliary, test, samples):
    source = Shapes(image_size=8, auxiliary_samples=auxiliary)
    object.__setattr__(source, "test_samples", test)
    object.__setattr__(source, "samples", samples)
    found = pools(source, 0, listing(labels), None, [str(c) for c in range(6)])
    parts = [_numbers(pool) for pool in (found.train, found.test, found.auxiliary)]
    assert all(parts)
    together = sorted(number for part in parts for number in part)
    assert len(set(together)) == len(together)
    if samples is None:
        assert together == list(range(len(labels)))
    assert len(parts[2]) == min(auxiliary, max(1, len(labels) // 8))
    if test is not None:
        assert len(parts[1]) == min(test, max(1, len(labels) // 4))
    for part, pool in zip(parts, (found.train, found.test, found.auxiliary), strict=True):
        assert [labels[number] for number in part] == pool.labels.tolist()


def test_one_image_a_class_leaves_a_training_pool():
    source = Shapes(image_size=8, test_samples=500)
    found = pools(source, 0, listing(range(32)), None, [str(c) for c in range(32)])
    assert (len(found.train), len(found.test), len(found.auxiliary)) == (20, 8, 4)


@settings(deadline=None)
@given(label_lists, st.integers(0, 2**32), st.floats(0, 1))
def test_every_beginning_of_the_spread_order_holds_the_classes_in_proportion(labels, seed, share):
    order = spread(np.asarray(labels), np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(labels)))
    taken = int(share * len(labels))
    counts = np.bincount(np.asarray(labels), minlength=6)
    held = np.bincount(np.asarray(labels)[order[:taken]], minlength=6)
    assert (np.abs(held - counts * taken / len(labels)) <= 3.5).all()


def test_the_spread_order_is_another_one_for_another_seed():
    labels = np.arange(40) % 4
    orders = {tuple(spread(labels, np.random.default_rng(seed))) for seed in range(5)}
    assert len(orders) == 5


def test_a_test_listing_is_taken_whole_and_the_auxiliary_pool_from_training():
    source = Shapes(image_size=8, samples=100, test_samples=500, auxiliary_samples=5)
    found = pools(source, 0, listing([0, 1] * 40), listing([1, 0, 1]), ["a", "b"])
    assert (len(found.train), len(found.test), len(found.auxiliary)) == (75, 3, 5)


@pytest.mark.parametrize("train,test", [([0, 1], None), ([0, 1, 0], [])])
def test_too_few_images_are_refused(train, test):
    tested = None if test is None else listing(test)
    with pytest.raises(ScenarioError, match=r"^data\.path: .*at least 3"):
        pools(Shapes(image_size=8), 0, listing(train), tested, ["a", "b"])


def test_a_image_of_the_right_size_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    found = listing([0], [_encode(Image.fromarray(pixels))]).pool(np.array([0]), 8).fetch([0])
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), pixels)


def test_the_shorter_side_is_resized_and_the_center_is_cut():
    image = Image.new("RGB", (64, 16), (0, 0, 0))
    image.paste((250, 250, 250), (24, 0, 40, 16))
    found = listing([0], [image]).pool(np.array([0]), 8).fetch([0])
    assert found.shape == (1, 3, 8, 8)
    assert int(found.min()) == 250


@pytest.mark.parametrize(
    "mode,color,expected",
    [
        ("L", 77, [77, 77, 77]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("P", 0, [0, 0, 0]),
        ("1", 1, [255] * 3),
    ],
)
def test_every_common_mode_becomes_three_channels(mode, color, expected):
    found = listing([0], [_encode(Image.new(mode, (8, 8), color))]).pool(np.array([0]), 8).fetch([0])
    assert found[0, :, 0, 0].tolist() == expected


def test_unlabeled_images_are_left_out_and_counted():
    train, test = listing([0, -1, 1, 0, 1, -1, 0, 1]), listing([-1, 0])
    found = pools(Shapes(image_size=8), 0, train, test, ["a", "b"], ["data.path: said before."])
    assert sorted(_numbers(found.train) + _numbers(found.auxiliary)) == [0, 2, 3, 4, 6, 7]
    assert _numbers(found.test) == [1]
    assert found.notes == (
        "data.path: said before.",
        "data.path: 2 of 8 training images have no label and are left out.",
        "data.path: 1 of 2 test images have no label and are left out.",
    )


def test_a_test_set_without_a_label_is_refused():
    with pytest.raises(ScenarioError, match=r"^data\.path: none of the 3 test images has a label"):
        pools(Shapes(image_size=8), 0, listing([0, 1, 0, 1]), listing([-1] * 3), ["a", "b"])


def test_a_pool_tells_how_its_images_are_converted():
    pool = listing([0, 1], [_encode(Image.new("L", (8, 8))), _encode(Image.new("RGB", (8, 8)))]).pool(
        np.array([0, 1]), 8
    )
    assert [pool.conversions(number) for number in (0, 1)] == [(GRAY,), ()]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("kept", [0, 0.02, 0.5])
def test_a_truncated_image_is_refused_with_its_name(format, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = _encode(Image.fromarray(noise), format)
    pool = listing([0, 0], [whole, whole[: int(kept * len(whole))]]).pool(np.array([0, 1]), 8)
    assert pool.fetch([0]).shape == (1, 3, 8, 8)
    with pytest.raises(ScenarioError, match=r"^data\.path: images\.bin, 1, is no readable image"):
        pool.fetch([1])


def test_images_of_unequal_size_need_an_image_size():
    stored = [_image(0, (8, 8)), _image(1, (9, 8))]
    assert listing([0, 0], stored).pool(np.array([0]), None).fetch([0]).shape == (1, 3, 8, 8)
    with pytest.raises(ScenarioError, match=r"^data\.image_size: images\.bin, 1, has 9x8"):
        listing([0, 0], stored).pool(np.array([0, 1]), None).fetch([1])


def test_fetching_is_pure():
    pool = listing([0, 1, 0]).pool(np.array([0, 1, 2]), 4)
    first = pool.fetch([2, 0])
    first.zero_()
    assert _numbers(pool) == [0, 1, 2]
    assert torch.equal(pool.read([1]).labels, torch.tensor([1]))


def test_a_missing_column_is_refused_with_the_nearest():
    with pytest.raises(
        ScenarioError, match=r"no column 'imgs' in t\.parquet\. Did you mean 'img'\? Columns: img, label"
    ):
        check_column("imgs", ["img", "label"], "data.image_column", "t.parquet")
