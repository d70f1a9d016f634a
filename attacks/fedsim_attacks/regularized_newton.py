"""Regularized Newton: a picture of a trained model from afar, by a few dozen large, solved steps, not hundreds of small ones.

Paper: no publication of this attack is known to us. The method, of Bakushinskii (1992), is in Kaltenbacher, Neubauer, Scherzer.
"Iterative Regularization Methods for Nonlinear Ill-Posed Problems". De Gruyter 2008. https://doi.org/10.1515/9783110208276

Idea: a trained model's loss surface is full of narrow, curved valleys, in which a descent stalls on the first slope. Here
every step solves for the whole picture: the one that best explains the gradient as linearized at the last, among pictures with
the spectrum of photographs. How far the gradient is trusted beside the spectrum follows what is left of it. Of a plain ViT,
what the last block has seen of each picture is worked out first (`newton.last_block`): pictures are fitted to that to start
from, and it stays beside the gradient in what is solved for. Further starts are near grey, and smooth pictures whose head
input is nearest to that of the client's. Each is followed for a few steps until one is promising, and the best
to the end. Levenberg-Marquardt, the second stage of `token_matching`, goes on from there.

Differs from the paper: the book has no neural network in mind, and regularization falls there by a fixed sequence, here with
what is left. Systems are solved by conjugate gradients, on products through the graph of the gradient, and a step is shortened
until it helps.

Needs: grants `batch_size`, `normalization`; one gradient of known scale, without dropout. Uses `labels`, `train_mode`,
`training` and `defenses` where granted; with noise of known size it stops where true pictures would. Cost: two passes through
the model for each step of a fit, up to 250 for one of Newton's, three times as many for one of the second stage. Made for one
or two pictures: of more, the steps mix them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim import progress
from fedsim.applicability import Applicability
from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Film, Finding, Images, Labels, Normalization, Observation
from fedsim.models import patch_grid
from fedsim_attacks.closed_form import assess
from fedsim_attacks.head import NearestStarts, known_labels, read_head_inputs
from fedsim_attacks.matching import Box, frames
from fedsim_attacks.newton import (
    Iterate,
    IterativeRegularization,
    LevenbergMarquardt,
    Residual,
    Seen,
    Separated,
    WaveStarts,
    gauss_newton,
    obstacle,
    separate,
)
from fedsim_attacks.priors import Spectrum
from fedsim_attacks.update import Defended, Response, open_device, read_defenses, read_target, rearranged, respond


class _Chosen(NamedTuple):
    """The trial to follow, and what the pictures of all trials left, in their order."""

    tried: Iterate
    reached: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RegularizedNewton(Attack):
    """Solve for pictures, again and again, until their gradient is the observed one.

    Args:
        positions: weight of the position embedding's gradient, each row in units of its own norm, beside all tensors.
        trials: starts at most that are tried: fitted to what the last block has seen, near grey, chosen by recovered head
            inputs.
        fit_steps: of Adam, for a fitted start; with 0 the last block is not looked at.
        trial_steps: of each start.
        promising: share that may be left after a trial, at which no other start is tried.
        steps: from the best trial on.
        polish_steps: of Levenberg-Marquardt after these.
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

    positions: float = 10.0
    trials: int = 6
    fit_steps: int = 1000
    trial_steps: int = 12
    promising: float = 0.3
    steps: int = 60
    polish_steps: int = 24
    solver_iterations: int = 40
    device: str = "auto"
    aware: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("trials", 1),
            ("fit_steps", 0),
            ("trial_steps", 1),
            ("steps", 0),
            ("polish_steps", 0),
            ("solver_iterations", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}.")
        for name in ("positions", "promising"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Solve for the pictures; draws the labels' reference pictures and the starts."""
        normalization = observation.normalization
        if normalization is None:
            raise AttackRefusedError("normalization is not granted; pictures are solved for in normalized units.")
        device = open_device(self.device)
        target = read_target(observation, (), device)
        defended = read_defenses(observation, target) if self.aware else Defended(target)
        known = known_labels(observation, generator, False)
        response, doubt = respond(observation, defended.target, known.labels.to(device), "auto")
        if reason := obstacle(response, defended.target):
            raise AttackRefusedError(f"{reason}, and this attack solves for one gradient. Use token_matching.")
        seen = self._seen(observation, known.labels, response, defended, generator)
        residual = Residual(response, {}, defended.target, self.positions, defended.sent)
        if seen.block is not None:
            residual = Separated(response, {}, defended.target, self.positions, defended.sent, block=seen.block)
        spectrum = Spectrum.of(observation.image_shape, normalization, device)
        starts = WaveStarts(seen, spectrum, self.fit_steps, generator)
        chosen = self._choose(residual, starts)
        box = Box.of(observation.image_shape[0], normalization, device)
        followed = list(self._followed(residual, spectrum, chosen, box, residual.level(defended.deviation)))
        finding = Finding(
            images=_pixels(min(followed, key=lambda polished: polished.residual), normalization),
            labels=known.labels,
            trace={
                "left": [polished.residual for polished in followed],
                "trials": list(chosen.reached),
                "aware": list(defended.active),
            },
            cautions=tuple(c for c in (*known.cautions, *defended.cautions, doubt, seen.doubt) if c),
            film=_film(followed, normalization),
        )
        if defended.hidden is not None:
            finding = rearranged(finding, defended.hidden.cpu(), patch_grid(target.model), generator)
        return assess(finding, observation)

    def _seen(
        self,
        observation: Observation,
        labels: Labels,
        response: Response,
        defended: Defended,
        generator: torch.Generator,
    ) -> Seen:
        """Return what the classifier and the last block have seen of the pictures."""
        target = defended.target
        try:
            wanted = read_head_inputs(observation, target.model, labels, generator)
        except AttackRefusedError as error:
            doubt = f"Starts are drawn blindly, because the classifier's gradient does not show where to: {error}"
            return Seen(len(labels), None, None, doubt)
        normalization = observation.normalization
        assert normalization is not None
        found = NearestStarts(target.model, wanted, normalization, observation.image_shape, lambda images: images)

        def nearest(generator: torch.Generator) -> Images:
            return found.draw(1, generator)[0]

        if not self.fit_steps or defended.deviation:  # noise is multiplied on the way to the last block
            return Seen(len(labels), nearest, None, None)
        try:
            gradients = dict(zip(target.names, target.gradients, strict=True))
            block = separate(target.model, gradients, response.labels, wanted)
        except AttackRefusedError as error:
            return Seen(len(labels), nearest, None, f"No start is fitted to what the last block has seen: {error}")
        return Seen(len(labels), nearest, block, None)

    def _choose(self, residual: Residual, starts: WaveStarts) -> _Chosen:
        """Return the first trial that is promising, or the best of all."""
        tried: list[Iterate] = []
        for start in starts.draw(lambda error: progress.advance(len(tried) * self.trial_steps, self._total, error)):
            for step, here in enumerate(self._solve(residual, starts.spectrum, start, self.trial_steps)):
                progress.advance(len(tried) * self.trial_steps + step, self._total, here.residual)
            tried.append(here)
            if len(tried) == self.trials or here.residual <= self.promising:
                break
        reached = tuple(each.residual for each in tried)
        return _Chosen(tried[reached.index(min(reached))], reached)

    def _solve(self, residual: Residual, spectrum: Spectrum, start: Tensor, count: int) -> Iterator[Iterate]:
        return gauss_newton(residual, start, IterativeRegularization(spectrum, self.solver_iterations), count)

    @property
    def _total(self) -> int:
        return self.trials * self.trial_steps + self.steps + self.polish_steps

    def _followed(
        self, residual: Residual, spectrum: Spectrum, chosen: _Chosen, box: Box, level: float
    ) -> Iterator[Iterate]:
        """Yield the pictures of the chosen trial and of every step after it, while more is left than noise would leave."""
        before, best = self.trials * self.trial_steps, chosen.tried
        for step, here in enumerate(self._solve(residual, spectrum, chosen.tried.coordinates, self.steps)):
            progress.advance(before + step, self._total, here.residual)
            if step and here.residual < level:
                return
            best = min(best, here, key=lambda polished: polished.residual)
            yield here
        inside = box.confine(best.images)
        damping = LevenbergMarquardt(box.confine, "exact", 2 * self.solver_iterations)
        for step, polished in enumerate(gauss_newton(residual, inside, damping, self.polish_steps)):
            progress.advance(before + self.steps + step, self._total, polished.residual)
            if polished.residual < level:
                return
            if step:
                yield polished


def _pixels(polished: Iterate, normalization: Normalization) -> torch.Tensor:
    return normalization.denormalize(polished.images.detach().cpu()).clamp(0, 1)


def _film(followed: list[Iterate], normalization: Normalization) -> Film:
    shown = sorted(frames(len(followed) - 1))
    kept = [followed[step] for step in shown]
    images = torch.stack([_pixels(polished, normalization) for polished in kept])
    return Film(tuple(shown), images, tuple(polished.residual for polished in kept))
