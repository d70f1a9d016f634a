import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedsim.strips import png_strip, png_trajectory, spread


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(float) / 255


@given(st.integers(1, 200), st.integers(2, 40))
def test_positions_are_spread_evenly_from_the_first_to_the_last(count: int, most: int) -> None:
    found = spread(count, most)
    assert len(found) == min(count, most)
    assert found[0] == 0 and found[-1] == count - 1
    gaps = np.diff(found)
    assert gaps.size == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_trajectory_has_a_column_per_frame_a_row_per_image_and_the_originals_apart(channels: int) -> None:
    frames = torch.rand(3, 2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    originals = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    picture = read(png_trajectory(frames, originals)).reshape(32, 3 * 16 + 2 + 16, channels)
    for row in range(2):
        band = picture[16 * row : 16 * (row + 1)]
        for column, expected in enumerate(frames[:, row]):
            found = band[:, 16 * column : 16 * (column + 1)]
            assert np.abs(found - expected.movedim(0, -1).numpy()).max() <= 0.5 / 255 + 1e-6
        assert (band[:, 48:50] == 1).all()
        assert np.abs(band[:, 50:] - originals[row].movedim(0, -1).numpy()).max() <= 0.5 / 255 + 1e-6


def test_a_trajectory_shows_eight_images_of_a_large_batch() -> None:
    picture = read(png_trajectory(torch.rand(2, 20, 3, 8, 8), torch.rand(20, 3, 8, 8)))
    assert picture.shape == (64, 2 * 8 + 1 + 8, 3)


def test_a_strip_stands_side_by_side() -> None:
    images = torch.rand(10, 3, 8, 8)
    assert read(png_strip(images)).shape == (8, 64, 3)
