"""The linear system that one image leaves in a Vision Transformer's update, read out of it and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Normalization, Observation
from fedsim.models import PatchGrid, patch_grid, prefix_rows
from fedsim_attacks.closed_form.linear import (
    BiasGradient,
    Decomposition,
    Noise,
    Patches,
    ProjectionGradient,
    Weights,
    decay_share,
    merge_bias,
    noise_levels,
)
from fedsim_attacks.priors import GREY
from fedsim_attacks.update import (
    POSITIONS,
    PROJECTION,
    PROJECTION_BIAS,
    MeanGradient,
    Occlusion,
    TokenGradient,
    mean_gradient,
    puzzle_names,
    recognize,
    restore,
)

ARITHMETIC = 1e-14  # squared relative error of a float32 sum
ROUNDING = 1e-5  # relative error of an identity that float32 arithmetic can explain

_NAMES = (PROJECTION, POSITIONS, PROJECTION_BIAS)
_IMAGE_VARIANCE = 0.05  # of pixels around an image's mean color


class EntryNoise(NamedTuple):
    """Variance of what rounding took from or added to each entry; `bias` is None without a bias gradient."""

    format: str
    tokens: TokenGradient
    projection: ProjectionGradient
    bias: BiasGradient | None


@dataclass(frozen=True)
class PatchSystem:
    """A^T X = G for the pixels of one image, minus grey.

    Args:
        grid: how the model cuts images.
        tokens: A without prefix rows; as shared, or with masked rows restored.
        projection: gradient of the patch projection as shared.
        bias: gradient of its bias; None where there is none.
        noise: standard deviations, from identities.
        is_decay_known: whether weight decay is known to be absent or has been subtracted.
        occlusion: masked patches, where some positions were hidden.
        rounding: of the entries, where they were rounded.
    """

    grid: PatchGrid
    tokens: TokenGradient
    projection: ProjectionGradient
    bias: BiasGradient | None
    noise: Noise
    is_decay_known: bool
    occlusion: Occlusion | None = None
    rounding: EntryNoise | None = None

    @property
    def bias_error(self) -> float | None:
        """How far the token gradients are from summing to the bias gradient, relative to it."""
        if self.bias is None:
            return None
        return float((self.tokens.sum(0) - self.bias).norm() / self.bias.norm())

    @property
    def is_sum_noisy(self) -> bool:
        """Whether noise explains that error; false where a part of the token gradients is hidden or distorted."""
        return self.noise.bias is None or self.noise.bias < 3 * max(self.noise.tokens, self.noise.projection)

    @property
    def relative_noise(self) -> float:
        """Norm of the noise in the token gradients over their norm."""
        if self.rounding is not None:
            return float(self.rounding.tokens.sum().sqrt() / self.tokens.norm())
        return float(self.noise.tokens * self.tokens.numel() ** 0.5 / self.tokens.norm())

    @property
    def noise_edge(self) -> float:
        """The largest singular value that the noise alone would have."""
        count, width = self.tokens.shape
        return self.noise.tokens * (math.sqrt(count) + math.sqrt(width))

    def equations(self, normalization: Normalization) -> tuple[TokenGradient, ProjectionGradient]:
        """Return A, with its noise reduced where the bias gradient helps, and G for pixels minus grey."""
        tokens, error = self.tokens, self.bias_error
        if self.bias is not None and error is not None and error > ROUNDING:
            if self.rounding is not None and self.rounding.bias is not None:
                tokens = merge_bias(tokens, self.bias, self.rounding.tokens, self.rounding.bias)
            elif self.is_sum_noisy:
                tokens = merge_bias(tokens, self.bias)
        mean, std = self._per_value(normalization.mean), self._per_value(normalization.std)
        return tokens, self.projection * std + tokens.sum(0)[:, None] * (mean - GREY)

    def explained(self, normalization: Normalization) -> Weights:
        """Return the variance of an entry of G that the noise explains, per column."""
        return self._variance(self.noise.projection, normalization)

    def shown(self, system: Decomposition) -> Weights:
        """Return the variance of an entry of G that the residual shows, per column; 0 without spare equations."""
        freedom = len(system.residual) - 1 - system.rank  # layer norms take one equation
        if freedom < 1:
            return torch.zeros_like(system.residual[0])
        channels = system.residual.square().sum(0).view(self.grid.channels, -1).mean(1) / freedom
        return channels.repeat_interleave(self.grid.patch**2)

    def allowed(self, normalization: Normalization) -> Weights:
        """Return the variance of an entry of G that can be noise, per column.

        Noise is alike in all tensors, or proportional to their entries (rounding): a level of G beyond both is no noise.
        """
        rounding = ROUNDING * float(self.projection.square().mean().sqrt())
        return self._variance(min(self.noise.projection, max(3 * self.noise.tokens, rounding)), normalization)

    def rounded(self, normalization: Normalization, estimate: Patches | None) -> ProjectionGradient:
        """Return the variance of each entry of G - A^T X that rounding explains.

        Args:
            normalization: of the client's model.
            estimate: X so far; an average image until there is one.
        """
        assert self.rounding is not None
        shape = (self.grid.count, self.grid.values)
        squares = self.tokens.new_full(shape, _IMAGE_VARIANCE) if estimate is None else estimate.square()
        variance = self.rounding.projection * self._per_value(normalization.std).square()
        variance = variance + self.rounding.tokens.T @ squares
        arithmetic = ARITHMETIC * (self.projection.square().mean() + self.tokens.square().mean())
        return variance + arithmetic

    def _variance(self, level: float, normalization: Normalization) -> Weights:
        unknown = self.noise.tokens**2 * self.grid.count * _IMAGE_VARIANCE
        variance = (level * self._per_value(normalization.std)).square() + unknown
        return variance.clamp_min(torch.finfo(torch.float64).tiny)

    def _per_value(self, values: tuple[float, ...]) -> Weights:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(self.grid.patch**2)


def read_patch_system(observation: Observation) -> PatchSystem:
    """Return the system that an update holds.

    Raises:
        AttackRefusedError: the model or the update has no such system.
    """
    model = observation.model()
    grid = _grid(model, observation)
    gradient = _read_gradient(observation, model, [*_NAMES, *puzzle_names(model)])
    tokens = _present(gradient, POSITIONS)[0, prefix_rows(model) :]
    projection = _present(gradient, PROJECTION).flatten(1)
    if len(tokens) != grid.count:
        raise AttackRefusedError(f"{POSITIONS} has {len(tokens)} rows for patches, the grid {grid.count}.")
    if not tokens.any():
        raise AttackRefusedError("the gradient at the patches' position embeddings is zero.")
    tokens, occlusion = restore(model, gradient.tensors, tokens)
    bias = gradient.tensors.get(PROJECTION_BIAS)
    bias = None if bias is None or not bias.any() else bias
    noise = noise_levels(tokens, projection, bias)
    rounding = _entry_noise(observation, gradient, prefix_rows(model))
    return PatchSystem(grid, tokens, projection, bias, noise, gradient.is_decay_known, occlusion, rounding)


def read_projection(observation: Observation) -> tuple[PatchGrid, ProjectionGradient]:
    """Return the patch grid and the projection's gradient alone, for any number of images.

    Raises:
        AttackRefusedError: the model has no plain patch projection, or its gradient is missing, zero or not finite.
    """
    model = observation.model()
    grid = _grid(model, observation)
    gradient = _read_gradient(observation, model, _NAMES)
    return grid, _present(gradient, PROJECTION).flatten(1)


def _read_gradient(observation: Observation, model: nn.Module, names: Sequence[str]) -> MeanGradient:
    gradient = mean_gradient(observation, names)
    for name, tensor in gradient.tensors.items():
        if not torch.isfinite(tensor).all():
            raise AttackRefusedError(f"the gradient of {name} has entries that are not finite.")
    return gradient if gradient.is_decay_known else _subtract_decay(gradient, model)


def _entry_noise(observation: Observation, gradient: MeanGradient, first: int) -> EntryNoise | None:
    """Return the variances that rounding left in the gradients, or None where nothing was rounded."""
    rounding = recognize(observation, [name for name in _NAMES if name in gradient.tensors])
    if rounding is None:
        return None
    scaled = {}
    for name, variances in rounding.variances.items():
        factor = gradient.tensors[name].norm() / observation.update.tensors[name].double().norm()
        scaled[name] = variances * factor.square()
    return EntryNoise(
        rounding.format, scaled[POSITIONS][0, first:], scaled[PROJECTION].flatten(1), scaled.get(PROJECTION_BIAS)
    )


def _grid(model: nn.Module, observation: Observation) -> PatchGrid:
    if getattr(model, POSITIONS, None) is None:
        raise AttackRefusedError("the model has no learned position embedding, whose gradient this attack reads.")
    if not isinstance(getattr(model.patch_embed, "norm", None), nn.Identity | None):
        raise AttackRefusedError("the patch embedding ends in a norm, so the projection's gradient is not A^T X.")
    grid = patch_grid(model)
    shape = (grid.channels, grid.rows * grid.patch, grid.columns * grid.patch)
    if shape != observation.image_shape:
        raise AttackRefusedError(f"images of shape {observation.image_shape} do not fill the patch grid of {shape}.")
    return grid


def _present(gradient: MeanGradient, name: str) -> Float[Tensor, "*axes"]:
    tensor = gradient.tensors.get(name)
    if tensor is None or not tensor.any():
        state = "missing from the update" if tensor is None else "zero"
        raise AttackRefusedError(f"the gradient of {name} is {state}: the client froze it or did not share it.")
    return tensor


def _subtract_decay(gradient: MeanGradient, model: nn.Module) -> MeanGradient:
    """Return the gradient without the weight decay that its sums over the embedding give away."""
    tensors, start = dict(gradient.tensors), {n: p.detach().double() for n, p in model.named_parameters()}
    for judged, axis, decayed in ((PROJECTION, 0, (PROJECTION, PROJECTION_BIAS)), (POSITIONS, 2, (POSITIONS,))):
        share = decay_share(tensors[judged], start[judged], axis) if judged in tensors else 0.0
        for name in decayed:
            if name in tensors:
                tensors[name] = tensors[name] - share * start[name]
    return replace(gradient, tensors=tensors)
