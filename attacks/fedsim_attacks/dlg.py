"""Deep Leakage from Gradients (DLG): images and labels together, by L-BFGS on the squared distance of gradients.

Paper: Zhu, Liu, Han. "Deep Leakage from Gradients". NeurIPS 2019. https://arxiv.org/abs/1906.08935

Idea: minimize |g(x, softmax(y)) - g|^2 over images x and label logits y, both drawn from a standard normal distribution.

Differs from the paper: 300 iterations, where the authors' code makes 300 calls of torch's L-BFGS of up to 20 iterations each:
`steps: 6000` allows as many. L-BFGS keeps 20 steps of curvature, theirs 100. The distance is divided by |g|^2. The line search
is a strong Wolfe one, without which L-BFGS leaves for infinity on Vision Transformers; theirs takes full steps. Granted labels
are taken, and then it is `idlg`.

Needs: grants `batch_size`, `normalization`; an update whose scale is known (`training`, for a delta). Uses `labels`,
`train_mode` and `training` where granted. Cost: two passes through the model for every trial of the line search, one or two a
step. Made for small networks with smooth activations and few classes; the labels it finds are the largest logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedsim_attacks.matching import Descent, PriorWeights, Schedule


@dataclass(frozen=True, kw_only=True)
class DLG(Descent):
    """Optimize images and labels until their gradient is the observed one; the parameters are those of `Parameters`."""

    citation: ClassVar[str] = (
        "Zhu, Liu, Han. Deep Leakage from Gradients. NeurIPS 2019. https://arxiv.org/abs/1906.08935"
    )
    stream: ClassVar[str] = "dlg"

    distance: str = "l2"
    priors: PriorWeights = field(default_factory=dict)
    steps: int = 300
    optimizer: str = "lbfgs"
    learning_rate: float = 1.0
    schedule: Schedule = "constant"
    initial_scale: float = 1.0
    optimize_labels: bool = True
