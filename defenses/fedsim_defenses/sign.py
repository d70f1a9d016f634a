"""Sign: of every entry the sign alone is sent, times one magnitude a tensor.

Paper: Bernstein, Wang, Azizzadenesheli, Anandkumar. "signSGD: Compressed Optimisation for Non-Convex Problems". ICML 2018.
https://arxiv.org/abs/1802.04434; with the mean magnitude and error feedback: Karimireddy, Rebjock, Stich, Jaggi. "Error
Feedback Fixes SignSGD and other Gradient Compression Schemes". ICML 2019. https://arxiv.org/abs/1901.09847

Idea: an entry x of a tensor becomes sign(x) |tensor|_1 / n, the mean magnitude of its n entries, or sign(x) times a fixed
`scale`; zero stays zero. With `error_feedback` the client adds what earlier rounds lost by that before it takes signs.

Differs from the paper: signSGD lets the server take a majority vote over clients; here the strategy averages what is sent.
Entries are sent as float32, so a simulated message is no smaller.

Needs: nothing. No guarantee: signs keep most of a gradient's direction, and those of the classifier's bias gradient name the
label of one image. Cost: one pass over the update; with `error_feedback` a copy of it that the client keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedsim.defense import ClientContext, Defense
from fedsim.exchange import Update, UpdateEffects
from fedsim_defenses._error_feedback import Tensors, compressed


@dataclass(frozen=True, kw_only=True)
class Sign(Defense):
    """Send the sign of every entry, times one magnitude.

    Args:
        scale: magnitude of every entry that is sent, in the update's units; None for the mean magnitude of its tensor.
        error_feedback: whether what that changes is made good by the client's next update.
    """

    citation: ClassVar[str] = (
        "Bernstein et al. signSGD: Compressed Optimisation for Non-Convex Problems. ICML 2018. https://arxiv.org/abs/1802.04434"
    )

    scale: float | None = None
    error_feedback: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise ValueError(f"scale: expected a number above 0, or none for the mean magnitude, got {self.scale}.")

    @property
    def effects(self) -> UpdateEffects:
        """Signs alone; with error feedback, of what earlier rounds held back too."""
        return UpdateEffects(signs=True, carries_over=self.error_feedback)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return that signs are no protection."""
        return ("Signs save bandwidth and guarantee nothing: attacks lose magnitudes, not access.",)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the signs of the update: the same names, order, shapes and types."""
        return compressed(update, self._signs, context.state if self.error_feedback else None)

    def _signs(self, tensors: Tensors) -> Tensors:
        sent = {}
        for name, tensor in tensors.items():
            magnitude = tensor.double().abs().mean() if self.scale is None and tensor.numel() else self.scale or 0.0
            sent[name] = (tensor.sign().double() * magnitude).to(tensor.dtype)
        return sent
