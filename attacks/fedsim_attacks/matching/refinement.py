"""Second-order refinement of what a descent has found: the one that its parameters name, and which of its images are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fedsim import progress
from fedsim.exchange import Images
from fedsim_attacks.matching.attempt import shown_steps
from fedsim_attacks.matching.input_gradients import InputGradients
from fedsim_attacks.matching.parameters import Parameters
from fedsim_attacks.matching.search import Iterates, Variables
from fedsim_attacks.matching.starts import IMAGES
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
from fedsim_attacks.update import ClientGradient, Defended


class Refined(NamedTuple):
    """What a refinement has come to.

    Args:
        left: share of the gradient that is not explained, before the first step and after every one.
        products: on which Gauss-Newton steps were solved.
    """

    left: tuple[float, ...] = ()
    products: ChosenProducts | None = None


@dataclass(frozen=True, eq=False)
class RefinementStage:
    """Polishes the images at which a descent has ended.

    Args:
        attack: whose parameters name the refinement.
        input_gradients: of the descent's objective, by which the steps are noted in its iterates.
        agree: what restarts agree on.
        defended: the target, as the client's defenses leave it.
        confine: brings images back into the range of pixels.
        total: steps of the whole run, of which these are the last; for the display.
    """

    attack: Parameters
    input_gradients: InputGradients
    agree: Callable[[Variables], Images | None]
    defended: Defended
    confine: Callable[[Images], Images]
    total: int

    def run(self, iterates: Iterates) -> Refined:
        """Refinement the best images of a iterates, and leave there those that explain most of the gradient."""
        beside = {name: tensor for name, tensor in iterates.variables.items() if name != IMAGES}
        start, response = iterates.variables[IMAGES], self.input_gradients.objective.response
        residual = Residual(response, beside, self.defended.target, self.attack.positions, self.defended.sent)
        count = self.attack.refinement_steps
        if self.attack.refinement == "closed_form":
            return Refined(tuple(self._followed(closed_form(residual, start, self.confine, count), residual, iterates)))
        products = chosen_products(residual, start, self.attack.refinement_products)
        steps = gauss_newton(residual, start, LevenbergMarquardt(self.confine, products), count)
        return Refined(tuple(self._followed(steps, residual, iterates)), products)

    def _followed(self, steps: Iterator[Iterate], residual: Residual, iterates: Iterates) -> Iterator[float]:
        """Yield what is left; a refinement ends where less is left than true images leave of a gradient with known noise."""
        count = self.attack.refinement_steps
        level, least, shown = residual.level(self.defended.deviation), math.inf, shown_steps(count)
        for number, refined in enumerate(above_noise(steps, level)):
            if number:
                progress.advance(self.total - count + number, self.total, refined.residual)
                variables = {**residual.variables, IMAGES: refined.images}
                alone = {name: tensor[None] for name, tensor in variables.items()}
                iterates.losses.append(float(self.input_gradients(alone, self.agree(alone), 1.0).values))
                if number in shown:
                    iterates.frames.append((len(iterates.losses) - 1, refined.images.cpu()))
                if refined.residual < least:
                    iterates.step, iterates.variables = len(iterates.losses) - 1, variables
            least = min(least, refined.residual)
            yield refined.residual


def unrefined(response: ClientGradient, defended: Defended, attack: Parameters) -> str | None:
    """Return why the refinement that an attack names cannot be, or None where it can."""
    reason = obstacle(response, defended.target)
    if reason is None and attack.refinement == "closed_form" and defended.active:
        reason = "the closed form knows nothing of the client's defenses"
    return reason and f"The images are not refined: {reason}."
