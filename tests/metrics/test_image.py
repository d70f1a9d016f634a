import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.metrics import image
from fedsim.metrics.image import MetricUnavailableError, fft2d, lpips, psnr, ssim


def picture(seed: int, side: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.rand(channels, side, side, generator=torch.Generator().manual_seed(seed))


def smooth(seed: int, side: int = 32) -> torch.Tensor:
    coarse = picture(seed, 4)[None]
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")[0]


def gaussian_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM as in Wang et al., section III.B: explicit 11 x 11 windows, no library."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    return windowed_ssim(a, b, weights)


def windowed_ssim(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    size, values = len(weights), []
    for channel in range(len(a)):
        for row in range(a.shape[1] - size + 1):
            for column in range(a.shape[2] - size + 1):
                x = a[channel, row : row + size, column : column + size]
                y = b[channel, row : row + size, column : column + size]
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                c1, c2 = 0.01**2, 0.03**2
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


@given(offset=st.floats(0.01, 0.5), data_range=st.sampled_from([1.0, 255.0]))
def test_psnr_of_a_constant_offset_has_its_closed_form(offset: float, data_range: float) -> None:
    true = torch.zeros(3, 8, 8, dtype=torch.float64)
    expected = 20 * math.log10(1 / offset)
    assert psnr(true + offset * data_range, true, data_range) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_equal_images_is_infinite() -> None:
    assert psnr(picture(0), picture(0), 1.0) == math.inf


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("data_range", [0.0, -1.0, math.nan])
def test_a_data_range_that_is_not_positive_is_refused(metric, data_range: float) -> None:
    with pytest.raises(ValueError, match="data_range: expected a positive number"):
        metric(picture(0), picture(1), data_range)


def test_ssim_equals_explicit_gaussian_windows_above_16_px() -> None:
    true = smooth(0, 20)
    found = (true + 0.2 * picture(1, 20) - 0.1).clamp(0, 1)
    expected = gaussian_ssim(found.double().numpy(), true.double().numpy())
    assert ssim(found, true, 1.0) == pytest.approx(expected, abs=1e-6)


def test_ssim_equals_explicit_uniform_windows_of_7_at_16_px() -> None:
    true = smooth(2, 16)
    found = (true + 0.2 * picture(3, 16) - 0.1).clamp(0, 1)
    expected = windowed_ssim(found.double().numpy(), true.double().numpy(), np.full((7, 7), 1 / 49))
    assert ssim(found, true, 1.0) == pytest.approx(expected, abs=1e-6)


def test_ssim_below_the_window_is_unavailable() -> None:
    with pytest.raises(MetricUnavailableError, match="at least 7 px"):
        ssim(picture(0, 6), picture(1, 6), 1.0)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), side=st.sampled_from([8, 16, 17, 32]), channels=st.sampled_from([1, 3]))
def test_an_exact_copy_is_the_best_score_of_every_metric(seed: int, side: int, channels: int) -> None:
    true, other = picture(seed, side, channels), picture(seed + 1, side, channels)
    assert ssim(true, true, 1.0) == pytest.approx(1.0)
    assert fft2d(true, true) == pytest.approx(0.0, abs=1e-9)
    assert ssim(other, true, 1.0) < 0.9
    assert fft2d(other, true) > 1e-3


def test_all_metrics_leak_less_the_more_noise_there_is() -> None:
    true, noise = smooth(4), picture(5) - 0.5
    scores = [
        (psnr(f, true, 1.0), ssim(f, true, 1.0), -fft2d(f, true))
        for f in (true + strength * noise for strength in (0.05, 0.2, 0.8))
    ]
    for weaker, stronger in itertools.pairwise(scores):
        assert all(a > b for a, b in zip(weaker, stronger, strict=True))


def test_fft2d_ignores_where_things_are() -> None:
    true = picture(6)
    assert fft2d(true.roll((5, 9), dims=(1, 2)), true) == pytest.approx(0.0, abs=1e-9)
    assert psnr(true.roll((5, 9), dims=(1, 2)), true, 1.0) < 12


def test_fft2d_of_a_pure_wave_has_its_closed_form() -> None:
    wave = 0.25 * torch.cos(2 * math.pi * torch.arange(32) / 32).expand(1, 32, 32)
    # Amplitudes: 0.5 at frequency 0, and 0.125 at frequencies +1 and -1; a flat grey has the first alone.
    expected = 1 - 0.5 / math.sqrt(0.5**2 + 2 * 0.125**2)
    assert fft2d(torch.full((1, 32, 32), 0.5), 0.5 + wave) == pytest.approx(expected, abs=1e-6)


def test_fft2d_of_black_images_is_defined() -> None:
    black = torch.zeros(3, 8, 8)
    assert fft2d(black, black) == 0.0
    assert fft2d(black, picture(0, 8)) == 1.0


def test_lpips_refuses_two_channels() -> None:
    with pytest.raises(MetricUnavailableError, match="1 or 3 channels"):
        lpips(picture(0, channels=2), picture(1, channels=2))


def test_images_below_64_px_are_enlarged_for_lpips() -> None:
    assert image._for_lpips(picture(0, 32)).shape == (1, 3, 64, 64)
    assert image._for_lpips(picture(0, 80)).shape == (1, 3, 80, 80)
