"""Corruptions: formulas against NumPy, scikit-image and Pillow, and the moments of what is drawn."""

import io

import numpy as np
import pytest
import torch
from fedsim_defenses.evaluators.corruptions import ALL, Corruptions, corrupted
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import color, filters

from fedsim import models
from fedsim.errors import EvaluationRefusedError, ScenarioError
from fedsim.evaluator import PixelModel
from fedsim.plugins import configure
from fedsim.seeds import torch_generator
from fedsim.source import Pool
from fedsim.testing import random_images, small_model

IMAGES = random_images(torch_generator(0), 3).images
GREY = torch.full((40, 3, 32, 32), 0.5)


def one(corruption, severity, images=IMAGES, seed=0):
    return corrupted(images, corruption, severity, torch_generator(seed))


def by_channel_last(images):
    return images.permute(0, 2, 3, 1).double().numpy()


@settings(max_examples=40)
@given(
    corruption=st.sampled_from(ALL),
    severity=st.integers(1, 5),
    seed=st.integers(0, 99),
    channels=st.sampled_from([1, 3]),
    height=st.integers(4, 12),
    width=st.integers(4, 12),
)
def test_what_is_corrupted_is_an_image_and_the_same_for_the_same_seed(
    corruption, severity, seed, channels, height, width
):
    images = torch.rand(2, channels, height, width, generator=torch_generator(seed, "images"))
    found = one(corruption, severity, images, seed)
    assert found.shape == images.shape and found.dtype == images.dtype
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(found, one(corruption, severity, images, seed))
    assert not found.equal(images) or corruption in ("jpeg", "pixelate", "impulse_noise")


@pytest.mark.parametrize("corruption", ALL)
def test_a_higher_severity_is_further_from_the_image(corruption):
    far = [float((one(corruption, severity) - IMAGES).square().mean()) for severity in (1, 3, 5)]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize(("severity", "amount"), [*enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1)])
def test_gaussian_noise_has_the_stated_deviation(severity, amount):
    noise = one("gaussian_noise", severity, GREY) - GREY
    assert float(noise.std()) == pytest.approx(amount, rel=0.02) and abs(float(noise.mean())) < 0.002


@pytest.mark.parametrize(("severity", "amount"), [*enumerate((500, 250, 100, 75, 50), 1)])
def test_shot_noise_has_the_variance_of_a_poisson_draw(severity, amount):
    noise = one("shot_noise", severity, GREY) - GREY
    assert float(noise.var()) == pytest.approx(0.5 / amount, rel=0.05) and abs(float(noise.mean())) < 0.002


@pytest.mark.parametrize(("severity", "amount"), [*enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1)])
def test_impulse_noise_makes_the_stated_share_black_or_white_alike(severity, amount):
    found = one("impulse_noise", severity, GREY)
    hit = found != 0.5
    assert float(hit.double().mean()) == pytest.approx(amount, rel=0.1)
    assert float(found[hit].mean()) == pytest.approx(0.5, abs=0.05) and set(found[hit].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("severity", "amount"), [*enumerate((0.4, 0.6, 0.7, 0.8, 1.0), 1)])
def test_blur_is_that_of_scikit_image(severity, amount):
    found = by_channel_last(one("blur", severity))
    for image, blurred in zip(by_channel_last(IMAGES), found, strict=True):
        expected = filters.gaussian(image, sigma=amount, mode="nearest", channel_axis=-1)
        assert np.abs(blurred - expected).max() < 1e-3


@pytest.mark.parametrize(("severity", "amount"), [*enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1)])
def test_contrast_keeps_the_mean_of_each_channel_and_scales_what_is_around_it(severity, amount):
    found = one("contrast", severity)
    for image, flatter in zip(by_channel_last(IMAGES), by_channel_last(found), strict=True):
        means = image.mean(axis=(0, 1), keepdims=True)
        assert np.abs(flatter - ((image - means) * amount + means)).max() < 1e-5


@pytest.mark.parametrize(("severity", "amount"), [*enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1)])
def test_brightness_is_the_value_of_hsv(severity, amount):
    images = torch.cat([IMAGES, torch.zeros_like(IMAGES[:1])])
    for image, brighter in zip(
        by_channel_last(images), by_channel_last(one("brightness", severity, images)), strict=True
    ):
        values = color.rgb2hsv(image)
        values[:, :, 2] = np.clip(values[:, :, 2] + amount, 0, 1)
        assert np.abs(brighter - color.hsv2rgb(values)).max() < 1e-5


@pytest.mark.parametrize("severity", range(1, 6))
def test_jpeg_and_pixelate_are_what_pillow_makes(severity):
    quality, side = (80, 65, 58, 50, 40)[severity - 1], (30, 28, 27, 24, 20)[severity - 1]
    compressed, coarse = by_channel_last(one("jpeg", severity)), by_channel_last(one("pixelate", severity))
    for number, stored in enumerate((by_channel_last(IMAGES) * 255).round().astype(np.uint8)):
        buffer = io.BytesIO()
        Image.fromarray(stored).save(buffer, "JPEG", quality=quality)
        assert np.abs(compressed[number] * 255 - np.asarray(Image.open(buffer))).max() < 1e-3
        small = Image.fromarray(stored).resize((side, side), Image.Resampling.BOX)
        assert np.abs(coarse[number] * 255 - np.asarray(small.resize((32, 32), Image.Resampling.BOX))).max() < 1e-3


def ask(evaluator, channels=3):
    model = small_model()
    stored = (IMAGES[:, :1].expand(-1, channels, -1, -1) * 255).to(torch.uint8)
    pool = Pool(torch.arange(3), lambda chosen: stored[list(chosen)])
    asked = PixelModel(model, models.normalization(model)).eval()
    return evaluator.run(asked, pool, tuple(map(str, range(10))), torch_generator(0, "ask")).scores


def test_scores_are_by_corruption_and_severity_with_their_mean():
    found = ask(Corruptions(corruptions=("contrast", "blur"), severities=(5, 1)))
    rates = [found[f"{name} at severity {severity}"] for name in ("contrast", "blur") for severity in (1, 5)]
    assert found["mean accuracy, corrupted"] == pytest.approx(sum(rates) / 4)
    assert "accuracy, not corrupted" in found


def test_channels_that_pillow_does_not_know_are_refused_with_what_to_do():
    with pytest.raises(EvaluationRefusedError, match="Leave them out of corruptions"):
        ask(Corruptions(), channels=2)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"corruptions": []}, "corruptions"),
        ({"corruptions": ["fog"]}, "corruptions"),
        ({"corruptions": ["blur", "blur"]}, "corruptions"),
        ({"severities": []}, "severities"),
        ({"severities": [6]}, "severities"),
        ({"severities": [1, 1]}, "severities"),
        ({"images": 0}, "images"),
    ],
)
def test_a_bad_parameter_is_refused_by_its_name(params, field):
    with pytest.raises(ScenarioError) as refused:
        configure(Corruptions, params, "evaluators.0.params")
    assert refused.value.where.startswith(f"evaluators.0.params.{field}")
