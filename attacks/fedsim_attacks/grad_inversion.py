"""GradInversion: gradient matching held by a network's batch statistics, and by what several seeds agree on.

Paper: Yin, Mallya, Vahdat, Alvarez, Kautz, Molchanov. "See through Gradients: Image Batch Recovery via GradInversion". CVPR
2021. https://arxiv.org/abs/2104.07586

Idea: minimize the sum over tensors of |g_l(x, y) - g_l| plus total variation, the images' norm, the distance of their batch
statistics from those that a network's BatchNorm layers hold, and the distance of every seed from the mean of all, after their
registration to it; Adam with noise in every step.

Differs from the paper: a ViT has no BatchNorm, so the statistics are those of another network (`batch_norm`), as in
GradViT; without auxiliary data and without the package of priors there is none, and a caution says so. Labels by
`label_count`, where the paper's rule needs features of one sign. Registration shifts by whole pixels, where the paper uses
RANSAC-flow. Distances are in units of |g|, so weights are ours, in the paper's proportions; 4 seeds and 2,000 steps instead of
8 and 20,000; noise 0.01 of the learning rate instead of 0.2, which later authors found too much.

Needs: grants `batch_size`, `normalization`. Uses `auxiliary_data`, `labels`, `train_mode` and `training` where granted. Cost:
two passes through the model and two through the prior network a step and seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedsim_attacks.matching import Descent, PriorWeights, Schedule


@dataclass(frozen=True, kw_only=True)
class GradInversion(Descent):
    """Optimize several sets of images under statistics and agreement; the parameters are those of `Parameters`."""

    citation: ClassVar[str] = (
        "Yin et al. See through Gradients: Image Batch Recovery via GradInversion. CVPR 2021. "
        "https://arxiv.org/abs/2104.07586"
    )
    stream: ClassVar[str] = "grad_inversion"

    distance: str = "layer_l2"
    priors: PriorWeights = field(default_factory=lambda: {"total_variation": 0.01, "norm": 1e-4, "batch_norm": 1e-3})
    group: float = 0.01
    registered: bool = True
    steps: int = 2000
    optimizer: str = "adam"
    schedule: Schedule = "cosine"
    warm_up: float = 0.0025
    noise: float = 0.01
    restarts: int = 4
