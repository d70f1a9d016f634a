"""Class counts of any batch, repeats included, from the gradient at a Vision Transformer's classifier.

Paper: Ma, Sun, Cui, Huang, Chen, Zhao. "Instance-wise Batch Label Restoration via Gradients in Federated Learning". ICLR
2023. https://openreview.net/forum?id=FIrQfNSOoTr

Idea: the bias gradient is mean(p) - n / B, predicted probabilities minus class counts over batch size. So n = B (mean(p) -
G_b), as soon as the batch's mean softmax is known to 1 / (2 B). It follows from the batch's mean logits, which the weight
gradient gives as a least-squares estimate over classes, with a prior from images of no client (`head.counts`). The counts
are the whole numbers nearest to that in the covariance of the estimate; how much nearer than the second nearest is the
confidence.

Differs from the paper: iLRG divides each row of the weight gradient by its bias entry to get one embedding a class, which
needs features of one sign and confident classes; here one mean is estimated from all rows, so signed features (every ViT
has them), absent classes and repeated labels do no harm. Counts are rounded jointly, with a confidence.

Needs: grant `batch_size`; the classifier's weight and bias gradients (without the bias, the constant functional of
reference features stands in; without the weights, the reference images' mean softmax does). Uses `auxiliary_data`,
`normalization` and `training` where granted. Cost: one forward pass over the reference images, none for one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.exchange import Finding, Observation
from fedsim_attacks.head import count_labels


@dataclass(frozen=True, kw_only=True)
class LabelCount(Attack):
    """Class counts from the classifier's gradient.

    Args:
        references: images run through the model to learn how its logits vary: auxiliary data where granted, else noise
            with the spectrum of photographs.
    """

    citation: ClassVar[str] = (
        "Ma et al. Instance-wise Batch Label Restoration via Gradients in Federated Learning. ICLR 2023. "
        "https://openreview.net/forum?id=FIrQfNSOoTr"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"labels"})
    applies: ClassVar[Applicability] = Applicability(soft_labels=False, model=("linear classifier",))
    is_cheap: ClassVar[bool] = True

    references: int = 64

    def __post_init__(self) -> None:
        if self.references < 2:
            raise ValueError(f"references: expected at least 2, got {self.references}.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Count the labels; draws the reference images where no auxiliary data is granted."""
        found = count_labels(observation, self.references, generator)
        trace = {
            "confidence": found.confidence,
            "expected_counts": [round(value, 3) for value in found.expected.tolist()],
            "noise": found.noise,
        }
        return Finding(labels=found.labels, trace=trace, cautions=found.cautions)
