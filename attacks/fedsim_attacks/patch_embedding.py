"""Patch-embedding inversion: one image, in closed form, from the update of a stock Vision Transformer.

Paper: no publication of this form is known to us; the nearest is APRIL, which inverts an altered first block. Lu, Zhang,
Zhao, He, Cheng. "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers". CVPR 2022.
https://arxiv.org/abs/2112.14087

Idea: a token is t_n = W x_n + b + E_n, so the gradient at the position embedding E_n is the gradient A_n at the token,
whatever follows. With X the normalized patches, the projection's gradient is G = A^T X: a linear system for the pixels,
with one solution while there are fewer patches than the embedding is wide. No label, no weights, no prior, any depth; sums
over local SGD steps keep the same form. Where singular values drown in noise, or patches outnumber the width, the missing
directions are filled with the smoothest image: minimize |G - A^T X|^2 + (s / smoothness)^2 roughness(X), where the noise
s is read off identities that hold for every image, and raised while the pixels are implausible.

Defenses are part of the model, whether granted or not, because an update gives them away. Rounding (fp16, bf16, int8, the
float32 grid of a delta's weights): entries lie on a grid, whose spacing is the noise of each; equations are weighed by it,
and the prior becomes a Student's t over color differences fitted to the image. Masked jigsaw positions: the unknown row
holds the sum of the masked rows, which leaves the patches across the span of the masked ones determined; the gradient of
the localization loss is known up to a factor, and the gradient of its head tells the factor. Clipping is a common factor.

Differs from the paper: APRIL solves for the input of a first attention block without layer norm and without residual
around it; here the block is stock, and the patch projection takes the place of query, key and value.

Needs: grant `normalization`. One distinct image in the update, learned position embeddings and a patch projection
without norm, both shared; gradients, or deltas of local SGD. Uses `training` to undo weight decay, `defenses` to tell
stochastic from nearest rounding and to warn of a shuffle. Cost: one singular value decomposition of patches x width, then
up to a few hundred steps of conjugate gradients where something is missing; four of each on a rounded update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from fedsim.applicability import Applicability
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Observation
from fedsim_attacks.closed_form import ROUNDING, PatchSystem, SmoothInversion, assess, excess, invert, read_patch_system
from fedsim_attacks.update import told_cautions

_NOTABLE_NOISE = 1e-3
_NOTABLE_BIAS_ERROR = 1e-3
_NOTABLE_EXCESS = 10.0


class _Diagnosis(NamedTuple):
    """What the update tells about itself; the trace.

    Args:
        residual: share of the projection's gradient that no image explains.
        excess: its variance over what noise explains; about 1 for one image.
        bias_identity_error: relative; None without a bias gradient.
        relative_noise: norm of the noise in the token gradients over their norm.
        condition_number: of the token gradients, above rounding.
        cutoff: relative singular value at which prior and data weigh the same, or noise begins.
        rank: singular values above the cutoff.
        patches: directions in all.
        prior_raised: factor by which the prior was raised until the pixels were plausible.
        steps: of conjugate gradients, in all.
        defenses_told: names of the client's defenses; None where they are not granted.
        rounding: format that the entries were rounded to; None where they were not.
        masked_patches: how many patches shared the unknown position.
        localization_weight: of the loss whose gradient was subtracted.
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
    defenses_told: list[str] | None
    rounding: str | None
    masked_patches: int
    localization_weight: float


@dataclass(frozen=True, kw_only=True)
class PatchEmbedding(SmoothInversion):
    """Closed-form inversion of the patch embedding, completed smoothly where the update says nothing.

    Args:
        smoothness: expected difference between neighboring pixels in [0, 1], for what noise or too many patches hide.
        refinements: rounds in which the smooth completion is allowed edges where the last round found some.
    """

    citation: ClassVar[str] = (
        "Patch-embedding inversion, this project; after Lu et al. APRIL: Finding the Achilles' Heel on Privacy for Vision "
        "Transformers. CVPR 2022. https://arxiv.org/abs/2112.14087"
    )
    applies: ClassVar[Applicability] = Applicability(
        pictures=1, model=("learned position embedding", "patch projection")
    )

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Invert the patch embedding; draws nothing."""
        normalization = observation.normalization
        if normalization is None:
            raise AttackRefusedError("normalization is not granted; the patches are found in normalized units.")
        found = read_patch_system(observation)
        inversion = invert(found, normalization, self.smoothness, self.refinements)
        system = inversion.conditioned.system
        cutoff = max(inversion.weight**0.5, 0.0 if found.rounding else found.noise_edge)
        diagnosis = _Diagnosis(
            residual=float(system.residual.norm() / found.projection.norm()),
            excess=excess(found, inversion.conditioned, normalization),
            bias_identity_error=found.bias_error,
            relative_noise=found.relative_noise,
            condition_number=float(system.values[0] / system.values[system.rank - 1]),
            cutoff=float(cutoff / system.values[0]),
            rank=int((system.values > cutoff).sum()),
            patches=found.grid.count,
            prior_raised=inversion.raised,
            steps=inversion.steps,
            defenses_told=None if observation.defenses is None else [defense.name for defense in observation.defenses],
            rounding=None if found.rounding is None else found.rounding.format,
            masked_patches=0 if found.occlusion is None else int(found.occlusion.hidden.sum()),
            localization_weight=0.0 if found.occlusion is None else found.occlusion.localization,
        )
        cautions = (*_cautions(found, diagnosis), *told_cautions(observation))
        finding = Finding(images=inversion.images, trace=diagnosis._asdict(), cautions=cautions)
        return assess(finding, observation, None if found.occlusion is None else found.occlusion.hidden)


def _cautions(found: PatchSystem, diagnosis: _Diagnosis) -> tuple[str, ...]:
    listed = []
    error, (count, width) = diagnosis.bias_identity_error, found.tokens.shape
    is_exact = found.rounding is None and not found.is_sum_noisy
    is_broken = error is not None and error > _NOTABLE_BIAS_ERROR and is_exact
    is_mixed = diagnosis.residual > ROUNDING and diagnosis.excess > _NOTABLE_EXCESS
    if is_broken:
        listed.append(
            f"The token gradients do not sum to the projection's bias gradient (relative error {error:.1e}): part of them "
            "is hidden, or entries were rescaled one by one (adaptive optimizer, pruning)."
        )
    elif is_mixed:
        listed.append(
            f"The system's residual is {diagnosis.residual:.1e}, far above its noise, as where the update holds more than one "
            "image, which this finding would mix."
        )
    if not found.is_decay_known and (is_broken or is_mixed):
        listed.append("Weight decay would look the same; it can be undone exactly where `training` is granted.")
    if diagnosis.rounding is not None and diagnosis.relative_noise > ROUNDING:
        listed.append(
            f"Entries were rounded to {diagnosis.rounding}, by {diagnosis.relative_noise:.1e} of the token gradients: fine "
            "detail leans on what the rest of the image looks like."
        )
    elif diagnosis.rounding is None and diagnosis.relative_noise > _NOTABLE_NOISE:
        listed.append(
            f"Noise of {diagnosis.relative_noise:.1e} of the token gradients: {diagnosis.rank} of {count} directions stand "
            "out, the rest is filled smoothly."
        )
    listed += _occlusion_cautions(found)
    empty = int((~found.tokens.any(dim=1)).sum())
    if empty:
        listed.append(f"{empty} of {count} patches have no gradient of their own and are filled smoothly.")
    if count > width - 1:
        listed.append(
            f"{count} patches exceed the width {width} minus one: some directions are filled smoothly, and the residual "
            "cannot tell one image from several."
        )
    if diagnosis.prior_raised > 1:
        listed.append(
            "The direct solution leaves the range of pixels, so it was smoothed more than its noise asks for."
        )
    return tuple(listed)


def _occlusion_cautions(found: PatchSystem) -> list[str]:
    if found.occlusion is None:
        return []
    masked, values = int(found.occlusion.hidden.sum()), found.grid.values
    if not masked:
        return [
            "The unknown position has a gradient, yet every patch has one too: several steps masked different patches, "
            "which this finding takes for noise."
        ]
    return [
        f"{masked} of {found.grid.count} patches share the unknown position: they are filled smoothly, and the others are "
        f"known in {max(0, values - masked + 1)} of {values} directions of a patch."
    ]
