"""Square Attack: accuracy on test images after a random search that sees logits alone.

Paper: Andriushchenko, Croce, Flammarion, Hein. "Square Attack: A Query-Efficient Black-Box Adversarial Attack via Random
Search". ECCV 2020. https://arxiv.org/abs/1912.00049

Idea: from vertical stripes of +-epsilon, squares of one sign a channel are tried at random places and kept where the margin
z_y - max_(c != y) z_c falls; squares shrink on a schedule.

Differs from the paper: 1,000 queries by default, 5,000 to 10,000 there; squares of each image at places of its own, where the
published code moves those of a batch together; the schedule is scaled to the number of queries, as the published code can.

Needs: any model. Cost: `queries` forward passes for each image and epsilon, fewer for those that fall early, and the checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from fedsim.evaluator import PixelModel
from fedsim.exchange import Images
from fedsim_defenses._square import square
from fedsim_defenses.evaluators._robustness import RobustnessTest


@dataclass(frozen=True, kw_only=True)
class Square(RobustnessTest):
    """Accuracy after a search without gradients.

    Args:
        queries: of the model, for each image and epsilon.
        share: of the pixels that the first squares cover.
    """

    _follows_gradients: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Andriushchenko, Croce, Flammarion, Hein. Square Attack: A Query-Efficient Black-Box Adversarial Attack via Random "
        "Search. ECCV 2020. https://arxiv.org/abs/1912.00049"
    )

    images: int = 200
    queries: int = 1000
    share: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1:
            raise ValueError(f"queries: expected at least 1, got {self.queries}.")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a share above 0 and up to 1, got {self.share}.")

    def _attack(
        self,
        model: PixelModel,
        images: Images,
        labels: Int[Tensor, " batch"],
        epsilon: float,
        generator: torch.Generator,
    ) -> Images:
        return square(model, images, labels, epsilon, queries=self.queries, share=self.share, generator=generator)

    def _cautions(self) -> tuple[str, ...]:
        return (
            "A search without gradients is an upper bound: an attacker with the weights may find more. Ask pgd as well.",
        )
