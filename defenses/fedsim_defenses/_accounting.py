"""Privacy accounting of Gaussian noise over rounds: exact, by Gaussian differential privacy (`fedsim.gaussian_dp`)."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, Literal

from fedsim import gaussian_dp
from fedsim.defense import MEANINGFUL_DELTA, MEANINGFUL_EPSILON, PrivacyBudget
from fedsim.errors import FedsimError

DRAWN_FROM_THE_SEED = (
    "The noise is drawn from the scenario's seed; a deployment needs randomness that nobody can repeat."
)

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


def weaknesses(budget: PrivacyBudget) -> list[str]:
    """Return why a guarantee after one round is not worth the name, one sentence each; empty where it is."""
    found = []
    if budget.epsilon > MEANINGFUL_EPSILON:
        found.append(
            f"Epsilon is {budget.epsilon:.3g} after one round (delta {budget.delta:g}, {budget.neighbors}): no meaningful "
            "guarantee, whatever the attacks tried here achieve."
        )
    if budget.delta > MEANINGFUL_DELTA:
        found.append(
            f"Delta is {budget.delta:g}: with this probability the guarantee fails altogether, so that no epsilon makes it "
            f"one. Set it to {MEANINGFUL_DELTA:g} or below."
        )
    return found


Accountant = Literal["rdp", "prv"]
History = tuple[tuple[float, float, int], ...]
"""Releases in order, equal ones together: noise multiplier, sampling rate, number of steps."""

_LARGEST_BY_PRV = 50.0  # epsilon; beyond it the grid of the privacy loss no longer fits into memory


@functools.lru_cache(maxsize=1024)
def subsampled_epsilon(history: History, delta: float, accountant: Accountant) -> float:
    """Epsilon of Poisson-subsampled Gaussian mechanisms, for one record added or removed, by an accountant of Opacus.

    Args:
        history: all releases over the same data; each may depend on those before.
        delta: probability with which the guarantee may fail; between 0 and 1, both excluded.
        accountant: `rdp`, Renyi differential privacy (Mironov, Talwar, Zhang 2019); `prv`, the privacy loss composed
            numerically (Gopi, Lee, Wutschitz 2021), tighter, and by `rdp` where that says more than 50.

    Returns:
        Epsilon, infinite where it exceeds what can be computed.

    Raises:
        MissingOpacusError: it is not installed.
    """
    rdp, prv = _accountants()
    if not history:
        return 0.0
    epsilon = _epsilon_by(rdp(), history, delta)
    return _epsilon_by(prv(), history, delta) if accountant == "prv" and epsilon <= _LARGEST_BY_PRV else epsilon


class MissingOpacusError(FedsimError):
    """The package that accounts for subsampled noise is not installed."""

    def __init__(self) -> None:
        super().__init__("dp_sgd accounts with Opacus, which is not installed: pip install 'fedsim-audit[dp]'.")


def _accountants() -> tuple[Any, Any]:
    try:
        from opacus.accountants import PRVAccountant, RDPAccountant  # takes seconds
    except ImportError:
        raise MissingOpacusError from None
    return RDPAccountant, PRVAccountant


def _epsilon_by(accountant: Any, history: History, delta: float) -> float:
    accountant.history = list(history)
    with warnings.catch_warnings():
        # It warns where another order would give a smaller epsilon; the one that it gives is valid all the same.
        warnings.simplefilter("ignore")
        try:
            epsilon = float(accountant.get_epsilon(delta))
        except ArithmeticError:
            return math.inf
    return math.inf if math.isnan(epsilon) else max(0.0, epsilon)
