"""AutoAttack: accuracy on test images after four attacks without a parameter to tune, the common standard.

Paper: Croce, Hein. "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks".
ICML 2020. https://arxiv.org/abs/2003.01690

Idea: APGD on the cross-entropy, targeted APGD on the difference of logits ratio, targeted FAB and Square Attack, each on the
images that those before it left.

Differs from the paper: runs the authors' code, as repackaged in `pyautoattack` 0.2.0; with fewer than ten classes the targeted
attacks take all others in place of nine; images that the model gets wrong are not attacked. The checks of the evaluation are
those of `pgd`.

Needs: the extra `[robustness]`; at least four classes, as the targeted ratio divides by the fourth logit. Cost: thousands of
gradients and 5,000 queries for each image that holds and each epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from fedsim.errors import EvaluationRefusedError
from fedsim.evaluator import PixelModel
from fedsim.exchange import Images
from fedsim.seeds import seeded
from fedsim_defenses.evaluators._robustness import RobustnessTest

_LEAST_CLASSES = 4  # of the targeted ratio
_TARGETS = 9


@dataclass(frozen=True, kw_only=True)
class AutoAttack(RobustnessTest):
    """Accuracy after AutoAttack.

    Args:
        version: `standard`, or `rand` for models that draw at random, which takes the expectation over 20 draws. The checks
            do not, so such a model stays inconclusive.
    """

    citation: ClassVar[str] = (
        "Croce, Hein. Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks. ICML "
        "2020. https://arxiv.org/abs/2003.01690"
    )

    epsilons: tuple[float, ...] = (8 / 255,)
    images: int = 100
    version: Literal["standard", "rand"] = "standard"

    def check(self, model: PixelModel, class_names: tuple[str, ...]) -> None:
        """Refuse where the package is missing, and fewer classes than its losses need."""
        _package()
        if len(class_names) < _LEAST_CLASSES:
            raise EvaluationRefusedError(
                f"its targeted losses need at least {_LEAST_CLASSES} classes, and there are {len(class_names)}. Ask pgd, "
                "cw_linf and square instead"
            )

    def _attack(
        self,
        model: PixelModel,
        images: Images,
        labels: Int[Tensor, " batch"],
        epsilon: float,
        generator: torch.Generator,
    ) -> Images:
        seed = int(torch.randint(2**31, (), generator=generator))
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        attack = _package().AutoAttack(model, norm="Linf", eps=epsilon, seed=seed, version=self.version)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(_TARGETS, classes - 1)
        # It seeds torch's global generator.
        with seeded(seed, "autoattack"), torch.enable_grad():
            moved, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        found: Images = moved.detach().clamp(images - epsilon, images + epsilon).clamp(0, 1)
        return found


def _package() -> Any:
    try:
        import pyautoattack
    except ImportError:
        raise EvaluationRefusedError(
            'it runs pyautoattack, which is not installed: pip install "fedsim-audit[robustness]"'
        ) from None
    return pyautoattack
