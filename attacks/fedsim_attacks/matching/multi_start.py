"""Which start a descent follows: several are tried for a part of the steps, until one is accepted.

A start in a wrong basin shows early, by an objective that stays high. The first start is noise around grey. Others are
images that the classifier's gradient speaks for (`starts`), where it shows the head inputs, and noise elsewhere.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, NamedTuple, TypeVar

import torch

from fedsim.errors import AttackRefusedError
from fedsim_attacks.head import NearestStarts
from fedsim_attacks.matching.knowledge import Knowledge
from fedsim_attacks.matching.search import Variables
from fedsim_attacks.matching.starts import IMAGES, Latents, with_image
from fedsim_attacks.update import LABELS, PATH

End = TypeVar("End")
Kind = Literal["noise", "nearest"]

BLIND = "Starts are drawn blindly, because the classifier's gradient does not show where to: "

_OBJECTIVE = operator.attrgetter("objective")
_PACES: dict[Kind, float] = {"noise": 1.0, "nearest": 1 / 3}  # the full rate throws the nearest ones out of their basin


class Start(NamedTuple):
    """A start of every restart.

    Args:
        variables: (restart, ...) each.
        kind: how its images were drawn.
        objective: that it reached when it was tried.
    """

    variables: Variables
    kind: Kind = "noise"
    objective: float = math.inf

    @property
    def pace(self) -> float:
        """Factor of the learning rate from there."""
        return _PACES[self.kind]


@dataclass(frozen=True)
class TriedStart(Generic[End]):
    """A start that was tried.

    Args:
        end: from where it is followed.
        reached: objective there.
    """

    end: End
    reached: float


@dataclass(frozen=True)
class Chosen(Generic[End]):
    """What to follow, and the objectives that all starts reached, in their order."""

    end: End
    reached: tuple[float, ...]


def accept(starts: Iterator[TriedStart[End]], limit: int, threshold: float) -> Chosen[End]:
    """Return the first start whose objective is at most the threshold, or the best of all.

    Args:
        starts: tried as they are asked for.
        limit: of starts.
        threshold: of acceptance.
    """
    tried: list[TriedStart[End]] = []
    for start in starts:
        tried.append(start)
        if len(tried) == limit or start.reached <= threshold:
            break
    return Chosen(min(tried, key=lambda start: start.reached).end, tuple(start.reached for start in tried))


@dataclass(eq=False)
class OtherStarts(Iterator[Start]):
    """Draws the starts after the first, without end.

    Args:
        known: what the attack knows, the head inputs among it.
        noise: draws a start like the first.
        to_images: what a start holds to images.
        generator: draws the candidates.
    """

    known: Knowledge
    noise: Callable[[], Variables]
    to_images: Callable[[Latents], Latents]
    generator: torch.Generator
    doubt: str | None = None  # why they are noise, once that is known

    def __next__(self) -> Start:
        drawn = self.noise()
        if LABELS in drawn or PATH in drawn:
            return Start(drawn)  # no labels to attribute head inputs to; no gradient at the global weights
        restarts, _, channels, height, width = drawn[IMAGES].shape
        if self._wanted is None:
            return Start(drawn)
        nearest = NearestStarts(
            self.known.model,
            self._wanted,
            self.known.normalization,
            (channels, height, width),
            self.to_images,
        )
        return Start({**drawn, IMAGES: nearest.draw(restarts, self.generator)}, "nearest")

    @cached_property
    def _wanted(self) -> torch.Tensor | None:
        try:
            return self.known.head_inputs
        except AttackRefusedError as error:
            self.doubt = f"{BLIND}{error}"
            return None


def choose_start(
    first: Start, others: Iterator[Start], follow: Callable[[Start, int], float], limit: int, enough: float
) -> Chosen[Start]:
    """Return the first start that is accepted, or the best of all.

    A later start of a kind that was tried redraws one image of the best start of that kind, in turn: an image in the right
    basin is not given up with another that is in a wrong one.

    Args:
        first: start.
        others: later ones.
        follow: returns which objective a start reaches in the first steps, given the number of starts before it.
        limit: of starts; with one, the first start is taken untried.
        enough: objective at which a start is accepted.
    """
    if limit == 1:
        return Chosen(first, ())
    return accept(_tried(first, others, follow), limit, enough)


def _tried(first: Start, others: Iterator[Start], follow: Callable[[Start, int], float]) -> Iterator[TriedStart[Start]]:
    leaders: dict[Kind, Start] = {}
    here = first
    for count in itertools.count(1):
        here = here._replace(objective=follow(here, count - 1))
        yield TriedStart(here, here.objective)
        leaders[here.kind] = min(leaders.get(here.kind, here), here, key=_OBJECTIVE)
        here = next(others)
        if leader := leaders.get(here.kind):
            place = count % here.variables[IMAGES].shape[1]
            here = here._replace(variables=with_image(leader.variables, here.variables, place))
