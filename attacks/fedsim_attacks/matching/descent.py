"""Descent on images until their gradient is the observed one: what every gradient-matching attack is a composition of.

An attack of this kind is a set of parameters: how gradients are compared, which priors hold the images, how the images
move, from how many starts. The presets named after papers are other defaults of the same parameters (`parameters`). Here a
run is put together: `update.target` reads the update, `update.client_gradient` says what the client computed, `terms` makes
the objective, `input_gradients` differentiates, `multi_start` chooses the start, `optimizers` moves, `search` is the loop, and
`refinement` refines.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim.attack import Attack
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Images, Observation
from fedsim.models import has_own_loss, patch_grid
from fedsim.seeds import seeded
from fedsim_attacks.matching import consensus
from fedsim_attacks.matching.attempt import Attempt, Reached, trajectory
from fedsim_attacks.matching.discrepancy import Discrepancy
from fedsim_attacks.matching.input_gradients import DoubleBackward, ForwardDifference, InputGradients, choose
from fedsim_attacks.matching.knowledge import Knowledge
from fedsim_attacks.matching.multi_start import OtherStarts, Start, choose_start
from fedsim_attacks.matching.objective import Objective
from fedsim_attacks.matching.optimizers import OPTIMIZERS, Optimizer, OptimizerKind, Settings
from fedsim_attacks.matching.parameters import Parameters
from fedsim_attacks.matching.refinement import Refined, RefinementStage, unrefined
from fedsim_attacks.matching.search import Iterates, RunSchedule, Variables, search
from fedsim_attacks.matching.starts import IMAGES, Box, enlarged
from fedsim_attacks.matching.terms import Parts
from fedsim_attacks.update import HALFWAY, LABELS, PATH, ClientGradient, OneGradient, Surrogate

_CURVE_POINTS = 50
_PATH_RATE = 1e-3  # Zhu et al., SME: learning rate of the place between the weights
_LABEL_RATE = 0.1
_TRIED = 0.2  # of the steps; after as many, a start in a wrong basin has stopped to improve


@dataclass(frozen=True, kw_only=True)
class Descent(Parameters):
    """An attack that descends on images; the parameters are those of `Parameters`."""

    stream: ClassVar[str] = "descent"  # of random numbers that the model draws

    def plain(self) -> Attack | None:
        """Return the attack that models no defense, of what the update shows neither."""
        return replace(self, aware=False) if self.aware else None

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Match the gradient; draws the labels' reference images, the starts, and dropout in training mode."""
        if observation.labels is None and not self.optimize_labels and has_own_loss(observation.model()):
            return replace(self, optimize_labels=True).run(observation, generator)
        attempt = Attempt.of(
            observation, generator, self.device, self.aware, self.layers, self.optimize_labels, self.local
        )
        defended, response, box = attempt.defended, attempt.response, attempt.box
        target, labels, normalization = defended.target, attempt.known.labels.to(attempt.device), attempt.normalization
        seed = int(torch.randint(2**62, (), generator=generator))
        with seeded(seed, self.stream):
            known = Knowledge(observation, target, labels, normalization, generator)
            parts = Parts(self, known, defended.deviation)
            terms = parts.gradient_terms()
            priors, skipped = parts.image_terms()
            starts = self._starts(observation, response, box, generator)
            discrepancy = None
            if defended.deviation:
                discrepancy = Discrepancy.of(defended, parts, bool(priors) and self._optimizer.allows_changes)
                terms = discrepancy.terms()
            objective = Objective(response, self._images(), normalization, terms, priors, defended.sent)
            input_gradients = self._input_gradients(objective, starts)
            noise = functools.partial(self._starts, observation, response, box, generator)
            others = OtherStarts(known, noise, functools.partial(enlarged, factor=self.resolution), generator)
            follow = functools.partial(self._followed, input_gradients, box)
            enough = self.acceptance_threshold * (self.matching + self.positions)
            chosen = choose_start(Start(starts), others, follow, self.multi_start, enough)
            runs = self._search(input_gradients, chosen.end, box, generator, discrepancy)
            best = min(runs, key=lambda iterates: iterates.loss)
            if not math.isfinite(best.loss):
                raise AttackRefusedError("the objective was never a number: the gradient of the images overflows.")
            bare = unrefined(response, defended, self) if self.refinement != "none" else ""
            stage = RefinementStage(self, input_gradients, self._agree, defended, box.confine, self._total)
            refined = stage.run(best) if bare is None else Refined()
        trace = {
            "loss": best.loss,
            "step": best.step,
            "restart": runs.index(best),
            "input_gradients": "forward_difference"
            if isinstance(input_gradients, ForwardDifference)
            else "double_backward",
            "curves": [iterates.losses[:: max(1, len(iterates.losses) // _CURVE_POINTS)] for iterates in runs],
            "multi_start": list(chosen.reached),
            "start": chosen.end.kind,
            "refinement": list(refined.left),
            "products": refined.products,
            "aware": list(defended.active),
            "trust": discrepancy.factors if discrepancy else None,
        }
        if PATH in best.variables:
            trace["path"] = float(best.variables[PATH])
        labels = attempt.known.labels
        if LABELS in best.variables:
            labels = best.variables[LABELS].argmax(1).cpu()
        steps, frames = zip(*best.frames, strict=True)
        shown = trajectory(steps, frames.__getitem__, best.losses, normalization)
        images = input_gradients.objective.to_images(best.variables)
        return attempt.finding(Reached(images, labels, trace, (attempt.doubt, others.doubt, *skipped, bare), shown))

    def _input_gradients(self, objective: Objective, starts: Variables) -> InputGradients:
        if self.precision == "bfloat16":
            objective = replace(objective, response=replace(objective.response, is_bfloat16=True))
        if self.input_gradients == "double_backward":
            return DoubleBackward(objective)
        if self.input_gradients == "forward_difference":
            if not isinstance(objective.response, OneGradient):
                raise AttackRefusedError(
                    "input_gradients: forward_difference reads one gradient, and this delta holds several."
                )
            return ForwardDifference(objective)
        return choose(objective, starts)

    def _starts(
        self, observation: Observation, response: ClientGradient, box: Box, generator: torch.Generator
    ) -> Variables:
        """Return the variables of every restart at their starts."""
        channels, *sides = observation.image_shape
        if any(side % self.resolution for side in sides):
            raise AttackRefusedError(f"resolution: {self.resolution} does not divide images of {sides[0]} pixels.")
        count, height, width = len(response.labels), *(side // self.resolution for side in sides)
        shape = (self.restarts, count, channels, height, width)
        drawn = torch.randn(shape, generator=generator)
        if self.initial == "tiles":
            tile = patch_grid(response.model).patch // self.resolution or 1
            rows, columns = (torch.arange(side) % tile for side in (height, width))
            drawn = drawn[..., rows, :][..., columns]
        device = box.low.device
        images = (box.low + box.high) / 2 + self.initial_scale * drawn.to(device)
        variables = {IMAGES: images}
        if self._optimizer.allows_changes:
            variables[IMAGES] = box.confine(images)
        if self.optimize_labels and observation.labels is None:
            variables[LABELS] = torch.randn(self.restarts, count, observation.num_classes, generator=generator).to(
                device
            )
        if isinstance(response, Surrogate):
            variables[PATH] = torch.full((self.restarts,), HALFWAY, device=device)
        return variables

    def _followed(self, input_gradients: InputGradients, box: Box, start: Start, number: int) -> float:
        """Return which objective a start reaches in the first steps, after `number` others."""
        noise = torch.Generator().manual_seed(number)  # so that trying a start leaves the run's own noise as it is
        own: Variables = {n: nn.Parameter(tensor.clone()) for n, tensor in start.variables.items()}
        before = number * self._tried_steps
        schedule = RunSchedule(self.steps, self.schedule, self.warm_up, 0, 0.0, before, self._total, self._tried_steps)
        optimizer = self._make_optimizer(own, noise, start.pace)
        return min(
            iterates.loss
            for iterates in search(input_gradients, own, optimizer, schedule, self._confine(box), self._agree)
        )

    @property
    def _tried_steps(self) -> int:
        return math.ceil(_TRIED * self.steps)

    @property
    def _multi_start_steps(self) -> int:
        return self.multi_start * self._tried_steps if self.multi_start > 1 else 0

    def _search(
        self,
        input_gradients: InputGradients,
        start: Start,
        box: Box,
        generator: torch.Generator,
        discrepancy: Discrepancy | None,
    ) -> list[Iterates]:
        """Return one iterates a restart."""
        at_once = self.restarts // self._runs
        grows_at = max((use.start for use in self.prior_uses), default=0.0)
        runs: list[Iterates] = []
        for run in range(self._runs):
            span = slice(run * at_once, (run + 1) * at_once)
            own: Variables = {n: nn.Parameter(tensor[span].clone()) for n, tensor in start.variables.items()}
            schedule = RunSchedule(
                self.steps,
                self.schedule,
                self.warm_up,
                self.patience,
                grows_at,
                self._multi_start_steps + run * self.steps,
                self._total,
            )
            optimizer = self._make_optimizer(own, generator, start.pace)
            runs += search(input_gradients, own, optimizer, schedule, self._confine(box), self._agree, discrepancy)
        return runs

    @property
    def _total(self) -> int:
        """Steps of all starts that are tried, all runs and the refinement, for the display."""
        return (
            self._multi_start_steps
            + self._runs * self.steps
            + (self.refinement_steps if self.refinement != "none" else 0)
        )

    @property
    def _runs(self) -> int:
        """How many descents there are, one after the other."""
        return 1 if self._optimizer.in_batch else self.restarts

    @property
    def _optimizer(self) -> OptimizerKind:
        return OPTIMIZERS.find(self.optimizer)

    def _make_optimizer(self, variables: Variables, generator: torch.Generator, factor: float) -> Optimizer:
        rates = {IMAGES: factor * self.learning_rate, LABELS: _LABEL_RATE, PATH: _PATH_RATE}
        present = {name: rates[name] for name in variables}
        return self._optimizer.make(Settings(present, IMAGES, self.noise, generator))

    def _confine(self, box: Box) -> Callable[[Variables], None]:
        def confine(variables: Variables) -> None:
            if self._optimizer.allows_changes:
                with torch.no_grad():
                    variables[IMAGES].clamp_(box.low, box.high)
            if PATH in variables:
                with torch.no_grad():
                    variables[PATH].clamp_(0, 1)

        return confine

    def _agree(self, variables: Mapping[str, Tensor]) -> Images | None:
        if not self.group:
            return None
        pictures = variables[IMAGES].detach()
        return enlarged(
            consensus.registered(pictures) if self.registered else consensus.lazy(pictures), self.resolution
        )

    def _images(self) -> Callable[[Mapping[str, Tensor]], Images]:
        return lambda variables: enlarged(variables[IMAGES], self.resolution)
