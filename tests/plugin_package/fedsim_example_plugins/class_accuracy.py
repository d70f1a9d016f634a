"""Accuracy of each class: how often the global model is right, class by class.

Source: this package.

Idea: a federation may learn the classes that few clients hold worse than its mean accuracy tells.

Differs from the source: nothing.

Needs: test images of every class; a class without any is left out, with a caution. Cost: one pass over the test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.evaluator import Evaluation, Evaluator, PixelModel
from fedsim.source import Pool


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy(Evaluator):
    """Share of right answers, over all test images and for each class.

    Args:
        most: images at most; the first ones of the pool.
    """

    citation: ClassVar[str] = "Our own."

    most: int = 1000

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most: expected at least 1, got {self.most}.")

    @torch.inference_mode()
    def run(
        self, model: PixelModel, pool: Pool, class_names: tuple[str, ...], generator: torch.Generator
    ) -> Evaluation:
        """Return the accuracies."""
        known = pool.read(range(min(self.most, len(pool))))
        right = torch.cat([model(part).argmax(1) for part in known.images.split(100)]) == known.labels
        scores, missing = {"accuracy": float(right.float().mean())}, []
        for label, name in enumerate(class_names):
            own = right[known.labels == label]
            if len(own):
                scores[f"accuracy of {name}"] = float(own.float().mean())
            else:
                missing.append(name)
        return Evaluation(scores, (f"no test image of {', '.join(missing)}",) if missing else ())
