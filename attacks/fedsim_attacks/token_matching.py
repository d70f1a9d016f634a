"""Token matching: images out of a batch, token by token, from very smooth to as sharp as the gradient says.

Paper: no publication of this form is known to us. The direction of the position embedding's gradient is from Lu, Zhang, Zhao,
He, Cheng. "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers". CVPR 2022.
https://arxiv.org/abs/2112.14087

Idea: each row of the position embedding's gradient belongs to one place in the image. Minimize the mean over rows of one
minus the cosine, which keeps faint patches in sight, beside the mean over tensors of the same, and total variation, whose
weight starts so high that only the layout of the image survives and falls geometrically until the gradient alone decides.
A start in a wrong basin shows early, by an objective that stays high. Then up to seven others are tried first: images near
grey, chosen by the head inputs that the classifier's gradient shows, since a trained model's basins are the sides of its
decision; from there the learning rate is a third.
That ends where gradients along the directions that are left have become tiny. Levenberg-Marquardt on the whole gradient, every
row in units of its own length, goes on from there: its steps are solved by conjugate gradients, on products with the Jacobian
by differences of two passes through the model, so no second derivative is formed, or, where these err too much, as of trained
models, through the graph of the gradient.

Differs from the paper: APRIL takes one cosine of the whole table beside the squared distance of all gradients, without
annealing and without a refinement. Labels are counted by `label_count` where they are not granted.

Needs: grants `batch_size`, `normalization`; a shared, learned position embedding. Uses `labels`, `train_mode`, `training`
and `defenses` where granted. Without a gradient of known scale, in training mode and for several local steps the refinement
is left out, with a caution; it goes no further than known noise allows. Cost: two passes through the model a step; a fifth of
the steps for every start that is tried; 80 passes for each step of the refinement, and with exact products six times as many.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from fedsim.applicability import Applicability
from fedsim_attacks.matching import Descent, PriorWeights, Refinement, Schedule


@dataclass(frozen=True, kw_only=True)
class TokenMatching(Descent):
    """Optimize images token by token, the smoothness relaxed on the way; the parameters are those of `Parameters`."""

    citation: ClassVar[str] = (
        "Token matching, this project; after Lu et al. APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers. "
        "CVPR 2022. https://arxiv.org/abs/2112.14087"
    )
    stream: ClassVar[str] = "token_matching"
    chosen_for: ClassVar[Applicability] = Applicability(pictures=8, model=("learned position embedding",))

    distance: str = "tensor_cosine"
    positions: float = 10.0
    priors: PriorWeights = field(default_factory=lambda: {"total_variation": {"weight": 0.3, "end": 0.01}})
    steps: int = 400
    learning_rate: float = 0.03
    schedule: Schedule = "cosine"
    multi_start: int = 8
    acceptance_threshold: float = 0.02
    refinement: Refinement = "gauss_newton"
    refinement_steps: int = 24
