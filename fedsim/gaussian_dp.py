"""Gaussian differential privacy: what telling N(0, 1) from N(mu, 1) comes to as (epsilon, delta).

A mechanism is mu-GDP if telling two neighbors from its output is no easier than that. The Gaussian mechanism is exactly so,
with mu = sensitivity / sigma, and so are T of them one after the other, with sqrt(T) mu.

Source: Dong, Roth, Su. "Gaussian Differential Privacy". 2019. https://arxiv.org/abs/1905.02383 (corollaries 2.13 and 3.3);
Balle, Wang. "Improving the Gaussian Mechanism for Differential Privacy". 2018. https://arxiv.org/abs/1805.06530 (theorem 8).
"""

from __future__ import annotations

import math


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon at which mu-GDP is (epsilon, delta)-differential privacy.

    The root of delta = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu), zero where epsilon 0 suffices. With
    a = mu / 2 - epsilon / mu, the right side is phi(a) (R(-a) - R(mu - a)), R being Mills' ratio. So no term overflows, and a
    lies between the normal quantiles of delta and (1 + delta) / 2, whatever mu is.

    Args:
        mu: how far the two distributions are apart, in standard deviations; at least 0.
        delta: probability with which the guarantee may fail; between 0 and 1, both excluded.

    Returns:
        Epsilon to the precision of floats, infinite beyond their range.

    Raises:
        ValueError: an argument is out of its range.
    """
    from scipy.optimize import brentq
    from scipy.special import erfcx, ndtri

    if not mu >= 0:
        raise ValueError(f"mu: expected a number of at least 0, got {mu}.")
    if not 0 < delta < 1:
        raise ValueError(f"delta: expected a number between 0 and 1, both excluded, got {delta}.")
    if math.erf(mu / math.sqrt(8)) <= delta:  # delta of epsilon 0
        return 0.0

    def excess(a: float) -> float:
        half_ratios = (float(erfcx(-a / math.sqrt(2))) - float(erfcx((mu - a) / math.sqrt(2)))) / 2
        return -0.5 * a * a + math.log(max(half_ratios, 5e-324)) - math.log(delta)

    highest = min(mu / 2, float(ndtri((1 + delta) / 2)) + 1)  # the quantile of 1 is infinite
    is_root = excess(highest) <= 0  # by rounding alone: delta is less than that of epsilon 0
    a = highest if is_root else float(brentq(excess, float(ndtri(delta)) - 1, highest, xtol=1e-14, maxiter=500))
    return mu * (mu / 2 - a)
