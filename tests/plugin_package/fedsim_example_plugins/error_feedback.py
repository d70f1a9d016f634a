"""Error feedback: only the largest entries of the update are sent, and the others are kept for the next round.

Paper: Aji, Heafield. "Sparse Communication for Distributed Gradient Descent". EMNLP 2017.
https://arxiv.org/abs/1704.05021

Idea: what earlier rounds did not send is added to the update; the k = max(1, round(keep n)) entries of largest magnitude are
sent, and the rest is kept. Over the rounds everything is sent.

Differs from the paper: the threshold is exact, where the paper estimates it from a sample.

Needs: nothing. Cost: one selection over the update, and a copy of it that the client keeps.
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
class ErrorFeedback(Defense):
    """Send the entries of largest magnitude, and keep the others for the next round.

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
        return ("Pruning is a heuristic, and what is kept back is sent in a later round.",)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the largest entries of the update and of what was kept back; the others are kept in `context.state`."""
        names, tensors = list(update.tensors), list(update.tensors.values())
        entries = torch.cat([tensor.flatten() for tensor in tensors])
        entries = entries + context.state.get("kept", torch.zeros_like(entries))
        largest = entries.abs().topk(max(1, round(self.keep * len(entries)))).indices
        sent = torch.zeros_like(entries).index_copy(0, largest, entries[largest])
        context.state["kept"] = entries - sent
        parts = sent.split([tensor.numel() for tensor in tensors])
        shaped = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
        return dataclasses.replace(update, tensors=dict(zip(names, shaped, strict=True)))
