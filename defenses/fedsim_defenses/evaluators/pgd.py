"""PGD: accuracy on test images after projected gradient ascent of the cross-entropy.

Paper: Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards Deep Learning Models Resistant to Adversarial Attacks". ICLR 2018.
https://arxiv.org/abs/1706.06083

Idea: from a uniform draw within epsilon, x' <- clip(x' + step sign(grad CE(model(x'), y))), kept within epsilon of x and in
[0, 1]; an image counts as right only if it is right after every restart.

Differs from the paper: a step is a share of epsilon (2/255 at 8/255), so that one setting serves all epsilons; images that the
model gets wrong are not attacked, and count as wrong; restarts are spent on images that still hold.

Needs: any model that can be differentiated. Cost: a gradient for each image, step, restart and epsilon, and the checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from fedsim.evaluator import PixelModel
from fedsim.exchange import Images
from fedsim_defenses.evaluators._robustness import RobustnessTest, Surface, climb, restarted


@dataclass(frozen=True, kw_only=True)
class Ascent(RobustnessTest):
    """Accuracy after steps up a loss.

    Args:
        steps: of the gradient, in each restart.
        step: size of one, as a share of epsilon.
        restarts: each from a draw of its own.
    """

    steps: int = 20
    step: float = 0.25
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not 0 < self.step <= 2:
            raise ValueError(f"step: expected a share of epsilon above 0 and up to 2, got {self.step}.")

    @property
    def _climb(self) -> tuple[int, float]:
        return self.steps, self.step

    def _goal(self, model: PixelModel, images: Images) -> Surface:
        """Return what the attack climbs, from these images; the checks climb the same unless it is overridden."""
        return self._surface(model, images)

    def _attack(
        self,
        model: PixelModel,
        images: Images,
        labels: Int[Tensor, " batch"],
        epsilon: float,
        generator: torch.Generator,
    ) -> Images:
        def attack(images: Images, labels: Int[Tensor, " batch"]) -> Images:
            return climb(self._goal(model, images), images, labels, epsilon, self.steps, self.step, generator)

        return restarted(model, images, labels, self.restarts, attack)


@dataclass(frozen=True, kw_only=True)
class PGD(Ascent):
    """Accuracy after steps up the cross-entropy."""

    citation: ClassVar[str] = (
        "Madry, Makelov, Schmidt, Tsipras, Vladu. Towards Deep Learning Models Resistant to Adversarial Attacks. ICLR 2018. "
        "https://arxiv.org/abs/1706.06083"
    )
