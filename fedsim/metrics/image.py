"""Distances between one reconstructed image and one original.

Images are pixels in [0, 1] at their native size; nothing is resized before PSNR, SSIM and FFT2D. Sums run in float64
through NumPy, whose results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.metrics import lpips_network
from fedsim.metrics.unavailable import MetricUnavailableError

Image = Float[Tensor, "channel height width"]

_SMALL = 16
_SMALL_WINDOW = 7
_LPIPS_SIDE = 64


def _array(image: Image) -> np.ndarray:
    return image.detach().cpu().numpy().astype(np.float64)


def psnr(found: Image, true: Image, data_range: float) -> float:
    """Peak signal-to-noise ratio in decibels; higher means more leakage.

    Args:
        found: reconstruction, in the units of `true`.
        true: the client's image.
        data_range: largest minus smallest possible pixel value; 1.0 for images in [0, 1].

    Returns:
        10 log10(data_range^2 / mse); infinity for equal images.

    Raises:
        ValueError: `data_range` is not positive.

    Source: Hore and Ziou, "Image Quality Metrics: PSNR vs. SSIM", ICPR 2010.
    """
    if not data_range > 0:
        raise ValueError(f"data_range: expected a positive number, got {data_range}.")
    mse = float(np.square(_array(found) - _array(true)).mean())
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def ssim(found: Image, true: Image, data_range: float) -> float:
    """Structural similarity, the mean over channels; 1 for equal images, higher means more leakage.

    The window is Gaussian, 11 x 11 with sigma 1.5. Images of at most 16 px get the uniform 7 x 7 window,
    because too few positions of the large one would fit. Computed by scikit-image.

    Args:
        found: reconstruction, in the units of `true`.
        true: the client's image.
        data_range: largest minus smallest possible pixel value; 1.0 for images in [0, 1].

    Raises:
        ValueError: `data_range` is not positive.
        MetricUnavailableError: a side is shorter than 7 px.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment", IEEE Transactions on Image Processing, 2004.
    """
    from skimage.metrics import structural_similarity

    if not data_range > 0:
        raise ValueError(f"data_range: expected a positive number, got {data_range}.")
    side = min(true.shape[1:])
    if side < _SMALL_WINDOW:
        raise MetricUnavailableError(f"SSIM needs images of at least {_SMALL_WINDOW} px, these have {side}")
    window: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5} if side > _SMALL else {"win_size": _SMALL_WINDOW}
    similarity: Any = structural_similarity
    return float(
        similarity(
            _array(found), _array(true), data_range=data_range, channel_axis=0, use_sample_covariance=False, **window
        )
    )


def fft2d(found: Image, true: Image) -> float:
    """Distance of the amplitude spectra, in [0, 1]; lower means more leakage.

    1 - cos(|F(found)|, |F(true)|), the mean over channels. Blind to where things are, so a shifted copy scores 0; a
    flat grey scores low on natural images, because the mean dominates their spectrum. Papers define "FFT2D" in
    several ways: do not compare with their tables.
    """
    spectra = [np.abs(np.fft.fft2(_array(image))).reshape(len(image), -1) for image in (found, true)]
    products = (spectra[0] * spectra[1]).sum(axis=1)
    norms = np.linalg.norm(spectra[0], axis=1) * np.linalg.norm(spectra[1], axis=1)
    both_zero = ~spectra[0].any(axis=1) & ~spectra[1].any(axis=1)
    cosines = np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), both_zero)
    return float(np.clip(1 - cosines, 0, 1).mean())


def lpips(found: Image, true: Image) -> float:
    """Learned perceptual distance on AlexNet (version 0.1); 0 for equal images, lower means more leakage.

    Images below 64 px are enlarged to 64 (bilinear): the network was not made for smaller ones, and its verdict on
    them is rough. The backbone's weights are on this machine, or there is no score; see `fedsim.metrics.lpips_network`.

    Args:
        found: reconstruction, pixels in [0, 1].
        true: the client's image, pixels in [0, 1].

    Raises:
        MetricUnavailableError: the weights are damaged or not in the cache, or the images have not 1 or 3 channels.

    Source: Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", CVPR 2018.
    """
    if len(true) not in (1, 3):
        raise MetricUnavailableError(f"LPIPS needs images of 1 or 3 channels, these have {len(true)}")
    network = lpips_network.network()
    with torch.no_grad():
        return float(network(_for_lpips(found), _for_lpips(true)))


def _for_lpips(image: Image) -> Float[Tensor, "1 3 _ _"]:
    batch = image.detach().cpu().float().expand(3, -1, -1)[None]
    side = min(batch.shape[2:])
    if side < _LPIPS_SIDE:
        size = [round(length * _LPIPS_SIDE / side) for length in batch.shape[2:]]
        batch = torch.nn.functional.interpolate(batch, size=size, mode="bilinear", align_corners=False)
    return 2 * batch - 1
