"""DiffNorm: how far the input of the classifier moves when the patches of an image are shuffled.

Paper: Ren, Liu, Song, Bi, Cucchiara, Sebe, Wang. "Masked Jigsaw Puzzle: A Versatile Position Embedding for Vision
Transformers". CVPR 2023. https://arxiv.org/abs/2205.12551

Idea: mean over test images of ||h(x) - h(shuffled x)||, h being what reaches the classifier (the class token).

Differs from the paper: single patches by default, where the paper's code takes blocks; several ratios (0.5 there); shuffled
patches keep the position embedding of their place unless `unknown` is set. Norms of two models do not compare, for each has
features of its own scale, so the distance between two different images (a control) stands beside it.

Needs: a timm Vision Transformer. Cost: one pass over the test images for each ratio, and one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import PixelModel
from fedsim.exchange import Images
from fedsim_defenses.evaluators._intervals import mean
from fedsim_defenses.evaluators._shuffled import Answers, ShuffleTest, at
from fedsim_defenses.mjp import MJP


@dataclass(frozen=True, kw_only=True)
class DiffNorm(ShuffleTest):
    """Mean distance of features by the share of patches that are shuffled, with 95% intervals."""

    citation: ClassVar[str] = MJP.citation

    def check(self, model: PixelModel, class_names: tuple[str, ...]) -> None:
        """Refuse a model that tells no features, as well.

        Raises:
            EvaluationRefusedError: says so.
        """
        super().check(model, class_names)
        vit = model.model
        if not callable(getattr(vit, "forward_features", None)) or not callable(getattr(vit, "forward_head", None)):
            raise EvaluationRefusedError(f"it asks a timm model for its features, and {type(vit).__name__} tells none")

    def _read(self, vit: nn.Module, images: Images) -> Float[Tensor, "batch value"]:
        asked: Any = vit
        features: Tensor = asked.forward_head(asked.forward_features(images), pre_logits=True)
        return features

    def _scores(self, answers: Answers) -> dict[str, float]:
        scores = dict[str, float]()
        for ratio, features in answers.shuffled.items():
            scores |= mean(at("DiffNorm", ratio), (answers.clean - features).norm(dim=1))
        if len(answers.clean) > 1:
            others = (answers.clean - answers.clean.roll(1, 0)).norm(dim=1)
            scores["distance of two images (control)"] = float(others.mean())
        return scores
