"""Quantization: every entry of the update is rounded to a coarse number format before it is sent.

Paper: Alistarh, Grubic, Li, Tomioka, Vojnovic. "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding".
NeurIPS 2017. https://arxiv.org/abs/1610.02132

Idea: an entry x becomes k s with a whole number k and the spacing s of the format at x. `int8` is symmetric, one scale a
tensor: s = max |x| / 127, so k is in [-127, 127] and zero stays zero; `int4` is the same with 7 in place of 127. `fp16` and
`bf16` are IEEE half precision (11 significant bits, spacing at least 2^-24, largest value 65504) and bfloat16 (8 significant
bits, the range of float32): s = 2^(e - bits + 1) at |x| in [2^e, 2^(e+1)). Rounding is to the nearest k, halves to even, or
stochastic: up with the probability that makes the mean x.

Differs from the paper: QSGD scales by the l2 norm of a bucket of entries, and rounds stochastically alone; here the scale is
the largest magnitude of a whole tensor, as in common int8 compression; the paper's own scheme is the defense `qsgd`. What is
sent are the rounded values as float32, so a simulated message is no smaller. A shared delta is rounded before it is added to
the weights, whose own float32 spacing then comes on top.

Needs: nothing. No guarantee: made to save bandwidth. Values beyond the range of `fp16` are sent as its largest. Cost: one
pass over the update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.defense import ClientContext, Defense
from fedsim.exchange import Update, UpdateEffects

_LEVELS: Mapping[str, int] = MappingProxyType({"int4": 7, "int8": 127})  # either side of zero
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType({"fp16": torch.float16, "bf16": torch.bfloat16})


@dataclass(frozen=True, kw_only=True)
class Quantization(Defense):
    """Round every entry of the update to a number format.

    Args:
        format: `fp16`, `bf16`, or `int8` with one scale a tensor, its largest magnitude over 127; `int4`, over 7.
        rounding: `nearest`, or `stochastic`, which is unbiased.
    """

    citation: ClassVar[str] = (
        "Alistarh et al. QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding. NeurIPS 2017. "
        "https://arxiv.org/abs/1610.02132"
    )

    format: Literal["fp16", "bf16", "int8", "int4"] = "int8"
    rounding: Literal["nearest", "stochastic"] = "nearest"

    @property
    def effects(self) -> UpdateEffects:
        """Rounding."""
        return UpdateEffects(rounding=self.rounding)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return that rounding is no protection."""
        return (
            f"Rounding to {self.format} saves bandwidth and guarantees nothing: attacks lose precision, not access.",
        )

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update rounded: the same names, order, shapes and types."""
        tensors = {name: self._rounded(tensor, generator) for name, tensor in update.tensors.items()}
        return dataclasses.replace(update, tensors=tensors)

    def _rounded(self, tensor: Float[Tensor, "*axes"], generator: torch.Generator) -> Float[Tensor, "*axes"]:
        values = tensor.double()
        if self.format in _LEVELS:
            spacing = values.abs().max().expand_as(values) / _LEVELS[self.format] if values.numel() else values
        else:
            values, spacing = _spaced(values, _DTYPES[self.format])
        # Where the spacing is zero, so are all values.
        steps = values / spacing.clamp_min(torch.finfo(values.dtype).tiny)
        if self.rounding == "stochastic":
            shift = torch.rand(steps.shape, generator=generator, dtype=steps.dtype, device=generator.device)
            steps = (steps + shift.to(steps.device)).floor()
        else:
            steps = steps.round()
        return (steps * spacing).to(tensor.dtype)


def _spaced(
    values: Float[Tensor, "*axes"], dtype: torch.dtype
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Return the values within a floating-point format's range, and the format's spacing at each."""
    info = torch.finfo(dtype)
    within = values.clamp(info.min, info.max)
    exponents = torch.frexp(within.abs().clamp_min(info.tiny)).exponent - 1  # frexp's mantissa is in [1/2, 1)
    return within, torch.ldexp(torch.full_like(within, info.eps), exponents)
