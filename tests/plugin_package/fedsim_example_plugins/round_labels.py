"""Label counts of a whole round, from the sum of its clients' gradients.

Source: this package, after the bias rule of Zhao et al. 2020 (https://arxiv.org/abs/2001.02610).

Idea: under cross-entropy the gradient of a bias is the mean over all images of p_c - [y = c]. A fresh classifier says
p_c = 1 / C nearly everywhere, so that a round of N images holds about N (1 / C - dl/db_c) of class c. The mean of the
clients' gradients, weighted by their examples, is all it reads: secure aggregation hides nothing from it.

Differs from the source: counts the labels of all clients together; the paper names the label of one image.

Needs: gradients; a head with a bias; an untrained model, since a trained one favors classes. Cost: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.applicability import Applicability
from fedsim.attack import Attack, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Observation, Scope


@dataclass(frozen=True, kw_only=True)
class RoundLabels(Attack):
    """The labels behind all updates of a round.

    Args:
        parameter: name of the head's bias.
    """

    citation: ClassVar[str] = "Our own."
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"labels"})
    scope: ClassVar[Scope] = "round"
    applies: ClassVar[Applicability] = Applicability(kinds=("gradient",), model=("linear classifier",))

    parameter: str = "head.bias"

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Return as many labels as the clients reported examples."""
        update = observation.update
        if update.kind != "gradient" or self.parameter not in update.tensors or not update.num_examples:
            raise AttackRefusedError(f"reads gradients of {self.parameter}, and how many examples they are of.")
        classes, total = observation.num_classes, update.num_examples
        wanted = (total * (1 / classes - update.tensors[self.parameter].double())).clamp(min=0)
        wanted = wanted * total / wanted.sum().clamp(min=1e-12)
        counts = wanted.floor().long()
        # The largest remainders get what is left.
        for label in (wanted - counts).argsort(descending=True, stable=True)[: total - int(counts.sum())]:
            counts[label] += 1
        return Finding(
            labels=torch.arange(classes).repeat_interleave(counts), trace={"updates": len(observation.updates)}
        )
