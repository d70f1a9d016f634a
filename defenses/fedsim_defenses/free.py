"""Free adversarial training: every pass that trains the weights also moves the perturbation.

Paper: Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein. "Adversarial Training for Free!". NeurIPS 2019.
https://arxiv.org/abs/1904.12843

Idea: one backward pass gives the gradient of the weights and that of the images. A batch is replayed m times. Each replay takes
the gradient of the weights at x + delta, and moves delta <- clip(delta + epsilon sign(grad_x loss(x + delta))). So m passes
train on m perturbations and waste none on the attack alone.

Differs from the paper: there, each replay ends in a step of the optimizer, and the next batch starts from the delta of the last
one, so that m replays cost what m plain steps do. Here a local step is one batch and one step of the optimizer; its images are
what the client reports and the audit counts, and replays over m steps would train on one in m of them. So all m replays are in
one local step, at the same weights, and the client sends the mean of their gradients. This trains on all iterates of an attack
of m - 1 steps, and costs as much as training on the last one. The start of delta is uniform within epsilon. As in the paper and
unlike in the other recipes, the images are perturbed in the mode in which the client trains.

Needs: a model whose input gradient exists, and no later defense that computes the gradient itself. Cost: m forward and backward
passes instead of one, without a pass for the attack; m = 2 costs as much as `fast`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim import models
from fedsim.defense import ClientContext, Defense, LocalStep
from fedsim.errors import ScenarioError
from fedsim.exchange import Images
from fedsim_defenses._adversarial import AdversarialRecipe, attacked
from fedsim_defenses._evasion import limits


@dataclass(frozen=True, kw_only=True)
class Free(AdversarialRecipe):
    """Train on every iterate of the attack, whose gradients cost no pass of their own: robustness at low cost.

    Args:
        replays: passes over a batch in one local step, m in the paper; 1 trains on images with random noise.
    """

    citation: ClassVar[str] = (
        "Shafahi et al. Adversarial Training for Free! NeurIPS 2019. https://arxiv.org/abs/1904.12843"
    )

    replays: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replays < 1:
            raise ValueError(f"replays: expected at least 1, got {self.replays}.")

    def check(self, model: nn.Module, context: ClientContext, others: Sequence[Defense]) -> None:
        """Refuse what every recipe refuses, and a defense that computes the gradient itself.

        Raises:
            ScenarioError: says which.
        """
        super().check(model, context, others)
        other = next((other for other in others if other.replaces_gradient), None)
        if other is not None:
            raise ScenarioError(
                "defenses",
                f"{type(self).__name__} beside {type(other).__name__} on client {context.client}: it takes the gradient of the "
                "images from the pass that trains the weights, and the other defense computes that itself, once for each "
                "replay. Use adversarial_training, or give them different clients.",
            )

    def _perturbed(self, step: LocalStep, context: ClientContext, epsilon: float, generator: torch.Generator) -> Images:
        return attacked(step, epsilon, epsilon, 0, generator)

    def _learn(self, step: LocalStep, adversarial: LocalStep, proceed: Callable[[LocalStep], Tensor]) -> Tensor:
        epsilon = self.epsilon_at(step.progress)
        if not epsilon:
            return proceed(adversarial)
        normalization = models.normalization(step.model)
        lowest, highest = limits(normalization.denormalize(step.images), epsilon)
        images, losses = adversarial.images, []
        scale(step.model, float(self.replays))  # what is there already counts once
        for _ in range(self.replays):
            inputs = images.detach().clone().requires_grad_()
            losses.append(proceed(replace(step, images=inputs)))
            if inputs.grad is None:
                raise ValueError("free: the steps behind it give the images no gradient, which it moves them along.")
            moved = normalization.denormalize(inputs.detach()) + epsilon * inputs.grad.sign()
            images = normalization.normalize(torch.clamp(moved, lowest, highest))
        scale(step.model, 1 / self.replays)
        return torch.stack(losses).mean()


def scale(model: nn.Module, factor: float) -> None:
    """Multiply every gradient that is there."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
