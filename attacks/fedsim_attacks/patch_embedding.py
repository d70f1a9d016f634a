"""Patch-embedding inversion: one picture, in closed form, from the update of a stock Vision Transformer.

Paper: no publication of this form is known to us; the nearest is APRIL, which inverts an altered first block. Lu, Zhang,
Zhao, He, Cheng. "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers". CVPR 2022.
https://arxiv.org/abs/2112.14087

Idea: a token is t_n = W x_n + b + E_n, so the gradient at the position embedding E_n is the gradient A_n at the token,
whatever follows. With X the normalized patches, the projection's gradient is G = A^T X: a linear system for the pixels, with
at most (embedding width - 1) tokens one solution. No label, no weights, no prior, any depth; sums over local SGD steps
keep the same form. Where singular values drown in noise, or tokens outnumber the width, the missing directions are
filled with the smoothest picture: minimize ||G - A^T X||^2 + (s / smoothness)^2 * roughness(X), where the noise s is
read off identities that hold for every picture (`_closed_form`), never off the truth.

Differs from the paper: APRIL solves for the input of a first attention block without layer norm and without residual
around it; here the block is stock, and the patch projection takes the place of query, key and value.

Needs: grant `normalization`. One distinct picture in the update, learned position embeddings and a patch projection
without norm, both shared; gradients, or deltas of local SGD. Uses `training` to undo weight decay. Cost: one singular
value decomposition of tokens x width, then up to a few hundred steps of conjugate gradients where something is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Images, Normalization, Observation
from fedsim.models import PatchGrid, patch_grid, prefix_rows
from fedsim_attacks._closed_form import Completion, Decomposition, Noise, complete, decompose, merge_bias, noise_levels
from fedsim_attacks._gradient import MeanGradient, mean_gradient
from fedsim_attacks._priors import Roughness

_GREY = 0.5
_PICTURE_VARIANCE = 0.05  # of pixels around a picture's mean color
_OVERSHOOT = 0.03  # root mean square of what leaves [0, 1] before an estimate counts as implausible
_RAISE, _LARGEST_RAISE = 10.0, 1e8
_ROUNDING = 1e-5  # relative error of an identity that float32 arithmetic can explain
_NOTABLE_NOISE = 1e-3


class _Tensors(NamedTuple):
    tokens: Tensor
    projection: Tensor
    bias: Tensor | None


class _Solution(NamedTuple):
    images: Images
    weight: float
    raised: float
    steps: int


class _Diagnosis(NamedTuple):
    """What the update tells about itself; the trace.

    Args:
        residual: share of the projection's gradient that no picture explains.
        excess: its variance over what the noise explains, in the worst column.
        bias_identity_error: relative; None without a bias gradient.
        relative_noise: norm of the noise in the token gradients over their norm.
        condition_number: of the token gradients, above rounding.
        cutoff: relative singular value at which prior and data weigh the same.
        rank: singular values above the cutoff.
        tokens: directions in all.
        prior_raised: factor by which the prior was raised until the pixels were plausible.
        steps: of conjugate gradients, in all.
    """

    residual: float
    excess: float
    bias_identity_error: float | None
    relative_noise: float
    condition_number: float
    cutoff: float
    rank: int
    tokens: int
    prior_raised: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class PatchEmbedding(Attack):
    """Closed-form inversion of the patch embedding, completed smoothly where the update says nothing.

    Args:
        smoothness: expected difference between neighboring pixels in [0, 1], for what noise or too many tokens hide.
        refinements: rounds in which the smooth filling is allowed edges where the last round found some.
    """

    citation: ClassVar[str] = (
        "Patch-embedding inversion, this project; after Lu et al. APRIL: Finding the Achilles' Heel on Privacy for Vision "
        "Transformers. CVPR 2022. https://arxiv.org/abs/2112.14087"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images"})

    smoothness: float = 0.1
    refinements: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.smoothness < 1:
            raise ValueError(f"smoothness: expected a number between 0 and 1, both excluded, got {self.smoothness}.")
        if self.refinements < 0:
            raise ValueError(f"refinements: expected at least 0, got {self.refinements}.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Invert the patch embedding; draws nothing."""
        normalization = observation.normalization
        if normalization is None:
            raise AttackRefusedError("the grant normalization is missing; patches are found in normalized units.")
        model = observation.model()
        grid = _grid(model, observation)
        gradient = mean_gradient(observation, ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"))
        found = _tensors(gradient, model, grid)
        noise = noise_levels(*found)
        error = _bias_error(found)
        tokens = found.tokens
        if found.bias is not None and error is not None and noise.bias is not None:
            if error > _ROUNDING and noise.bias < 3 * noise.tokens:
                tokens = merge_bias(tokens, found.bias)
        system = decompose(tokens, _centered(tokens, found.projection, grid, normalization))
        explained, misfit = _noise_variances(system, noise, grid, normalization)
        solution = self._solve(system, torch.maximum(explained, misfit) / self.smoothness**2, grid)
        diagnosis = _Diagnosis(
            residual=float(system.residual.norm() / found.projection.norm()),
            excess=float((misfit / explained).max()),
            bias_identity_error=error,
            relative_noise=float(noise.tokens * found.tokens.numel() ** 0.5 / found.tokens.norm()),
            condition_number=float(system.values[0] / system.values[system.rank - 1]),
            cutoff=float(solution.weight**0.5 / system.values[0]),
            rank=int((system.values.square() > solution.weight).sum()),
            tokens=grid.count,
            prior_raised=solution.raised,
            steps=solution.steps,
        )
        cautions = _cautions(found, gradient.is_decay_known, noise, diagnosis)
        return Finding(images=solution.images.float(), trace=diagnosis._asdict(), cautions=cautions)

    def _solve(self, system: Decomposition, weights: Tensor, grid: PatchGrid) -> _Solution:
        """Return the picture, with the prior raised until the pixels are plausible."""
        floor = (torch.finfo(torch.float64).eps * system.values[0]) ** 2
        weights = weights.clamp_min(float(floor))
        prior = Roughness.uniform(grid.join(torch.zeros_like(system.data)[None]))
        raised = 1.0
        found = _complete(system, weights, prior, grid, None)
        steps = found.steps
        while _overshoot(found.patches) > _OVERSHOOT and raised < _LARGEST_RAISE:
            raised *= _RAISE
            found = _complete(system, weights * raised, prior, grid, found.patches)
            steps += found.steps
        # Edges pay where few directions are missing and the others are sharp; among noise they cost and gain nothing.
        for _ in range(self.refinements if 0 < found.filled <= grid.count // 2 else 0):
            prior = Roughness.around_edges(grid.join(found.patches[None]), self.smoothness)
            found = _complete(system, weights * raised, prior, grid, found.patches)
            steps += found.steps
        images = (grid.join(found.patches[None]) + _GREY).clamp(0, 1)
        return _Solution(images, float(weights.max()) * raised, raised, steps)


def _complete(
    system: Decomposition, weights: Tensor, prior: Roughness, grid: PatchGrid, start: Tensor | None
) -> Completion:
    return complete(system, weights, lambda patches: grid.cut(prior.gradient(grid.join(patches[None])))[0], start)


def _overshoot(centered: Tensor) -> float:
    return float((centered.abs() - _GREY).clamp_min(0).square().mean().sqrt())


def _grid(model: nn.Module, observation: Observation) -> PatchGrid:
    if getattr(model, "pos_embed", None) is None:
        raise AttackRefusedError("the model has no learned position embedding, whose gradient this attack reads.")
    if not isinstance(getattr(model.patch_embed, "norm", None), nn.Identity | None):
        raise AttackRefusedError("the patch embedding ends in a norm, so the projection's gradient is not A^T X.")
    grid = patch_grid(model)
    shape = (grid.channels, grid.rows * grid.patch, grid.columns * grid.patch)
    if shape != observation.image_shape:
        raise AttackRefusedError(f"pictures of shape {observation.image_shape} do not fill the patch grid of {shape}.")
    return grid


def _tensors(gradient: MeanGradient, model: nn.Module, grid: PatchGrid) -> _Tensors:
    missing = [name for name in ("pos_embed", "patch_embed.proj.weight") if name not in gradient.tensors]
    if missing:
        raise AttackRefusedError(f"the update does not hold {' and '.join(missing)}; both are needed.")
    tokens = gradient.tensors["pos_embed"][0, prefix_rows(model) :]
    if len(tokens) != grid.count:
        raise AttackRefusedError(f"pos_embed has {len(tokens)} rows for patches, the grid {grid.count}.")
    if not tokens.any():
        raise AttackRefusedError("the gradient of pos_embed is zero: the client froze or did not share it.")
    projection = gradient.tensors["patch_embed.proj.weight"].flatten(1)
    if not projection.any():
        raise AttackRefusedError("the gradient of patch_embed.proj.weight is zero: the client froze or did not share it.")
    return _Tensors(tokens, projection, gradient.tensors.get("patch_embed.proj.bias"))


def _bias_error(found: _Tensors) -> float | None:
    if found.bias is None or not found.bias.any():
        return None
    return float((found.tokens.sum(0) - found.bias).norm() / found.bias.norm())


def _per_value(values: tuple[float, ...], grid: PatchGrid) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(grid.patch**2)


def _centered(tokens: Tensor, projection: Tensor, grid: PatchGrid, normalization: Normalization) -> Tensor:
    """Return the right-hand side for pixels minus grey in place of normalized values."""
    mean, std = _per_value(normalization.mean, grid), _per_value(normalization.std, grid)
    return projection * std + tokens.sum(0)[:, None] * (mean - _GREY)


def _noise_variances(
    system: Decomposition, noise: Noise, grid: PatchGrid, normalization: Normalization
) -> tuple[Tensor, Tensor]:
    """Return the variance of an entry of the system, per column: what noise explains, and what the residual shows."""
    std = _per_value(normalization.std, grid)
    explained = (noise.projection * std).square() + noise.tokens**2 * grid.count * _PICTURE_VARIANCE
    explained = explained.clamp_min(torch.finfo(torch.float64).tiny)
    freedom = len(system.residual) - 1 - system.rank  # one more direction is lost to the layer norm
    if freedom < 1:
        return explained, torch.zeros_like(explained)
    shown = system.residual.square().sum(0).view(grid.channels, -1).mean(1) / freedom
    return explained, shown.repeat_interleave(grid.patch**2)


def _cautions(found: _Tensors, is_decay_known: bool, noise: Noise, diagnosis: _Diagnosis) -> tuple[str, ...]:
    listed = []
    error, (count, width) = diagnosis.bias_identity_error, found.tokens.shape
    is_noise = noise.bias is None or noise.bias < 3 * max(noise.tokens, noise.projection)
    is_broken = error is not None and error > 10 * _ROUNDING and not is_noise
    is_mixed = diagnosis.residual > _ROUNDING and diagnosis.excess > 10
    if is_broken:
        listed.append(
            f"The token gradients do not sum to the projection's bias gradient (relative error {error:.1e}): part of them "
            "is hidden, or entries were rescaled one by one (adaptive optimizer, pruning, quantization)."
        )
    elif is_mixed:
        listed.append(
            f"The system's residual is {diagnosis.residual:.1e}, far above its noise: the update holds more than one "
            "picture, and this finding mixes them."
        )
    if not is_decay_known and (is_broken or is_mixed):
        listed.append("Weight decay would look the same; it can be undone where `training` is granted.")
    if diagnosis.relative_noise > _NOTABLE_NOISE:
        listed.append(
            f"Noise of {diagnosis.relative_noise:.1e} of the token gradients: {diagnosis.rank} of {count} directions stand "
            "out, the rest is filled smoothly."
        )
    empty = int((~found.tokens.any(dim=1)).sum())
    if empty:
        listed.append(f"{empty} of {count} patches have no gradient of their own and are filled smoothly.")
    if count > width - 1:
        listed.append(
            f"{count} tokens exceed the width {width} minus one: some directions are filled smoothly, and the residual "
            "cannot tell one picture from several."
        )
    if diagnosis.prior_raised > 1:
        listed.append("The direct solution leaves the range of pixels, so it was smoothed more than its noise asks for.")
    return tuple(listed)
