"""The terms of an optimization attack's objective, from its parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim_attacks.matching.distances import DISTANCES, TopK, cosine, row_cosine
from fedsim_attacks.matching.knowledge import Knowledge
from fedsim_attacks.matching.objective import Candidate, GradientTerm, ImageTerm, Weight, constant, switched
from fedsim_attacks.matching.parameters import Parameters
from fedsim_attacks.matching.priors import SkippedPriorError
from fedsim_attacks.priors import length
from fedsim_attacks.update import NO_SCALE, POSITIONS, Gradients, Scalar, Target, signal_share


@dataclass(frozen=True, eq=False)
class Parts:
    """What the terms of one run are made from.

    Args:
        attack: whose parameters weigh them.
        known: what it knows of the update.
        deviation: standard deviation of the noise in the target; what is noise alone does not count.
    """

    attack: Parameters
    known: Knowledge
    deviation: float = 0.0

    @property
    def target(self) -> Target:
        """What the attack is to reach."""
        return self.known.target

    def gradient_terms(self) -> list[GradientTerm]:
        """Return the terms that match the gradient.

        Raises:
            AttackRefusedError: the update lacks what a term reads.
        """
        attack, terms = self.attack, []
        if attack.matching:
            terms.append(GradientTerm(self._phased(attack.matching), self._distance()))
        if attack.positions:
            terms.append(GradientTerm(self._phased(attack.positions), self._positions()))
        return terms

    def _phased(self, weight: float) -> Weight:
        return switched(weight, weight * self.attack.matching_after, self.attack.second_phase)

    def image_terms(self) -> tuple[list[ImageTerm], list[str]]:
        """Return the terms of the images alone, and cautions for those that were left out.

        Raises:
            AttackRefusedError: what a term reads is not there.
        """
        terms, skipped = [], []
        for use in self.attack.prior_uses:
            try:
                terms.append(use.term(self.known))
            except SkippedPriorError as error:
                skipped.append(str(error))
        if self.attack.group:
            terms.append(ImageTerm(constant(self.attack.group), _apart))
        return terms, skipped

    def _distance(self) -> Callable[[Gradients], Scalar]:
        attack, observed = self.attack, self.target.gradients
        distance = DISTANCES.find(attack.distance)
        if distance.is_scaled and not self.target.is_scaled:
            raise AttackRefusedError(f"{NO_SCALE}. Use distance: cosine.")
        measure: Callable[[Gradients, Gradients], Scalar] = distance
        if distance.weighted is not None and self.deviation:
            measure = functools.partial(_weighted, distance.weighted, signal_share(observed, self.deviation))
        if attack.top_k == 1:
            return lambda gradients: measure(gradients, observed)
        top = TopK.of(observed, attack.top_k)
        kept = top(observed)
        return lambda gradients: measure(top(gradients), kept)

    def _positions(self) -> Callable[[Gradients], Scalar]:
        place = self.target.place(POSITIONS)
        if place is None:
            raise AttackRefusedError(
                f"the gradient of {POSITIONS} is zero or missing from the update: the model learns no positions, or the "
                "client froze or did not share them, or `layers` leave them out. Use inverting_gradients."
            )
        observed = self.target.gradients[place]
        if self.attack.per_token:
            seen = observed.square().sum(-1)[0] > 0  # a masked position has no gradient, and no direction
            rows = observed[:, seen]
            shares = signal_share(list(rows[0]), self.deviation) if self.deviation else None
            return lambda gradients: row_cosine(gradients[place][:, seen], rows, shares)
        return lambda gradients: cosine([gradients[place]], [observed])


def _apart(candidate: Candidate) -> Scalar:
    assert candidate.consensus is not None
    return length(candidate.images - candidate.consensus)


def _weighted(
    distance: Callable[[Gradients, Gradients, Tensor], Scalar], shares: Tensor, found: Gradients, observed: Gradients
) -> Scalar:
    return distance(found, observed, shares)
