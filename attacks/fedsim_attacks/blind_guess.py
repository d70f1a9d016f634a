"""Images and labels guessed without looking at the update: the floor that every attack has to beat.

Paper: none; the idea of an attack-free baseline is urged in Carlini, Chien, Nasr, Song, Terzis, Tramer. "Membership
Inference Attacks From First Principles". S&P 2022. https://arxiv.org/abs/2112.03570

Idea: guess grey images, the mean of auxiliary images, or auxiliary images drawn at random; guess labels in the
proportions of the auxiliary data, or evenly. A score that this attack reaches too says nothing about leakage.

Differs from the paper: it is a control, not an attack.

Needs: grant `batch_size`; uses `auxiliary_data` where granted. Cost: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, LabeledImages, Observation


@dataclass(frozen=True, kw_only=True)
class BlindGuess(Attack):
    """Guesses without the update.

    Args:
        guess: `grey`; `mean`, the mean of the auxiliary images; `sample`, auxiliary images drawn at random.
    """

    citation: ClassVar[str] = (
        "A control of fedsim, no attack. https://arxiv.org/abs/2112.03570 argues for such baselines."
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images", "labels"})
    is_cheap: ClassVar[bool] = True
    is_control: ClassVar[bool] = True

    guess: Literal["grey", "mean", "sample"] = "grey"

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Guess; the update is not read."""
        count, auxiliary = observation.batch_size, observation.auxiliary_data
        assert count is not None
        if self.guess == "grey":
            images = torch.full((count, *observation.image_shape), 0.5)
        elif auxiliary is None:
            raise AttackRefusedError(f"guess {self.guess} needs the grant auxiliary_data; guess grey does without.")
        elif self.guess == "mean":
            images = auxiliary.images.mean(0).expand(count, *observation.image_shape).clone()
        else:
            images = auxiliary.images[torch.randint(len(auxiliary), (count,), generator=generator)]
        return Finding(images=images, labels=_labels(count, observation.num_classes, auxiliary))


def _labels(count: int, classes: int, auxiliary: LabeledImages | None) -> Tensor:
    """Return labels in the proportions of the auxiliary data, or evenly; what is left goes to the largest remainders."""
    shares = torch.full((classes,), 1 / classes)
    if auxiliary is not None:
        shares = torch.bincount(auxiliary.labels, minlength=classes) / len(auxiliary)
    counts = (shares * count).floor()
    rest = count - int(counts.sum())
    counts[(shares * count - counts).sort(descending=True, stable=True).indices[:rest]] += 1
    return torch.repeat_interleave(torch.arange(classes), counts.long())
