"""Crops of scikit-image's photographs: disjoint regions, no flat crops, the same for the same seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data import photos
from fedsim.data.photos import PHOTOGRAPHS, Photos, divide
from fedsim.errors import ScenarioError

SPLITS = ("train", "test", "auxiliary")


@settings(deadline=None)
@given(st.integers(8, 2000), st.integers(8, 2000), st.sampled_from(["left", "right", "bottom"]))
def test_regions_of_a_photograph_share_no_pixel_and_cover_it(width, height, side):
    boxes = divide(width, height, side).values()
    area = sum((box.right - box.left) * (box.bottom - box.top) for box in boxes)
    assert area == width * height
    for box in boxes:
        for other in boxes:
            apart_x = box.right <= other.left or other.right <= box.left
            apart_y = box.bottom <= other.top or other.bottom <= box.top
            assert box is other or apart_x or apart_y


@pytest.mark.parametrize("file,side", PHOTOGRAPHS)
def test_no_pixel_outside_a_region_reaches_its_images(file, side, monkeypatch):
    """Images of a pool stay the same when every pixel outside its region is painted over."""
    original = photos._photograph(file)
    painted = {split: _painted_outside(original, divide(*original.size, side)[split]) for split in SPLITS}
    for split in SPLITS:
        seen = photos._region.__wrapped__(file, side, split)
        monkeypatch.setattr(photos, "_photograph", lambda _, split=split: painted[split])
        again = photos._region.__wrapped__(file, side, split)
        monkeypatch.setattr(photos, "_photograph", lambda _: original)
        assert np.array_equal(np.asarray(seen.pixels), np.asarray(again.pixels))
        assert np.array_equal(seen.moments, again.moments)


def _painted_outside(image, box):
    painted = image.copy()
    painted.paste((255, 0, 255), (0, 0, *image.size))
    painted.paste(image.crop(box), box[:2])
    return painted


@pytest.mark.parametrize("size", [32, 64, 224, 512])
def test_every_region_has_crops_that_are_not_flat(size):
    for file, side in PHOTOGRAPHS:
        for split in SPLITS:
            region = photos._region(file, side, split)
            crop = region.draw(size, np.random.default_rng(0))
            assert crop.right - crop.left == crop.bottom - crop.top
            assert 0 <= crop.left and crop.right <= region.pixels.size[0]
            assert 0 <= crop.top and crop.bottom <= region.pixels.size[1]
            assert not region.is_flat(crop)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([32, 48, 96]))
def test_images_are_not_flat(seed, size):
    pictures = Photos(image_size=size, samples=14).load(seed).train.read(range(14)).images
    assert float(pictures.mean(1).flatten(1).std(1).min()) > 0.03


def test_a_black_crop_is_flat_and_the_cat_is_not():
    hubble = photos._region("retina.jpg", "right", "train")
    assert hubble.is_flat(photos.Box(0, 0, 60, 60))
    cat = photos._region("chelsea.png", "left", "train")
    assert not cat.is_flat(photos.Box(0, 0, 300, 300))


def test_clients_images_are_never_enlarged_up_to_224_pixels():
    for file, side in PHOTOGRAPHS:
        region = photos._region(file, side, "train")
        crops = [region.draw(224, np.random.default_rng(seed)) for seed in range(20)]
        assert min(crop.right - crop.left for crop in crops) >= 224


def test_pools_have_the_sizes_classes_and_shapes_asked_for():
    pools = Photos(image_size=48, samples=15, test_samples=8, auxiliary_samples=7).load(3)
    assert [len(pool) for pool in (pools.train, pools.test, pools.auxiliary)] == [15, 8, 7]
    assert pools.class_names[:2] == ("astronaut", "chelsea")
    assert len(pools.class_names) == 7
    assert torch.bincount(pools.train.labels).tolist() == [3, 2, 2, 2, 2, 2, 2]
    assert pools.train.fetch([4, 0]).shape == (2, 3, 48, 48)
    assert pools.train.fetch([0]).dtype == torch.uint8


def test_the_same_seed_gives_the_same_images_in_any_order():
    pool = Photos(samples=21).load(5).train
    forward, backward = pool.fetch(range(21)), pool.fetch(range(20, -1, -1))
    assert torch.equal(forward, backward.flip(0))


def test_another_seed_gives_other_images():
    assert not torch.equal(
        Photos(samples=7).load(1).train.fetch(range(7)), Photos(samples=7).load(2).train.fetch(range(7))
    )


def test_a_longer_pool_begins_like_a_shorter_one():
    short, long = Photos(samples=10).load(4).train, Photos(samples=20).load(4).train
    assert torch.equal(short.fetch(range(10)), long.fetch(range(10)))


def test_a_scikit_image_without_its_photographs_is_refused(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ScenarioError, match=r"^data\.name: .*astronaut\.png"):
        photos._photograph.__wrapped__("astronaut.png")
