"""GradViT: gradient matching first, an image prior from half of the steps on, and no borders between patches.

Paper: Hatamizadeh, Yin, Roth, Li, Kautz, Xu, Molchanov. "GradViT: Gradient Inversion of Vision Transformers". CVPR 2022.
https://arxiv.org/abs/2203.11894. There is no public code of the authors.

Idea: minimize G(t) L_grad + U(t) R_image + a_1 R_patch + a_2 R_extra. L_grad is the sum over tensors of |g_l(x, y) - g_l|;
R_image the distance of the batch's statistics from those in the BatchNorm layers of a fixed CNN; R_patch the difference of
pixels across the borders of patches; R_extra total variation and the images' norm. In the first half of the steps R_image is
off; in the second it is on, and L_grad has half its weight. An early prior falls into its own minima.

Differs from the paper: the network of `batch_norm` is one trained on the auxiliary data, or EfficientNet-Lite0, or
any timm CNN whose weights are given, where the paper has a ResNet-50 with MoCo-v2 weights; without any there is none, and a
caution says so. Distances are in units of |g|, R_patch and total variation are means, so weights are ours. 2,000 steps
instead of 120,000. `paper: true` takes 120,000 steps and the weights of GradInversion, which public copies of GradViT share
(total variation and R_patch 1e-4, norm 1e-6, R_image 0.1); what L_grad weighs beside them is not published for a gradient of
unit length. Labels by `label_count`, where the paper's rule needs features of one sign. `positions` adds the
token-wise term of `april_optimization`, off by default.

Needs: grants `batch_size`, `normalization`. Uses `auxiliary_data`, `labels`, `train_mode` and `training` where granted. Cost:
two passes through the model a step, and in the second half two through the prior network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from fedsim_attacks.matching import Descent, PriorWeights, Schedule

_PUBLISHED: Mapping[str, Any] = MappingProxyType(
    {
        "steps": 120_000,
        "priors": {
            "total_variation": 1e-4,
            "patch": 1e-4,
            "norm": 1e-6,
            "batch_norm": {"weight": 0.1, "start": 0.5},
        },
    }
)


@dataclass(frozen=True, kw_only=True)
class GradViT(Descent):
    """Optimize images under GradViT's priors and schedule; the other parameters are those of `Parameters`.

    Args:
        paper: whether the steps and the weights of the priors are the published ones, where they are not set otherwise;
            one that is set to its default counts as not set.
    """

    citation: ClassVar[str] = (
        "Hatamizadeh et al. GradViT: Gradient Inversion of Vision Transformers. CVPR 2022. https://arxiv.org/abs/2203.11894"
    )
    stream: ClassVar[str] = "gradvit"

    distance: str = "layer_l2"
    priors: PriorWeights = field(
        default_factory=lambda: {
            "total_variation": 0.01,
            "patch": 0.01,
            "norm": 1e-4,
            "batch_norm": {"weight": 1e-3, "start": 0.5},
        }
    )
    second_phase: float = 0.5
    matching_after: float = 0.5
    steps: int = 2000
    optimizer: str = "adam"
    schedule: Schedule = "cosine"
    paper: bool = False

    def __post_init__(self) -> None:
        if self.paper:
            plain = type(self)()
            for name, value in _PUBLISHED.items():
                if getattr(self, name) == getattr(plain, name):
                    object.__setattr__(self, name, value)
        super().__post_init__()
