"""The loop of an optimization attack: all restarts in one batch, the best iterate of each by what the attacker can observe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from fedsim import progress
from fedsim.exchange import Images
from fedsim_attacks.matching.attempt import shown_steps
from fedsim_attacks.matching.discrepancy import CHECKS, Discrepancy
from fedsim_attacks.matching.input_gradients import Slope, Slopes
from fedsim_attacks.matching.optimizers import Optimizer, Schedule, rate

Variables = dict[str, Tensor]  # (restart, ...) each


class Course(NamedTuple):
    """How long to go on, and how fast.

    Args:
        steps: at most.
        schedule: of the learning rate.
        warm_up: share of the steps in which it rises.
        patience: steps without progress after which the run ends, once the objective has grown; 0 for never.
        grows_at: share of the steps at which the objective grows a term, so that earlier values mean nothing; 0 for never.
        before: steps of earlier runs, of `total` in all; for the display.
        total: steps of all runs.
        until: step at which the run ends early; None for the last one.
    """

    steps: int
    schedule: Schedule
    warm_up: float
    patience: int
    grows_at: float
    before: int
    total: int
    until: int | None = None


@dataclass(eq=False)
class Trail:
    """Where one start has led.

    Args:
        losses: objective at every step.
        step: of the least objective, since it last grew a term.
        variables: there.
        frames: step and pictures, now and then.
    """

    losses: list[float] = field(default_factory=list)
    step: int = 0
    variables: dict[str, Tensor] = field(default_factory=dict)
    frames: list[tuple[int, Images]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Least objective; infinite where it never was a number."""
        return self.losses[self.step] if math.isfinite(self.losses[self.step]) else math.inf


def search(
    slopes: Slopes,
    variables: Variables,
    mover: Optimizer,
    course: Course,
    confine: Callable[[Variables], None],
    agree: Callable[[Variables], Images | None],
    discrepancy: Discrepancy | None = None,
) -> list[Trail]:
    """Descend from every start, and return one trail a restart; the last step evaluates alone.

    Args:
        slopes: of the objective.
        variables: starts, leaf tensors, changed in place.
        mover: of the variables.
        course: how long and how fast.
        confine: brings variables back to where they may be, after every step.
        agree: what the restarts agree on.
        discrepancy: of an update of known noise: changes the objective on the way, or ends the run.
    """
    trails = [Trail() for _ in next(iter(variables.values()))]
    shown = shown_steps(course.steps)
    for step in range(course.steps + 1):
        share = step / course.steps if course.steps else 0.0

        def evaluate(at: Mapping[str, Tensor], share: float = share) -> Slope:
            return slopes(at, agree(dict(at)), share)

        is_checked = discrepancy is not None and step % max(1, course.steps // CHECKS) == 0
        verdict = discrepancy.check(slopes.objective, variables) if discrepancy and is_checked else "go on"
        here = {name: tensor.detach().clone() for name, tensor in variables.items()}
        is_last = step in (course.until, course.steps) or verdict == "end"
        found = (
            evaluate(variables)
            if is_last
            else mover.step(variables, evaluate, rate(course.schedule, course.warm_up, share))
        )
        renew = course.grows_at > 0 and share >= course.grows_at > (step - 1) / max(course.steps, 1)
        renew = renew or verdict != "go on"
        for index, trail in enumerate(trails):
            _note(trail, step, float(found.values[index]), {n: t[index] for n, t in here.items()}, renew)
            if step in shown:
                trail.frames.append((step, slopes.objective.to_images(trail_at(here, index)).detach().cpu()))
        progress.advance(course.before + step, course.total, min(trail.losses[-1] for trail in trails))
        if course.patience and share >= course.grows_at and step - max(t.step for t in trails) >= course.patience:
            break
        if is_last:
            break
        confine(variables)
    return trails


def trail_at(variables: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the variables of one restart."""
    return {name: tensor[index] for name, tensor in variables.items()}


def _note(trail: Trail, step: int, loss: float, here: dict[str, Tensor], renew: bool) -> None:
    trail.losses.append(loss)
    if not trail.variables or renew or (math.isfinite(loss) and not trail.loss <= loss):
        trail.step, trail.variables = step, here
