"""Membership of single images: whether an image's own gradient is part of the update, told between two candidates.

Paper: Li, Li, Ribeiro. "Effective Passive Membership Inference Attacks in Federated Learning against Overparameterized
Models". ICLR 2023. https://openreview.net/forum?id=QsCSLPP55Ku

Idea: with many parameters the gradients of different images are close to orthogonal, so that the mean gradient u of a batch has
a component along the gradient g of an image that is in it, and hardly one along that of another. `cosine` compares
<u, g> / (|u| |g|), `difference` compares |u|^2 - |u - g / n|^2, for n images behind the update. Of two candidates the one that
scores higher is chosen. `regression` explains u by the gradients of all candidates together, by least squares: one batch's
gradient is a sum of those that were in it, so that theirs get 1 / n and the others 0, however alike they are.

Differs from the paper: there a threshold decides on a single image; here the auditor gives two and a coin says which of them
was trained on, so that no threshold has to be learned. Labels of candidates are known in both. `difference` divides by n, since
here u is the mean over the images. `regression` is this project's; it works on a random choice of entries of the gradient.
Deltas of several steps are taken for their mean gradient at the first weights. Where a defense hides tensors or drops entries,
zeros are left out of the comparison.

Needs: grants `candidates` and `normalization`; local SGD. Uses `training` where granted; `difference` needs the scale of the
update. Cost: two passes forward and back for each pair, and memory for `entries` numbers of each candidate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fedsim import models
from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Candidates, Finding, Observation
from fedsim_attacks.update import NO_SCALE, SIGNS, mean_gradient, told_cautions, told_effects

_SILENT = 0.1  # share of exact zeros in a tensor from which on they are no accident


@dataclass(frozen=True, kw_only=True)
class GradientAlignment(Attack):
    """Choose, of two candidates, the one whose gradient lies in the update.

    Args:
        score: `regression`, or one of the paper's: `cosine`, or `difference` of squared norms.
        entries: of the gradient, that `regression` compares at most.
    """

    citation: ClassVar[str] = (
        "Li, Li, Ribeiro. Effective Passive Membership Inference Attacks in Federated Learning against Overparameterized "
        "Models. ICLR 2023. https://openreview.net/forum?id=QsCSLPP55Ku"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"candidates", "normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"membership"})
    applies: ClassVar[Applicability] = Applicability()
    is_cheap: ClassVar[bool] = True

    score: Literal["regression", "cosine", "difference"] = "regression"
    entries: int = 100_000

    def __post_init__(self) -> None:
        if self.score not in ("regression", "cosine", "difference"):
            raise ValueError(f"score: expected regression, cosine or difference, got {self.score}.")
        if self.entries < 1:
            raise ValueError(f"entries: expected at least 1, got {self.entries}.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Compare the two candidates of each pair; draws the entries that are compared, where these are not all."""
        candidates, normalization = observation.candidates, observation.normalization
        assert candidates is not None and normalization is not None, "the plan checks needs"
        model = observation.model()
        found = mean_gradient(observation, observation.update.tensors.keys())
        if self.score == "difference" and not found.is_scaled:
            raise AttackRefusedError(f"{NO_SCALE}, and score: difference needs it. Use cosine or regression.")
        kept = {name: _sent(tensor) for name, tensor in found.tensors.items()}
        update = torch.cat([tensor[kept[name]] for name, tensor in found.tensors.items()])
        if not update.numel():
            raise AttackRefusedError("the update is zero in every tensor: nothing is left to compare with.")
        inputs = normalization.normalize(candidates.images.flatten(0, 1))
        gradients = (
            torch.cat([own[name].detach()[kept[name]].double() for name in kept])
            for own in (
                models.gradient_of(model, image[None], label[None])
                for image, label in zip(inputs, candidates.labels.flatten(), strict=True)
            )
        )
        if self.score == "regression":
            scores = self._regressed(update, gradients, generator)
        else:
            examples = max(1, observation.update.num_examples)
            scores = torch.stack([self._aligned(update, own, examples) for own in gradients])
        first, second = scores.view(-1, 2).unbind(1)
        margins = first - second
        trace = {"pairs": len(candidates), "compared": len(update), "median_margin": float(margins.abs().median())}
        return Finding(membership=margins.float(), trace=trace, cautions=_cautions(observation, candidates))

    def _regressed(
        self, update: Float[Tensor, " entry"], gradients: Iterable[Tensor], generator: torch.Generator
    ) -> Float[Tensor, " candidate"]:
        """Return the share that each candidate's gradient has in the update, by least squares over all of them."""
        chosen = torch.arange(len(update))
        if self.entries < len(update):
            chosen = torch.randperm(len(update), generator=generator)[: self.entries].sort().values
        columns = torch.stack([own[chosen] for own in gradients], 1)
        sizes = columns.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
        # Two copies of one image share what they explain, as the solution of least norm does.
        shares: Tensor = torch.linalg.lstsq(columns / sizes, update[chosen], driver="gelsd").solution / sizes
        return shares

    def _aligned(
        self, update: Float[Tensor, " entry"], own: Float[Tensor, " entry"], examples: int
    ) -> Float[Tensor, ""]:
        if self.score == "cosine":
            return nn.functional.cosine_similarity(own, update, dim=0)
        return 2 / examples * own.dot(update) - own.dot(own) / examples**2


def _sent(tensor: Tensor) -> Bool[Tensor, "*axes"]:
    """Return which entries of a tensor to compare: where more are zero than by accident, those that are not."""
    zeros = tensor == 0
    return ~zeros if float(zeros.double().mean()) > _SILENT else torch.ones_like(zeros)


def _cautions(observation: Observation, candidates: Candidates) -> tuple[str, ...]:
    unlike = int((candidates.labels[:, 0] != candidates.labels[:, 1]).sum())
    classes = (
        f"In {unlike} of {len(candidates)} pairs the images are of different classes, which labels alone tell apart."
    )
    signs = any(effects.signs for effects in told_effects(observation))
    return (
        *([classes] if unlike else []),
        *([SIGNS] if signs else []),
        *told_cautions(observation, False, entries=False),
    )
