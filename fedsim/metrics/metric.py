"""What there is to say of one metric: what it measures, how it is computed, written and rated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedsim.exchange import Truth
from fedsim.findings.blind import Auxiliary
from fedsim.findings.kinds import FindingKind
from fedsim.metrics.skill import Direction

# What luck does to an attempt before any blind attempt is known, as a share of the threshold for a partial leak.
_SCATTER, _BOUNDED_SCATTER = 0.4, 0.2


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How one metric is written and rated; all there is to know of one that only a record names.

    Args:
        title: its name in headings.
        short: its name within a sentence; "" where that is the title.
        kind: what it measures; None where that is not known.
        digits: decimals that are shown.
        unit: written after the number.
        partial: skill from which a leak counts as partial; None for a metric that is not rated.
        leaks: skill from which a leak counts as such.
        ceiling: the best value that can be reached; where it is given, skill counts as a share of the way from the best
            control to it, because a good blind guess leaves little to find.
        counts_hits: whether a value is 1 for an item that was guessed right and 0 for another, so that their sum counts hits.
        hit_chance: the metric whose `chance` bounds how often a blind guess is good enough for a partial leak; "" for none.
    """

    title: str
    short: str = ""
    kind: FindingKind | None = None
    digits: int = 3
    unit: str = ""
    partial: float | None = None
    leaks: float = math.inf
    ceiling: float | None = None
    counts_hits: bool = False
    hit_chance: str = ""

    @property
    def is_luck(self) -> bool:
        """Whether a single blind guess may be right by chance, so that one attempt alone proves nothing."""
        return self.kind is None or self.kind.is_luck

    @property
    def follows(self) -> Literal["images", "labels", "own images"] | None:
        """Which of a client's inputs, once a defense has changed them, it is scored against too; None for none."""
        return None if self.kind is None else self.kind.follows

    @property
    def scatter(self) -> float:
        """Standard deviation of the skill that luck gives, assumed before any blind attempt is known."""
        return (_SCATTER if self.ceiling is None else _BOUNDED_SCATTER) * (self.partial or 1.0)

    def write(self, value: float, signed: bool = False) -> str:
        """Return a value of the metric as text; with a sign for differences."""
        rounded = round(value, self.digits) + 0.0  # no "-0.0"
        return f"{rounded:{'+' if signed else ''}.{self.digits}f}{self.unit}"

    def between(self, low: float, high: float) -> str:
        """Return an interval as text, its unit once."""
        return f"{self.write(low).removesuffix(self.unit)} to {self.write(high)}"

    def thresholds(self) -> str:
        """Return the rule of the legend."""
        if self.partial is None:
            return f"{self.title}: shown, not rated"
        if self.ceiling is not None:
            left = "what the control leaves" if self.ceiling else "the control's way down to 0"
            return f"{self.title}: partial from {self.partial:.0%}, leaks from {self.leaks:.0%} of {left}"
        return f"{self.title}: partial from {self.write(self.partial, True)}, leaks from {self.write(self.leaks, True)}"


@dataclass(frozen=True, kw_only=True)
class Metric(Scale):
    """A row of `METRICS`: a scale, and how what stands on it is computed.

    Args:
        kind: what a finding must hold for the metric to apply.
        summary: one line for `fedsim list`.
        function: of kinds whose items are paired, takes one found and one true item; else all that was found and what the kind
            names as the truth, with one value per true item.
        worse: the direction that means more leakage.
        blind: control -> the value of a guess from auxiliary data, where no single guess stands for all that are as good.
        chance: the value that the best blind guess has on average over batches, by which attempts are rated; None where single
            guesses tell enough.
    """

    kind: FindingKind
    summary: str
    function: Callable[..., Any]
    worse: Direction
    blind: Callable[[Truth, Auxiliary], Mapping[str, float]] | None = None
    chance: Callable[[Truth, Auxiliary], float] | None = None
