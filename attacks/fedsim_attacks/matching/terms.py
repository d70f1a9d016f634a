"""The terms of an optimization attack's objective, from its parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from fedsim.errors import AttackRefusedError
from fedsim.exchange import Labels, Normalization, Observation
from fedsim.models import patch_grid
from fedsim_attacks.closed_form import RowSpace
from fedsim_attacks.head import head_input, read_head_inputs
from fedsim_attacks.matching.distances import DISTANCES, SCALED, Largest, cosine, row_cosine, tensor_cosine
from fedsim_attacks.matching.objective import Candidate, GradientTerm, PictureTerm, annealed, constant, switched
from fedsim_attacks.matching.parameters import Parameters
from fedsim_attacks.priors import has_efficientnet_lite0, length, load_prior, seams, total_variation
from fedsim_attacks.update import POSITIONS, Gradients, Scalar, Target, signal_share


@dataclass(frozen=True, eq=False)
class Parts:
    """What the terms of one run are made from.

    Args:
        attack: whose parameters weigh them.
        observation: what it may know.
        target: what it is to reach.
        labels: of the pictures.
        normalization: of the model's input.
        generator: draws what a term needs.
        deviation: standard deviation of the noise in the target; what is noise alone does not count.
    """

    attack: Parameters
    observation: Observation
    target: Target
    labels: Labels
    normalization: Normalization
    generator: torch.Generator
    deviation: float = 0.0

    def gradient_terms(self) -> list[GradientTerm]:
        """Return the terms that match the gradient.

        Raises:
            AttackRefusedError: the update lacks what a term reads.
        """
        attack, terms = self.attack, []
        share = attack.matching_after
        if attack.matching:
            weight = switched(attack.matching, attack.matching * share, attack.prior_from)
            terms.append(GradientTerm(weight, self._distance()))
        if attack.positions:
            weight = switched(attack.positions, attack.positions * share, attack.prior_from)
            terms.append(GradientTerm(weight, self._positions()))
        return terms

    def picture_terms(self) -> list[PictureTerm]:
        """Return the terms of the pictures alone, those with a weight.

        Raises:
            AttackRefusedError: what a term reads is not there.
        """
        attack, terms = self.attack, []
        if attack.total_variation:
            last = attack.total_variation if attack.total_variation_end is None else attack.total_variation_end
            weight = annealed(attack.total_variation, last, attack.hold)
            terms.append(PictureTerm(weight, lambda candidate: total_variation(candidate.pixels)))
        if attack.seams:
            side = patch_grid(self.target.model).patch
            terms.append(PictureTerm(constant(attack.seams), lambda candidate: seams(candidate.pixels, side)))
        if attack.norm:
            terms.append(PictureTerm(constant(attack.norm), lambda candidate: length(candidate.images)))
        if attack.group:
            terms.append(PictureTerm(constant(attack.group), _apart))
        if attack.statistics and (network := self.network()):
            prior = load_prior(network, attack.prior_weights, self.observation, "relative")
            weight = switched(0.0, attack.statistics, attack.prior_from)
            terms.append(PictureTerm(weight, lambda candidate: prior(candidate.pixels)))
        if attack.features:
            terms.append(PictureTerm(constant(attack.features), self._features()))
        if attack.row_space:
            terms.append(PictureTerm(constant(attack.row_space), self._span()))
        return terms

    def network(self) -> str | None:
        """Return which network holds the statistics: the one named, or what there is; None where there is none."""
        if self.attack.prior_network != "auto":
            return self.attack.prior_network
        if self.observation.auxiliary_data is not None:
            return "auxiliary"
        return "efficientnet_lite0" if has_efficientnet_lite0() else None

    def _distance(self) -> Callable[[Gradients], Scalar]:
        attack, observed = self.attack, self.target.gradients
        if attack.distance in SCALED and not self.target.is_scaled:
            raise AttackRefusedError("the scale of this delta is unknown without `training`; use distance: cosine.")
        distance = DISTANCES[attack.distance]
        if attack.distance == "tensor_cosine" and self.deviation:
            distance = functools.partial(tensor_cosine, shares=signal_share(observed, self.deviation))
        if attack.largest == 1:
            return lambda gradients: distance(gradients, observed)
        largest = Largest.of(observed, attack.largest)
        kept = largest(observed)
        return lambda gradients: distance(largest(gradients), kept)

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

    @cached_property
    def head_inputs(self) -> Float[Tensor, "batch embed"]:
        """Head inputs of the client's pictures, in the order of the labels, as its classifier's gradient shows them.

        Raises:
            AttackRefusedError: it does not show them.
        """
        return read_head_inputs(self.observation, self.target.model, self.labels, self.generator)

    def _features(self) -> Callable[[Candidate], Scalar]:
        model, goal = self.target.model, self.head_inputs
        size = goal.square().sum(1)

        def distance(candidate: Candidate) -> Scalar:
            found = head_input(model, candidate.images)
            return ((found - goal).square().sum(1) / size).mean()

        return distance

    def _span(self) -> Callable[[Candidate], Scalar]:
        space = RowSpace.of(self.observation)
        if not space.is_informative:
            raise AttackRefusedError(
                f"row_space: this update holds {space.patches} patches or more, and the gradient of the patch projection "
                f"can show {space.limit} directions, so none is left to penalize. Set it to 0."
            )
        return lambda candidate: space.penalty(candidate.images)


def _apart(candidate: Candidate) -> Scalar:
    assert candidate.consensus is not None
    return length(candidate.images - candidate.consensus)
