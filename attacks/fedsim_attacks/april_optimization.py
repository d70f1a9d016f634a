"""APRIL by optimization: gradient matching that also turns the position embedding's gradient into the observed direction.

Paper: Lu, Zhang, Zhao, He, Cheng. "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers". CVPR 2022.
https://arxiv.org/abs/2112.14087

Idea: minimize |g(x, y) - g|^2 + alpha * (1 - cos(G(x, y), G)) over the pictures x, with g the gradient of all parameters and
G that of the position embedding, whose rows are bound to places in the picture. It asks nothing of the architecture but a
learned position embedding, where the closed form `april` needs an altered first block.

Differs from the paper: the cosine is the mean over the rows of G, one a token, so that faint patches count as much as strong
ones; `per_token: false` is the paper's, of G as one vector, which stays at the mean color here. The squared distance is
divided by |g|^2, so that alpha means the same at every scale; the paper's alpha is not known to us. A total variation is
added. Labels are counted by `label_count` where they are not granted; Adam on the sign of the slope, pictures kept in the
range of pixels, as in `gradient_matching`.

Needs: grants `batch_size`, `normalization`; a shared, learned position embedding; second derivatives of the model, for which
fused attention is switched off on this attack's instance. Uses `labels`, `train_mode` and `training` where granted. Cost: two
backward passes a step, through a graph of the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim_attacks._descent import Candidate, Descent, Scalar, Target, Term, gradient_distance
from fedsim_attacks._matching import cosine

_POSITIONS = "pos_embed"


@dataclass(frozen=True, kw_only=True)
class AprilOptimization(Descent):
    """Optimize pictures until their gradient matches the observed one, and that of the positions its direction.

    Args:
        alpha: weight of the positions' direction.
        per_token: whether that is the mean over tokens, or taken of all tokens as one vector.
        distance: of all gradients: `l2`, as in the paper, or `cosine`, for a delta of unknown scale.
        steps: and all that follow, see `Descent`.
    """

    citation: ClassVar[str] = (
        "Lu et al. APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers. CVPR 2022. "
        "https://arxiv.org/abs/2112.14087"
    )
    stream: ClassVar[str] = "april_optimization"

    alpha: float = 10.0
    per_token: bool = True
    schedule: Literal["step", "cosine"] = "cosine"
    distance: Literal["l2", "cosine"] = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha: expected a number above 0, got {self.alpha}. Without it, use gradient_matching.")

    def terms(self, target: Target) -> tuple[Term, ...]:
        """Return the distance of all gradients and that of the positions' directions."""
        if _POSITIONS not in target.names:
            raise AttackRefusedError(
                f"the gradient of {_POSITIONS} is zero or missing from the update: the model learns no positions, or the "
                "client froze or did not share them. Use gradient_matching."
            )
        place = target.names.index(_POSITIONS)
        observed = target.gradients[place]

        def turn(candidate: Candidate) -> Scalar:
            found = candidate.gradients[place]
            return _mean_turn(found, observed) if self.per_token else cosine([found], [observed])

        return gradient_distance(target, self.distance), Term(self.alpha, turn)


def _mean_turn(found: Tensor, observed: Tensor) -> Scalar:
    """Return the mean over rows of one minus the cosine."""
    lengths = found.square().sum(-1) * observed.square().sum(-1)
    # sqrt has no finite slope at zero.
    cosines = (found * observed).sum(-1) / lengths.clamp_min(torch.finfo(found.dtype).tiny).sqrt()
    return 1 - cosines.mean()
