"""A quantity over seeds: its values, their mean, and how far the mean can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsim.metrics.bootstrap import Interval, interval
from fedsim.seeds import numpy_generator

FEWEST_SEEDS = 3
"""An interval of fewer values would say nothing."""

_BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Spread:
    """A quantity over seeds.

    Args:
        values: seed -> value.
        interval: BCa bootstrap interval of the mean; None for fewer than three values.
    """

    values: Mapping[int, float] = field(default_factory=dict)
    interval: Interval | None = None

    @classmethod
    def of(cls, values: Mapping[int, float | None], *path: str | int) -> Spread:
        """Return the spread of the values that there are.

        Args:
            values: seed -> value.
            path: names the quantity, so that its interval is drawn for it alone.
        """
        known = {seed: value for seed, value in sorted(values.items()) if value is not None}
        bounds = None
        if len(known) >= FEWEST_SEEDS:
            bounds = interval([*known.values()], numpy_generator(_BOOTSTRAP_SEED, "compare", *path))
        return cls(known, bounds)

    @property
    def mean(self) -> float | None:
        """The mean over the seeds; None without any."""
        return math.fsum(self.values.values()) / len(self.values) if self.values else None

    def minus(self, other: Spread, *path: str | int) -> Spread:
        """Return the differences of the seeds that both have, seed by seed."""
        common = {seed: value - other.values[seed] for seed, value in self.values.items() if seed in other.values}
        return Spread.of(common, *path)

    def over(self, other: Spread, *path: str | int) -> Spread:
        """Return the ratios of the seeds that both have, seed by seed; a seed of which the other is zero is left out."""
        return Spread.of(
            {seed: value / other.values[seed] for seed, value in self.values.items() if other.values.get(seed)}, *path
        )

    def only(self, seeds: frozenset[int]) -> Spread:
        """Return the same without an interval, of these seeds alone."""
        return Spread({seed: value for seed, value in self.values.items() if seed in seeds})
