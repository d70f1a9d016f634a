"""Fast adversarial training: one step of the attack, from a random start, and several once that no longer helps.

Paper: Wong, Rice, Kolter. "Fast is better than free: Revisiting adversarial training". ICLR 2020.
https://arxiv.org/abs/2001.03994

Idea: x' = x + clip(delta + alpha epsilon sign(grad loss(x + delta))) with delta drawn uniformly within epsilon: one step of
the attack where others take ten. It may fail from one moment to the next (catastrophic overfitting): the model withstands the
single step and nothing else. So the accuracy under an attack of several steps is watched, and training stops once it collapses.

Differs from the paper: a client has no earlier weights to stop at, and its server has not either. So from the moment of the
collapse on it takes `steps` steps of projected gradient ascent of epsilon / 4 each, in all rounds that it takes part in. The
collapse is a fall of more than `tolerance` below the best accuracy so far (the last one in the published code), looked for in
the first local step of each round once epsilon has risen, on its batch. The attack is in evaluation mode.

Needs: a model whose input gradient exists. Cost: two forward and backward passes instead of one, and once a round `steps` more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.defense import ClientContext, LocalStep
from fedsim.exchange import Images
from fedsim.labels import classes
from fedsim_defenses._adversarial import AdversarialRecipe, attacked

_ENOUGH = 50  # images whose accuracy chance moves by less than the default tolerance


@dataclass(frozen=True, kw_only=True)
class Fast(AdversarialRecipe):
    """Train on images that a single step perturbs, and on those of several steps once that fails: robustness at low cost.

    Args:
        alpha: size of the single step in epsilons.
        steps: iterations of the attack that looks for the collapse, and of all attacks after it.
        tolerance: by how much the accuracy under that attack may fall below the best so far.
    """

    citation: ClassVar[str] = (
        "Wong, Rice, Kolter. Fast is better than free: Revisiting adversarial training. ICLR 2020. "
        "https://arxiv.org/abs/2001.03994"
    )

    alpha: float = 1.25  # section 4 of the paper: 10/255 for 8/255
    steps: int = 5
    tolerance: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 2:
            raise ValueError(f"alpha: expected a number of epsilons above 0, at most 2, got {self.alpha}.")
        if self.steps < 2:
            raise ValueError(f"steps: expected at least 2, got {self.steps}.")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance: expected a share from 0 to below 1, got {self.tolerance}.")

    def client_cautions(self, context: ClientContext) -> tuple[str, ...]:
        """Return a caution where chance decides whether a collapse is seen."""
        if context.batch_size >= _ENOUGH:
            return ()
        return (
            f"The collapse of single-step training is looked for on {context.batch_size} images a round, so that chance alone "
            "may start the longer attack, or miss the collapse.",
        )

    def _perturbed(self, step: LocalStep, context: ClientContext, epsilon: float, generator: torch.Generator) -> Images:
        state = context.state
        if epsilon == self.epsilon and state.get("round") != context.round and not state.get("collapsed"):
            withstood = self._withstood(step, epsilon, generator)
            best = max(float(state.get("best", 0.0)), withstood)
            state.update(round=context.round, best=best, collapsed=withstood < best - self.tolerance)
        if state.get("collapsed"):
            return attacked(step, epsilon, epsilon / 4, self.steps, generator)
        return attacked(step, epsilon, self.alpha * epsilon, 1, generator)

    def _withstood(self, step: LocalStep, epsilon: float, generator: torch.Generator) -> float:
        """Return the accuracy on images after several steps of the attack, in the mode that the client trains in."""
        moved = attacked(step, epsilon, epsilon / 4, self.steps, generator)
        with torch.no_grad():
            found = step.model(moved).argmax(1)
        return float((found == torch.tensor(classes(step.labels)).to(found)).float().mean())
