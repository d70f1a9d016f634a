"""Improved DLG (iDLG): the label from the classifier's gradient first, then images alone, as DLG.

Paper: Zhao, Mopuri, Bilen. "iDLG: Improved Deep Leakage from Gradients". 2020. https://arxiv.org/abs/2001.02610

Idea: the label of a single image is the class whose classifier gradient has the other sign; with it fixed, minimize
|g(x, y) - g|^2 over the image by L-BFGS.

Differs from the paper: labels are counted by `label_count`, which for one image is the paper's rule on the bias, and which
works for batches and signed features too. As in `dlg`: 300 iterations, where the authors' code makes 300 calls of up to 20
(`steps: 6000` allows as many), 20 steps of curvature instead of 100, the distance divided by |g|^2, a strong Wolfe line search.

Needs: grants `batch_size`, `normalization`; an update whose scale is known (`training`, for a delta). Uses `labels`,
`train_mode` and `training` where granted. Cost: two passes through the model for every trial of the line search, one or two a
step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedsim_attacks.matching import Descent, PriorWeights, Schedule


@dataclass(frozen=True, kw_only=True)
class IDLG(Descent):
    """Optimize images until their gradient is the observed one; the parameters are those of `Parameters`."""

    citation: ClassVar[str] = (
        "Zhao, Mopuri, Bilen. iDLG: Improved Deep Leakage from Gradients. 2020. https://arxiv.org/abs/2001.02610"
    )
    stream: ClassVar[str] = "idlg"

    distance: str = "l2"
    priors: PriorWeights = field(default_factory=dict)
    steps: int = 300
    optimizer: str = "lbfgs"
    learning_rate: float = 1.0
    schedule: Schedule = "constant"
    initial_scale: float = 1.0
