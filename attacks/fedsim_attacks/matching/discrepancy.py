"""The discrepancy principle: an update is matched as closely as its noise lets one tell, and no closer.

Where the true images themselves leave a known difference, images that leave less are fitted to the noise. So the weight of
every term of the matching falls while the term is below what noise leaves of it, and recovers while it is above: priors decide
all that the update does not. Where there is no prior, the run ends instead.

Source: Morozov, "On the solution of functional equations by the method of regularization". Soviet Math. Doklady 1966. That the
weight is adapted on the way, instead of one run for every weight, is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fedsim_attacks.matching.objective import GradientTerm, Objective, Weight
from fedsim_attacks.matching.terms import Parts
from fedsim_attacks.update import POSITIONS, Defended, Gradients, signal_share

Verdict = Literal["go on", "changed", "end"]

CHECKS = 50  # of a run
_EASE, _RECOVER = 0.8, 1.1  # factors of a weight at a check


class Discrepancy:
    """Weights of terms that follow how far each is from what noise leaves of it.

    Args:
        terms: of the matching.
        levels: value of each at the true images.
        has_prior: whether something else holds the images where the matching lets go.
    """

    def __init__(self, terms: Sequence[GradientTerm], levels: Sequence[float], has_prior: bool) -> None:
        self.own, self.levels, self.has_prior = terms, levels, has_prior
        self.factors = [1.0] * len(terms)

    @staticmethod
    def of(defended: Defended, parts: Parts, has_prior: bool) -> Discrepancy:
        """Return the weights for noise of known size; what it leaves of each term is found by drawing such noise.

        Args:
            defended: what is known of the noise.
            parts: of the terms; its generator draws.
            has_prior: whether something else holds the images.
        """
        clean, noisy = simulate(defended, parts.known.generator)
        known = replace(parts.known, target=parts.target._replace(gradients=noisy))
        rehearsal = replace(parts, known=known).gradient_terms()
        return Discrepancy(parts.gradient_terms(), [float(term.value(clean)) for term in rehearsal], has_prior)

    def terms(self) -> list[GradientTerm]:
        """Return the terms at their present weights, which follow."""
        return [GradientTerm(self._followed(index), term.value) for index, term in enumerate(self.own)]

    def check(self, objective: Objective, variables: Mapping[str, Tensor]) -> Verdict:
        """Adapt the weights to where the restarts are, on average; without a prior, tell to end where all levels are reached.

        Args:
            objective: with the terms above.
            variables: (restart, ...) each.
        """
        values = self._values(objective, variables)
        is_reached = [value <= level for value, level in zip(values, self.levels, strict=True)]
        if not self.has_prior:
            return "end" if all(is_reached) else "go on"
        before = list(self.factors)
        self.factors[:] = [
            factor * _EASE if reached else min(1.0, factor * _RECOVER)
            for factor, reached in zip(before, is_reached, strict=True)
        ]
        return "changed" if self.factors != before else "go on"

    def _values(self, objective: Objective, variables: Mapping[str, Tensor]) -> list[float]:
        found = []
        for index in range(len(next(iter(variables.values())))):
            own = {name: tensor[index].detach() for name, tensor in variables.items()}
            raw = objective.response.gradients(objective.to_images(own), own)
            gradients = objective.sent([gradient.detach() for gradient in raw])
            found.append(torch.stack([term.value(gradients) for term in self.own]))
        return torch.stack(found).mean(0).tolist()

    def _followed(self, index: int) -> Weight:
        return lambda progress: self.factors[index] * self.own[index].weight(progress)


def simulate(defended: Defended, generator: torch.Generator) -> tuple[Gradients, Gradients]:
    """Return a gradient as long as the observed one must have been before the noise, and itself with noise like the client's.

    Lengths are corrected tensor by tensor, row by row in the position embedding.

    Args:
        defended: what is known of the noise.
        generator: draws noise.
    """
    clean, noisy = [], []
    for name, observed in zip(defended.target.names, defended.target.gradients, strict=True):
        rows = observed[0] if name == POSITIONS else observed[None]
        share = signal_share(list(rows), defended.deviation).view(-1, *[1] * (rows.ndim - 1))
        before = (rows * share.sqrt()).view_as(observed)
        drawn = torch.randn(observed.shape, generator=generator).to(observed)
        clean.append(before)
        noisy.append(before + defended.deviation * drawn * (observed != 0))
    return clean, noisy
