"""From a score to a level of leakage, and how each metric is written.

The thresholds are conventions, stated in the report's legend. They apply to skill, the distance to the best blind control,
never to a bare score: 15 dB may be a flat grey. A level is what the scores of one attempt show; whether the absence of a leak
means that the client resisted is a question for `fedsim.verdicts.judge`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from fedsim.metrics.skill import Direction, skill

Level = Literal["leaks", "partial", "none", "unrated"]
Recovers = Literal["images", "labels", "soft labels", "features", "other"]

NO_ROOM = 0.05
"""Where a blind guess comes this close to the best value, there is nothing left to find, and no verdict."""

ORDER: tuple[Level, ...] = ("unrated", "none", "partial", "leaks")
"""From nothing known to the worst."""

# What luck does to an attempt before any blind attempt is known, as a share of the threshold for a partial leak.
_SCATTER, _BOUNDED_SCATTER = 0.4, 0.2


@dataclass(frozen=True)
class Scale:
    """How one metric is written and rated.

    Args:
        title: its name in headings.
        recovers: what it measures.
        digits: decimals that are shown.
        unit: written after the number.
        partial: skill from which a leak counts as partial; None for a metric that is not rated.
        leaks: skill from which a leak counts as such.
        ceiling: the best value that can be reached; where it is given, skill counts as a share of the way from the best
            control to it, because a good blind guess leaves little to find.
    """

    title: str
    recovers: Recovers
    digits: int = 3
    unit: str = ""
    partial: float | None = None
    leaks: float = math.inf
    ceiling: float | None = None

    @property
    def is_luck(self) -> bool:
        """Whether a single blind guess may be right by chance, so that one attempt alone proves nothing."""
        return self.recovers not in ("images", "features")

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


SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        # 1 dB is what noise does to the best control; 6 dB means a quarter of its squared error.
        "psnr": Scale("PSNR", "images", 1, " dB", 1.0, 6.0),
        "ssim": Scale("SSIM", "images", 3, "", 0.05, 0.2),
        "lpips": Scale("LPIPS", "images", 3, "", 0.05, 0.2),
        "fft2d": Scale("FFT2D", "images", 4),
        "label_recall": Scale("Label recall", "labels", 2, "", 0.15, 0.5, 1.0),
        # Half the control's error still tells which class is likely; a tenth tells the proportions of a mixture too.
        "soft_label_error": Scale("Soft-label error", "soft labels", 4, "", 0.5, 0.9, 0.0),
        "feature_error": Scale("Feature error", "features", 4, "", 0.5, 0.9, 0.0),
    }
)


TRAINED, PATCHES = "trained", "patches"
VIEWS: Mapping[str, str] = MappingProxyType(
    {
        PATCHES: "patches in any order",
        TRAINED: "what was trained on",
        f"{TRAINED}+{PATCHES}": "patches of what was trained on, in any order",
    }
)
"""What else a finding is compared with than the client's own pictures as they are: `psnr@trained` is a metric of its own."""


# Best places alone bring unrelated pictures up to 2.6 dB (shapes) or 3.2 dB (photos) beyond controls that are arranged alike.
_PATCHES_PARTIAL = 3


def viewed(metric: str, view: str) -> str:
    """Return the name of a metric in a view."""
    return f"{metric}@{view}"


def plain(metric: str) -> str:
    """Return the name of a metric without its view."""
    return metric.partition("@")[0]


KIND_OF_FIELD: Mapping[str, str] = MappingProxyType({"images": "pictures", "labels": "labels", "features": "features"})
"""What reports call the fields of a finding."""


@lru_cache(maxsize=256)
def scale(metric: str) -> Scale:
    """Return how a metric is written and rated; one that this version does not know is shown and not rated."""
    name, _, view = metric.partition("@")
    found = SCALES.get(name) if not view or view in VIEWS else None
    if found is None:
        return Scale(metric, "other")
    if not view:
        return found
    partial = found.partial if found.partial is None or PATCHES not in view else _PATCHES_PARTIAL * found.partial
    return replace(found, title=f"{found.title} of {VIEWS[view]}", partial=partial)


def relative(metric: str, gained: float, control: float) -> float:
    """Return a skill in the unit of the thresholds: a share of what the control leaves, where there is a best value."""
    ceiling = scale(metric).ceiling
    return gained if ceiling is None else gained / abs(ceiling - control)


def rate(
    metric: str, value: float | None, control: float | None, worse: Direction, floor: float | None = None
) -> Level:
    """Return the level of leakage that one score shows.

    Args:
        metric: name of the metric.
        value: the score; None without one.
        control: value of the best blind control; None without one.
        worse: the direction that means more leakage.
        floor: value of a control that knows something of the truth, such as a picture's own mean color; a score that is not
            beyond it shows no structure, and is a partial leak at most.
    """
    found = scale(metric)
    if found.partial is None or value is None or control is None or leaves_no_room(metric, control):
        return "unrated"
    gained = relative(metric, skill(value, control, worse), control)
    shows_structure = floor is None or skill(value, floor, worse) >= (found.partial if found.ceiling is None else 0)
    if gained >= found.leaks and shows_structure:
        return "leaks"
    return "partial" if gained >= found.partial else "none"


def leaves_no_room(metric: str, control: float) -> bool:
    """Return whether a control is so good that no finding could be told from it."""
    ceiling = scale(metric).ceiling
    return ceiling is not None and round(abs(ceiling - control), 9) <= NO_ROOM


def worst(levels: Iterable[Level]) -> Level:
    """Return the worst of several levels; `unrated` when there is none."""
    return max(levels, key=ORDER.index, default="unrated")
