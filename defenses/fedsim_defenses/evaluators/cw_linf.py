"""CW-Linf: accuracy on test images after projected gradient ascent of the margin.

Paper: Carlini, Wagner. "Towards Evaluating the Robustness of Neural Networks". IEEE S&P 2017.
https://arxiv.org/abs/1608.04644

Idea: PGD on max_(c != y) z_c - z_y in place of the cross-entropy. Its gradient does not vanish where the softmax saturates, as
in a model with logits of a large scale.

Differs from the paper: projected sign steps within epsilon, as works on adversarial training evaluate ("CW-20"), where the
paper minimizes a distance with a penalty; the margin is not clamped from below, so images keep a gradient.

Needs: any model that can be differentiated. Cost: that of `pgd`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsim.evaluator import PixelModel
from fedsim.exchange import Images
from fedsim_defenses._evasion import margin
from fedsim_defenses.evaluators._robustness import Surface
from fedsim_defenses.evaluators.pgd import Ascent


@dataclass(frozen=True, kw_only=True)
class CWLinf(Ascent):
    """Accuracy after steps up the margin."""

    citation: ClassVar[str] = (
        "Carlini, Wagner. Towards Evaluating the Robustness of Neural Networks. IEEE S&P 2017. "
        "https://arxiv.org/abs/1608.04644"
    )

    def _surface(self, model: PixelModel, images: Images) -> Surface:
        return model, margin
