"""Sign of the bias gradient: the label of a single image.

Paper: Zhao, Mopuri, Bilen. "iDLG: Improved Deep Leakage from Gradients". 2020. https://arxiv.org/abs/2001.02610

Idea: under cross-entropy with hard label y, the loss gradient at logit c is p_c - [c = y], negative for the true class
alone. The head's bias gradient is that quantity: label = argmin_c dl/db_c.

Differs from the paper: reads the bias gradient; the paper compares rows of the weight gradient.

Needs: grant `batch_size`, equal to one; a head with a bias; a gradient, or the delta of SGD with its sign turned.
Cost: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Observation


@dataclass(frozen=True, kw_only=True)
class SignOfBias(Attack):
    """The label of a single image from the gradient of the head's bias.

    Args:
        parameter: name of the head's bias.
    """

    citation: ClassVar[str] = (
        "Zhao, Mopuri, Bilen. iDLG: Improved Deep Leakage from Gradients. 2020. https://arxiv.org/abs/2001.02610"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"labels"})
    applies: ClassVar[Applicability] = Applicability(pictures=1, kinds=("gradient",), model=("linear classifier",))
    is_cheap: ClassVar[bool] = True

    parameter: str = "head.bias"

    def __post_init__(self) -> None:
        if not self.parameter:
            raise ValueError("parameter: expected the name of the head's bias, got an empty text.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Return the class whose bias gradient is smallest."""
        update = observation.update
        if observation.batch_size != 1:
            raise AttackRefusedError(f"reads one label, and the batch holds {observation.batch_size} images.")
        if self.parameter not in update.tensors:
            raise AttackRefusedError(f"the update has no {self.parameter}.")
        slope = update.tensors[self.parameter] * (1.0 if update.kind == "gradient" else -1.0)
        negative = int((slope < 0).sum())
        return Finding(
            labels=slope.argmin().view(1),
            trace={"negative_entries": negative},
            cautions=() if negative == 1 else (f"{negative} bias gradients are negative; one label leaves one.",),
        )
