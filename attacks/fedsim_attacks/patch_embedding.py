"""Patch-embedding inversion: one picture, in closed form, from the update of a stock Vision Transformer.

Paper: no publication of this form is known to us; the nearest is APRIL, which inverts an altered first block. Lu, Zhang,
Zhao, He, Cheng. "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers". CVPR 2022.
https://arxiv.org/abs/2112.14087

Idea: a token is t_n = W x_n + b + E_n, so the gradient at the position embedding E_n is the gradient A_n at the token,
whatever follows. With X the normalized patches, the projection's gradient is G = A^T X: a linear system for the pixels,
with one solution while there are fewer patches than the embedding is wide. No label, no weights, no prior, any depth; sums
over local SGD steps keep the same form. Where singular values drown in noise, or patches outnumber the width, the missing
directions are filled with the smoothest picture: minimize |G - A^T X|^2 + (s / smoothness)^2 roughness(X), where the noise
s is read off identities that hold for every picture, and raised while the pixels are implausible.

Differs from the paper: APRIL solves for the input of a first attention block without layer norm and without residual
around it; here the block is stock, and the patch projection takes the place of query, key and value.

Needs: grant `normalization`. One distinct picture in the update, learned position embeddings and a patch projection
without norm, both shared; gradients, or deltas of local SGD. Uses `training` to undo weight decay. Cost: one singular
value decomposition of patches x width, then up to a few hundred steps of conjugate gradients where something is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Images, Observation
from fedsim.models import PatchGrid
from fedsim_attacks import _patch_system
from fedsim_attacks._closed_form import Completion, Decomposition, complete, decompose
from fedsim_attacks._patch_system import GREY, ROUNDING, PatchSystem
from fedsim_attacks._priors import Roughness

_OVERSHOOT = 0.03  # root mean square of what leaves [0, 1] before an estimate counts as implausible
_RAISE, _LARGEST_RAISE = 30.0, 1e16
_NOTABLE_NOISE = 1e-3
_NOTABLE_BIAS_ERROR = 1e-3
_NOTABLE_EXCESS = 10.0


class _Solution(NamedTuple):
    images: Images
    weight: float
    raised: float
    steps: int


class _Diagnosis(NamedTuple):
    """What the update tells about itself; the trace.

    Args:
        residual: share of the projection's gradient that no picture explains.
        excess: its variance over what noise explains; about 1 for one picture.
        bias_identity_error: relative; None without a bias gradient.
        relative_noise: norm of the noise in the token gradients over their norm.
        condition_number: of the token gradients, above rounding.
        cutoff: relative singular value at which prior and data weigh the same, or noise begins.
        rank: singular values above the cutoff.
        patches: directions in all.
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
    patches: int
    prior_raised: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class PatchEmbedding(Attack):
    """Closed-form inversion of the patch embedding, completed smoothly where the update says nothing.

    Args:
        smoothness: expected difference between neighboring pixels in [0, 1], for what noise or too many patches hide.
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
            raise AttackRefusedError("normalization is not granted; the patches are found in normalized units.")
        found = _patch_system.read(observation)
        system = decompose(*found.equations(normalization))
        variance = torch.maximum(found.explained(normalization), found.shown(system))
        solution = self._solve(system, variance / self.smoothness**2, found.grid)
        cutoff = max(solution.weight**0.5, found.noise_edge)
        diagnosis = _Diagnosis(
            residual=float(system.residual.norm() / found.projection.norm()),
            excess=found.excess(system, normalization),
            bias_identity_error=found.bias_error,
            relative_noise=found.relative_noise,
            condition_number=float(system.values[0] / system.values[system.rank - 1]),
            cutoff=float(cutoff / system.values[0]),
            rank=int((system.values > cutoff).sum()),
            patches=found.grid.count,
            prior_raised=solution.raised,
            steps=solution.steps,
        )
        return Finding(images=solution.images, trace=diagnosis._asdict(), cautions=_cautions(found, diagnosis))

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
        images = (grid.join(found.patches[None]) + GREY).clamp(0, 1).float()
        return _Solution(images, float(weights.max()) * raised, raised, steps)


def _complete(
    system: Decomposition, weights: Tensor, prior: Roughness, grid: PatchGrid, start: Tensor | None
) -> Completion:
    return complete(system, weights, lambda patches: grid.cut(prior.gradient(grid.join(patches[None])))[0], start)


def _overshoot(centered: Tensor) -> float:
    return float((centered.abs() - GREY).clamp_min(0).square().mean().sqrt())


def _cautions(found: PatchSystem, diagnosis: _Diagnosis) -> tuple[str, ...]:
    listed = []
    error, (count, width) = diagnosis.bias_identity_error, found.tokens.shape
    is_broken = error is not None and error > _NOTABLE_BIAS_ERROR and not found.is_sum_noisy
    is_mixed = diagnosis.residual > ROUNDING and diagnosis.excess > _NOTABLE_EXCESS
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
    if not found.is_decay_known and (is_broken or is_mixed):
        listed.append("Weight decay would look the same; it can be undone exactly where `training` is granted.")
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
            f"{count} patches exceed the width {width} minus one: some directions are filled smoothly, and the residual "
            "cannot tell one picture from several."
        )
    if diagnosis.prior_raised > 1:
        listed.append(
            "The direct solution leaves the range of pixels, so it was smoothed more than its noise asks for."
        )
    return tuple(listed)
