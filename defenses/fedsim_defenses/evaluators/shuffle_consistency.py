"""Shuffle consistency: of how many images the global model says the same when their patches are shuffled.

Paper: Ren, Liu, Song, Bi, Cucchiara, Sebe, Wang. "Masked Jigsaw Puzzle: A Versatile Position Embedding for Vision
Transformers". CVPR 2023. https://arxiv.org/abs/2205.12551

Idea: share of test images with argmax f(x) = argmax f(shuffled x), whether that is right or not.

Differs from the paper: single patches by default, where the paper's code takes blocks; several ratios (0.5 there); shuffled
patches keep the position embedding of their place unless `unknown` is set, so that a model without MJP can be compared. A
model that says one class of all images is perfectly consistent: the share of the most frequent answer stands beside it.

Needs: a Vision Transformer with square patches. Cost: one pass over the test images for each ratio, and one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.exchange import Images
from fedsim_defenses.evaluators._intervals import share
from fedsim_defenses.evaluators._shuffled import Answers, ShuffleTest, at
from fedsim_defenses.mjp import MJP


@dataclass(frozen=True, kw_only=True)
class ShuffleConsistency(ShuffleTest):
    """Share of images with an unchanged answer by the share of patches that are shuffled, with 95% Wilson intervals."""

    citation: ClassVar[str] = MJP.citation

    def _read(self, vit: nn.Module, images: Images) -> Float[Tensor, "batch value"]:
        logits: Tensor = vit(images)
        return logits

    def _scores(self, answers: Answers) -> dict[str, float]:
        said, scores = answers.clean.argmax(1), dict[str, float]()
        for ratio, logits in answers.shuffled.items():
            scores |= share(at("consistency", ratio), logits.argmax(1) == said)
        scores["most frequent answer (control)"] = float(torch.bincount(said).max()) / len(said)
        return scores
