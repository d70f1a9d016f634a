import functools

import pytest
import torch
from fedsim_attacks.matching.consensus import lazy, registered
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.photos import Photos


@functools.cache
def read() -> torch.Tensor:
    return Photos(image_size=16).load(0).train.read([0, 50]).images


@pytest.fixture
def photos() -> torch.Tensor:
    return read()


def test_seeds_agree_lazily_on_their_mean() -> None:
    seeds = torch.randn(3, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lazy(seeds), (seeds[0] + seeds[1] + seeds[2]) / 3)
    assert float(lazy(torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1, 1, 1))) == 3


def test_equal_seeds_are_left_where_they_are(photos: torch.Tensor) -> None:
    seeds = photos.expand(4, *photos.shape)
    torch.testing.assert_close(registered(seeds), photos)


@pytest.mark.parametrize("shift", [(1, 0), (0, -2), (3, 2), (-4, 4)])
def test_a_shift_of_one_seed_is_undone(shift: tuple[int, int], photos: torch.Tensor) -> None:
    seeds = photos.expand(5, *photos.shape).clone()
    seeds[2, 1] = photos[1].roll(shift, (-2, -1))
    found = registered(seeds)
    torch.testing.assert_close(found, photos)
    assert not torch.allclose(lazy(seeds), photos, atol=1e-3)


@settings(max_examples=30)
@given(row=st.integers(-3, 3), column=st.integers(-3, 3), brightness=st.floats(-0.5, 0.5))
def test_brightness_does_not_hide_a_shift(row: int, column: int, brightness: float) -> None:
    photo = read()[:1]
    seeds = photo.expand(5, *photo.shape).clone()
    seeds[0] = brightness + photo.roll((row, column), (-2, -1))
    torch.testing.assert_close(registered(seeds), photo + brightness / 5)


def test_shifts_are_never_longer_than_the_reach(photos: torch.Tensor) -> None:
    seeds = photos.expand(5, *photos.shape).clone()
    seeds[0] = photos.roll((3, 0), (-2, -1))
    torch.testing.assert_close(registered(seeds, reach=0.25), photos)
    assert not torch.allclose(registered(seeds, reach=0.1), photos, atol=1e-3)
    torch.testing.assert_close(registered(seeds, reach=0.0), lazy(seeds))


def test_images_that_are_not_square_are_registered_too(photos: torch.Tensor) -> None:
    wide = photos[..., :10, :]
    seeds = wide.expand(4, *wide.shape).clone()
    seeds[3] = wide.roll((1, -3), (-2, -1))
    torch.testing.assert_close(registered(seeds), wide)
