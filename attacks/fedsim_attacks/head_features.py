"""The classifier's input of every image of a batch, from the gradient at the classifier.

Paper: no publication of this form is known to us. For one image, Wang, Liang, He. "Towards Eliminating Hard Label
Constraints in Gradient Inversion Attacks". ICLR 2024. https://arxiv.org/abs/2402.03124. The row space of a batch's head
inputs: Dang, Thakkar, Ramaswamy, Mathews, Chin, Beaufays. "Revealing and Protecting Labels in Distributed Training".
NeurIPS 2021. https://arxiv.org/abs/2111.00556

Idea: G_W = (1/B) sum_b (p_b - y_b) h_b^T and G_b = (1/B) sum_b (p_b - y_b), where p_b = softmax(W h_b + b): given the labels,
as many equations as unknowns and more while the batch is smaller than the number of classes. The h_b lie in the row space of
G_W, so B x B coordinates are left, found by Levenberg-Marquardt from a few starts; until close, head inputs are pulled to what
a last layer norm puts out. The residual says whether it was found; its curvature, how exactly.

Differs from the paper: there a single input is found by a search over its length, and the row space serves to tell which
classes are present; here all inputs are solved for together.

Needs: grant `batch_size`; the classifier's weight gradient, of a gradient or of a delta of one step of known recipe. Labels
are taken from `labels` where granted, else counted (`label_count`). Uses `auxiliary_data`, `normalization` and `training`
where granted. Cost: two forward passes over the reference images; per start, up to 180 factorizations of size B^2. Eight
images take 0.3 to 2 seconds, sixteen of one class half a minute where every start fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.exchange import Finding, Observation
from fedsim_attacks.head import RecoveredFeatures, count_labels, recover_features
from fedsim_attacks.update import told_cautions

_NOTABLE = 0.05  # estimated relative error


@dataclass(frozen=True, kw_only=True)
class HeadFeatures(Attack):
    """Head inputs of a batch from the classifier's gradient.

    Args:
        references: images run through the model to learn how its head inputs vary: auxiliary data where granted, else
            noise with the spectrum of photographs.
        restarts: random starts as long as none has solved the equations.
    """

    citation: ClassVar[str] = (
        "Head features of a batch, this project; after Wang et al. Towards Eliminating Hard Label Constraints in Gradient "
        "Inversion Attacks. ICLR 2024. https://arxiv.org/abs/2402.03124"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"labels", "features"})
    applies: ClassVar[Applicability] = Applicability(steps=1, model=("linear classifier",))
    is_cheap: ClassVar[bool] = True

    references: int = 64
    restarts: int = 6

    def __post_init__(self) -> None:
        if self.references < 2:
            raise ValueError(f"references: expected at least 2, got {self.references}.")
        if self.restarts < 0:
            raise ValueError(f"restarts: expected at least 0, got {self.restarts}.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Recover head inputs; draws reference images where no auxiliary data is granted, and starts."""
        if observation.labels is None:
            counted = count_labels(observation, self.references, generator)
            labels, doubts = counted.labels, counted.cautions
        else:
            labels, doubts = observation.labels, ()
        found = recover_features(observation, labels, self.references, self.restarts, generator)
        trace = {
            "residual": found.residual,
            "noise": found.noise,
            "estimated_errors": [float(f"{error:.3g}") for error in found.errors.tolist()],
            "starts": found.starts,
        }
        claimed = labels if observation.labels is None else None
        doubts = tuple(dict.fromkeys((*doubts, *told_cautions(observation, shuffles=False))))
        return Finding(None, claimed, found.inputs.float(), trace, (*doubts, *_cautions(found)))


def _cautions(found: RecoveredFeatures) -> tuple[str, ...]:
    listed, count = [], len(found.inputs)
    if not found.is_determined:
        listed.append(
            f"{count} images are too many for the classes: what the gradient does not tell of their head inputs is filled "
            "with what is usual."
        )
    elif not found.is_solved:
        listed.append(
            "No start has solved the equations, or a label is wrong: the head inputs are usual ones that leave "
            f"{found.residual:.1e} of the gradient unexplained."
        )
    doubtful = int((found.errors > _NOTABLE).sum())
    if doubtful:
        listed.append(f"{doubtful} of {count} head inputs have an estimated error of more than {_NOTABLE:.0%}.")
    return tuple(listed)
