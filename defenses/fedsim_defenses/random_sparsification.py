"""Random sparsification: entries are sent or dropped at random, whatever their size.

Paper: Konecny, McMahan, Yu, Richtarik, Suresh, Bacon. "Federated Learning: Strategies for Improving Communication Efficiency".
2016. https://arxiv.org/abs/1610.05492 (section 2, random mask); unbiased by rescaling: Wangni, Wang, Liu, Zhang. "Gradient
Sparsification for Communication-Efficient Distributed Optimization". NeurIPS 2018. https://arxiv.org/abs/1710.09854

Idea: each entry of the update is sent with probability `keep`, and zero otherwise. `mask: bernoulli` draws each by itself;
`mask: exact` draws a set of k = max(1, round(keep n)) of all n entries. With `rescale`, what is sent is divided by keep
(exact: by k / n), so that its expectation is the update.

Differs from the paper: Konecny et al. train under the mask, and send its seed; here the update is masked after training, and
the mask shows in the zeros. Wangni et al. choose a probability for each entry by its magnitude; here it is the same for all.

Needs: nothing. No guarantee: each entry that is sent is sent as it is, and the server knows which; another round sends others.
Cost: one draw for each entry; rescaled updates have 1 / keep times the variance.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fedsim.defense import ClientContext, Defense
from fedsim.exchange import Update, UpdateEffects
from fedsim_defenses._selection import largest


@dataclass(frozen=True, kw_only=True)
class RandomSparsification(Defense):
    """Send a random share of the entries, and zeros for the others.

    Args:
        keep: probability with which an entry is sent, or share of the entries that are.
        mask: `bernoulli`, each entry by itself; `exact`, a fixed number of all entries of the update.
        rescale: whether what is sent is divided by that share, so that it is right on average.
    """

    citation: ClassVar[str] = (
        "Konecny et al. Federated Learning: Strategies for Improving Communication Efficiency. 2016. "
        "https://arxiv.org/abs/1610.05492"
    )

    keep: float = 0.1
    mask: Literal["bernoulli", "exact"] = "bernoulli"
    rescale: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: expected a share above 0 and up to 1, got {self.keep}.")

    @property
    def effects(self) -> UpdateEffects:
        """Entries that are missing, and the factor of the others."""
        dropped: Literal["entries"] | None = "entries" if self.keep < 1 else None
        return UpdateEffects(dropped=dropped, factor=1 / self.keep if self.rescale else 1.0)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what a random mask cannot vouch for."""
        return (
            "A random mask guarantees nothing: the entries that are sent are as they were, and each round may send others.",
        )

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update with entries set to zero at random: the same names, order, shapes and types."""
        sizes = [tensor.numel() for tensor in update.tensors.values()]
        kept = self._mask(sum(sizes), generator)
        share = float(kept.double().mean()) if self.mask == "exact" and len(kept) else self.keep
        factor = 1 / share if self.rescale else 1.0
        parts = zip(update.tensors.items(), torch.split(kept, sizes), strict=True)
        tensors = {
            name: torch.where(part.view_as(tensor).to(tensor.device), (tensor.double() * factor).to(tensor.dtype), 0)
            for (name, tensor), part in parts
        }
        return dataclasses.replace(update, tensors=tensors)

    def _mask(self, count: int, generator: torch.Generator) -> Bool[Tensor, " entry"]:
        drawn = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)
        if self.mask == "bernoulli":
            return drawn < self.keep
        return largest(drawn, min(count, max(1, round(self.keep * count))))
