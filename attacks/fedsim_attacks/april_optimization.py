"""APRIL by optimization: gradient matching that also turns the position embedding's gradient into the observed direction.

Paper: Lu, Zhang, Zhao, He, Cheng. "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers". CVPR 2022.
https://arxiv.org/abs/2112.14087

Idea: minimize |g(x, y) - g|^2 + alpha * (1 - cos(G(x, y), G)) over the images x, with g the gradient of all parameters and
G that of the position embedding, whose rows are bound to places in the image. It asks nothing of the architecture but a
learned position embedding, where the closed form `april` needs an altered first block.

Differs from the paper: the cosine is the mean over the rows of G, one a token, so that faint patches count as much as strong
ones; `per_token: false` is the paper's, of G as one vector, which stays at the mean color here. The squared distance is
divided by |g|^2, so that alpha, here `positions`, means the same at every scale; the paper's alpha is not known to us. A total
variation is added. Labels are counted by `label_count` where they are not granted; Adam on the sign of the gradient, images
kept in the range of pixels, as in `gradient_matching`.

Needs: grants `batch_size`, `normalization`; a shared, learned position embedding. Uses `labels`, `train_mode` and `training`
where granted. Cost: two passes through the model a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsim_attacks.matching import Descent, Schedule


@dataclass(frozen=True, kw_only=True)
class AprilOptimization(Descent):
    """Optimize images until their gradient matches the observed one, and that of the positions its direction.

    The parameters are those of `Parameters`.
    """

    citation: ClassVar[str] = (
        "Lu et al. APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers. CVPR 2022. "
        "https://arxiv.org/abs/2112.14087"
    )
    stream: ClassVar[str] = "april_optimization"

    distance: str = "l2"
    positions: float = 10.0
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.positions:
            raise ValueError("positions: expected a number above 0, got 0. Without it, use gradient_matching.")
