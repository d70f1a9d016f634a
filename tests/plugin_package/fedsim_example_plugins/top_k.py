"""Top-k: only the largest entries of the update are sent, the others are zero.

Paper: Aji, Heafield. "Sparse Communication for Distributed Gradient Descent". EMNLP 2017.
https://arxiv.org/abs/1704.05021

Idea: of all n entries of the update, the k = max(1, round(keep n)) of largest magnitude stay, whichever tensor they are
in. Made to save bandwidth; often tried against gradient inversion.

Differs from the paper: what is dropped is lost, where the paper keeps it on the client for the next round; the
threshold is exact, where the paper estimates it from a sample.

Needs: nothing. Cost: one selection over the update.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedsim.defense import ClientContext, Defense
from fedsim.exchange import Update


@dataclass(frozen=True, kw_only=True)
class TopK(Defense):
    """Send the entries of largest magnitude, over all tensors together.

    Args:
        keep: share of the entries that are sent.
    """

    citation: ClassVar[str] = (
        "Aji, Heafield. Sparse Communication for Distributed Gradient Descent. EMNLP 2017. "
        "https://arxiv.org/abs/1704.05021"
    )

    keep: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: expected a share above 0 and up to 1, got {self.keep}.")

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what pruning cannot vouch for."""
        return ("Pruning is a heuristic: an attack may work with the entries that are left.",)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update with all but the largest entries set to zero."""
        sizes = [tensor.numel() for tensor in update.tensors.values()]
        entries = torch.cat([tensor.flatten() for tensor in update.tensors.values()])
        count = max(1, round(self.keep * len(entries)))
        kept = entries.abs().topk(count).indices
        pruned = torch.zeros_like(entries).index_copy(0, kept, entries[kept])
        parts = zip(update.tensors.items(), pruned.split(sizes), strict=True)
        return dataclasses.replace(update, tensors={name: part.view(old.shape) for (name, old), part in parts})
