"""Clipping: an update that is too long is scaled down, to a fixed norm or to one that follows the client's own updates.

Paper: Andrew, Thakkar, McMahan, Ramaswamy. "Differentially Private Learning with Adaptive Clipping". NeurIPS 2021.
https://arxiv.org/abs/1905.03871

Idea: an update u, all tensors as one vector, is sent as u min(1, C / |u|). With `rate` r above 0 the norm follows a quantile
of the client's past norms: after each round C becomes C exp(-r (b - quantile)), with b = 1 where |u| <= C and 0 otherwise, so
that in the long run a share `quantile` of the updates is left as it is. With `rate: 0`, C stays `norm`.

Differs from the paper: there one norm for all clients is kept by the server, and b is the share of a round's clients below it,
released with noise; here each client keeps a norm of its own, b is its own update alone, and nothing is released. There it is
half of a mechanism for differential privacy; without the noise, which `dp_noise` adds, nothing is left of the guarantee.

Needs: nothing. No guarantee: an unclipped direction is sent in full, and attacks that compare directions lose nothing. Bounds
what one client can change. Cost: one pass over the update.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedsim.defense import ClientContext, Defense
from fedsim.exchange import Update, UpdateEffects

_SPAN = 1e6  # factor up to which the norm leaves its first value, so that it stays a number


@dataclass(frozen=True, kw_only=True)
class Clipping(Defense):
    """Scale updates down to a norm, fixed or adapted to the client's own updates.

    Args:
        norm: largest l2 norm of an update, C; where it is adapted, that of the first round.
        quantile: of an adapted norm: share of the client's updates that it is to leave as they are.
        rate: how fast the norm follows, r; 0 for a fixed norm. Andrew et al. use 0.2.
    """

    citation: ClassVar[str] = (
        "Andrew et al. Differentially Private Learning with Adaptive Clipping. NeurIPS 2021. https://arxiv.org/abs/1905.03871"
    )

    norm: float = 1.0
    quantile: float = 0.5
    rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.norm < math.inf:
            raise ValueError(f"norm: expected a number above 0, got {self.norm}.")
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile: expected a share between 0 and 1, both excluded, got {self.quantile}.")
        if not 0 <= self.rate < math.inf:
            raise ValueError(f"rate: expected a number of at least 0, got {self.rate}.")

    @property
    def effects(self) -> UpdateEffects:
        """The norm where it is fixed; an unknown factor where it depends on what the client sent before."""
        return UpdateEffects(factor=None) if self.rate else UpdateEffects(clip_norm=self.norm)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return that clipping hides nothing."""
        return ("Clipping without noise scales the update and hides nothing: no guarantee.",)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update clipped: the same names, order, shapes and types.

        Raises:
            ValueError: the update is not finite, so that no factor brings its norm down.
        """
        norm, limit = update.norm(), float(context.state.get("norm", self.norm))
        if not math.isfinite(norm):
            raise ValueError("the update is not finite, so it cannot be clipped; lower training.learning_rate.")
        if self.rate:
            moved = limit * math.exp(min(math.log(_SPAN), -self.rate * ((norm <= limit) - self.quantile)))
            context.state["norm"] = min(max(moved, self.norm / _SPAN), self.norm * _SPAN)
        if norm <= limit:
            return update
        factor = limit / norm
        tensors = {name: (tensor.double() * factor).to(tensor.dtype) for name, tensor in update.tensors.items()}
        return dataclasses.replace(update, tensors=tensors)
