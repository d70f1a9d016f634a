import pytest
import torch
from fedsim_attacks.priors.spectrum import Spectrum
from hypothesis import given
from hypothesis import strategies as st
from vit_cases import photos

from fedsim.exchange import Normalization

CPU = torch.device("cpu")
STDS = (0.2, 0.3, 0.5)


def spectrum(channels: int = 3, height: int = 12, width: int = 8) -> Spectrum:
    normalization = Normalization((0.4,) * channels, STDS[:channels])
    return Spectrum.of((channels, height, width), normalization, CPU)


def drawn(count: int, seed: int, channels: int = 3, height: int = 12, width: int = 8) -> torch.Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


@given(
    channels=st.sampled_from([1, 2, 3]), height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_coefficients_and_images_determine_each_other_and_gradients_are_carried_back(
    channels: int, height: int, width: int, seed: int
) -> None:
    found = spectrum(channels, height, width)
    shape = (channels, height, width)
    coefficients, gradient = drawn(2, seed, *shape), drawn(2, seed + 100, *shape)
    images = found.images(coefficients)
    assert images.shape == coefficients.shape
    torch.testing.assert_close(found.coefficients(images), coefficients, rtol=0, atol=1e-3)
    # <gradient, images(coefficients) - grey> = <gradient in coefficients, coefficients>
    along = float(((images - found.grey) * gradient).sum())
    assert float((found.coefficient_gradient(gradient) * coefficients).sum()) == pytest.approx(
        along, rel=1e-4, abs=1e-3
    )


def test_no_wave_is_a_grey_image_whatever_the_normalization() -> None:
    found = spectrum()
    flat = found.images(torch.zeros(1, 3, 12, 8))
    pixels = Normalization((0.4,) * 3, STDS).denormalize(flat)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 0.5))


def test_white_noise_becomes_images_of_a_quarter_contrast() -> None:
    pixels = Normalization((0.4,) * 3, STDS).denormalize(spectrum().images(drawn(400, 0)))
    assert float(pixels.mean()) == pytest.approx(0.5, abs=0.02)
    assert float((pixels - 0.5).square().mean().sqrt()) == pytest.approx(0.25, abs=0.02)


def test_photographs_are_about_white_in_it_where_their_pixels_are_not() -> None:
    pool = photos(32)
    images = pool.read(list(range(len(pool)))).images
    found = Spectrum.of((3, 32, 32), Normalization((0.0,) * 3, (1.0,) * 3), CPU)
    coefficients = found.coefficients(images)
    brightness = coefficients[:, 0]
    bands = [slice(1, 3), slice(3, 8), slice(8, 32)]
    sizes = [float(brightness[:, band, band].square().mean().sqrt()) for band in bands]
    assert max(sizes) < 5 * min(sizes)
    unweighted = [size * float(found.weights[0, band, band].mean()) for size, band in zip(sizes, bands, strict=True)]
    assert max(unweighted) > 20 * min(unweighted)
