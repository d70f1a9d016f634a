"""Updates whose entries were rounded: to which numbers, and how far each entry may be from what it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.exchange import Observation

_ON_GRID = 1e-3  # of the spacing
_CLEAR = 8.0  # by which a grid must be wider than the float32 grid of the weights to be seen in a delta
_FEWEST = 32  # distinct values below which everything lies on some grid

_Tensors = Mapping[str, Tensor]

_LEVELS: Mapping[str, int] = MappingProxyType({"int8": 127, "int4": 7})  # of a symmetric grid, either side of zero
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType({"bf16": torch.bfloat16, "fp16": torch.float16})


class Rounding(NamedTuple):
    """How an update was rounded.

    Args:
        format: `int8`, `int4` (one scale a tensor), `bf16`, `fp16`; `float32` for a delta of weights, rounded as the weights
            were.
        variances: name of the parameter -> variance of each entry.
        is_stochastic: whether up or down was drawn.
    """

    format: str
    variances: Mapping[str, Tensor]
    is_stochastic: bool = False

    def step(self, name: str) -> Tensor:
        """Return the spacing of the grid at each entry of a tensor."""
        return (self.variances[name] * (6 if self.is_stochastic else 12)).sqrt()

    def reach(self, name: str) -> Tensor:
        """Return how far each entry of a tensor may have been moved."""
        return self.step(name) if self.is_stochastic else self.step(name) / 2


def recognize(observation: Observation, names: Collection[str]) -> Rounding | None:
    """Return the rounding on whose grid all named tensors lie, or None where there is none.

    The values tell by themselves; what the threat model grants about defenses tells whether rounding was stochastic.

    Args:
        observation: what the attack may know.
        names: tensors to look at, of those that the update holds.
    """
    tensors = {n: t.double() for n in names if (t := observation.update.tensors.get(n)) is not None and t.any()}
    if len(torch.unique(torch.cat([tensor.flatten() for tensor in tensors.values()]))) < _FEWEST:
        return None
    floor = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    if observation.update.kind == "delta":
        weights = {n: p.detach().double() for n, p in observation.model().named_parameters() if n in tensors}
        floor = {name: _spacing(weights[name] + tensor, torch.float32) for name, tensor in tensors.items()}
    is_stochastic = _is_stochastic(observation)
    share = 6 if is_stochastic else 12
    for format in (*_LEVELS, *_DTYPES):
        spacings = {name: _grid(tensor, format) for name, tensor in tensors.items()}
        if _fits(tensors, spacings, floor):
            variances = {n: spacings[n].square() / share + floor[n].square() / 12 for n in tensors}
            return Rounding(format, variances, is_stochastic)
    if observation.update.kind == "delta":
        sums = {name: weights[name] + tensor for name, tensor in tensors.items()}
        if _fits(sums, floor, {name: _spacing(tensor, torch.float32) for name, tensor in tensors.items()}):
            return Rounding("float32", {name: spacing.square() / 12 for name, spacing in floor.items()})
    return None


def _is_stochastic(observation: Observation) -> bool:
    return any(defense.effects.rounding == "stochastic" for defense in observation.defenses or ())


def _grid(values: Float[Tensor, "*axes"], format: str) -> Float[Tensor, "*axes"]:
    if format in _LEVELS:
        return (values.abs().max() / _LEVELS[format]).expand_as(values)
    return _spacing(values, _DTYPES[format])


def _spacing(values: Float[Tensor, "*axes"], dtype: torch.dtype) -> Float[Tensor, "*axes"]:
    info = torch.finfo(dtype)
    exponents = torch.frexp(values.abs().clamp_min(info.tiny)).exponent - 1  # frexp's mantissa is in [1/2, 1)
    return torch.ldexp(torch.full_like(values, info.eps), exponents)


def _fits(values: _Tensors, spacings: _Tensors, floors: _Tensors) -> bool:
    """Return whether values are multiples of their spacing, as far as a floor of other rounding lets one see.

    A grid that the floor hides in more than half of the entries is no grid that matters.
    """
    seen = 0
    for name, spacing in spacings.items():
        visible = spacing >= _CLEAR * floors[name]
        steps = (values[name] / spacing)[visible]
        if bool(((steps - steps.round()).abs() > _ON_GRID + (floors[name] / spacing)[visible]).any()):
            return False
        seen += int(visible.sum())
    return 2 * seen > sum(spacing.numel() for spacing in spacings.values())
