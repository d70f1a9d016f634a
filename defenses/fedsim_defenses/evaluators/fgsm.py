"""FGSM: accuracy on test images after one step along the sign of the input gradient.

Paper: Goodfellow, Shlens, Szegedy. "Explaining and Harnessing Adversarial Examples". ICLR 2015.
https://arxiv.org/abs/1412.6572

Idea: x' = clip(x + epsilon sign(grad CE(model(x), y))), which maximizes a linear loss within epsilon.

Differs from the paper: images that the model gets wrong are not attacked, and count as wrong. The checks of the evaluation use
twenty steps of PGD: where one step finds more than they do, gradients are masked.

Needs: any model that can be differentiated. Cost: one gradient for each image and epsilon, and the checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from fedsim.evaluator import PixelModel
from fedsim.exchange import Images
from fedsim_defenses._evasion import fgsm
from fedsim_defenses.evaluators._robustness import RobustnessTest


@dataclass(frozen=True, kw_only=True)
class FGSM(RobustnessTest):
    """Accuracy after one gradient step."""

    citation: ClassVar[str] = (
        "Goodfellow, Shlens, Szegedy. Explaining and Harnessing Adversarial Examples. ICLR 2015. "
        "https://arxiv.org/abs/1412.6572"
    )

    def _attack(
        self,
        model: PixelModel,
        images: Images,
        labels: Int[Tensor, " batch"],
        epsilon: float,
        generator: torch.Generator,
    ) -> Images:
        return fgsm(model, images, labels, epsilon)

    def _cautions(self) -> tuple[str, ...]:
        return ("One step is a weak attack: accuracy under it says little of robustness. Ask pgd or cw_linf as well.",)
