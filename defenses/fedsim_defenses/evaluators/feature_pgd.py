"""Feature PGD: accuracy on test images whose features were driven away from those of the image, without its label.

Paper: Xu, Yu, Liu, Picek. "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness". 2023.
https://arxiv.org/abs/2312.04960 (the adaptive attack PGD-feature)

Idea: PGD on ||f(x') - f(x)||_2, f being the tokens after the last block. An attack on the classifier's loss may fail where the
classifier hides its gradient; this one does not look at it.

Differs from the paper: 100 steps there, 20 here by default; a step is a share of epsilon. The checks of the evaluation climb
the cross-entropy, for its gradient passes the same features and the label makes it stronger.

Needs: a model of timm. Cost: that of `pgd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedsim.evaluator import PixelModel
from fedsim.exchange import Images
from fedsim_defenses.evaluators._features import Features
from fedsim_defenses.evaluators._robustness import Surface
from fedsim_defenses.evaluators.pgd import Ascent

MIMIR = (
    "Xu, Yu, Liu, Picek. MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness. 2023. "
    "https://arxiv.org/abs/2312.04960"
)


@dataclass(frozen=True, kw_only=True)
class FeaturePGD(Ascent):
    """Accuracy after steps away from the features of the image."""

    citation: ClassVar[str] = MIMIR

    def check(self, model: PixelModel, class_names: tuple[str, ...]) -> None:
        """Refuse a model that tells no features."""
        Features(model)

    def _goal(self, model: PixelModel, images: Images) -> Surface:
        features = Features(model)
        with torch.no_grad():
            clean = features(images)

        def distance(moved: Float[Tensor, "batch value"], _: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
            far: Tensor = (moved - clean).norm(dim=1)
            return far

        return features, distance

    def _cautions(self) -> tuple[str, ...]:
        return (
            "It follows no label, and finds less than an attack that does: an upper bound. Ask pgd or cw_linf as well.",
        )
