"""From a score to a level of leakage.

The thresholds are conventions, stated in the report's legend. They apply to skill, the distance to the best blind control,
never to a bare score: 15 dB may be a flat grey. A level is what the scores of one attempt show; whether the absence of a leak
means that the client resisted is a question for `fedsim.verdicts.judge`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from fedsim.metrics.metric import Scale
from fedsim.metrics.skill import Direction, skill
from fedsim.metrics.table import METRICS

Level = Literal["leaks", "partial", "none", "unrated"]

NO_ROOM = 0.05
"""Where a blind guess comes this close to the best value, there is nothing left to find, and no verdict."""

ORDER: tuple[Level, ...] = ("unrated", "none", "partial", "leaks")
"""From nothing known to the worst."""

TRAINED, PATCHES = "trained", "patches"
VIEWS: Mapping[str, str] = MappingProxyType(
    {
        PATCHES: "patches in any order",
        TRAINED: "what was trained on",
        f"{TRAINED}+{PATCHES}": "patches of what was trained on, in any order",
    }
)
"""What else a finding is compared with than the client's own images as they are: `psnr@trained` is a metric of its own."""

# Best places alone bring unrelated images up to 2.6 dB (shapes) or 3.2 dB (photos) beyond controls that are arranged alike.
_PATCHES_PARTIAL = 3


def viewed(metric: str, view: str) -> str:
    """Return the name of a metric in a view."""
    return f"{metric}@{view}"


def plain(metric: str) -> str:
    """Return the name of a metric without its view."""
    return metric.partition("@")[0]


@lru_cache(maxsize=256)
def scale(metric: str) -> Scale:
    """Return how a metric is written and rated; one that this version does not know is shown and not rated."""
    name, _, view = metric.partition("@")
    found = METRICS.get(name) if not view or view in VIEWS else None
    if found is None:
        return Scale(title=metric)
    if not view:
        return found
    partial = found.partial if found.partial is None or PATCHES not in view else _PATCHES_PARTIAL * found.partial
    short = found.short and f"{found.short} of {VIEWS[view]}"
    return replace(found, title=f"{found.title} of {VIEWS[view]}", short=short, partial=partial)


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
        floor: value of a control that knows something of the truth, such as an image's own mean color; a score that is not
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
