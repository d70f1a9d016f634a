"""Accuracy: how often the global model is right about test images as they are, over all and by class.

Paper: Wilson. "Probable Inference, the Law of Succession, and Statistical Inference". Journal of the American Statistical
Association 22, 1927. https://doi.org/10.1080/01621459.1927.10502953

Idea: the share of images whose largest logit is that of their label, with the interval of Wilson's score test.

Differs from the paper: nothing; there the interval is for any proportion.

Needs: any model. Cost: one pass over the test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import Evaluation, Evaluator, PixelModel
from fedsim.progress import advance
from fedsim.source import Pool
from fedsim_defenses.evaluators._intervals import share
from fedsim_defenses.evaluators._robustness import parts, right


@dataclass(frozen=True, kw_only=True)
class Accuracy(Evaluator):
    """Accuracy over all test images and by class, with 95% Wilson intervals.

    Args:
        images: test images at most, the first ones; null for all.
        by_class: whether each class has scores of its own, with the number of its images.
    """

    citation: ClassVar[str] = (
        "Wilson. Probable Inference, the Law of Succession, and Statistical Inference. JASA 22, 1927. "
        "https://doi.org/10.1080/01621459.1927.10502953"
    )

    images: int | None = None
    by_class: bool = True

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise ValueError(f"images: expected at least 1, got {self.images}.")

    def run(
        self, model: PixelModel, pool: Pool, class_names: tuple[str, ...], generator: torch.Generator
    ) -> Evaluation:
        """Return the shares."""
        count = len(pool) if self.images is None else min(self.images, len(pool))
        if not count:
            raise EvaluationRefusedError("there are no test images")
        found = []
        for part in parts(count):
            known = pool.read(range(part.start, part.stop))
            found.append(right(model, known.images, known.labels.long()))
            advance(part.stop, count)
        is_right, labels = torch.cat(found), pool.labels[:count]
        scores = share("accuracy", is_right)
        for number, name in enumerate(class_names if self.by_class else ()):
            own = labels == number
            if own.any():
                scores |= {**share(f"accuracy of {name}", is_right[own]), f"images of {name}": float(own.sum())}
        return Evaluation(scores)
