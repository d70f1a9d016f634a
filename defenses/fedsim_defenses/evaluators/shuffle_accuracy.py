"""Shuffle accuracy: how often the global model is right about images whose patches are shuffled.

Paper: Ren, Liu, Song, Bi, Cucchiara, Sebe, Wang. "Masked Jigsaw Puzzle: A Versatile Position Embedding for Vision
Transformers". CVPR 2023. https://arxiv.org/abs/2205.12551

Idea: of N patches, int(N ratio) are permuted among themselves at test time. A model that relies on positions loses accuracy
with the ratio; one that was trained with MJP loses less.

Differs from the paper: single patches by default, exactly as many as asked for, where its blocks may fall short; each image
has a permutation of its own.

Needs: a Vision Transformer with square patches. Cost: one pass over the test images for each ratio, and one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from fedsim.exchange import Images
from fedsim_defenses.evaluators._intervals import share
from fedsim_defenses.evaluators._shuffled import Answers, ShuffleTest, at
from fedsim_defenses.mjp import MJP


@dataclass(frozen=True, kw_only=True)
class ShuffleAccuracy(ShuffleTest):
    """Accuracy by the share of patches that are shuffled, each with its 95% Wilson interval."""

    citation: ClassVar[str] = MJP.citation

    def _read(self, vit: nn.Module, images: Images) -> Float[Tensor, "batch value"]:
        logits: Tensor = vit(images)
        return logits

    def _scores(self, answers: Answers) -> dict[str, float]:
        scores = share("accuracy, not shuffled", answers.clean.argmax(1) == answers.labels)
        for ratio, logits in answers.shuffled.items():
            scores |= share(at("accuracy", ratio), logits.argmax(1) == answers.labels)
        return scores
