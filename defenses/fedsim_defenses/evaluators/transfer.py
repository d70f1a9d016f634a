"""Transfer: accuracy on test images that were made adversarial for another model, such as an undefended one.

Paper: Papernot, McDaniel, Goodfellow. "Transferability in Machine Learning: from Phenomena to Black-Box Attacks using
Adversarial Samples". 2016. https://arxiv.org/abs/1605.07277

Idea: PGD on the cross-entropy of a source model with known weights; the global model is asked about the result. Images that
fool it although its own gradient finds none are a sign of masked gradients.

Differs from the paper: the source has the architecture of the global model, and its weights come from a file, for example the
`model.safetensors` of a run of the same scenario without defenses; nothing is trained here.

Needs: the weights of a source. Cost: that of `pgd`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import PixelModel
from fedsim.exchange import Images
from fedsim_defenses._evasion import cross_entropy
from fedsim_defenses.evaluators._robustness import RobustnessTest, climb


@dataclass(frozen=True, kw_only=True)
class Transfer(RobustnessTest):
    """Accuracy on images that fool a source model.

    Args:
        weights: safetensors file of the source's weights, of the same architecture as the global model; without one the
            evaluation is refused.
        steps: of the gradient of the source.
        step: size of one, as a share of epsilon.
    """

    _follows_gradients: ClassVar[bool] = False
    citation: ClassVar[str] = (
        "Papernot, McDaniel, Goodfellow. Transferability in Machine Learning: from Phenomena to Black-Box Attacks using "
        "Adversarial Samples. 2016. https://arxiv.org/abs/1605.07277"
    )

    weights: str = ""
    steps: int = 20
    step: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}.")
        if not 0 < self.step <= 2:
            raise ValueError(f"step: expected a share of epsilon above 0 and up to 2, got {self.step}.")

    def check(self, model: PixelModel, class_names: tuple[str, ...]) -> None:
        """Refuse where the weights of the source are missing, damaged or of another architecture."""
        self._source(model)

    def _source(self, model: PixelModel) -> PixelModel:
        if not self.weights:
            raise EvaluationRefusedError(
                "it needs a source: set weights to a safetensors file, such as model.safetensors of a run without defenses"
            )
        source = copy.deepcopy(model)
        try:
            source.model.load_state_dict(load_file(self.weights))
        except (OSError, SafetensorError) as error:
            raise EvaluationRefusedError(f"weights: {self.weights!r} cannot be read: {error}") from None
        except RuntimeError as error:
            raise EvaluationRefusedError(f"weights: {self.weights!r} are not of this architecture: {error}") from None
        return source

    def _attack(
        self,
        model: PixelModel,
        images: Images,
        labels: Int[Tensor, " batch"],
        epsilon: float,
        generator: torch.Generator,
    ) -> Images:
        surface = self._source(model), cross_entropy
        return climb(surface, images, labels, epsilon, self.steps, self.step, generator)

    def _cautions(self) -> tuple[str, ...]:
        return (
            "Images made for another model are an upper bound: an attacker with these weights finds more. Ask pgd as well.",
        )
