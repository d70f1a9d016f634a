"""Layer noise: noise on random slices of the update, cut so that all are equally sensitive to the images (GradDefense).

Paper: Wang, Guo, Xie, Qi. "Protect Privacy from Gradient Leakage Attack in Federated Learning". INFOCOM 2022.
https://doi.org/10.1109/INFOCOM48880.2022.9796841; code: https://github.com/wangjunxiao/GradDefense

Idea: the sensitivity of a tensor W is the mean over images x of |d(v^T dL/dW)/dx|_2, how much its gradient changes with the
image, seen along a vector v of ones. All entries of the update in one row, each with an equal part of its tensor's
sensitivity, are cut into `slices` of equal sensitivity, so that a sensitive tensor fills many and an insensitive one shares a
slice with others. Of these, `perturbed` are drawn in each round: each is clipped to the norm `clip_norm`, and N(0, noise^2) is
added to each of its entries.

Differs from the paper: written after the released code. Sensitivity is measured on the batch of a round's first local step,
and not on a public root set; where there is no such batch (Poisson sampling may draw none), every entry counts the same. With
`probe: signs`, v is drawn from -1 and 1, so that the expected square is that of the Jacobian's Frobenius norm, which the paper
means: ones see nothing of a tensor whose gradient sums to zero, such as the patch embedding before a layer norm. Slices end at
entries, not at the greatest common divisor of the tensors' sizes, and do not overlap by one. The code clips the gradient of
each image to the noise's standard deviation; here the update is clipped, or not, to a norm of its own. The server's part, by
which it denoises the aggregate, is left out.

Needs: a model that is twice differentiable, looked at in evaluation mode. No guarantee: slices without noise are sent as they
are, and a clipping norm for a part of the update bounds nothing that could be accounted. Cost: one double backward pass for
each tensor, once a round.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fedsim import models
from fedsim.defense import ClientContext, Defense, LocalStep
from fedsim.exchange import Images, Labels, Update, UpdateEffects
from fedsim_defenses._evaluation import evaluated

_BLIND = (
    "Seen along ones, as published, the gradient of a tensor before a layer norm does not change with the image: the patch "
    "embedding counts as insensitive and shares one slice with others. Set probe to signs."
)


@dataclass(frozen=True, kw_only=True)
class LayerNoise(Defense):
    """Add Gaussian noise to random slices of the update that are equally sensitive to the images.

    Args:
        noise: standard deviation of the noise in an entry, in the update's units.
        slices: into how many the update is cut.
        perturbed: how many of them get noise.
        clip_norm: largest l2 norm of a slice that gets noise; None for no clipping.
        probe: along which vector a gradient's change is seen: `ones`, as published; `signs`, drawn at random.
    """

    citation: ClassVar[str] = (
        "Wang et al. Protect Privacy from Gradient Leakage Attack in Federated Learning. INFOCOM 2022. "
        "https://doi.org/10.1109/INFOCOM48880.2022.9796841"
    )

    noise: float = 0.01
    slices: int = 10
    perturbed: int = 5
    clip_norm: float | None = None
    probe: Literal["ones", "signs"] = "ones"

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise: expected a number of at least 0, got {self.noise}.")
        if self.slices < 1:
            raise ValueError(f"slices: expected a whole number of at least 1, got {self.slices}.")
        if not 0 <= self.perturbed <= self.slices:
            raise ValueError(f"perturbed: expected 0 up to the number of slices, {self.slices}, got {self.perturbed}.")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm: expected a number above 0, or none for no clipping, got {self.clip_norm}.")

    @property
    def effects(self) -> UpdateEffects:
        """Noise on some entries."""
        return UpdateEffects(partial_noise=self.noise if self.perturbed else 0.0)

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return that a part of the update has no noise, and that the rest is not accounted."""
        return (
            f"{self.perturbed} of {self.slices} slices of the update get noise, the others are sent as they are: no guarantee, "
            "whatever the noise.",
            *([_BLIND] if self.probe == "ones" and any(isinstance(m, nn.LayerNorm) for m in model.modules()) else []),
        )

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        """Keep the sensitivities at the round's first step, and take the step."""
        if context.state.get("round") != context.round and len(step.images):
            context.state["sensitivity"] = sensitivities(
                step.model, step.images, step.labels, generator if self.probe == "signs" else None
            )
            context.state["round"] = context.round
        return proceed(step)

    def protect_update(self, update: Update, context: ClientContext, generator: torch.Generator) -> Update:
        """Return the update with noise on random slices: the same names, order, shapes and types."""
        sizes = [tensor.numel() for tensor in update.tensors.values()]
        is_known = context.state.get("round") == context.round
        known = context.state["sensitivity"] if is_known else [float(size) for size in sizes]
        entries = torch.cat([tensor.double().flatten() for tensor in update.tensors.values()])
        places = slice_numbers(sizes, known, self.slices).to(entries.device)
        chosen = torch.randperm(self.slices, generator=generator, device=generator.device)[: self.perturbed]
        for number in chosen.tolist():
            own = places == number
            part = entries[own]
            if self.clip_norm is not None:
                part = part * min(1.0, self.clip_norm / max(float(part.norm()), torch.finfo(part.dtype).tiny))
            drawn = torch.randn(part.shape, generator=generator, dtype=part.dtype, device=generator.device)
            entries[own] = part + self.noise * drawn.to(part.device)
        parts = zip(update.tensors.items(), torch.split(entries, sizes), strict=True)
        return dataclasses.replace(
            update, tensors={name: part.view_as(tensor).to(tensor.dtype) for (name, tensor), part in parts}
        )


def sensitivities(
    model: nn.Module, images: Images, labels: Labels, generator: torch.Generator | None = None
) -> list[float]:
    """Return the mean over images of |d(v^T g)/dx|, g being the gradient of a trained parameter; in the model's order.

    Args:
        model: left as it is, and so is the `.grad` of its parameters.
        images: normalized model input, at least one.
        labels: hard or soft labels.
        generator: draws the signs v; None for ones.
    """
    inputs, parameters = images.detach().clone().requires_grad_(), list(models.trained(model).values())
    with evaluated(model), models.unfused_attention(model), torch.enable_grad():
        loss = models.training_loss(model, model(inputs), labels)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        found = []
        for gradient in gradients:
            seen = (gradient * _probe(gradient, generator)).sum()
            (moved,) = torch.autograd.grad(seen, inputs, retain_graph=True, materialize_grads=True, allow_unused=True)
            found.append(float(moved.flatten(1).norm(dim=1).mean()))
    return found


def _probe(like: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.ones_like(like)
    drawn = torch.randint(2, like.shape, generator=generator, device=generator.device)
    return (2 * drawn - 1).to(like)


def slice_numbers(sizes: Sequence[int], sensitivity: Sequence[float], slices: int) -> Int[Tensor, " entry"]:
    """Return to which slice each entry of the update belongs: they are contiguous, and equally sensitive up to one entry.

    Args:
        sizes: entries of each tensor, in the update's order.
        sensitivity: of each tensor, which its entries share; where all are zero, every entry counts the same.
        slices: how many, from 0.
    """
    shares = torch.tensor(list(sensitivity), dtype=torch.float64)
    counts = torch.tensor(list(sizes))
    if not bool(shares.sum() > 0):
        shares = counts.double()
    each = torch.repeat_interleave(shares / counts.clamp_min(1), counts)
    middles = each.cumsum(0) - each / 2
    return (middles / each.sum() * slices).long().clamp(0, slices - 1)
