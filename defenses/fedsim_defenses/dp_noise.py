"""DP noise: each client clips its update and adds Gaussian noise before sending it.

Paper: Wei, Li, Ding, Ma, Yang, Farokhi, Jin, Quek, Poor. "Federated Learning with Differential Privacy: Algorithms and
Performance Analysis". 2020. https://arxiv.org/abs/1911.00222

Idea: with clipping norm S and noise multiplier z, send u min(1, S / |u|) + N(0, (z S)^2 I), u being all tensors of the
update as one vector. The server never sees less noise than that, so T rounds are mu-GDP with mu = sqrt(T) D / (z S), and
their epsilon at a delta is exact: no smaller one holds. Sensitivity D = 2 S when the client's whole data set is replaced
by another, D = S when its contribution is added or removed.

Differs from the paper: clips and noises the update, not the new weights; states the exact epsilon of the
chosen noise (`fedsim.gaussian_dp`) instead of choosing noise for an epsilon by the classical Gaussian bound, which holds
for epsilon below 1 alone; claims no amplification by client sampling, because the server knows who took part.

Needs: a clipping norm wherever there is noise. Covers the tensors of the update, not what else a client reports (number
of examples, loss). Cost: one pass over the update; the noise has norm z S sqrt(parameters), which averaging over K
clients divides by sqrt(K).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from fedsim.defense import ClientContext, Defense, PrivacyBudget
from fedsim.exchange import Update, UpdateEffects
from fedsim_defenses._accounting import DRAWN_FROM_THE_SEED, gaussian_epsilon, weaknesses


@dataclass(frozen=True, kw_only=True)
class DPNoise(Defense):
    """Clip the update's global l2 norm, then add Gaussian noise; accounted local differential privacy.

    Args:
        clip_norm: largest l2 norm of an update, S; None leaves updates as they are.
        noise_multiplier: standard deviation of the noise in each coordinate, in units of `clip_norm`, z; 0 clips alone.
        delta: probability with which the guarantee may fail.
        neighbors: `replace`, any two updates must be hard to tell apart, the right notion against a server that always
            gets one; `add_remove`, an update against a zero update, whose epsilon is smaller.
    """

    citation: ClassVar[str] = (
        "Wei et al. Federated Learning with Differential Privacy: Algorithms and Performance Analysis. "
        "IEEE TIFS 2020. https://arxiv.org/abs/1911.00222"
    )

    clip_norm: float | None = None
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    neighbors: Literal["replace", "add_remove"] = "replace"

    def __post_init__(self) -> None:
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm: expected a number above 0, or none for no clipping, got {self.clip_norm}.")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier: expected a number of at least 0, got {self.noise_multiplier}.")
        if self.noise_multiplier and self.clip_norm is None:
            raise ValueError(
                f"clip_norm: got none with noise_multiplier {self.noise_multiplier}, expected a number above 0. Noise "
                "is measured in clipping norms, and hides only updates of bounded norm: give clip_norm, or set "
                "noise_multiplier to 0."
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"delta: expected a number between 0 and 1, both excluded, got {self.delta}.")

    @property
    def effects(self) -> UpdateEffects:
        """Clipping, and noise in proportion to the clipping norm."""
        if self.clip_norm is None:
            return UpdateEffects()
        return UpdateEffects(clip_norm=self.clip_norm, noise=self.clip_norm * self.noise_multiplier)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what this setting does not protect from."""
        if self.clip_norm is None:
            return ("clip_norm is not set: updates are sent as they are.",)
        budget = self._budget(1)
        if budget is None:
            return ("Clipping without noise scales the update and hides nothing: no guarantee.",)
        return (DRAWN_FROM_THE_SEED, *weaknesses(budget))

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update clipped and noised: the same names, order, shapes and types.

        Raises:
            ValueError: the update is not finite, so that no factor brings its norm down to `clip_norm`.
        """
        if self.clip_norm is None:
            return update
        norm = update.norm()
        if not math.isfinite(norm):
            raise ValueError("the update is not finite, so it cannot be clipped; lower training.learning_rate.")
        factor = min(1.0, self.clip_norm / norm) if norm else 1.0
        sigma = self.noise_multiplier * self.clip_norm
        tensors = {}
        for name, tensor in update.tensors.items():
            protected = tensor.double() * factor
            if sigma:
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device=generator.device)
                protected += sigma * noise.to(tensor.device)
            tensors[name] = protected.to(tensor.dtype)
        return dataclasses.replace(update, tensors=tensors)

    def budget(self, context: ClientContext) -> PrivacyBudget | None:
        """Return the guarantee over all updates of the client so far; None without noise."""
        return self._budget(context.participation)

    def _budget(self, participations: int) -> PrivacyBudget | None:
        if self.noise_multiplier == 0:
            return None
        sensitivity = 2.0 if self.neighbors == "replace" else 1.0  # in clipping norms
        epsilon = gaussian_epsilon(self.noise_multiplier / sensitivity, participations, self.delta)
        return PrivacyBudget(epsilon, self.delta, self.neighbors)
