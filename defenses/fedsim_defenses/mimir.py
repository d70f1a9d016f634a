"""MIMIR: the client learns to reconstruct its images from a quarter of their patches, perturbed against that task.

Paper: Xu, Yu, Liu, Picek. "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness". 2023.
https://arxiv.org/abs/2312.04960

Idea: adversarial pre-training of a Vision Transformer, before adversarial training proper. A share `mask_ratio` of the patches
is masked, in each image anew. The encoder E sees the others and the class token, a light decoder D predicts the masked ones:

    loss = MSE over masked patches( D(E(mask(x'))), standardized patches of x ) + penalty HSIC_nCCA( E(mask(x')), x' )

The input x' is adversarial, the target x clean. x' = clip(x0 + step sign(grad l(x0))) within epsilon of x, where x0 is clip(x +
U(-epsilon, epsilon)) and l(x0) the loss of x0 reconstructing itself under a fresh mask, so that the gradient passes input and
target. HSIC_nCCA, with Gaussian kernels of width `sigma`, bounds what the representation tells of the adversarial input. No
label is used: the classifier gets no gradient. `epsilon: 0` with `penalty: 0` is a masked autoencoder.

Differs from the paper: the encoder's positions are those of the model, learned or fixed; the decoder is smaller by default
(width 64, one block, four heads; 128, two and sixteen in the paper), since the ViTs here are; the attack is in evaluation mode.
With several `steps` each has a mask of its own. The penalty is computed in double precision, and left out of a local step where
it or its gradient is not finite or its equations are singular. At the published weight it hardly acts.

Needs: a Vision Transformer of timm. Adds a decoder, `mimir.` parameters, to the model of every client, averaged over those that
train it. The loss that `train_step` returns is the reconstruction error, in no way comparable with a cross-entropy. Logs
`reconstruction` and `dependence` (HSIC_nCCA, without its weight) for each round. Cost: two forward and backward passes on a
quarter of the tokens, two of the decoder on all of them, and equations as large as a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim import models
from fedsim.defense import ClientContext, Defense, LocalStep
from fedsim.errors import ScenarioError
from fedsim.exchange import Images, Normalization, UpdateEffects
from fedsim_defenses._adversarial import EPSILON, AdversarialRecipe, floor_of
from fedsim_defenses._dependence import SIGMA, dependence
from fedsim_defenses._evasion import evaluating, pgd
from fedsim_defenses._masking import (
    Tokens,
    add_decoder,
    draw_visible,
    encode,
    reconstruction_loss,
    visible_count,
)

_ENOUGH = 32  # images in a batch, of which the penalty needs about as many


class _Reconstructing(nn.Module):
    """The error of images in [0, 1] that reconstruct themselves, each pass under a mask of its own."""

    def __init__(
        self, model: nn.Module, normalization: Normalization, ratio: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.model, self._normalization, self._ratio, self._generator = model, normalization, ratio, generator

    def forward(self, images: Images) -> Float[Tensor, "batch 1"]:
        inputs = self._normalization.normalize(images)
        visible = draw_visible(models.patch_grid(self.model), images, self._ratio, self._generator)
        return reconstruction_loss(self.model, encode(self.model, inputs, visible), inputs, visible)[:, None]


@dataclass(frozen=True, kw_only=True)
class MIMIR(Defense):
    """Pre-train a ViT to reconstruct masked images from adversarial ones: for robustness later, not for privacy.

    Args:
        epsilon: largest change of a pixel's value, pixels in [0, 1]; 8/255 unless given, 0 for clean inputs.
        step: change of a pixel's value in one iteration of the attack; 10/255 unless given.
        steps: iterations of the attack.
        mask_ratio: share of the patches that the encoder does not see.
        penalty: weight of the dependence between representation and input; 0 for none.
        sigma: width of the penalty's kernels.
        width: of the decoder; a multiple of four and of `heads`.
        depth: blocks of the decoder.
        heads: attention heads of the decoder.
    """

    citation: ClassVar[str] = (
        "Xu et al. MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness. 2023. "
        "https://arxiv.org/abs/2312.04960"
    )
    replaces_gradient: ClassVar[bool] = True

    epsilon: float = EPSILON
    step: float = 10 / 255
    steps: int = 1
    mask_ratio: float = 0.75
    penalty: float = 1e-5
    sigma: float = SIGMA
    width: int = 64
    depth: int = 1
    heads: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ValueError(
                f"epsilon: expected a number from 0 to 1, in units of pixels in [0, 1] (8/255 is 0.0314), got {self.epsilon}."
            )
        if not 0 < self.step <= 1:
            raise ValueError(f"step: expected a number above 0, at most 1, got {self.step}.")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio: expected a share between 0 and 1, both excluded, got {self.mask_ratio}.")
        if not 0 <= self.penalty < math.inf:
            raise ValueError(f"penalty: expected a number of at least 0, got {self.penalty}.")
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma: expected a number above 0, got {self.sigma}.")
        for name in ("steps", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width: expected a multiple of 4 and of heads {self.heads}, got {self.width}.")

    @property
    def effects(self) -> UpdateEffects:
        """The gradient is that of the reconstruction, and not of a cross-entropy."""
        return UpdateEffects(own_loss=True)

    def prepare_model(self, model: nn.Module) -> None:
        """Add the decoder under `mimir.`, in place.

        Raises:
            ScenarioError: the model is no Vision Transformer of timm, or has a decoder of another shape.
        """
        add_decoder(model, self.width, self.depth, self.heads)

    def check(self, model: nn.Module, context: ClientContext, others: Sequence[Defense]) -> None:
        """Refuse what would train nothing, a useless mask, and a recipe that perturbs the images before it.

        Raises:
            ScenarioError: the classifier alone is trained, or another recipe is on the client.
            ValueError: the mask leaves nothing to see or nothing to predict.
        """
        if not models.trained(model).keys() - {name for head in models.head_names(model) for name in head}:
            raise ScenarioError(
                "training.trainable",
                "mimir trains everything but the classifier, and here nothing else is trained. Train more of the model, "
                "or leave mimir out.",
            )
        grid = models.patch_grid(model)
        seen = visible_count(grid, self.mask_ratio)
        if not 0 < seen < grid.count:
            raise ValueError(
                f"mask_ratio: expected a share that leaves some of {grid.count} patches and masks some, got {self.mask_ratio}, "
                f"which leaves {seen}."
            )
        if any(isinstance(other, AdversarialRecipe) for other in others):
            raise ScenarioError(
                "defenses",
                f"mimir and adversarial training on client {context.client}: mimir would take the perturbed images for clean "
                "ones. Give a client one recipe.",
            )

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what pre-training is not."""
        near = (
            f" The images are within {self.epsilon:.3g} of the client's own, so that an exact reconstruction has at least "
            f"{floor_of(self.epsilon):.1f} dB against the own ones."
            if self.epsilon
            else ""
        )
        return (
            "MIMIR is no privacy defense: of a single image the visible patches can be solved for as without it, and the "
            f"decoder's gradient is made of the masked ones.{near}",
            "Attacks here model the gradient of a cross-entropy: that they find nothing in an update of MIMIR shows nothing.",
            "The classifier is not trained, and its update is zero: in the average it weakens that of clients which train it.",
        )

    def client_cautions(self, context: ClientContext) -> tuple[str, ...]:
        """Return a caution where a batch has too few images for the penalty to mean anything."""
        if not self.penalty or context.batch_size >= _ENOUGH:
            return ()
        return (
            f"The penalty of MIMIR compares the images of a batch, and is of little meaning with fewer than {_ENOUGH}; here "
            f"are {context.batch_size}.",
        )

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        """Accumulate the gradient of the reconstruction and of the penalty; returns the mean error of the reconstruction."""
        count = len(step.images)
        if not count:
            return step.images.new_zeros(())
        model, grid, normalization = step.model, models.patch_grid(step.model), models.normalization(step.model)
        pixels = normalization.denormalize(step.images)
        inputs, perturbed = step.images, pixels
        if self.epsilon:
            perturbed = self._perturbed(model, pixels, normalization, generator)
            inputs = normalization.normalize(perturbed)
        visible = draw_visible(grid, inputs, self.mask_ratio, generator)
        tokens = encode(model, inputs, visible)
        loss = reconstruction_loss(model, tokens, step.images, visible).mean()
        context.log("reconstruction", float(loss.detach()), count)
        found = measured(tokens, perturbed, self.sigma)
        if found is not None:
            context.log("dependence", found.value, count)
        terms, gradients = [loss], [torch.ones_like(loss)]
        if found is not None and self.penalty and tokens.requires_grad:
            terms.append(tokens)
            gradients.append(self.penalty * found.gradient)
        if loss.requires_grad:  # unless the scenario trains nothing that the loss depends on
            torch.autograd.backward(terms, gradients)
        return loss.detach()

    def _perturbed(
        self, model: nn.Module, pixels: Images, normalization: Normalization, generator: torch.Generator
    ) -> Images:
        """Return images within epsilon that reconstruct themselves badly, in [0, 1]."""
        with evaluating(model):
            return pgd(
                _Reconstructing(model, normalization, self.mask_ratio, generator),
                pixels,
                torch.zeros(len(pixels), dtype=torch.int64),
                self.epsilon,
                step=self.step,
                steps=self.steps,
                generator=generator,
                loss=lambda errors, _: errors[:, 0],
            )


@dataclass(frozen=True, eq=False)
class Dependence:
    """HSIC_nCCA of tokens and images, and its gradient with respect to the tokens."""

    value: float
    gradient: Tokens


def measured(tokens: Tokens, images: Images, sigma: float) -> Dependence | None:
    """Return how much the encoder's output depends on its input over a batch; None where that is no finite number.

    Args:
        tokens: the encoder's output; its graph is left alone.
        images: pixels of the input.
        sigma: width of the kernels.
    """
    with torch.enable_grad():
        rows = tokens.detach().double().requires_grad_()
        try:
            value = dependence(rows.flatten(1), images.detach().double().flatten(1), sigma)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return None
        (gradient,) = torch.autograd.grad(value, rows)
    if not (bool(value.isfinite()) and bool(gradient.isfinite().all())):
        return None
    return Dependence(float(value.detach()), gradient.to(tokens.dtype))
