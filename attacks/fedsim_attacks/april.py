"""APRIL: one image, in closed form, from the gradients around a first attention that sees tokens and positions alone.

Paper: Lu, Zhang, Zhao, He, Cheng. "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers". CVPR 2022.
https://arxiv.org/abs/2112.14087

Idea: let Z, patches projected plus positions, be the input of the first attention. The gradients of its weights then obey
Wq^T Gq + Wk^T Gk + Wv^T Gv = A^T Z with A = dL/dZ, and A is the gradient of the position embedding. So Z, less what is
known of it, follows from a linear system, and the pixels follow from Z through the patch projection. Biases, heads, qk norm
and all that comes later in the model play no part. The model is tried on a random image first: where a layer norm stands
before the attention or a residual passes around it, as in every stock ViT, the identity fails and the attack refuses.

Differs from the paper: both systems are solved as one, s_i q_j Y_ij = R_ij in the singular vectors of A and of the patch
projection, with prefix tokens and positions moved to the known side. A is badly conditioned: what float32 or noise hides,
and what a patch holds beyond the width of the embedding, is filled with the smoothest image, as in `patch_embedding`; the
paper takes the pseudo-inverse.

Needs: grant `normalization`. A model of this kind (`model.first_block: april`); one distinct image in the update; learned
position embeddings and the weights of query, key and value, shared; a gradient, or the delta of one local SGD step: between
several the weights move, and the identity holds roughly. Uses `training` and `train_mode`. Cost: one backward pass, two
singular value decompositions, then up to a few hundred steps of conjugate gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from fedsim.applicability import Applicability
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Observation
from fedsim_attacks.closed_form import (
    AprilSystem,
    Bilinear,
    SmoothInversion,
    Weights,
    complete_bilinear,
    complete_smoothly,
    read_april_system,
)
from fedsim_attacks.update import local_steps, told_cautions

_RANK = 1e-12
_ROUNDING = 1e-5  # relative error of an identity that float32 arithmetic can explain
_NOTABLE_NOISE = 1e-3
_NOTABLE_EXCESS = 10.0
_NOTABLE_GAP = 0.1


class _Diagnosis(NamedTuple):
    """What the update tells about itself; the trace.

    Args:
        residual: share of the attention's gradients, beyond a grey image's, that no image explains.
        excess: its variance over what noise explains; about 1 for one image. None where noise cannot be read.
        sum_identity_error: relative; None without a bias of query, key and value.
        relative_noise: norm of the noise in the token gradients over their norm.
        condition_number: of the token gradients, above rounding.
        rank: directions of them that stand above noise.
        patches: directions in all.
        determined: share of the unknowns that the update settles; the prior settles the rest.
        prior_raised: factor by which the prior was raised until the pixels were plausible.
        steps: of conjugate gradients, in all.
    """

    residual: float
    excess: float | None
    sum_identity_error: float | None
    relative_noise: float
    condition_number: float
    rank: int
    patches: int
    determined: float
    prior_raised: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class April(SmoothInversion):
    """Closed-form inversion of a first attention without layer norm and residual.

    Args:
        smoothness: expected difference between neighboring pixels in [0, 1], for what rounding or noise hides.
        refinements: rounds in which the smooth completion is allowed edges where the last round found some.
    """

    citation: ClassVar[str] = (
        "Lu et al. APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers. CVPR 2022. "
        "https://arxiv.org/abs/2112.14087"
    )
    applies: ClassVar[Applicability] = Applicability(
        pictures=1, steps=1, model=("APRIL first block", "learned position embedding", "patch projection")
    )

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Solve for the image; draws the image on which the model is tried."""
        normalization = observation.normalization
        if normalization is None:
            raise AttackRefusedError("normalization is not granted; the patches are found in normalized units.")
        found = read_april_system(observation, normalization, generator)
        system = found.decompose()
        weights = self._weights(found, system)
        completed = complete_smoothly(
            lambda raised, prior, start: complete_bilinear(system, weights * raised, prior, start),
            found.attention.grid,
            self.smoothness,
            self.refinements,
        )
        stands_out = system.gains.square() > weights
        diagnosis = _Diagnosis(
            residual=system.unexplained / float((found.products - found.known).norm()),
            excess=_excess(found, system),
            sum_identity_error=found.noise.sum_error,
            relative_noise=found.relative_noise,
            condition_number=float(system.values[0] / system.values[system.values > system.values[0] * _RANK][-1]),
            rank=int(stands_out.any(1).sum()),
            patches=len(system.values),
            determined=float(stands_out.double().mean()),
            prior_raised=completed.raised,
            steps=completed.steps,
        )
        return Finding(
            images=completed.images,
            trace=diagnosis._asdict(),
            cautions=(*_cautions(observation, found, diagnosis), *told_cautions(observation)),
        )

    def _weights(self, found: AprilSystem, system: Bilinear) -> Weights:
        """Return the prior's weight for each pattern: the variance of the noise over that of neighboring pixels."""
        floor = (torch.finfo(torch.float64).eps * float(system.gains.max())) ** 2
        variance = torch.maximum(found.explained(system), system.residual)
        return (variance / self.smoothness**2).clamp_min(floor)


def _excess(found: AprilSystem, system: Bilinear) -> float | None:
    explained = float(found.explained(system).sum())
    return float(system.residual.sum()) / explained if explained else None


def _cautions(observation: Observation, found: AprilSystem, diagnosis: _Diagnosis) -> tuple[str, ...]:
    listed = []
    is_broken = found.noise.is_broken
    is_mixed = diagnosis.residual > _ROUNDING and (diagnosis.excess is None or diagnosis.excess > _NOTABLE_EXCESS)
    if is_broken:
        listed.append(
            "The token gradients do not sum to the attention's bias gradient (relative error "
            f"{diagnosis.sum_identity_error:.1e}): part of them is hidden, or entries were rescaled one by one (adaptive "
            "optimizer, pruning, quantization). It is treated as noise."
        )
    elif is_mixed:
        listed.append(
            f"The system's residual is {diagnosis.residual:.1e}, far above any noise that the update shows, as where it holds "
            "more than one image, which this finding would mix."
        )
    if observation.update.kind == "delta" and local_steps(observation) != 1:
        listed.append(
            "This delta may hold several local steps, between which the weights move that the identity holds fixed."
        )
    if not found.is_decay_known and (is_broken or is_mixed):
        listed.append("Weight decay would look the same; it can be undone exactly where `training` is granted.")
    dropout = float(found.attention.dropout)
    if dropout and observation.train_mode is not False:
        listed.append(
            f"The model drops {dropout:.0%} of the attention's inputs in training, which this attack cannot see."
        )
    if diagnosis.relative_noise > _NOTABLE_NOISE and not is_broken:
        listed.append(
            f"Noise of {diagnosis.relative_noise:.1e} of the token gradients: {diagnosis.rank} of {diagnosis.patches} "
            "directions stand out, the rest is filled smoothly."
        )
    empty = int((~found.tokens.any(dim=1)).sum())
    if empty:
        listed.append(f"{empty} of {diagnosis.patches} patches have no gradient of their own and are filled smoothly.")
    if 1 - diagnosis.determined > _NOTABLE_GAP:
        listed.append(
            f"The update settles {diagnosis.determined:.0%} of the unknowns, given its rounding and noise; the rest is "
            "filled smoothly."
        )
    if diagnosis.prior_raised > 1:
        listed.append(
            "The direct solution leaves the range of pixels, so it was smoothed more than its noise asks for."
        )
    return tuple(listed)
