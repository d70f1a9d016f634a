"""MART: adversarial training that weighs images by how wrong the model is about them.

Paper: Wang, Zou, Yi, Bailey, Ma, Gu. "Improving Adversarial Robustness Requires Revisiting Misclassified Examples". ICLR
2020. https://openreview.net/forum?id=rklOg6EFwS

Idea: loss = BCE(p(x'), y) + beta KL(p(x) || p(x')) (1 - p_y(x)), the mean over the batch, where p is the softmax, x' what
projected gradient ascent of the cross-entropy reaches within epsilon, and BCE(p, y) = -log p_y - log(1 - max over c other
than y of p_c). Images that the model is wrong about before any perturbation count more.

Differs from the paper: epsilon and step as 8/255 and 2/255 (0.031 and 0.007 in the published code). All but the
cross-entropy has forward passes of its own, so that with dropout its draws are not those of the cross-entropy. A soft label
counts as its most probable class there.

Needs: a model whose input gradient exists; `ard` and `prm`, which switch on what the defenses of these names do, need a ViT.
The loss that is returned is the cross-entropy on the perturbed images. Cost: steps + 3 forward and backward passes instead
of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.defense import LocalStep
from fedsim.exchange import Labels
from fedsim_defenses._adversarial import DivergenceRecipe
from fedsim_defenses._evasion import Logits, divergence

_ABOVE_ONE = 1.0001  # of the published code, so that the logarithm of 1 - p is a number where p is 1


@dataclass(frozen=True, kw_only=True)
class MART(DivergenceRecipe):
    """Train on perturbed images, more on those that the model gets wrong anyway: for robustness, not for privacy."""

    citation: ClassVar[str] = (
        "Wang et al. Improving Adversarial Robustness Requires Revisiting Misclassified Examples. ICLR 2020. "
        "https://openreview.net/forum?id=rklOg6EFwS"
    )

    beta: float = 5.0

    def _learn(self, step: LocalStep, adversarial: LocalStep, proceed: Callable[[LocalStep], Tensor]) -> Tensor:
        loss = proceed(adversarial)
        clean, moved = step.model(step.images), step.model(adversarial.images)
        torch.autograd.backward(beside_cross_entropy(clean, moved, step.labels, self.beta).mean())
        return loss


def beside_cross_entropy(clean: Logits, moved: Logits, labels: Labels, beta: float) -> Float[Tensor, " batch"]:
    """Return what MART adds to the cross-entropy of each perturbed image.

    Args:
        clean: logits of the images as they are.
        moved: logits of the perturbed images.
        labels: hard or soft labels.
        beta: weight of the divergence.
    """
    own = labels.argmax(1) if labels.ndim == 2 else labels.long()
    is_own = nn.functional.one_hot(own, moved.shape[1]).bool()
    most_other = moved.softmax(1).masked_fill(is_own, 0).amax(1)
    return -(_ABOVE_ONE - most_other).log() + beta * divergence(clean, moved) * (1 - clean.softmax(1)[is_own])
