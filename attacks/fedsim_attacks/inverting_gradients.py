"""Inverting Gradients (IG): images whose gradient points where the client's does, by signed Adam under total variation.

Paper: Geiping, Bauermeister, Droege, Moeller. "Inverting Gradients: How Easy Is It to Break Privacy in Federated
Learning?". NeurIPS 2020. https://arxiv.org/abs/2003.14053

Idea: minimize 1 - cos(g(x, y), g) + total_variation * TV(x) over the images x in the range of pixels; Adam on the sign of
the gradient, the learning rate a tenth after 3/8, 5/8 and 7/8 of the steps.

Differs from the paper: 2,400 steps instead of 24,000, one restart; labels of a batch are counted by `label_count`, where the
paper assumes them. TV is a mean over pixels in [0, 1]; the authors' code takes it of normalized ones, where it is 1 / std
times as large, so that its weight for CIFAR-10, 0.01, is one of 0.01 / std here: `priors: {total_variation: 0.02}` on a ViT
whose std is 0.5. Of several local steps the paper unrolls all; here up to eight, and a surrogate point stands for more.

Needs: grants `batch_size`, `normalization`. Uses `labels`, `train_mode` and `training` where granted. Cost: two passes through
the model a step. On a ViT of many patches expect the mean color at best: the paper's victims are convolutional.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedsim.applicability import Applicability
from fedsim_attacks.matching import Descent, PriorWeights


@dataclass(frozen=True, kw_only=True)
class InvertingGradients(Descent):
    """Optimize images until their gradient points where the observed one does; the parameters are those of `Parameters`."""

    citation: ClassVar[str] = (
        "Geiping et al. Inverting Gradients: How Easy Is It to Break Privacy in Federated Learning? NeurIPS 2020. "
        "https://arxiv.org/abs/2003.14053"
    )
    stream: ClassVar[str] = "inverting_gradients"
    chosen_for: ClassVar[Applicability] = Applicability(pictures=2, any_loss=True)

    priors: PriorWeights = field(default_factory=lambda: {"total_variation": 0.01})
    steps: int = 2400
