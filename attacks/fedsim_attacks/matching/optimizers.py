"""How variables move down a gradient: optimizers, their rate over time, and noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.registry import Registry
from fedsim_attacks.matching.input_gradients import Evaluation

Schedule = Literal["constant", "cosine", "step"]
Evaluate = Callable[[Mapping[str, Tensor]], Evaluation]

_DROPS = (3 / 8, 5 / 8, 7 / 8)  # Geiping et al., appendix: learning rate times 0.1 at each
_HISTORY = 20  # steps whose curvature L-BFGS keeps, and trials of a line search; torch keeps 100 unless told


def rate(schedule: Schedule, warm_up: float, progress: float) -> float:
    """Return the factor of the learning rate.

    Args:
        schedule: `constant`; `cosine`, down to zero; `step`, a tenth after 3/8, 5/8 and 7/8 of the steps.
        warm_up: share of the steps in which it rises linearly from zero.
        progress: share of the steps that is done.
    """
    rise = min(1.0, progress / warm_up) if warm_up else 1.0
    if schedule == "cosine":
        return rise * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "step":
        return rise * 0.1 ** sum(progress >= drop for drop in _DROPS)
    return rise


class Optimizer(ABC):
    """Moves variables in place, step by step."""

    @abstractmethod
    def step(self, variables: Mapping[str, Tensor], evaluate: Evaluate, factor: float) -> Evaluation:
        """Move the variables once, and return value and gradient where they were.

        Args:
            variables: leaf tensors, changed in place.
            evaluate: value and gradient of the objective at given variables.
            factor: of every learning rate.
        """


class Adam(Optimizer):
    """Adam (Kingma, Ba, ICLR 2015), on the gradient or on its sign, all restarts in one.

    Args:
        rates: learning rate of each variable.
        is_signed: whether Adam sees the sign of the gradient of the images alone.
        signed: the variables that this concerns.
        noise: standard deviation of the noise that every move adds to these, in units of their learning rate (Langevin).
        generator: draws the noise.
    """

    def __init__(
        self, rates: Mapping[str, float], is_signed: bool, signed: str, noise: float, generator: torch.Generator
    ) -> None:
        self.rates, self.is_signed, self.signed, self.noise = rates, is_signed, signed, noise
        self.generator = generator
        self.optimizer: torch.optim.Adam | None = None

    def step(self, variables: Mapping[str, Tensor], evaluate: Evaluate, factor: float) -> Evaluation:
        """Move by one step of Adam."""
        if self.optimizer is None:
            groups = [{"params": [variables[name]], "lr": rate, "name": name} for name, rate in self.rates.items()]
            self.optimizer = torch.optim.Adam(groups)
        found = evaluate(variables)
        for group in self.optimizer.param_groups:
            name = group["name"]
            gradient = found.gradients[name].nan_to_num(0, 0, 0)
            variables[name].grad = gradient.sign() if self.is_signed and name == self.signed else gradient
            group["lr"] = factor * self.rates[name]
        self.optimizer.step()
        if self.noise:
            moved = variables[self.signed]
            drawn = torch.randn(moved.shape, generator=self.generator).to(moved)
            with torch.no_grad():
                moved.add_(drawn, alpha=factor * self.rates[self.signed] * self.noise)
        return found


class LBFGS(Optimizer):
    """L-BFGS with a strong Wolfe line search; for one restart at a time, whose curvature is its own.

    Args:
        learning_rate: first length that the line search tries.
    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.optimizer: torch.optim.LBFGS | None = None

    def step(self, variables: Mapping[str, Tensor], evaluate: Evaluate, factor: float) -> Evaluation:
        """Move by one iteration of L-BFGS."""
        if self.optimizer is None:
            self.optimizer = torch.optim.LBFGS(
                list(variables.values()),
                lr=self.learning_rate,
                max_iter=1,
                max_eval=_HISTORY,
                history_size=_HISTORY,
                tolerance_grad=0,
                tolerance_change=0,
                line_search_fn="strong_wolfe",
            )
        seen: list[Evaluation] = []

        def closure() -> Tensor:
            found = evaluate(variables)
            seen.append(found)
            for name, tensor in variables.items():
                tensor.grad = found.gradients[name].nan_to_num(0, 0, 0)
            return found.values.sum()

        self.optimizer.param_groups[0]["lr"] = factor * self.learning_rate
        self.optimizer.step(closure)  # type: ignore[no-untyped-call]
        return seen[0]


class Settings(NamedTuple):
    """What an optimizer is made from.

    Args:
        rates: learning rate of each variable.
        images: the variable that holds the images.
        noise: standard deviation of the noise that every step adds to these, in units of their learning rate.
        generator: draws the noise.
    """

    rates: Mapping[str, float]
    images: str
    noise: float
    generator: torch.Generator


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer by name, and what a descent may do beside it.

    A new one is one entry: in `OPTIMIZERS`, or, of another distribution, in the entry-point group
    `fedsim_attacks.optimizers`.

    Args:
        make: makes one for a run.
        in_batch: whether all restarts move at once, in one batch; otherwise they run one after the other, alone, so that they
            agree on nothing and starts are not compared by their first steps.
        allows_changes: whether images may be clamped to the range of pixels, and weights of terms change, between its steps;
            not so where it learns curvature from one step to the next.
    """

    make: Callable[[Settings], Optimizer]
    in_batch: bool = True
    allows_changes: bool = True


def _adam(settings: Settings) -> Optimizer:
    return Adam(settings.rates, False, settings.images, settings.noise, settings.generator)


def _signed_adam(settings: Settings) -> Optimizer:
    return Adam(settings.rates, True, settings.images, settings.noise, settings.generator)


def _lbfgs(settings: Settings) -> Optimizer:
    return LBFGS(settings.rates[settings.images])


OPTIMIZERS: Registry[OptimizerKind] = Registry(
    "optimizer",
    "fedsim_attacks.optimizers",
    {
        "adam": OptimizerKind(_adam),
        "signed_adam": OptimizerKind(_signed_adam),
        "lbfgs": OptimizerKind(_lbfgs, in_batch=False, allows_changes=False),
    },
    lambda part: isinstance(part, OptimizerKind),
    "an `OptimizerKind` of fedsim_attacks.matching",
)
