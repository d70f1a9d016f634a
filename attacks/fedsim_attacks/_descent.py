"""Descent on pictures until their gradient is the observed one: what every gradient-matching attack shares.

An attack of this kind is a sum of weighted terms, each a function of a candidate: its pictures, and the gradient they
would have caused. The loop, its schedule, the restarts and the choice among them are here.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Images, Labels, Normalization, Observation
from fedsim.models import unfused_attention
from fedsim.seeds import seeded
from fedsim_attacks._gradient import local_steps, mean_gradient
from fedsim_attacks._labels import count_labels
from fedsim_attacks._matching import DISTANCES, Gradients, loss_gradient
from fedsim_attacks._priors import total_variation
from fedsim_attacks._row_space import RowSpace, assess

Scalar = Float[Tensor, ""]

_REFERENCES = 64
_CURVE_POINTS = 50
_DROPS = (3 / 8, 5 / 8, 7 / 8)  # Geiping et al., appendix: learning rate times 0.1 at each


class Target(NamedTuple):
    """What the descent is to reach.

    Args:
        names: parameters of which the update holds a gradient.
        gradients: observed, in the order of `names`, float32.
        is_scaled: whether their factor is one.
        model: the global model, in the mode in which the client is taken to train.
    """

    names: Sequence[str]
    gradients: Gradients
    is_scaled: bool
    model: nn.Module


class Candidate(NamedTuple):
    """Pictures under way; every field is differentiable in them.

    Args:
        images: normalized.
        pixels: in [0, 1].
        gradients: what the pictures would have caused, in the order of `Target.names`.
    """

    images: Images
    pixels: Images
    gradients: Gradients


class Term(NamedTuple):
    """One summand of an objective; not computed where its weight is zero."""

    weight: float
    value: Callable[[Candidate], Scalar]


def gradient_distance(target: Target, name: str) -> Term:
    """Return the distance, by its name in `DISTANCES`, of a candidate's gradient from the target's, with weight one.

    Raises:
        AttackRefusedError: the distance compares lengths, and the target's is unknown.
    """
    if name == "l2" and not target.is_scaled:
        raise AttackRefusedError("the scale of this delta is unknown without `training`; use distance: cosine.")
    return Term(1.0, lambda candidate: DISTANCES[name](candidate.gradients, target.gradients))


class _Run(NamedTuple):
    losses: list[float]
    step: int
    images: Images


_Objective = Callable[[Images], Tensor]


@dataclass(frozen=True, kw_only=True)
class Descent(Attack):
    """An attack that descends on pictures; a subclass says on which objective.

    Args:
        steps: of Adam, each restart.
        learning_rate: of Adam, in normalized units.
        schedule: `step`, a tenth after 3/8, 5/8 and 7/8 of the steps; `cosine`, down to zero.
        signed: whether Adam sees the sign of the slope alone.
        total_variation: weight of the mean absolute difference of neighboring pixels.
        restarts: independent starts; the one of least objective wins.
        initial_scale: standard deviation of the start around grey, in normalized units.
        row_space: weight of the mean square of what lies outside the span of the client's patches.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size", "normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images", "labels"})
    stream: ClassVar[str]  # of random numbers that the model draws

    steps: int = 400
    learning_rate: float = 0.1
    schedule: Literal["step", "cosine"] = "step"
    signed: bool = True
    total_variation: float = 0.1
    restarts: int = 1
    initial_scale: float = 0.5
    row_space: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("restarts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate}.")
        for name in ("total_variation", "initial_scale", "row_space"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}.")

    @abstractmethod
    def terms(self, target: Target) -> tuple[Term, ...]:
        """Return the objective's terms beside `total_variation`, which comes after them.

        Raises:
            AttackRefusedError: the target lacks what a term reads.
        """

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Match the gradient; draws the labels' reference pictures, the starts, and dropout in training mode."""
        normalization = observation.normalization
        if normalization is None:
            raise AttackRefusedError("normalization is not granted; pictures are optimized in normalized units.")
        labels, cautions = _labels(observation, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        with unfused_attention(model := observation.model()), seeded(seed, self.stream):
            model.train(bool(observation.train_mode))
            target = _target(observation, model)
            objective = self._objective(target, normalization, labels, self._span(observation))
            shape, box = (len(labels), *observation.image_shape), _box(observation.image_shape, normalization)
            runs = [self._descend(objective, shape, box, generator) for _ in range(self.restarts)]
        best = min(runs, key=lambda run: run.losses[run.step])
        trace = {
            "loss": best.losses[best.step],
            "step": best.step,
            "restart": runs.index(best),
            "curves": [run.losses[:: max(1, len(run.losses) // _CURVE_POINTS)] for run in runs],
        }
        images = normalization.denormalize(best.images).clamp(0, 1)
        return assess(Finding(images=images, labels=labels, trace=trace, cautions=cautions), observation)

    def _span(self, observation: Observation) -> tuple[Term, ...]:
        if not self.row_space:
            return ()
        space = RowSpace.of(observation)
        if not space.is_informative:
            raise AttackRefusedError(
                f"row_space: this update holds {space.patches} patches or more, and the gradient of the patch projection "
                f"can show {space.limit} directions, so none is left to penalize. Set it to 0."
            )
        return (Term(self.row_space, lambda candidate: space.penalty(candidate.images)),)

    def _objective(
        self, target: Target, normalization: Normalization, labels: Labels, span: tuple[Term, ...]
    ) -> _Objective:
        smooth = Term(self.total_variation, lambda candidate: total_variation(candidate.pixels))
        terms = [term for term in (*self.terms(target), smooth, *span) if term.weight]
        known = dict(target.model.named_parameters())
        parameters = [known[name] for name in target.names]

        def objective(images: Images) -> Tensor:
            gradients = loss_gradient(target.model, parameters, images, labels)
            candidate = Candidate(images, normalization.denormalize(images), gradients)
            return torch.stack([term.weight * term.value(candidate) for term in terms]).sum()

        return objective

    def _descend(
        self, objective: _Objective, shape: tuple[int, ...], box: tuple[Tensor, Tensor], generator: torch.Generator
    ) -> _Run:
        """Return the best iterate of one start; the last step evaluates alone."""
        low, high = box
        start = (low + high) / 2 + self.initial_scale * torch.randn(shape, generator=generator)
        images = nn.Parameter(start.clamp(low, high))
        optimizer = torch.optim.Adam([images], lr=self.learning_rate)
        losses, best, found = [], 0, images.detach().clone()
        for step in range(self.steps + 1):
            loss = objective(images)
            losses.append(float(loss.detach()))
            if losses[step] < losses[best]:
                best, found = step, images.detach().clone()
            if step == self.steps:
                break
            (slope,) = torch.autograd.grad(loss, images)
            images.grad = slope.sign() if self.signed else slope
            optimizer.param_groups[0]["lr"] = self.learning_rate * self._decay(step / self.steps)
            optimizer.step()
            with torch.no_grad():
                images.clamp_(low, high)
        return _Run(losses, best, found)

    def _decay(self, progress: float) -> float:
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 0.1 ** sum(progress >= drop for drop in _DROPS)


def _labels(observation: Observation, generator: torch.Generator) -> tuple[Labels, tuple[str, ...]]:
    """Return the granted labels, or counted ones with their cautions."""
    cautions = []
    if observation.update.kind == "delta" and local_steps(observation) != 1:
        cautions.append("This delta may hold several local steps; it is matched as one gradient.")
    if observation.labels is not None:
        return observation.labels, tuple(cautions)
    counted = count_labels(observation, _REFERENCES, generator)
    return counted.labels, (*cautions, *counted.cautions)


def _box(shape: tuple[int, int, int], normalization: Normalization) -> tuple[Tensor, Tensor]:
    return normalization.normalize(torch.zeros(1, *shape)), normalization.normalize(torch.ones(1, *shape))


def _target(observation: Observation, model: nn.Module) -> Target:
    """Return the parameters of which the update holds a gradient; one of zeros is of a part that took no part."""
    gradient = mean_gradient(observation, observation.update.tensors)
    names = [n for n, _ in model.named_parameters() if n in gradient.tensors and gradient.tensors[n].any()]
    if not names:
        raise AttackRefusedError("the update holds no gradient of any parameter of the model.")
    return Target(names, [gradient.tensors[name].float() for name in names], gradient.is_scaled, model)
