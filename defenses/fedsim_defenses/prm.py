"""PRM: while adversarial images are made, the perturbation of random patches is masked, fewer and fewer of them.

Paper: Mo, Wu, Wang, Guo, Wang. "When Adversarial Training Meets Vision Transformers: Recipes from Training to Architecture".
NeurIPS 2022. https://arxiv.org/abs/2210.07540

Idea: at each step of the attack a mask M over the P patches zeroes floor(P (1 - p(t))) of them, drawn uniformly, the same
for all images: delta <- clip(M delta + step sign(grad loss(x + M delta))). p(t) = keep min(1, t / rise) rises over training:
at the start the attack is one step from the image, after `rise` it is that of Madry et al.

Differs from the paper: as its published code, the gradient is not masked, so masked patches regain one step, and the
finished perturbation is not masked either; `final_mask` masks that too, which the text may mean. Time is the share of the
whole training, the same on all clients, whatever their steps. `steps` is 10 and `rise` a quarter as in the paper's
experiments on CIFAR-10; learning rate, weight decay, gradient clipping (norm 1) and pre-trained weights are the scenario's.
No label mixing.

Needs: a model that cuts images into square patches. Cost: as `adversarial_training`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsim_defenses._adversarial import MO, IteratedRecipe


@dataclass(frozen=True, kw_only=True)
class PRM(IteratedRecipe):
    """Adversarial training whose attack masks its perturbation on random patches, early in training on most.

    Args:
        steps: iterations of the attack.
        ard: whether the attack's backward pass drops attention at random too; see `ard`.
    """

    citation: ClassVar[str] = MO
    treats_images_alone: ClassVar[bool] = True  # masks are drawn, whatever the images are

    steps: int = 10
    ard: bool = False

    @property
    def masks_patches(self) -> bool:
        """Whether PRM is on: always."""
        return True
