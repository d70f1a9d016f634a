"""PGD-MI: accuracy on test images that raise the cross-entropy and the dependence between features and input.

Paper: Xu, Yu, Liu, Picek. "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness". 2023.
https://arxiv.org/abs/2312.04960 (the adaptive attack PGD-MI)

Idea: PGD on CE(model(x'), y) + weight HSIC_nCCA(f(x'), x'), the penalty that MIMIR trains with, against which an attacker who
knows it may work. With Gaussian kernels K_ij = exp(-||a_i - a_j||^2 / (2 sigma^2 d)) of d values, centered to Kc = K H and
R = Kc (Kc + 1e-5 m I)^-1 over a batch of m: HSIC_nCCA = sum_ij (R_f * R_x^T)_ij.

Differs from the paper: 100 steps there, 20 here by default. The penalty couples the images of a batch of at most 100. At the
published weight it hardly acts: expect the accuracy of `pgd`.

Needs: a model of timm. Cost: that of `pgd`, and a system of equations as large as a batch at each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsim.evaluator import PixelModel
from fedsim.exchange import Images
from fedsim_defenses._dependence import dependence
from fedsim_defenses._evasion import cross_entropy
from fedsim_defenses.evaluators._features import Features, Stacked
from fedsim_defenses.evaluators._robustness import Surface
from fedsim_defenses.evaluators.feature_pgd import MIMIR
from fedsim_defenses.evaluators.pgd import Ascent


@dataclass(frozen=True, kw_only=True)
class PGDMI(Ascent):
    """Accuracy after steps up the cross-entropy and MIMIR's penalty.

    Args:
        weight: of the penalty; 1e-5 in the paper.
    """

    citation: ClassVar[str] = MIMIR

    weight: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight >= 0:
            raise ValueError(f"weight: expected 0 or more, got {self.weight}.")

    def check(self, model: PixelModel, class_names: tuple[str, ...]) -> None:
        """Refuse a model that tells no features."""
        Features(model)

    def _surface(self, model: PixelModel, images: Images) -> Surface:
        stacked, pixels = Stacked(Features(model)), images[0].numel()
        with torch.no_grad():
            classes = model(images[:1]).shape[1]

        def loss(rows: Float[Tensor, "batch value"], labels: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
            logits, features, inputs = torch.split(rows, [classes, rows.shape[1] - classes - pixels, pixels], 1)
            # The attack sums the losses of the images, and the penalty is one of all of them.
            return cross_entropy(logits, labels) + self.weight * dependence(features, inputs) / len(rows)

        return stacked, loss
