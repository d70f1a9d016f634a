"""Central differential privacy, as Flower's wrappers add it: what it protects, and from whom.

The server clips the updates, or has its clients clip them, averages them and adds noise to the average. It holds each update
without that noise, so nothing is promised against the server itself, which is fedsim's attacker. Against outside observers,
who get the global models alone, this much holds with a fixed clipping norm C: the average of a round is N(mean, s^2) in each
entry with s = z C / n, z being `noise_multiplier`, n `num_sampled_clients`. Another update of a client moves the average by up
to 2 C w, with w its weight in the average. So rounds are mu-GDP with mu^2 = sum (2 n w / z)^2.

Source: McMahan, Ramage, Talwar, Zhang. "Learning Differentially Private Recurrent Language Models". 2017.
https://arxiv.org/abs/1710.06963; Dong, Roth, Su. "Gaussian Differential Privacy". 2019. https://arxiv.org/abs/1905.02383
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fedsim import gaussian_dp
from fedsim.defense import PrivacyBudget

DELTA = 1e-5
"""The delta at which the epsilon of the global models is stated."""

_PREFIX = "DifferentialPrivacy"
_AVERAGES = ("FedAvg", "FedProx")
"""Strategies of Flower whose aggregate is the weighted average itself."""


def is_central(strategy: str) -> bool:
    """Return whether a strategy adds noise on the server, after it has received the updates."""
    return strategy.startswith(_PREFIX)


def caution(strategy: str, sees_sums: bool = False) -> str:
    """Return why noise on the server is no reason to trust it.

    Args:
        strategy: one that `is_central`.
        sees_sums: whether the server sees the sum of a round alone.
    """
    what = (
        "clipped and without that noise" if "ClientSide" in strategy else "as it was sent, without clipping and noise"
    )
    seen = "their sum without that noise" if sees_sums else f"each {what}"
    return (
        f"{strategy} adds noise after the server has received the updates: it sees {seen}. That noise is no "
        "protection from the server itself, and gives no epsilon against it."
    )


def unaccounted(strategy: str, params: Mapping[str, Any]) -> str | None:
    """Return why no epsilon of the global models is stated, or None where it can be.

    Args:
        strategy: one that `is_central`.
        params: its parameters, those left out at their defaults.
    """
    if "Adaptive" in strategy:
        return (
            "Flower scales the noise of an adaptive norm to the norm of the next round, and not to that which the updates were "
            "clipped to"
        )
    if not params.get("noise_multiplier"):
        return "noise_multiplier is 0"
    inner = params.get("strategy", "FedAvg")
    name = inner.get("name") if isinstance(inner, Mapping) else inner
    return (
        None
        if name in _AVERAGES
        else f"it is accounted for averages alone ({', '.join(_AVERAGES)}), and {name} is none"
    )


def global_models_budget(noise_multiplier: float, clients: int, rounds: Iterable[Mapping[int, int]]) -> PrivacyBudget:
    """Return what the global models so far promise any one client, against observers who get nothing else.

    Sampling of clients does not make it smaller: an observer may know who takes part. How many images clients report, and in
    which rounds one fails, counts as known.

    Args:
        noise_multiplier: z, above 0.
        clients: n, for which the noise is made.
        rounds: of each round whose average was released: client -> the number of images that it reported, its weight.
    """
    squares: dict[int, float] = {}
    for counts in rounds:
        total = sum(counts.values())
        for client, count in counts.items():
            # A strategy that divides by nothing releases nothing.
            ratio = 2 * clients * count / (total * noise_multiplier) if total else 0.0
            squares[client] = squares.get(client, 0.0) + ratio**2
    epsilon = gaussian_dp.gaussian_epsilon(math.sqrt(max(squares.values(), default=0.0)), DELTA)
    return PrivacyBudget(epsilon, DELTA, "replace of one client's updates")
