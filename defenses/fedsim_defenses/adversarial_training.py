"""Adversarial training: the client trains on images that are perturbed against its own model.

Paper: Madry, Makelov, Schmidt, Tsipras, Vladu. "Towards Deep Learning Models Resistant to Adversarial Attacks". ICLR 2018.
https://arxiv.org/abs/1706.06083
In a federation: Zizzo, Rawat, Sinn, Buesser. "FAT: Federated Adversarial Training". 2020. https://arxiv.org/abs/2012.01791
Calibration: Chen, Liu, Ma, Lyu. "CalFAT: Calibrated Federated Adversarial Training with Label Skewness". NeurIPS 2022.
https://arxiv.org/abs/2205.14926

Idea: min over weights of the mean of max over |delta| <= epsilon of loss(x + delta, y). The inner maximum is approximated by
`steps` steps of projected gradient ascent from a random start, x' <- x' + step sign(grad loss), kept within epsilon and [0,
1]. A client on which it is switched on differs in nothing else, and nothing changes on the wire. With `calibration`, log n_c
is added to the logit of class c, n_c being the client's number of images of it, so that clients of skewed labels agree.

Differs from the paper: the attack is in evaluation mode, the update in the mode of the scenario, as Mo et al. have it; 7
steps as in the paper's experiments on CIFAR-10. Of CalFAT the calibrated logits alone: its attack raises a divergence
(`trades` does), and its logits have a scale of 10 beside. `ard` and `prm` switch on what the defenses of these names do.

Needs: a model whose input gradient exists; ARD and PRM need a ViT. Cost: steps + 1 forward and backward passes instead of
one; the attack computes no gradient of parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsim_defenses._adversarial import IteratedRecipe


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(IteratedRecipe):
    """Train on images that projected gradient ascent perturbs: for robustness of the global model, not for privacy.

    Args:
        ard: whether the attack's backward pass drops attention at random; see `ard`.
        prm: whether the attack masks its perturbation at random; see `prm`.
    """

    citation: ClassVar[str] = (
        "Madry et al. Towards Deep Learning Models Resistant to Adversarial Attacks. ICLR 2018. "
        "https://arxiv.org/abs/1706.06083"
    )
    treats_images_alone: ClassVar[bool] = True  # in evaluation mode; calibration is refused where that matters

    ard: bool = False
    prm: bool = False
