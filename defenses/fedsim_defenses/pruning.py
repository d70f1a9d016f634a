"""Pruning: only the entries of largest magnitude are sent, the others are zero.

Paper: Zhu, Liu, Han. "Deep Leakage from Gradients". NeurIPS 2019. https://arxiv.org/abs/1906.08935 (section 5.2, as a
defense); made to save bandwidth: Aji, Heafield. "Sparse Communication for Distributed Gradient Descent". EMNLP 2017.
https://arxiv.org/abs/1704.05021; Lin, Han, Mao, Wang, Dally. "Deep Gradient Compression". ICLR 2018.
https://arxiv.org/abs/1712.01887

Idea: of n entries the k = max(1, round(keep n)) of largest magnitude stay, of equal ones the first. n counts the entries of
one tensor (`scope: tensor`, as in Deep Gradient Compression), or of the whole update (`scope: update`, as in Aji and
Heafield). With `error_feedback` the client adds what earlier rounds did not send before it selects, so that over the rounds
everything is sent.

Differs from the paper: the threshold is exact, where the papers estimate it from a sample; no momentum correction, warm-up or
clipping of Deep Gradient Compression. What is kept back is added to the next round in which the client takes part, however old
it is. What is sent are zeros, so a simulated message is no smaller.

Needs: nothing. No guarantee: an attack that compares the surviving entries alone loses what was dropped, and no more; Zhu et
al. stop theirs, which takes zeros for values, from 20% dropped. Cost: one selection over the update; with `error_feedback` a
copy of it that the client keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedsim.defense import ClientContext, Defense
from fedsim.exchange import Update, UpdateEffects
from fedsim_defenses._error_feedback import Tensors, compressed
from fedsim_defenses._selection import largest


@dataclass(frozen=True, kw_only=True)
class Pruning(Defense):
    """Send the entries of largest magnitude, and zeros for the others.

    Args:
        keep: share of the entries that are sent.
        scope: `tensor`, that share of each tensor; `update`, of all tensors together.
        error_feedback: whether what is not sent is added to the client's next update.
    """

    citation: ClassVar[str] = "Zhu et al. Deep Leakage from Gradients. NeurIPS 2019. https://arxiv.org/abs/1906.08935"

    keep: float = 0.1
    scope: Literal["tensor", "update"] = "tensor"
    error_feedback: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: expected a share above 0 and up to 1, got {self.keep}.")

    @property
    def effects(self) -> UpdateEffects:
        """Entries that are missing; with error feedback, others that are of earlier rounds."""
        return UpdateEffects(dropped="entries" if self.keep < 1 else None, carries_over=self.error_feedback)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what pruning cannot vouch for."""
        found = [
            "Pruning guarantees nothing: an attack may work with the entries that are left, and with where they are."
        ]
        if self.error_feedback:
            found.append("What pruning holds back is sent in a later round.")
        return tuple(found)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update with all but the largest entries set to zero: the same names, order, shapes and types."""
        return compressed(update, self._pruned, context.state if self.error_feedback else None)

    def _pruned(self, tensors: Tensors) -> Tensors:
        if self.scope == "tensor":
            return {name: self._largest(tensor.flatten()).view_as(tensor) for name, tensor in tensors.items()}
        entries = self._largest(torch.cat([tensor.flatten() for tensor in tensors.values()]))
        parts = torch.split(entries, [tensor.numel() for tensor in tensors.values()])
        return {name: part.view_as(tensor) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}

    def _largest(self, entries: Tensor) -> Tensor:
        count = min(len(entries), max(1, round(self.keep * len(entries))))
        return torch.where(largest(entries.abs(), count), entries, 0)
