"""Gradient matching with every part open: the plain baseline, and the place to compose an attack of one's own from YAML.

Paper: Geiping, Bauermeister, Droege, Moeller. "Inverting Gradients: How Easy Is It to Break Privacy in Federated
Learning?". NeurIPS 2020. https://arxiv.org/abs/2003.14053; the other parts name theirs: `dlg`, `idlg`, `grad_inversion`,
`gradvit`, `april_optimization`, `token_matching`.

Idea: minimize D(g(x, y), g) + total_variation * TV(x) over the images x, with g(x, y) the gradient of the mean
cross-entropy, D one minus the cosine, TV the mean absolute difference of neighboring pixels; Adam on the sign of the gradient,
images kept in the range of pixels. Other distances, priors, optimizers, starts and readings of a delta are parameters, all
off by default. The restart and iterate of least objective wins.

Differs from the paper: labels are counted by `label_count` where they are not granted. TV is a mean over pixels in [0, 1].
400 steps instead of 24,000; `inverting_gradients` is nearer to the paper.

Needs: grants `batch_size`, `normalization`. Uses `labels`, `train_mode`, `training`, `defenses` and `auxiliary_data` where
granted. Cost: two passes through the model a step, about what two steps of training cost; on a ViT of many patches expect the
mean color at best, whatever the objective reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsim_attacks.matching import Descent


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Descent):
    """Optimize images until their gradient matches the observed one; the parameters are those of `Parameters`."""

    citation: ClassVar[str] = (
        "Geiping et al. Inverting Gradients: How Easy Is It to Break Privacy in Federated Learning? NeurIPS 2020. "
        "https://arxiv.org/abs/2003.14053"
    )
    stream: ClassVar[str] = "gradient_matching"
