"""Gradient matching: pictures whose gradient points where the client's does. The plain optimization baseline.

Paper: Geiping, Bauermeister, Droege, Moeller. "Inverting Gradients: How Easy Is It to Break Privacy in Federated
Learning?". NeurIPS 2020. https://arxiv.org/abs/2003.14053; with `distance: l2`, Zhu, Liu, Han. "Deep Leakage from
Gradients". NeurIPS 2019. https://arxiv.org/abs/1906.08935

Idea: minimize D(g(x, y), g) + total_variation * TV(x) over the pictures x, with g(x, y) the gradient of the mean
cross-entropy, D one minus the cosine (or the squared l2 distance over the squared norm of g), TV the mean absolute
difference of neighboring pixels; Adam on the sign of the slope, pictures kept in the range of pixels. The restart and
iterate of least objective wins.

Differs from the paper: labels are counted by `label_count` where they are not granted; DLG optimizes them, by L-BFGS. TV is
a mean over pixels in [0, 1]. A delta of several local steps is matched as if it were one gradient.

Needs: grants `batch_size`, `normalization`; second derivatives of the model, for which fused attention is switched off
on this attack's instance. Uses `labels`, `train_mode` and `training` where granted. Cost: two backward passes a step,
through a graph of the gradient; on a ViT of many patches expect the mean color at best, whatever the objective reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedsim.attack import Attack, Need, Recovers
from fedsim.errors import AttackRefusedError
from fedsim.exchange import Finding, Images, Labels, Normalization, Observation
from fedsim.models import unfused_attention
from fedsim.seeds import seeded
from fedsim_attacks._gradient import local_steps, mean_gradient
from fedsim_attacks._labels import count_labels
from fedsim_attacks._matching import DISTANCES, loss_gradient
from fedsim_attacks._priors import total_variation

_REFERENCES = 64
_CURVE_POINTS = 50
_DROPS = (3 / 8, 5 / 8, 7 / 8)  # Geiping et al., appendix: learning rate times 0.1 at each


Objective = Callable[[Images], Tensor]


class _Run(NamedTuple):
    losses: list[float]
    step: int
    images: Images


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Attack):
    """Optimize pictures until their gradient matches the observed one.

    Args:
        distance: `cosine` (Inverting Gradients) or `l2` (Deep Leakage from Gradients).
        steps: of Adam, each restart.
        learning_rate: of Adam, in normalized units.
        schedule: `step`, a tenth after 3/8, 5/8 and 7/8 of the steps; `cosine`, down to zero.
        signed: whether Adam sees the sign of the slope alone.
        total_variation: weight of the mean absolute difference of neighboring pixels.
        restarts: independent starts; the one of least objective wins.
        initial_scale: standard deviation of the start around grey, in normalized units.
    """

    citation: ClassVar[str] = (
        "Geiping et al. Inverting Gradients: How Easy Is It to Break Privacy in Federated Learning? NeurIPS 2020. "
        "https://arxiv.org/abs/2003.14053"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"batch_size", "normalization"})
    recovers: ClassVar[frozenset[Recovers]] = frozenset({"images", "labels"})

    distance: Literal["cosine", "l2"] = "cosine"
    steps: int = 400
    learning_rate: float = 0.1
    schedule: Literal["step", "cosine"] = "step"
    signed: bool = True
    total_variation: float = 0.1
    restarts: int = 1
    initial_scale: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("restarts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate}.")
        for name in ("total_variation", "initial_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}.")

    def run(self, observation: Observation, generator: torch.Generator) -> Finding:
        """Match the gradient; draws the labels' reference pictures, the starts, and dropout in training mode."""
        normalization = observation.normalization
        if normalization is None:
            raise AttackRefusedError("normalization is not granted; pictures are optimized in normalized units.")
        labels, cautions = _labels(observation, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        with unfused_attention(model := observation.model()), seeded(seed, "gradient_matching"):
            model.train(bool(observation.train_mode))
            objective = self._objective(observation, normalization, model, labels)
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
        return Finding(images=images, labels=labels, trace=trace, cautions=cautions)

    def _objective(
        self, observation: Observation, normalization: Normalization, model: nn.Module, labels: Labels
    ) -> Objective:
        gradient = mean_gradient(observation, observation.update.tensors)
        if self.distance == "l2" and not gradient.is_scaled:
            raise AttackRefusedError("the scale of this delta is unknown without `training`; use distance: cosine.")
        names, parameters = _shared(model, gradient.tensors)
        observed = [gradient.tensors[name].float() for name in names]
        distance = DISTANCES[self.distance]

        def objective(images: Images) -> Tensor:
            found = loss_gradient(model, parameters, images, labels)
            roughness = total_variation(normalization.denormalize(images))
            return distance(found, observed) + self.total_variation * roughness

        return objective

    def _descend(
        self, objective: Objective, shape: tuple[int, ...], box: tuple[Tensor, Tensor], generator: torch.Generator
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


def _shared(model: nn.Module, observed: Mapping[str, Tensor]) -> tuple[list[str], list[nn.Parameter]]:
    """Return the parameters of which the update holds a gradient; one of zeros is of a part that took no part."""
    chosen = {name: p for name, p in model.named_parameters() if name in observed and observed[name].any()}
    if not chosen:
        raise AttackRefusedError("the update holds no gradient of any parameter of the model.")
    return list(chosen), list(chosen.values())
