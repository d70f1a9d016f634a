"""Privacy accounting in Renyi differential privacy (RDP), composed over rounds.

RDP of the Gaussian mechanism: Mironov, "Renyi Differential Privacy". 2017. https://arxiv.org/abs/1702.07476
From RDP to (epsilon, delta): Balle et al., "Hypothesis Testing Interpretations and Renyi Differential Privacy",
theorem 21. 2020. https://arxiv.org/abs/1905.09982
"""

from __future__ import annotations

import math

import numpy as np

# Orders minus one. Every order gives a valid epsilon; neighbors on the grid differ by 0.2 %, the optimum by far less.
_EXCESS_ORDERS = np.geomspace(1e-9, 1e9, 20_001)


def gaussian_epsilon(noise_ratio: float, releases: int, delta: float) -> float:
    """Epsilon of releasing that many Gaussian mechanisms over the same data, without amplification by sampling.

    With k = releases / (2 noise_ratio^2), the minimum over orders a > 1 of
    k a + log((a - 1) / a) - (log delta + log a) / (a - 1).

    Args:
        noise_ratio: standard deviation of the noise over the l2 sensitivity of what is released; above 0.
        releases: number of releases; each may depend on those before.
        delta: probability with which the guarantee may fail; between 0 and 1, both excluded.

    Returns:
        Epsilon, infinite where it exceeds the range of floats.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not noise_ratio > 0:
        raise ValueError(f"noise_ratio: expected a number above 0, got {noise_ratio}.")
    if releases < 0:
        raise ValueError(f"releases: expected at least 0, got {releases}.")
    if not 0 < delta < 1:
        raise ValueError(f"delta: expected a number between 0 and 1, both excluded, got {delta}.")
    if releases == 0:
        return 0.0
    cost = 0.5 * releases * (1 / noise_ratio) * (1 / noise_ratio)
    orders = 1 + _EXCESS_ORDERS
    log_orders = np.log1p(_EXCESS_ORDERS)
    converted = np.log(_EXCESS_ORDERS) - log_orders - (math.log(delta) + log_orders) / _EXCESS_ORDERS
    return max(0.0, float(np.min(cost * orders + converted)))
