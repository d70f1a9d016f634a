"""ARD: while adversarial images are made, gradients through attention are dropped at random, less and less so.

Paper: Mo, Wu, Wang, Guo, Wang. "When Adversarial Training Meets Vision Transformers: Recipes from Training to Architecture".
NeurIPS 2022. https://arxiv.org/abs/2210.07540

Idea: early in training a ViT that is attacked through its attention learns badly. So in the attack's backward pass the
gradient through the attention of each block is kept with probability p(t) = keep min(1, t / rise) alone, drawn for each
block and step, the same for all images: dL/dx = dL/dy + b J^T dL/dy. Forward values and the update of the weights are
untouched. At the start all attention is dropped, after `rise` none, and training is that of Madry et al. In a ViT that
classifies by its class token nothing but attention carries the loss to the patches: where all of it is dropped, the random
start is all of the perturbation.

Differs from the paper: gates sit on the attention of timm's blocks instead of their drop-path, which the MLP passes too;
time is the share of the whole training, the same on all clients, whatever their steps. `steps` is 10 and `rise` a quarter as
in the paper's experiments on CIFAR-10; learning rate, weight decay, gradient clipping (norm 1) and pre-trained weights,
which the paper calls necessary, are the scenario's. No label mixing.

Needs: a ViT with residual connections around its attention. Cost: as `adversarial_training`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsim_defenses._adversarial import MO, IteratedRecipe


@dataclass(frozen=True, kw_only=True)
class ARD(IteratedRecipe):
    """Adversarial training whose attack drops gradients through attention at random, early in training most.

    Args:
        steps: iterations of the attack.
        prm: whether the attack masks its perturbation at random too; see `prm`.
    """

    citation: ClassVar[str] = MO
    treats_images_alone: ClassVar[bool] = True  # what is dropped is drawn, whatever the images are

    steps: int = 10
    prm: bool = False

    @property
    def drops_attention(self) -> bool:
        """Whether ARD is on: always."""
        return True
