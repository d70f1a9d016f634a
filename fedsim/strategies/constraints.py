"""Which values of a strategy's parameters mean something. Flower takes most others without a word.

One table, by strategy and parameter; a test compares it with the installed Flower, so that a parameter which a new version
adds has to be entered here. Beside it, what a strategy needs of the number of replies that it aggregates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedsim.validation import shown


class Range(NamedTuple):
    """Numbers from `low` to `high`; the ends belong to it unless they are said to be open."""

    low: int | float
    high: int | float = math.inf
    is_low_open: bool = False
    is_high_open: bool = False

    def holds(self, value: int | float) -> bool:
        """Return whether a number lies inside."""
        above = value > self.low if self.is_low_open else value >= self.low
        below = value < self.high if self.is_high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.is_low_open else f"at least {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.is_high_open else 'at most'} {self.high:g}"


_POSITIVE = Range(0, is_low_open=True)
_NOT_NEGATIVE = Range(0)
_COUNT = Range(1)
_DECAY = Range(
    0, 1, is_high_open=True
)  # in moments, 1 would never forget, and divides by zero where the bias is corrected
_SHARE = Range(0, 1)

_ADAPTIVE = {
    "eta": _POSITIVE,
    "eta_l": None,  # Flower stores it and never reads it
    "tau": _POSITIVE,  # keeps the divisor above zero where no client moved an entry
}
_WITH_MOMENTS = {**_ADAPTIVE, "beta_1": _DECAY, "beta_2": _DECAY}
_WRAPPER = {"strategy": None, "noise_multiplier": _NOT_NEGATIVE, "num_sampled_clients": _COUNT}
_FIXED_CLIPPING = {**_WRAPPER, "clipping_norm": _POSITIVE}
_ADAPTIVE_CLIPPING = {
    **_WRAPPER,
    "initial_clipping_norm": _POSITIVE,
    "target_clipped_quantile": _SHARE,
    "clip_norm_lr": _POSITIVE,
    "clipped_count_stddev": _NOT_NEGATIVE,
}

RANGES: Mapping[str, Mapping[str, Range | None]] = {
    "Bulyan": {"num_malicious_nodes": _NOT_NEGATIVE},
    "DifferentialPrivacyClientSideAdaptiveClipping": _ADAPTIVE_CLIPPING,
    "DifferentialPrivacyClientSideFixedClipping": _FIXED_CLIPPING,
    "DifferentialPrivacyServerSideAdaptiveClipping": _ADAPTIVE_CLIPPING,
    "DifferentialPrivacyServerSideFixedClipping": _FIXED_CLIPPING,
    "FedAdagrad": _ADAPTIVE,
    "FedAdam": _WITH_MOMENTS,
    "FedAvg": {},
    "FedAvgM": {"server_learning_rate": _POSITIVE, "server_momentum": _DECAY},
    "FedMedian": {},
    "FedProx": {"proximal_mu": _NOT_NEGATIVE},
    "FedTrimmedAvg": {"beta": Range(0, 0.5, is_high_open=True)},
    "FedWAvg": {"sharpness": _NOT_NEGATIVE, "layer": None, "count_examples": None},
    "FedYogi": _WITH_MOMENTS,
    "Krum": {"num_malicious_nodes": _NOT_NEGATIVE},
    "MultiKrum": {"num_malicious_nodes": _NOT_NEGATIVE, "num_nodes_to_select": _COUNT},
    "QFedAvg": {"client_learning_rate": _POSITIVE, "q": _NOT_NEGATIVE},
    "SFAT": {"alpha": _DECAY, "upweighted": _COUNT},
}
"""Strategy -> parameter -> its range; None for one that may hold anything of its type."""


MEAN_ALONE = frozenset({"FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedProx", "FedYogi"})
"""Strategies that need of a round nothing but the weighted mean of its updates, as secure aggregation gives it."""


class Fault(NamedTuple):
    """A parameter and what is wrong with its value."""

    parameter: str
    message: str


def range_fault(strategy: str, values: Mapping[str, Any]) -> Fault | None:
    """Return the first value outside the range of its parameter, or None."""
    for name, value in values.items():
        allowed = RANGES[strategy].get(name)
        if allowed is not None and value is not None and not allowed.holds(value):
            return Fault(name, f"expected a number {allowed}, got {shown(value)}.")
    return None


def _bulyan(values: Mapping[str, Any], clients: int) -> Fault | None:
    return _enough("Bulyan", values["num_malicious_nodes"], 4, clients)


def _krum(values: Mapping[str, Any], clients: int) -> Fault | None:
    return _enough("Krum", values["num_malicious_nodes"], 2, clients)


def _multi_krum(values: Mapping[str, Any], clients: int) -> Fault | None:
    malicious, selected = values["num_malicious_nodes"], values["num_nodes_to_select"]
    fault = _enough("MultiKrum", malicious, 2, clients)
    if fault is None and selected > clients - malicious:
        return Fault(
            "num_nodes_to_select",
            f"expected at most {clients - malicious}, the {clients} clients of a round less num_malicious_nodes "
            f"{malicious}, got {shown(selected)}.",
        )
    return fault


def _sfat(values: Mapping[str, Any], clients: int) -> Fault | None:
    if values["upweighted"] < clients:
        return None
    return Fault(
        "upweighted",
        f"expected at most {clients - 1}, one less than the {clients} clients of a round, got {shown(values['upweighted'])}: "
        "to prefer all of them is to prefer none. Use FedAvg, or more clients.",
    )


def _enough(strategy: str, malicious: int, factor: int, clients: int) -> Fault | None:
    """Check the bound under which the paper's guarantee holds: n >= factor * f + 3."""
    needed = factor * malicious + 3
    if clients >= needed:
        return None
    most = (clients - 3) // factor
    advice = f"Use at most {most}, or more clients" if most >= 0 else "Use more clients, or another strategy"
    return Fault(
        "num_malicious_nodes",
        f"{strategy} needs at least {factor} * {malicious} + 3 = {needed} clients a round to withstand {malicious} "
        f"malicious, and has {clients}. {advice}.",
    )


def _wrapper(values: Mapping[str, Any], clients: int) -> Fault | None:
    sampled = values["num_sampled_clients"]
    if sampled == clients:
        return None
    return Fault(
        "num_sampled_clients",
        f"expected {clients}, the clients of a round, got {shown(sampled)}: the noise would not be of the size that "
        "noise_multiplier states. Leave it out.",
    )


_NEEDS: Mapping[str, Callable[[Mapping[str, Any], int], Fault | None]] = {
    "Bulyan": _bulyan,
    "Krum": _krum,
    "MultiKrum": _multi_krum,
    "SFAT": _sfat,
    **{name: _wrapper for name in RANGES if name.startswith("DifferentialPrivacy")},
}


def clients_fault(strategy: str, values: Mapping[str, Any], clients: int) -> Fault | None:
    """Return the first parameter whose value does not fit the number of clients in a round, or None.

    Args:
        strategy: its name.
        values: all parameters, given and default.
        clients: how many clients take part in a round.
    """
    needs = _NEEDS.get(strategy)
    return None if needs is None else needs(values, clients)
