"""The second stage of an optimization attack: the polish that its parameters name, and which of its pictures are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fedsim import progress
from fedsim.exchange import Images
from fedsim_attacks.matching.attempt import shown_steps
from fedsim_attacks.matching.input_gradients import Slopes
from fedsim_attacks.matching.parameters import Parameters
from fedsim_attacks.matching.search import Trail, Variables
from fedsim_attacks.matching.starts import PICTURES
from fedsim_attacks.newton import (
    ChosenProducts,
    Iterate,
    LevenbergMarquardt,
    Residual,
    above_noise,
    chosen_products,
    closed_form,
    gauss_newton,
    obstacle,
)
from fedsim_attacks.update import Defended, Response


class Polishing(NamedTuple):
    """What a polish has come to.

    Args:
        left: share of the gradient that is not explained, before the first step and after every one.
        products: on which Gauss-Newton steps were solved.
    """

    left: tuple[float, ...] = ()
    products: ChosenProducts | None = None


@dataclass(frozen=True, eq=False)
class SecondStage:
    """Polishes the pictures at which a descent has ended.

    Args:
        attack: whose parameters name the polish.
        slopes: of the descent's objective, by which the steps are noted in its trail.
        agree: what restarts agree on.
        defended: the target, as the client's defenses leave it.
        confine: brings pictures back into the range of pixels.
        total: steps of the whole run, of which these are the last; for the display.
    """

    attack: Parameters
    slopes: Slopes
    agree: Callable[[Variables], Images | None]
    defended: Defended
    confine: Callable[[Images], Images]
    total: int

    def run(self, trail: Trail) -> Polishing:
        """Polish the best pictures of a trail, and leave there those that explain most of the gradient."""
        beside = {name: tensor for name, tensor in trail.variables.items() if name != PICTURES}
        start, response = trail.variables[PICTURES], self.slopes.objective.response
        residual = Residual(response, beside, self.defended.target, self.attack.positions, self.defended.sent)
        count = self.attack.polish_steps
        if self.attack.polish == "closed_form":
            return Polishing(tuple(self._followed(closed_form(residual, start, self.confine, count), residual, trail)))
        products = chosen_products(residual, start, self.attack.polish_products)
        steps = gauss_newton(residual, start, LevenbergMarquardt(self.confine, products), count)
        return Polishing(tuple(self._followed(steps, residual, trail)), products)

    def _followed(self, steps: Iterator[Iterate], residual: Residual, trail: Trail) -> Iterator[float]:
        """Yield what is left; a polish ends where less is left than true pictures leave of a gradient with known noise."""
        count = self.attack.polish_steps
        level, least, shown = residual.level(self.defended.deviation), math.inf, shown_steps(count)
        for number, polished in enumerate(above_noise(steps, level)):
            if number:
                progress.advance(self.total - count + number, self.total, polished.residual)
                variables = {**residual.variables, PICTURES: polished.images}
                alone = {name: tensor[None] for name, tensor in variables.items()}
                trail.losses.append(float(self.slopes(alone, self.agree(alone), 1.0).values))
                if number in shown:
                    trail.frames.append((len(trail.losses) - 1, polished.images.cpu()))
                if polished.residual < least:
                    trail.step, trail.variables = len(trail.losses) - 1, variables
            least = min(least, polished.residual)
            yield polished.residual


def unpolished(response: Response, defended: Defended, attack: Parameters) -> str | None:
    """Return why the polish that an attack names cannot be, or None where it can."""
    reason = obstacle(response, defended.target)
    if reason is None and attack.polish == "closed_form" and defended.active:
        reason = "the closed form knows nothing of the client's defenses"
    return reason and f"The pictures are not polished: {reason}."
