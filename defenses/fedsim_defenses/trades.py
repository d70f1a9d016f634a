"""TRADES: cross-entropy on the images as they are, and a weighted divergence between these and perturbed ones.

Paper: Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan. "Theoretically Principled Trade-off between Robustness and Accuracy". ICML
2019. https://arxiv.org/abs/1901.08573

Idea: loss = cross-entropy(f(x), y) + beta KL(softmax f(x) || softmax f(x')), the mean over the batch; x' is what projected
gradient ascent of the divergence reaches within epsilon. A small beta trains for accuracy, a large one for robustness.

Differs from the paper: epsilon and step as 8/255 and 2/255 (0.031 and 0.007 in the published code). The divergence has
forward passes of its own, so that with dropout its draws are not those of the cross-entropy.

Needs: a model whose input gradient exists; `ard` and `prm`, which switch on what the defenses of these names do, need a ViT.
The loss that is returned is the cross-entropy on the images as they are. Cost: steps + 3 forward and backward passes instead
of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim.defense import LocalStep
from fedsim_defenses._adversarial import DivergenceRecipe, floor_of
from fedsim_defenses._evasion import LossName, divergence


@dataclass(frozen=True, kw_only=True)
class TRADES(DivergenceRecipe):
    """Train on the client's images, and let the model say the same of perturbed ones: for robustness, not for privacy."""

    citation: ClassVar[str] = (
        "Zhang et al. Theoretically Principled Trade-off between Robustness and Accuracy. ICML 2019. "
        "https://arxiv.org/abs/1901.08573"
    )
    loss: ClassVar[LossName] = "kl"

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what adversarial training is not, and with what an attack's images are not compared."""
        return (
            *super().cautions(model),
            "The gradient holds the client's images and perturbed ones, and what an attack finds is compared with the former "
            f"alone: a perturbed image that is found exactly counts as {floor_of(self.epsilon):.1f} dB or more, not as exact.",
        )

    def _learn(self, step: LocalStep, adversarial: LocalStep, proceed: Callable[[LocalStep], Tensor]) -> Tensor:
        loss = proceed(step)
        term = self.beta * divergence(step.model(step.images), step.model(adversarial.images)).mean()
        torch.autograd.backward(term)
        return loss
