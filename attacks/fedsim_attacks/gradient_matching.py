"""Gradient matching: pictures whose gradient points where the client's does. The plain optimization baseline.

Paper: Geiping, Bauermeister, Droege, Moeller. "Inverting Gradients: How Easy Is It to Break Privacy in Federated
Learning?". NeurIPS 2020. https://arxiv.org/abs/2003.14053; with `distance: l2`, Zhu, Liu, Han. "Deep Leakage from
Gradients". NeurIPS 2019. https://arxiv.org/abs/1906.08935

Idea: minimize D(g(x, y), g) + total_variation * TV(x) over the pictures x, with g(x, y) the gradient of the mean
cross-entropy, D one minus the cosine (or the squared l2 distance over the squared norm of g), TV the mean absolute
difference of neighboring pixels; Adam on the sign of the slope, pictures kept in the range of pixels. The restart and
iterate of least objective wins.

Differs from the paper: labels are counted by `label_count` where they are not granted; DLG optimizes them, by L-BFGS. TV is
a mean over pixels in [0, 1]. A delta of several local steps is matched as if it were one gradient. `row_space` adds the
mean square of what of the patches lies outside of the row space of the patch projection's gradient, which holds the true
ones while they are few.

Needs: grants `batch_size`, `normalization`; second derivatives of the model, for which fused attention is switched off
on this attack's instance. Uses `labels`, `train_mode` and `training` where granted. Cost: two backward passes a step,
through a graph of the gradient; on a ViT of many patches expect the mean color at best, whatever the objective reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedsim_attacks._descent import Descent, Target, Term, gradient_distance


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Descent):
    """Optimize pictures until their gradient matches the observed one.

    Args:
        distance: `cosine` (Inverting Gradients) or `l2` (Deep Leakage from Gradients).
        steps: and all that follow, see `Descent`.
    """

    citation: ClassVar[str] = (
        "Geiping et al. Inverting Gradients: How Easy Is It to Break Privacy in Federated Learning? NeurIPS 2020. "
        "https://arxiv.org/abs/2003.14053"
    )
    stream: ClassVar[str] = "gradient_matching"

    distance: Literal["cosine", "l2"] = "cosine"

    def terms(self, target: Target) -> tuple[Term, ...]:
        """Return the distance of the gradients."""
        return (gradient_distance(target, self.distance),)
