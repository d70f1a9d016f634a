"""Soteria: the classifier's gradient says nothing of the entries of its input that tell most of the image.

Paper: Sun, Li, Wang, Yang, Li, Chen. "Soteria: Provable Defense against Privacy Leakage in Federated Learning from
Representation Perspective". CVPR 2021. https://arxiv.org/abs/2012.06043; code: https://github.com/jeremy313/Soteria

Idea: r is the representation that the last linear layer reads, whose weight gradient is the mean over images of (p - y) r^T.
An image that is fitted to a representation without the entry r_i is the further from the true one, the smaller |dr_i/dx| /
|r_i|. So the share `prune` of the entries for which the sum over the step's images of |dr_i/dx|_2 / |r_i| is smallest is taken
out of r: these columns of the weight gradient are zero. All other gradients stay as they are.

Differs from the paper: the ratio is that of the released code, a proxy of the paper's |r_i (dr_i/dx)^-1|, and so is its scope,
one choice for all images of a step. The code divides by r_i + 0.1, or by r_i, which is meant for features above zero; here by
|r_i|, since the last layer norm of a ViT puts out both signs. Its threshold is a percentile; here the number of entries is
exact. Local steps choose anew, each by the weights it starts from. A distilled ViT has two classifiers, each with a choice of
its own.

Needs: a linear classifier, of which fedsim's `head_names` tells the weight. No guarantee: the paper's bound is on the error of
an image that is inferred from the representation alone; every other layer is sent as it is, so attacks that leave the
classifier out (Balunovic et al. 2022, https://arxiv.org/abs/2111.04706), or invert the patch embedding, lose nothing. Labels
stay in the bias gradient. Cost: one backward pass for each entry of r, vectorized; the representation is computed in
evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fedsim import models
from fedsim.defense import ClientContext, Defense, LocalStep
from fedsim.errors import ScenarioError
from fedsim.exchange import Images, UpdateEffects
from fedsim.models import ModelInterfaceError
from fedsim_defenses._evaluation import evaluated
from fedsim_defenses._selection import largest

_AT_ONCE = 32  # entries that are differentiated together, so that memory does not grow with their number


@dataclass(frozen=True, kw_only=True)
class Soteria(Defense):
    """Take those entries of the representation out of the classifier's gradient that tell most of the image.

    Args:
        prune: share of the entries. The paper's figures are for 1% to 40%.
    """

    citation: ClassVar[str] = (
        "Sun et al. Soteria: Provable Defense against Privacy Leakage in Federated Learning from Representation Perspective. "
        "CVPR 2021. https://arxiv.org/abs/2012.06043"
    )

    prune: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.prune <= 1:
            raise ValueError(f"prune: expected a share from 0 to 1, got {self.prune}.")

    @property
    def effects(self) -> UpdateEffects:
        """Columns of the classifier's weight that are missing."""
        return UpdateEffects(dropped="classifier columns" if self.prune else None)

    def check(self, model: nn.Module, context: ClientContext, others: Sequence[Defense]) -> None:
        """Refuse a model without a linear classifier.

        Raises:
            ScenarioError: the model has none.
        """
        try:
            models.head_names(model)
        except ModelInterfaceError as error:
            raise ScenarioError(
                "model.name",
                f"soteria hides the input of a linear classifier, and {error} Choose another model, or leave soteria out.",
            ) from None

    def cautions(self, model: nn.Module) -> tuple[str, ...]:
        """Return what hiding columns of the classifier leaves open."""
        return (
            "Soteria changes the classifier's weight gradient alone and guarantees nothing for the others: attacks that leave "
            "the classifier out lose nothing, and its bias gradient tells the labels.",
        )

    def train_step(
        self,
        step: LocalStep,
        context: ClientContext,
        generator: torch.Generator,
        proceed: Callable[[LocalStep], Tensor],
    ) -> Tensor:
        """Accumulate the gradient without the pruned columns of the classifier; draws nothing."""
        trained = models.trained(step.model)
        weights = [trained.get(names.weight) for names in models.head_names(step.model)]
        if not self.prune or not len(step.images):
            return proceed(step)
        hidden = [_smallest(ratio, self.prune) for ratio in leakage(step.model, step.images)]
        before = [None if weight is None else weight.grad for weight in weights]
        for weight in weights:
            if weight is not None:
                weight.grad = None
        loss = proceed(step)
        for weight, earlier, columns in zip(weights, before, hidden, strict=True):
            if weight is None or weight.grad is None:
                continue
            own = weight.grad.masked_fill(columns, 0)
            weight.grad = own if earlier is None else earlier + own
        return loss


def leakage(model: nn.Module, images: Images) -> tuple[Float[Tensor, " embed"], ...]:
    """Return the sum over images of |dr_i/dx| / |r_i| for each entry of the input r of each classifier.

    It is infinite where r_i is zero.

    Args:
        model: any with a linear classifier; left as it is.
        images: normalized model input, at least one.
    """
    inputs = images.detach().clone().requires_grad_()
    with evaluated(model), models.unfused_attention(model), torch.enable_grad():
        return tuple(_leakage(rows, inputs) for rows in _representations(model, inputs))


def _leakage(rows: Float[Tensor, "batch embed"], images: Images) -> Float[Tensor, " embed"]:
    slopes = []
    for entries in torch.split(torch.arange(rows.shape[1], device=rows.device), _AT_ONCE):
        # The sum over the batch of one entry: no image has a part in another's representation.
        chosen = nn.functional.one_hot(entries, rows.shape[1]).to(rows)[:, None, :].expand(-1, *rows.shape)
        (found,) = torch.autograd.grad(rows, images, chosen, retain_graph=True, is_grads_batched=True)
        slopes.append(found.flatten(2).norm(dim=2))
    sizes = rows.detach().abs().T
    return torch.where(sizes > 0, torch.cat(slopes) / sizes, torch.inf).sum(1)


def _smallest(ratios: Float[Tensor, " embed"], share: float) -> Bool[Tensor, " embed"]:
    return largest(-ratios, round(share * len(ratios)))


def _representations(model: nn.Module, images: Images) -> list[Tensor]:
    """Return what reaches each classifier, differentiable in the images."""
    with models.catching_head_inputs(model) as caught:
        model(images)
    return [rows[0] for rows in caught]
