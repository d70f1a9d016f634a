"""QSGD: every entry is rounded at random to one of a few levels of the norm of its bucket.

Paper: Alistarh, Grubic, Li, Tomioka, Vojnovic. "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding".
NeurIPS 2017. https://arxiv.org/abs/1610.02132 (section 3.1; buckets and `norm: max`, section 4)

Idea: a tensor is cut into buckets of d consecutive entries. With the l2 norm N of a bucket and s levels, an entry x is sent as
N sign(x) k / s, where k is |x| s / N rounded down, or up with the probability that makes the mean x. So few levels send most
entries as zero. With `norm: max`, as in the experiments of the paper, N is the largest magnitude of the bucket.

Differs from the paper: no Elias code, so a simulated message is no smaller; a bucket never spans two tensors.

Needs: nothing. No guarantee: made to save bandwidth, and unbiased, so that averages over rounds hide nothing. Cost: one pass
over the update; the variance of a bucket of d entries grows by up to min(d / s^2, sqrt(d) / s) (lemma 3.1).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.defense import ClientContext, Defense
from fedsim.exchange import Update, UpdateEffects


@dataclass(frozen=True, kw_only=True)
class QSGD(Defense):
    """Round every entry at random to a level of its bucket's norm.

    Args:
        levels: steps from zero to the norm, s; 7 of either sign and zero are 15 values, four bits.
        bucket: entries that share a norm, d; the last bucket of a tensor may be shorter.
        norm: `l2`, or `max`, the largest magnitude, which leaves more entries above zero.
    """

    citation: ClassVar[str] = (
        "Alistarh et al. QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding. NeurIPS 2017. "
        "https://arxiv.org/abs/1610.02132"
    )

    levels: int = 7
    bucket: int = 512
    norm: Literal["l2", "max"] = "l2"

    def __post_init__(self) -> None:
        for field in ("levels", "bucket"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: expected a whole number of at least 1, got {getattr(self, field)}.")

    @property
    def effects(self) -> UpdateEffects:
        """Stochastic rounding."""
        return UpdateEffects(rounding="stochastic")

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return that rounding is no protection."""
        return ("QSGD saves bandwidth and guarantees nothing: attacks lose precision, not access.",)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update rounded: the same names, order, shapes and types."""
        tensors = {name: self._rounded(tensor, generator) for name, tensor in update.tensors.items()}
        return dataclasses.replace(update, tensors=tensors)

    def _rounded(self, tensor: Float[Tensor, "*axes"], generator: torch.Generator) -> Float[Tensor, "*axes"]:
        entries = tensor.double().flatten()
        buckets = nn.functional.pad(entries, (0, -len(entries) % self.bucket)).view(-1, self.bucket)
        spacing = buckets.norm(2 if self.norm == "l2" else torch.inf, dim=1, keepdim=True) / self.levels
        # Where the spacing is zero, so are all values.
        steps = buckets.abs() / spacing.clamp_min(torch.finfo(buckets.dtype).tiny)
        drawn = torch.rand(steps.shape, generator=generator, dtype=steps.dtype, device=generator.device)
        rounded = (steps + drawn.to(steps.device)).floor() * spacing * buckets.sign()
        sent: Tensor = rounded.flatten()[: len(entries)].view_as(tensor).to(tensor.dtype)
        return sent
