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
Deltas of several steps are taken for their mean gradient at the first weights. What a defense hides (tensors of zeros) is left
out of the comparison.

Needs: grants `candidates` and `normalization`; local SGD. Uses `training` where granted; `difference` needs the scale of the
update. Cost: two passes forward and back for each pair, and memory for `entries` numbers of each candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim import models
from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Observation
from fedsim_attacks.update import NO_SCALE, mean_gradient


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
        update = {name: tensor for name, tensor in found.tensors.items() if bool(tensor.any())}
        if not update:
            raise AttackRefusedError("the update is zero in every tensor: nothing is left to compare with.")
        inputs = normalization.normalize(candidates.images.flatten(0, 1))
        gradients = (
            models.gradient_of(model, image[None], label[None])
            for image, label in zip(inputs, candidates.labels.flatten(), strict=True)
        )
        if self.score == "regression":
            scores = self._regressed(update, gradients, generator)
        else:
            examples = max(1, observation.update.num_examples)
            scores = torch.stack([self._aligned(update, own, examples) for own in gradients])
        first, second = scores.view(-1, 2).unbind(1)
        margins = first - second
        trace = {"pairs": len(candidates), "compared": len(update), "median_margin": float(margins.abs().median())}
        return Finding(membership=margins.float(), trace=trace)

    def _regressed(
        self, update: Mapping[str, Tensor], gradients: Iterable[Mapping[str, Tensor]], generator: torch.Generator
    ) -> Float[Tensor, " candidate"]:
        """Return the share that each candidate's gradient has in the update, by least squares over all of them."""
        target = torch.cat([tensor.flatten() for tensor in update.values()])
        kept = torch.arange(len(target))
        if self.entries < len(target):
            kept = torch.randperm(len(target), generator=generator)[: self.entries].sort().values
        rows = [torch.cat([own[name].detach().flatten() for name in update])[kept].double() for own in gradients]
        columns = torch.stack(rows, 1)
        sizes = columns.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
        # Two copies of one image share what they explain, as the solution of least norm does.
        shares: Tensor = torch.linalg.lstsq(columns / sizes, target[kept], driver="gelsd").solution / sizes
        return shares

    def _aligned(self, update: Mapping[str, Tensor], own: Mapping[str, Tensor], examples: int) -> Float[Tensor, ""]:
        mine, theirs = (torch.cat([one[name].detach().double().flatten() for name in update]) for one in (own, update))
        if self.score == "cosine":
            return nn.functional.cosine_similarity(mine, theirs, dim=0)
        return 2 / examples * mine.dot(theirs) - mine.dot(mine) / examples**2
