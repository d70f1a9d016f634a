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
from fedsim_attacks.matching.input_gradients import Evaluation, InputGradients
from fedsim_attacks.matching.optimizers import Optimizer, Schedule, rate

Variables = dict[str, Tensor]  # (restart, ...) each


class RunSchedule(NamedTuple):
    """How long to go on, and how fast.

    Args:
        steps: at most.
        rate_schedule: of the learning rate.
        warm_up: share of the steps in which it rises.
        patience: steps without progress after which the run ends, once the objective has grown; 0 for never.
        grows_at: share of the steps at which the objective grows a term, so that earlier values mean nothing; 0 for never.
        before: steps of earlier runs, of `total` in all; for the display.
        total: steps of all runs.
        until: step at which the run ends early; None for the last one.
    """

    steps: int
    rate_schedule: Schedule
    warm_up: float
    patience: int
    grows_at: float
    before: int
    total: int
    until: int | None = None


@dataclass(eq=False)
class Iterates:
    """Where one start has led.

    Args:
        losses: objective at every step.
        step: of the least objective, since it last grew a term.
        variables: there.
        frames: step and images, now and then.
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
    input_gradients: InputGradients,
    variables: Variables,
    optimizer: Optimizer,
    schedule: RunSchedule,
    confine: Callable[[Variables], None],
    agree: Callable[[Variables], Images | None],
    discrepancy: Discrepancy | None = None,
) -> list[Iterates]:
    """Descend from every start, and return one iterates a restart; the last step evaluates alone.

    Args:
        input_gradients: of the objective.
        variables: starts, leaf tensors, changed in place.
        optimizer: of the variables.
        schedule: how long and how fast.
        confine: brings variables back to where they may be, after every step.
        agree: what the restarts agree on.
        discrepancy: of an update of known noise: changes the objective on the way, or ends the run.
    """
    runs = [Iterates() for _ in next(iter(variables.values()))]
    shown = shown_steps(schedule.steps)
    for step in range(schedule.steps + 1):
        share = step / schedule.steps if schedule.steps else 0.0

        def evaluate(at: Mapping[str, Tensor], share: float = share) -> Evaluation:
            return input_gradients(at, agree(dict(at)), share)

        is_checked = discrepancy is not None and step % max(1, schedule.steps // CHECKS) == 0
        verdict = discrepancy.check(input_gradients.objective, variables) if discrepancy and is_checked else "go on"
        here = {name: tensor.detach().clone() for name, tensor in variables.items()}
        is_last = step in (schedule.until, schedule.steps) or verdict == "end"
        found = (
            evaluate(variables)
            if is_last
            else optimizer.step(variables, evaluate, rate(schedule.rate_schedule, schedule.warm_up, share))
        )
        renew = schedule.grows_at > 0 and share >= schedule.grows_at > (step - 1) / max(schedule.steps, 1)
        renew = renew or verdict != "go on"
        for index, iterates in enumerate(runs):
            _note(iterates, step, float(found.values[index]), {n: t[index] for n, t in here.items()}, renew)
            if step in shown:
                iterates.frames.append(
                    (step, input_gradients.objective.to_images(variables_at(here, index)).detach().cpu())
                )
        progress.advance(schedule.before + step, schedule.total, min(iterates.losses[-1] for iterates in runs))
        if schedule.patience and share >= schedule.grows_at and step - max(t.step for t in runs) >= schedule.patience:
            break
        if is_last:
            break
        confine(variables)
    return runs


def variables_at(variables: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the variables of one restart."""
    return {name: tensor[index] for name, tensor in variables.items()}


def _note(iterates: Iterates, step: int, loss: float, here: dict[str, Tensor], renew: bool) -> None:
    iterates.losses.append(loss)
    if not iterates.variables or renew or (math.isfinite(loss) and not iterates.loss <= loss):
        iterates.step, iterates.variables = step, here
