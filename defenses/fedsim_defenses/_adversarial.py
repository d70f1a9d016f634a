"""What all recipes of adversarial training share: the attack on the client's own images, its schedule and its limits."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim import models
from fedsim.defense import ClientContext, Defense, LocalStep
from fedsim.errors import ScenarioError
from fedsim.exchange import Images, Normalization
from fedsim_defenses._dropping import attention_branches, dropped_attention, patch_masks
from fedsim_defenses._evasion import LossName, Mask, Start, evaluating, pgd

EPSILON = 8 / 255  # Madry et al., section 5, on CIFAR-10

MO = (
    "Mo et al. When Adversarial Training Meets Vision Transformers: Recipes from Training to Architecture. NeurIPS 2022. "
    "https://arxiv.org/abs/2210.07540"
)

_Proceed = Callable[[LocalStep], Tensor]


class _OfPixels(nn.Module):
    """A model whose first layer normalizes, so that it takes pixels in [0, 1]."""

    def __init__(self, model: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.model, self._normalization = model, normalization

    def forward(self, images: Images) -> Tensor:
        logits: Tensor = self.model(self._normalization.normalize(images))
        return logits


@contextlib.contextmanager
def calibrated(model: nn.Module, offsets: Tensor | None) -> Iterator[None]:
    """Add a number to the logit of each class in every forward pass, and take that off the model afterwards; None adds none."""
    if offsets is None:
        yield
        return
    handle = model.register_forward_hook(lambda _, inputs, logits: logits + offsets.to(logits))
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, kw_only=True)
class AdversarialRecipe(Defense):
    """Train on images that are perturbed against the client's own model.

    Args:
        epsilon: largest change of a pixel's value, pixels in [0, 1]; 8/255 unless given.
        warmup: share of the training during which epsilon rises linearly from 0.
        calibration: of label skew: how many times the logarithm of the client's number of images of a class is added to its
            logit in training and attack, as in CalFAT; 0 for not at all.
    """

    epsilon: float = EPSILON
    warmup: float = 0.0
    calibration: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ValueError(
                f"epsilon: expected a number above 0, at most 1, in units of pixels in [0, 1] (8/255 is 0.0314), got "
                f"{self.epsilon}."
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: expected a share from 0 to below 1, got {self.warmup}.")
        if not 0 <= self.calibration < math.inf:
            raise ValueError(f"calibration: expected a number of at least 0, got {self.calibration}.")

    def check(self, model: nn.Module, context: ClientContext, others: Sequence[Defense]) -> None:
        """Refuse two recipes on one client, and calibration where it would make a guarantee for single images false.

        Raises:
            ScenarioError: says which.
        """
        second = next((other for other in others if isinstance(other, AdversarialRecipe)), None)
        if second is not None:
            raise ScenarioError(
                "defenses",
                f"{type(self).__name__} and {type(second).__name__} on client {context.client} would each attack what the "
                "other made. Give a client one recipe; ard and prm are parameters of adversarial_training, trades and mart, "
                "and of each other.",
            )
        if not self.calibration:
            return
        for other in others:
            if other.replaces_gradient and other.budget(context) is not None:
                raise ScenarioError(
                    "defenses",
                    f"{type(self).__name__} with calibration {self.calibration:g} beside {type(other).__name__}: the number of "
                    "images of each class is in the gradient of every image, so that the guarantee for single images would be "
                    "false. Set calibration to 0, or give them different clients.",
                )

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what adversarial training is not."""
        return (
            "Adversarial training is no privacy defense: the gradient is that of images within "
            f"{self.epsilon:.3g} of the client's own, so that an exact reconstruction has at least "
            f"{floor_of(self.epsilon):.1f} dB against the own ones.",
            "It gives no guarantee of robustness either: only attacks on the global model show what it withstands.",
        )

    def train_step(
        self, step: LocalStep, context: ClientContext, generator: torch.Generator, proceed: _Proceed
    ) -> Tensor:
        """Accumulate the gradient on perturbed images; returns the loss that the recipe hands to the next step."""
        epsilon = self.epsilon_at(step.progress)
        if not len(step.images):
            return proceed(step)
        with calibrated(step.model, self._offsets(context)):
            images = self._perturbed(step, context, epsilon, generator) if epsilon else step.images
            return self._learn(step, replace(step, images=images), proceed)

    def epsilon_at(self, progress: float) -> float:
        """Return the largest change when a share of the training is done, the same for all clients."""
        return self.epsilon * min(1.0, progress / self.warmup) if self.warmup else self.epsilon

    @abstractmethod
    def _perturbed(self, step: LocalStep, context: ClientContext, epsilon: float, generator: torch.Generator) -> Images:
        """Return normalized adversarial images."""

    def _learn(self, step: LocalStep, adversarial: LocalStep, proceed: _Proceed) -> Tensor:
        """Accumulate the gradient, and return the loss."""
        return proceed(adversarial)

    def _offsets(self, context: ClientContext) -> Tensor | None:
        if not self.calibration:
            return None
        # The logarithm of 0 is no number: a class without images counts as one with a single image.
        return self.calibration * torch.tensor(context.class_counts).clamp(min=1).log()


@dataclass(frozen=True, kw_only=True)
class IteratedRecipe(AdversarialRecipe):
    """A recipe whose attack is projected gradient ascent, in evaluation mode, with ARD and PRM as choices.

    Args:
        step: change of a pixel's value in one iteration; 2/255 unless given.
        steps: iterations of the attack.
        rise: of ARD and PRM: share of the training during which the probability to keep rises linearly from 0 to `keep`.
        keep: of ARD and PRM: the probability to keep attention, or a patch of the perturbation, after that; with 1 nothing is
            left out any more.
        final_mask: of PRM: whether the finished perturbation is masked too.
    """

    loss: ClassVar[LossName] = "cross_entropy"
    start: ClassVar[Start] = "uniform"

    step: float = 2 / 255
    steps: int = 7
    rise: float = 0.25
    keep: float = 1.0
    final_mask: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step <= 1:
            raise ValueError(f"step: expected a number above 0, at most 1, got {self.step}.")
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}.")
        for name in ("rise", "keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}.")
        defaults = {field.name: field.default for field in fields(self)}
        for name in ("rise", "keep"):
            if getattr(self, name) != defaults[name] and not (self.drops_attention or self.masks_patches):
                raise ValueError(f"{name}: got {getattr(self, name)}, and neither ard nor prm is on. Leave it out.")
        if self.final_mask and not self.masks_patches:
            raise ValueError("final_mask: got true, and prm is off. Leave it out.")

    @property
    def drops_attention(self) -> bool:
        """Whether ARD is on."""
        return bool(getattr(self, "ard", False))

    @property
    def masks_patches(self) -> bool:
        """Whether PRM is on."""
        return bool(getattr(self, "prm", False))

    def check(self, model: nn.Module, context: ClientContext, others: Sequence[Defense]) -> None:
        """Refuse what every recipe refuses, and a model in which ARD or PRM would have no meaning.

        Raises:
            ScenarioError: says which.
        """
        super().check(model, context, others)
        if self.drops_attention and not attention_branches(model):
            raise ScenarioError(
                "model.name",
                f"{type(model).__name__} has no attention that ard could drop. Choose a ViT, or leave ard out.",
            )
        if self.drops_attention and "APRIL first block" in models.facts(model) | models.frozen_facts(model):
            raise ScenarioError(
                "model.first_block",
                "got april, whose first block has no way around its attention: where ard drops that, no gradient reaches the "
                "image. Set it to standard, or leave ard out.",
            )
        if self.masks_patches:
            try:
                models.patch_grid(model)
            except models.ModelInterfaceError as error:
                raise ScenarioError(
                    "model.name", f"{error} prm needs patches. Choose a ViT, or leave prm out."
                ) from None

    def keep_at(self, progress: float) -> float:
        """Return the probability to keep when a share of the training is done, the same for all clients."""
        return self.keep * min(1.0, progress / self.rise) if self.rise else self.keep

    def _perturbed(self, step: LocalStep, context: ClientContext, epsilon: float, generator: torch.Generator) -> Images:
        keep, masks = self.keep_at(step.progress), None
        if self.masks_patches:
            masks = patch_masks(models.patch_grid(step.model), keep, generator, step.images.device)
        drops = dropped_attention(step.model, keep, generator) if self.drops_attention else contextlib.nullcontext()
        with drops:
            moved = attacked(
                step, epsilon, self.step, self.steps, generator, loss=self.loss, start=self.start, masks=masks
            )
        return torch.where(masks(), moved, step.images) if masks is not None and self.final_mask else moved


@dataclass(frozen=True, kw_only=True)
class DivergenceRecipe(IteratedRecipe):
    """A recipe with a weighted divergence between what the model says of images as they are and of perturbed ones.

    Args:
        steps: iterations of the attack.
        beta: weight of the divergence.
        ard: whether the attack's backward pass drops attention at random; see `ard`.
        prm: whether the attack masks its perturbation at random; see `prm`.
    """

    start: ClassVar[Start] = "normal"

    steps: int = 10
    beta: float = 6.0
    ard: bool = False
    prm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta: expected a number of at least 0, got {self.beta}.")


def attacked(
    step: LocalStep,
    epsilon: float,
    size: float,
    steps: int,
    generator: torch.Generator,
    *,
    loss: LossName = "cross_entropy",
    start: Start = "uniform",
    masks: Callable[[], Mask] | None = None,
) -> Images:
    """Return the images of a step, normalized, after an attack in evaluation mode.

    Args:
        step: its model and images; left as they are.
        epsilon: largest change of a pixel's value.
        size: change in one iteration.
        steps: iterations.
        generator: of the start.
        loss: what is raised.
        start: see `pgd`.
        masks: see `pgd`.
    """
    normalization = models.normalization(step.model)
    with evaluating(step.model):
        moved = pgd(
            _OfPixels(step.model, normalization),
            normalization.denormalize(step.images),
            step.labels,
            epsilon,
            step=size,
            steps=steps,
            generator=generator,
            loss=loss,
            start=start,
            masks=masks,
        )
    return normalization.normalize(moved)


def floor_of(epsilon: float) -> float:
    """Return the PSNR in decibels that an image within epsilon of another has at least, pixels in [0, 1]."""
    return -20 * math.log10(epsilon)
