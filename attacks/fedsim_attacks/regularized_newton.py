"""Regularized Newton: an image of a trained model from afar, by a few dozen large, solved steps, not hundreds of small ones.

Paper: no publication of this attack is known to us. The method, of Bakushinskii (1992), is in Kaltenbacher, Neubauer, Scherzer.
"Iterative Regularization Methods for Nonlinear Ill-Posed Problems". De Gruyter 2008. https://doi.org/10.1515/9783110208276

Idea: a trained model's loss surface is full of narrow, curved valleys, in which a descent stalls at the first bend. Here
every step solves for the whole image: the one that best explains the gradient as linearized at the last, among images with
the spectrum of photographs. How far the gradient is trusted beside the spectrum follows what is left of it. Of a plain ViT,
what the last block has seen of each image is worked out first (`newton.last_block`): images are fitted to that to start
from, and it stays beside the gradient in what is solved for. Further starts are near grey, and smooth images whose head
input is nearest to that of the client's. Each is followed for a few steps until one is accepted, and the best to the end.
Levenberg-Marquardt, the refinement of `token_matching`, goes on from there.

Differs from the paper: the book has no neural network in mind, and regularization falls there by a fixed sequence, here with
what is left. Systems are solved by conjugate gradients, on products through the graph of the gradient, and a step is shortened
until it helps.

Needs: grants `batch_size`, `normalization`; one gradient of known scale, without dropout. Uses `labels`, `train_mode`,
`training` and `defenses` where granted; with noise of known size it stops where true images would. Cost: two passes through
the model for each step of a fit, up to 250 for one of Newton's, three times as many for one of the refinement. Made for one
or two images: of more, the steps mix them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import progress
from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Images, Observation
from fedsim_attacks.head import NearestStarts, read_head_inputs
from fedsim_attacks.matching import BLIND, Attempt, Box, Reached, TriedStart, accept, shown_steps, trajectory
from fedsim_attacks.newton import (
    DCTStarts,
    Iterate,
    IterativeRegularization,
    LastBlockResidual,
    LevenbergMarquardt,
    Residual,
    StartFeatures,
    above_noise,
    gauss_newton,
    obstacle,
    read_last_block,
)
from fedsim_attacks.priors import Spectrum


@dataclass(frozen=True, kw_only=True)
class RegularizedNewton(Attack):
    """Solve for images, again and again, until their gradient is the observed one.

    Args:
        positions: weight of the position embedding's gradient, each row in units of its own norm, beside all tensors.
        multi_start: starts at most that are tried: fitted to what the last block has seen, near grey, chosen by recovered head
            inputs.
        fit_steps: of Adam, for a fitted start; with 0 the last block is not looked at.
        multi_start_steps: of each start.
        acceptance_threshold: share that may be left after these, at which no other start is tried.
        steps: from the best start on.
        refinement_steps: of Levenberg-Marquardt after these.
        solver_iterations: of conjugate gradients, at most, for a step; twice as many for one of Levenberg-Marquardt.
        device: `auto` takes an accelerator where there is one.
        aware: whether the client's defenses are modeled, as far as grants and the update tell of them.
    """

    citation: ClassVar[str] = (
        "Regularized Newton, this project; after Kaltenbacher, Neubauer, Scherzer. Iterative Regularization Methods for "
        "Nonlinear Ill-Posed Problems. De Gruyter 2008. https://doi.org/10.1515/9783110208276"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size", "normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images", "labels"})
    applies: ClassVar[Applicability] = Applicability(pictures=2, steps=1)
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "trials": "multi_start",
            "trial_steps": "multi_start_steps",
            "promising": "acceptance_threshold",
            "polish_steps": "refinement_steps",
        }
    )

    positions: float = 10.0
    multi_start: int = 6
    fit_steps: int = 1000
    multi_start_steps: int = 12
    acceptance_threshold: float = 0.3
    steps: int = 60
    refinement_steps: int = 24
    solver_iterations: int = 40
    device: str = "auto"
    aware: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("multi_start", 1),
            ("fit_steps", 0),
            ("multi_start_steps", 1),
            ("steps", 0),
            ("refinement_steps", 0),
            ("solver_iterations", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}.")
        for name in ("positions", "acceptance_threshold"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}.")

    def plain(self) -> Attack | None:
        """Return the attack that models no defense, of what the update shows neither."""
        return replace(self, aware=False) if self.aware else None

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Solve for the images; draws the labels' reference images and the starts."""
        attempt = Attempt.of(observation, generator, self.device, self.aware)
        defended, response = attempt.defended, attempt.response
        if reason := obstacle(response, defended.target):
            raise AttackRefusedError(f"{reason}, and this attack solves for one gradient. Use token_matching.")
        seen = self._start_features(attempt)
        residual = Residual(response, {}, defended.target, self.positions, defended.sent)
        if seen.block is not None:
            residual = LastBlockResidual(response, {}, defended.target, self.positions, defended.sent, block=seen.block)
        spectrum = Spectrum.of(observation.image_shape, attempt.normalization, attempt.device)
        starts = DCTStarts(seen, spectrum, self.fit_steps, generator)
        chosen = accept(self._tried(residual, starts), self.multi_start, self.acceptance_threshold)
        level = residual.level(defended.deviation)
        followed = list(above_noise(self._iterates(residual, spectrum, chosen.end, attempt.box), level))
        left = [iterate.residual for iterate in followed]
        trace = {"left": left, "multi_start": list(chosen.reached), "aware": list(defended.active)}
        shown = sorted(shown_steps(len(followed) - 1))
        way = trajectory(shown, lambda place: followed[shown[place]].images, left, attempt.normalization)
        best = min(followed, key=lambda iterate: iterate.residual)
        return attempt.finding(Reached(best.images, attempt.known.labels, trace, (attempt.doubt, seen.doubt), way))

    def _start_features(self, attempt: Attempt) -> StartFeatures:
        """Return what the classifier and the last block have seen of the images."""
        defended, target, labels = attempt.defended, attempt.defended.target, attempt.known.labels
        try:
            wanted = read_head_inputs(attempt.observation, target.model, labels, attempt.generator)
        except AttackRefusedError as error:
            return StartFeatures(len(labels), None, None, f"{BLIND}{error}")
        shape = attempt.observation.image_shape
        found = NearestStarts(target.model, wanted, attempt.normalization, shape, lambda images: images)

        def nearest(generator: torch.Generator) -> Images:
            return found.draw(1, generator)[0]

        # Noise is multiplied on the way to the last block, and masked positions change what it sees.
        if not self.fit_steps or defended.deviation or defended.hidden is not None:
            return StartFeatures(len(labels), nearest, None, None)
        try:
            gradients = dict(zip(target.names, target.gradients, strict=True))
            block = read_last_block(target.model, gradients, attempt.response.labels, wanted)
        except AttackRefusedError as error:
            return StartFeatures(
                len(labels), nearest, None, f"No start is fitted to what the last block has seen: {error}"
            )
        return StartFeatures(len(labels), nearest, block, None)

    def _tried(self, residual: Residual, starts: DCTStarts) -> Iterator[TriedStart[Iterate]]:
        """Follow one start after the other for a few steps."""
        tried: list[Iterate] = []
        for start in starts.draw(
            lambda error: progress.advance(len(tried) * self.multi_start_steps, self._total, error)
        ):
            for step, here in enumerate(self._solve(residual, starts.spectrum, start, self.multi_start_steps)):
                progress.advance(len(tried) * self.multi_start_steps + step, self._total, here.residual)
            tried.append(here)
            yield TriedStart(here, here.residual)

    def _solve(self, residual: Residual, spectrum: Spectrum, start: Tensor, count: int) -> Iterator[Iterate]:
        return gauss_newton(residual, start, IterativeRegularization(spectrum, self.solver_iterations), count)

    @property
    def _total(self) -> int:
        return self.multi_start * self.multi_start_steps + self.steps + self.refinement_steps

    def _iterates(self, residual: Residual, spectrum: Spectrum, start: Iterate, box: Box) -> Iterator[Iterate]:
        """Yield the accepted start, every step from there, and every one of the refinement from the best of these."""
        before, best = self.multi_start * self.multi_start_steps, start
        for step, here in enumerate(self._solve(residual, spectrum, start.coordinates, self.steps)):
            progress.advance(before + step, self._total, here.residual)
            best = min(best, here, key=lambda iterate: iterate.residual)
            yield here
        damping = LevenbergMarquardt(box.confine, "exact", 2 * self.solver_iterations)
        steps = gauss_newton(residual, box.confine(best.images), damping, self.refinement_steps)
        for step, here in enumerate(steps):
            progress.advance(before + self.steps + step, self._total, here.residual)
            if step:
                yield here
