"""Which start a descent follows: several are tried for a part of the steps, until one is promising.

A start in a wrong basin shows early, by an objective that stays high. The first start is noise around grey. Others are
pictures that the classifier's gradient speaks for (`starts`), where it shows the head inputs, and noise elsewhere.
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
from fedsim_attacks.matching.starts import PICTURES, Latents, with_picture
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
        kind: how its pictures were drawn.
        objective: that its trial reached.
    """

    variables: Variables
    kind: Kind = "noise"
    objective: float = math.inf

    @property
    def pace(self) -> float:
        """Factor of the learning rate from there."""
        return _PACES[self.kind]


@dataclass(frozen=True)
class Trial(Generic[End]):
    """A start that was tried.

    Args:
        end: from where it is followed.
        reached: objective after the trial.
    """

    end: End
    reached: float


@dataclass(frozen=True)
class Chosen(Generic[End]):
    """What to follow, and the objectives that all trials reached, in their order."""

    end: End
    reached: tuple[float, ...]


def accept(trials: Iterator[Trial[End]], limit: int, threshold: float) -> Chosen[End]:
    """Return the first trial whose objective is at most the threshold, or the best of all.

    Args:
        trials: made as they are asked for.
        limit: of trials.
        threshold: of acceptance.
    """
    tried: list[Trial[End]] = []
    for trial in trials:
        tried.append(trial)
        if len(tried) == limit or trial.reached <= threshold:
            break
    return Chosen(min(tried, key=lambda trial: trial.reached).end, tuple(trial.reached for trial in tried))


@dataclass(eq=False)
class OtherStarts(Iterator[Start]):
    """Draws the starts after the first, without end.

    Args:
        known: what the attack knows, the head inputs among it.
        noise: draws a start like the first.
        to_images: what a start holds to pictures.
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
        restarts, _, channels, height, width = drawn[PICTURES].shape
        if self._wanted is None:
            return Start(drawn)
        nearest = NearestStarts(
            self.known.model,
            self._wanted,
            self.known.normalization,
            (channels, height, width),
            self.to_images,
        )
        return Start({**drawn, PICTURES: nearest.draw(restarts, self.generator)}, "nearest")

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
    """Return the first start that is promising, or the best of all.

    A trial of a kind that was tried redraws one picture of the best start of that kind, in turn: a picture in the right
    basin is not given up with another that is in a wrong one.

    Args:
        first: start.
        others: later ones.
        follow: returns which objective the trial of a start reaches, given the number of trials before it.
        limit: of trials; with one, the first start is taken untried.
        enough: objective at which a start is promising.
    """
    if limit == 1:
        return Chosen(first, ())
    return accept(_trials(first, others, follow), limit, enough)


def _trials(first: Start, others: Iterator[Start], follow: Callable[[Start, int], float]) -> Iterator[Trial[Start]]:
    leaders: dict[Kind, Start] = {}
    here = first
    for count in itertools.count(1):
        here = here._replace(objective=follow(here, count - 1))
        yield Trial(here, here.objective)
        leaders[here.kind] = min(leaders.get(here.kind, here), here, key=_OBJECTIVE)
        here = next(others)
        if leader := leaders.get(here.kind):
            place = count % here.variables[PICTURES].shape[1]
            here = here._replace(variables=with_picture(leader.variables, here.variables, place))
