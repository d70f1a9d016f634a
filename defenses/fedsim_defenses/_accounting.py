"""Privacy accounting of Gaussian noise over rounds: exact, by Gaussian differential privacy (`fedsim.gaussian_dp`)."""

from __future__ import annotations

import math

from fedsim import gaussian_dp

# Above the errors of floats, so that no epsilon is stated below the exact one; far below three digits.
_SLACK = 1e-12


def gaussian_epsilon(noise_ratio: float, releases: int, delta: float) -> float:
    """Epsilon of releasing that many Gaussian mechanisms over the same data, without amplification by sampling.

    Together they are one mechanism with mu = sqrt(releases) / noise_ratio, so nothing is lost by composing them.

    Args:
        noise_ratio: standard deviation of the noise over the l2 sensitivity of what is released; above 0.
        releases: number of releases; each may depend on those before.
        delta: probability with which the guarantee may fail; between 0 and 1, both excluded.

    Returns:
        Epsilon, never below the exact one; above it by a billionth at most where delta is below 0.99. Infinite where it exceeds
        the range of floats.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not noise_ratio > 0:
        raise ValueError(f"noise_ratio: expected a number above 0, got {noise_ratio}.")
    if releases < 0:
        raise ValueError(f"releases: expected at least 0, got {releases}.")
    if not 0 < delta < 1:
        raise ValueError(f"delta: expected a number between 0 and 1, both excluded, got {delta}.")
    exact = gaussian_dp.gaussian_epsilon(math.sqrt(releases) / noise_ratio, delta * (1 - _SLACK))
    return exact * (1 + _SLACK) + _SLACK if exact else 0.0
